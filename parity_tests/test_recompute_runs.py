"""Models and runs that recompute: the bits of those that do not, in a third of the memory."""

import tracemalloc
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
from small_runs import begin, end_of, go_on, prepared, small_config

import nplm
from nplm.backend import threads
from nplm.data.loader import Batch, Window
from nplm.models import Decoder, preset
from nplm.parity.tolerances import ESTIMATE, EXACT, assert_close
from nplm.train import accumulate, report, shards

torch = pytest.importorskip("torch", reason="the second namespace is PyTorch: pip install torch")
pytestmark = pytest.mark.model

DEVICES = ["cpu", "torch:cpu"]
FAMILIES = {"gpt2": {}, "tiny-llama": {"n_kv_head": 2}}


@pytest.fixture(autouse=True)
def threads_are_put_back(monkeypatch):
    monkeypatch.setattr(shards, "WORTHWHILE", 0)  # divide the smallest models too
    before = threads.get_num_threads()
    yield
    threads.set_num_threads(before)


# ---- the decoder ---------------------------------------------------------------------------------
def model_of(name, device="cpu", **changes):
    small = {"vocab_size": 50, "context": 16, "n_layer": 3, "n_head": 4, "n_embd": 32}
    nplm.manual_seed(1)
    return Decoder(preset(name, **small | {"n_hidden": 48} | FAMILIES[name] | changes)).to(device)


def window_outcome(model, recompute, rows=6, autocast=False):
    """(loss, gradients, the random stream) of a window of two micro-batches."""
    rng = np.random.default_rng(0)
    shape = (2, rows, model.config.context)
    window = Window([Batch(*rng.integers(0, 50, shape)), Batch(*rng.integers(0, 50, shape))])
    model.recompute = recompute
    model.zero_grad()
    nplm.manual_seed(2)
    with nplm.autocast("torch:cpu") if autocast else nullcontext():
        loss = float(accumulate(window, model).loss)
    gradients = {name: np.array(p.grad.numpy()) for name, p in model.named_parameters()}
    return loss, gradients, nplm.random.default_generator.to_torch_state()


def assert_same_bits(one, two):
    assert one[0] == two[0]
    for name in two[1]:
        assert_close(one[1][name], two[1][name], EXACT, name)
    np.testing.assert_array_equal(one[2], two[2])


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("device", "n"), [("cpu", 1), ("cpu", 2), ("cpu", 3), ("torch:cpu", 1)])
def test_a_decoder_that_recomputes_has_the_same_bits(device, n, name, dropout, reference):
    threads.set_num_threads(n)
    model = model_of(name, device, dropout=dropout)
    with nplm.reference() if reference else nullcontext():
        assert_same_bits(window_outcome(model, True), window_outcome(model, False))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_decoder_with_a_large_head_recomputes_on_other_calls_of_its_shards(monkeypatch, dropout):
    for where in (shards, nplm.autograd.sinks):
        monkeypatch.setattr(where, "LARGE_TABLE", 4)
    threads.set_num_threads(2)
    model = model_of("gpt2", dropout=dropout)
    assert_same_bits(window_outcome(model, True), window_outcome(model, False))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_decoder_in_bfloat16_recomputes_to_the_same_bits(name):
    model = model_of(name, "torch:cpu")
    with_it, without = (window_outcome(model, recompute, autocast=True) for recompute in (1, 0))
    assert_same_bits(with_it, without)
    assert without[0] != window_outcome(model, False)[0]


def test_blocks_run_twice_and_the_rest_of_the_model_once():
    model, calls = model_of("gpt2"), []
    for module in [*model.blocks, model.norm]:
        forward = module.forward
        module.forward = lambda x, f=forward: calls.append(type(f.__self__).__name__) or f(x)
    window_outcome(model, True)
    assert (calls.count("Block"), calls.count("LayerNorm")) == (2 * 2 * 3, 2)


# ---- memory --------------------------------------------------------------------------------------
class LiveBytes(torch.utils._python_dispatch.TorchDispatchMode):
    """Bytes of the storages that ops have made and nobody has dropped yet; `peak`, the most."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self.dropped, storage._cdata)
        return result

    def dropped(self, key):
        self.now -= self.alive.pop(key, 0)


def peak_bytes(model, recompute, rows=4):
    """The most that a window has at once, beside weights and gradients."""
    model.recompute = recompute
    shape = (2, rows, model.config.context)
    window = [Batch(*np.random.default_rng(0).integers(0, 50, shape))]
    accumulate(window, model)  # the gradients' buffers exist from here on
    model.zero_grad()
    if next(model.parameters()).xp.name == "torch":
        with LiveBytes() as live:
            accumulate(window, model)
        return live.peak - sum(p.numel() * p.dtype.itemsize for p in model.parameters())
    tracemalloc.start()
    try:
        accumulate(window, model)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("device", DEVICES)
def test_the_activations_of_12_layers_take_less_than_a_third(device, name, dropout):
    threads.set_num_threads(1)
    sizes = {"n_layer": 12, "n_embd": 64, "n_hidden": 256, "context": 64, "dropout": dropout}
    model = model_of(name, device, **sizes)
    without, with_it = peak_bytes(model, False), peak_bytes(model, True)
    assert 3 * with_it <= without, (with_it, without)


@pytest.mark.parametrize(
    "changes",
    [{}, {"n_layer": 12}, {"vocab_size": 2000}, {"dropout": 0.2}, {"dropout": 0.0}],
    ids=str,
)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_plan_counts_what_is_kept(name, changes):
    threads.set_num_threads(1)
    hidden = {"gpt2": 512, "tiny-llama": 344}[name]
    model = model_of(name, **{"n_embd": 128, "n_hidden": hidden, "context": 64} | changes)
    peak = peak_bytes(model, True)
    estimate = report.activation_bytes(model.config, 4, itemsize=4, recompute=True)
    assert_close(float(estimate), float(peak), ESTIMATE, "bytes")


# ---- a run ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("device", DEVICES)
def test_a_run_that_recomputes_is_the_run_that_does_not_also_resumed(tmp_path, device):
    ends = []
    for name, recompute, stop_at in (
        ("plain", False, None), ("whole", True, None), ("parted", True, 7),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        config = small_config(tmp_path / name, recompute=recompute, device=device)
        folder = begin(config, stop_at).folder
        if stop_at is not None:
            go_on(folder)
        assert folder.info()["config"]["recompute"] is recompute
        assert prepared(folder).model.recompute is recompute
        ends.append(end_of(folder))
    assert ends[1] == ends[0]
    assert ends[2] == ends[0]
