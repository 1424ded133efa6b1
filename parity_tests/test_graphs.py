"""What CUDA graphs read and write, without a card: memory that stays, and what may be recorded."""

import gc
import weakref

import pytest

torch = pytest.importorskip("torch", reason="graphs are torch's: pip install torch")

from test_capture import (  # noqa: E402, F401
    GRADIENT,
    LOSS,
    LOW,
    apart,
    gradients,
    model_of,
    no_warning_unseen,
    window,
)

import nplm  # noqa: E402
from nplm.backend import capture as compiler  # noqa: E402
from nplm.backend.torch_kernels.precision import copies  # noqa: E402
from nplm.data.loader import Batch, Window  # noqa: E402
from nplm.errors import BackendError  # noqa: E402
from nplm.optim import AdamW  # noqa: E402
from nplm.train import accumulate, capturing, shards  # noqa: E402
from nplm.train.graphs import Graphs, RecordedAdam  # noqa: E402


@pytest.mark.parametrize("low", [False, True])
def test_a_window_through_fixed_memory_has_the_gradients_of_the_window(low):
    """`record` gives the function itself here: the addresses are what is tested."""
    model, batches = model_of("gpt2"), window(3)
    parameters = list(model.parameters())
    with nplm.autocast("torch:cpu", enabled=low):
        loss, expected = gradients(model, batches)
        shares = [1 / batches.n_targets] * 3
        graphs = Graphs(lambda ids, t: model.loss(model.features(ids), t), lambda f, _: f)
        addresses = set()
        for _ in range(3):
            model.zero_grad()
            assert graphs.takes(batches, parameters)
            found = graphs.accumulate(batches, shares, parameters)
            assert float(found) == pytest.approx(loss, rel=LOSS.rtol)
            for name, p in model.named_parameters():
                assert apart(p.grad.array, expected[name]) <= (LOW if low else GRADIENT).atol, name
            addresses.add(tuple(p.grad.array.data_ptr() for p in parameters))
        assert len(addresses) == 1
        with nplm.no_grad():  # an update in place is seen by the next window, its copies too
            for p in parameters:
                p.array.mul_(1.5)
        changed, _ = gradients(model, batches)
        model.zero_grad()
        again = float(graphs.accumulate(batches, shares, parameters))
        assert again == pytest.approx(changed, rel=1e-3 if low else LOSS.rtol)
        assert abs(again - loss) > 1e-2 * loss


def test_a_window_of_several_shapes_or_with_watched_gradients_is_not_recorded():
    model = model_of("gpt2")
    parameters, batches = list(model.parameters()), window(2)
    graphs = Graphs(lambda ids, t: model.loss(model.features(ids), t), lambda f, _: f)
    short = Batch(batches[0].inputs[:1], batches[0].targets[:1])
    assert not graphs.takes(Window([batches[0], short]), parameters)
    parameters[0].grad = nplm.zeros(parameters[0].shape).to("torch:cpu")
    assert not graphs.takes(batches, parameters)
    parameters[0].grad = None
    assert graphs.takes(batches, parameters)
    parameters[0].register_post_accumulate_grad_hook(lambda p: None)
    assert not graphs.takes(batches, parameters)


def test_on_torch_a_gradient_that_is_there_is_added_to_and_one_that_is_watched_is_told(monkeypatch):
    model, batches, told = model_of("gpt2"), window(2), []
    loss, expected = gradients(model, batches)
    model.zero_grad()
    monkeypatch.setattr(shards, "WORTHWHILE", 0)  # by torch_steps.py, what a large model is worth
    filled, watched = model.blocks[0].mlp.proj.weight, model.blocks[1].mlp.proj.weight
    filled.grad = nplm.ones(filled.shape).to("torch:cpu")
    watched.register_post_accumulate_grad_hook(told.append)
    assert float(accumulate(batches, model).loss) == pytest.approx(loss, rel=LOSS.rtol)
    assert told
    assert all(p is watched for p in told)
    expected["blocks.0.mlp.proj.weight"] += 1.0
    for name, p in model.named_parameters():
        assert apart(p.grad.array, expected[name]) <= GRADIENT.atol, name


@pytest.mark.parametrize("change", ["autocast", "freeze", "move"])
def test_what_a_graph_holds_for_good_is_recorded_anew_when_it_changes(change):
    """Kernels in bfloat16, gradients that are wanted, and addresses; `record` only counts here."""
    model, batches, recorded = model_of("gpt2"), window(1), []
    weight, every = model.blocks[0].mlp.proj.weight, list(model.parameters())
    graphs = Graphs(
        lambda ids, t: model.loss(model.features(ids), t), lambda f, _: recorded.append(f) or f
    )
    graphs.accumulate(batches, [1.0], every)
    if change == "freeze":
        weight.requires_grad = False
    elif change == "move":
        weight.array = weight.array.clone()
    model.zero_grad()
    with nplm.autocast("torch:cpu", enabled=change == "autocast"):
        for _ in range(2):
            graphs.accumulate(batches, [1.0], every)
    assert len(recorded) == 4  # emptying and running, twice
    assert (weight.grad is None) == (change == "freeze")


def test_the_loss_of_a_window_outlives_the_next_window():
    model = model_of("gpt2")
    graphs = Graphs(lambda ids, t: model.loss(model.features(ids), t), lambda f, _: f)
    every = list(model.parameters())
    first = graphs.accumulate(window(1, seed=0), [1.0], every)
    before = float(first)
    assert float(graphs.accumulate(window(1, seed=1), [1.0], every)) != before
    assert float(first) == before


def test_an_update_through_fixed_memory_is_the_update_and_a_new_rate_records_nothing():
    """`record` gives the function itself here, and counts."""
    recorded = []

    def record(function, device, warm_ups):
        assert warm_ups == 0  # it would be an update more
        recorded.append(device)
        return function

    models = [model_of("gpt2") for _ in range(2)]
    optimizers = [AdamW(m.parameters(), lr=1e-3, weight_decay=0.1) for m in models]
    optimizers[1].update_group = RecordedAdam(optimizers[1], record, pytest.fail)
    for p in [p for m in models for p in m.parameters()]:
        p.grad = nplm.zeros(p.shape).to("torch:cpu")  # graphs keep gradients where they are
    for step in range(6):
        for model, optimizer in zip(models, optimizers):
            torch.manual_seed(step)
            for p in model.parameters():
                p.grad.array.normal_()
            optimizer.param_groups[0]["lr"] = 1e-3 / (1 + step)
            optimizer.param_groups[0]["weight_decay"] = 0.1 if step < 4 else 0.0
            optimizer.step()
    assert len(recorded) == 2  # once it is met again, and once more for the other weight decay
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters()):
        assert apart(q.array, p.array) <= 1e-6, name  # the rate is float32 there
        assert optimizers[1].state[q]["step"].item() == 6


def test_an_update_that_cannot_be_recorded_is_made_all_the_same():
    models = [model_of("gpt2") for _ in range(2)]
    optimizers = [AdamW(m.parameters(), lr=1e-3) for m in models]
    capturing.capture(models[1], "graph", optimizers[1])
    with pytest.warns(UserWarning, match="capture: graph falls back to region"):
        capturing.accumulate_in_graphs(models[1], window(1), [1.0], list(models[1].parameters()))
    capturing.capture(models[1], "off")
    for model, optimizer in zip(models, optimizers):
        gradients(model, window(1))
        optimizer.step()
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters()):
        assert torch.equal(q.array, p.array), name


def updates_of_a_layer(record, tell, n=3):
    """A layer's weights after `n` updates of AdamW, which `record` is asked to record."""
    nplm.manual_seed(0)
    layer = nplm.nn.Linear(3, 2, device="torch:cpu")
    optimizer = AdamW(layer.parameters(), lr=0.1)
    optimizer.update_group = RecordedAdam(optimizer, lambda *a, **k: record(layer, *a), tell)
    for p in layer.parameters():
        p.grad = nplm.ones(p.shape).to("torch:cpu")
    for _ in range(n):
        optimizer.step()
        for p in layer.parameters():
            assert torch.equal(copies.of(p.array), p.array.bfloat16())
    return optimizer, [p.array.clone() for p in layer.parameters()]


def test_an_update_that_refuses_to_be_recorded_says_so_once_and_is_made_by_hand():
    def refuse(*_):
        raise BackendError("no graphs today")

    told = []
    optimizer, refused = updates_of_a_layer(refuse, told.append)
    assert told == ["the update is not recorded: no graphs today"]
    assert "update_group" not in vars(optimizer)
    _, expected = updates_of_a_layer(lambda layer, f, _: f, pytest.fail)
    for a, b in zip(refused, expected, strict=True):
        assert apart(a, b) <= 1e-6


def test_copies_of_weights_are_made_anew_after_a_replayed_update():
    """A replay writes and torch does not count it: here its counters are put back."""
    replayed = []

    def record(layer, function, device):
        def replay():
            replayed.append(1)
            with torch.autograd._unsafe_preserve_version_counter(
                tuple(p.array for p in layer.parameters())
            ):
                function()

        return replay

    updates_of_a_layer(record, pytest.fail)
    assert len(replayed) == 2  # from the second step on


def test_a_changed_setting_is_recorded_anew_and_the_reference_replays_nothing(monkeypatch):
    recorded, replayed = [], []

    def record(function, device):
        recorded.append(function)
        return lambda: (replayed.append(1), function())

    monkeypatch.setattr(compiler, "record", record)
    monkeypatch.setattr(capturing._Captured, "_usable", lambda self: False)  # op by op inside
    model, batches = model_of("gpt2"), window(1)
    capturing.capture(model, "graph")
    loss = gradients(model, batches)[0]
    assert len(recorded) == len(replayed) == 2  # what empties the gradients, and a micro-batch
    for block in model.blocks:
        block.norm1.eps = 0.5
    assert gradients(model, batches)[0] != loss
    assert len(recorded) == len(replayed) == 4
    with nplm.reference():
        gradients(model, batches)
    assert len(recorded) == len(replayed) == 4
    assert capturing.level(model) == "graph"


def test_gradients_that_are_elsewhere_at_every_step_are_not_recorded():
    model = model_of("gpt2")
    optimizer = AdamW(model.parameters(), lr=1e-3)
    optimizer.update_group = RecordedAdam(optimizer, pytest.fail, pytest.fail)
    kept = []  # so that no address comes again
    for _ in range(5):
        for p in model.parameters():
            p.grad = nplm.Tensor(torch.randn(p.shape))
            kept.append(p.grad)
        optimizer.step()


def test_a_model_with_graphs_is_freed_and_its_optimizer_updates_by_hand_again():
    model = model_of("gpt2")
    optimizer = AdamW(model.parameters(), lr=1e-3)
    capturing.capture(model, "graph", optimizer)
    assert "update_group" in vars(optimizer)
    with pytest.warns(UserWarning, match="CUDA"):
        gradients(model, window(1))
    assert "update_group" not in vars(optimizer)
    reference = weakref.ref(model)
    del model, optimizer
    gc.collect()
    assert reference() is None


def test_a_frozen_weight_that_changes_is_read_anew_through_fixed_memory():
    model, batches = model_of("gpt2"), window(1)
    frozen = model.blocks[0].mlp.proj.weight
    frozen.requires_grad = False
    graphs = Graphs(lambda ids, t: model.loss(model.features(ids), t), lambda f, _: f)
    shares, every = [1 / batches.n_targets], list(model.parameters())
    with nplm.autocast("torch:cpu"):
        before = float(graphs.accumulate(batches, shares, every))
        frozen.array.mul_(30.0)
        model.zero_grad()
        after = float(graphs.accumulate(batches, shares, every))
        model.zero_grad()
        assert after == pytest.approx(gradients(model, batches)[0], rel=1e-3)
    assert abs(after - before) > 1e-2
    assert frozen.grad is None
