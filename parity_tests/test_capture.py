"""Blocks and heads compiled as pairs: equal to single ops, compiled once, never in silence."""

import copy
import shutil
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="what is captured runs on torch: pip install torch")

import nplm  # noqa: E402
from nplm.backend import capture as compiler  # noqa: E402
from nplm.data.loader import Batch, Window  # noqa: E402
from nplm.errors import ConfigError  # noqa: E402
from nplm.models import Decoder, preset  # noqa: E402
from nplm.optim import AdamW  # noqa: E402
from nplm.optim.lr_scheduler import StepLR  # noqa: E402
from nplm.parity.tolerances import Tolerance  # noqa: E402
from nplm.train import accumulate, capturing, train_step  # noqa: E402

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")),
    reason="Inductor compiles C++ on the CPU: install g++",
)
FAMILIES = ("gpt2", "tiny-llama")
B, T, V = 2, 16, 65

LOSS = Tolerance(1e-6, 0.0, "float32: the same sums in another order, and exp by another library")
GRADIENT = Tolerance(
    0.0, 5e-6, "float32, norm of the difference over the tensor's own: fused kernels keep sums in "
    "registers and order them differently; 5e-7 was measured, a lost term is 1e-2 or more"
)  # fmt: skip
# After 20 updates of AdamW: rounding of a gradient near zero becomes whole steps of lr there.
DRIFT = Tolerance(0.0, 2e-3, "20 updates at lr 1e-3, as a share of the tensor's norm")
LOW = Tolerance(
    0.0, 0.06, "bfloat16 keeps 8 bits: two orders of rounding of a gradient are up to 2 % of its "
    "norm apart on these models; a lost term is 30 % or more"
)  # fmt: skip


def model_of(family, seed=0, **changes):
    nplm.manual_seed(seed)
    sizes = {"n_layer": 3, "n_head": 4, "n_embd": 32, "context": T, "vocab_size": V, "dropout": 0.0}
    return Decoder(preset(family, **(sizes | changes))).to("torch:cpu")


def window(k=2, seed=0):
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(0, V, (B, T + 1)) for _ in range(k)]
    return Window([Batch(ids[:, :-1], ids[:, 1:]) for ids in drawn])


def gradients(model, batches):
    model.zero_grad()
    loss = float(accumulate(batches, model).loss)
    return loss, {
        n: p.grad.array.clone() for n, p in model.named_parameters() if p.grad is not None
    }


def apart(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture
def counted(monkeypatch):
    """How often something was compiled."""
    calls, real = [], compiler.compile_pair

    def compile_pair(body, arrays, recompute=False):
        calls.append([tuple(x.shape) for x in arrays])
        return real(body, arrays, recompute)

    monkeypatch.setattr(compiler, "compile_pair", compile_pair)
    return calls


@pytest.fixture
def uncompiled(monkeypatch):
    """Pairs that run their bodies op by op, made in no time; the list says which recompute."""
    asked = []

    def compile_pair(body, arrays, recompute=False):
        asked.append(recompute)

        def forward(arrays):
            value, backward = body(*arrays)
            return value, [backward]

        return SimpleNamespace(note="", forward=forward, backward=lambda saved, dy: saved.pop()(dy))

    monkeypatch.setattr(compiler, "compile_pair", compile_pair)
    return asked


@pytest.fixture(autouse=True)
def no_warning_unseen():
    """A level that falls back says so: in these tests that is a failure, unless it is expected."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="capture:")
        yield


# ---- regions -------------------------------------------------------------------------------------
@needs_compiler
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_blocks_have_the_gradients_of_single_ops_and_are_compiled_once(family, counted):
    model, batches = model_of(family), window()
    loss, expected = gradients(model, batches)
    capturing.capture(model, "region")
    for _ in range(2):
        captured, found = gradients(model, batches)
        assert captured == pytest.approx(loss, rel=LOSS.rtol)
        for name, gradient in expected.items():
            assert apart(found[name], gradient) <= GRADIENT.atol, name
    assert capturing.level(model) == "region"
    assert len(counted) == 2  # a block for all layers, micro-batches and windows, and the head


@needs_compiler
@pytest.mark.parametrize("family", FAMILIES)
def test_twenty_updates_by_regions_stay_with_single_ops_and_new_rates_compile_nothing(
    family, counted
):
    models = [model_of(family) for _ in range(2)]
    capturing.capture(models[1], "region")
    optimizers = [AdamW(m.parameters(), lr=1e-3, weight_decay=0.1) for m in models]
    schedulers = [StepLR(o, 4, 0.5) for o in optimizers]
    for step in range(20):
        losses = []
        for model, optimizer, scheduler in zip(models, optimizers, schedulers):
            if step == 10:
                optimizer.param_groups[0]["weight_decay"] = 0.01
                optimizer.param_groups[0]["betas"] = (0.8, 0.9)
            losses.append(float(train_step(model, optimizer, window(2, step), clip_norm=1.0).loss))
            scheduler.step()
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert len(counted) == 2
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters()):
        assert apart(q.array, p.array) <= DRIFT.atol, name


@needs_compiler
def test_under_autocast_regions_read_the_kept_copies_and_gradients_are_float32(counted):
    model, batches = model_of("gpt2"), window()
    _, exact = gradients(model, batches)
    with nplm.autocast("torch:cpu"):
        _, eager = gradients(model, batches)
        capturing.capture(model, "region")
        _, found = gradients(model, batches)
    for name, gradient in exact.items():
        assert found[name].dtype == torch.float32
        assert apart(eager[name], gradient) <= LOW.atol, name
        assert apart(found[name], gradient) <= LOW.atol, name
    matrices = sum(p.ndim > 1 for p in model.blocks[0].parameters())
    n_inputs = 1 + len(list(model.blocks[0].parameters()))
    assert len(counted[0]) == n_inputs + matrices  # copies are inputs: nothing is cast in a block


@needs_compiler
def test_a_frozen_weight_gets_no_gradient_from_a_region():
    model, batches = model_of("gpt2"), window(1)
    model.blocks[0].mlp.proj.weight.requires_grad = False  # the others may not share its pair
    _, expected = gradients(model, batches)
    capturing.capture(model, "region")
    _, found = gradients(model, batches)
    assert found.keys() == expected.keys()
    assert "blocks.0.mlp.proj.weight" not in found
    for name, gradient in expected.items():
        assert apart(found[name], gradient) <= GRADIENT.atol, name


@needs_compiler
def test_a_region_that_recomputes_saves_its_inputs_only_and_has_the_same_gradients():
    x, w = torch.randn(8, 16), torch.randn(16, 16)

    def body(x, w):
        h = torch.tanh(x @ w)
        y = torch.tanh(h @ w)

        def backward(dy):
            d2 = dy * (1 - y * y)
            d1 = (d2 @ w.T) * (1 - h * h)
            return d1 @ w.T, x.T @ d1 + h.T @ d2

        return y, backward

    value, backward = body(x, w)
    expected = backward(torch.ones(8, 16))
    for recompute in (False, True):
        pair = compiler.compile_pair(body, [x, w], recompute)
        y, saved = pair.forward([x, w])
        held = {tuple(s.shape) for s in saved if s.data_ptr() not in (x.data_ptr(), w.data_ptr())}
        assert bool(held) is not recompute
        for ours, theirs in zip(pair.backward(saved, torch.ones(16, 8).T), expected):
            assert apart(ours, theirs) <= GRADIENT.atol
        assert saved == []
        assert apart(y, value) <= GRADIENT.atol


@needs_compiler
def test_a_captured_model_that_recomputes_compiles_it_and_has_the_same_gradients(counted):
    model, batches = model_of("gpt2"), window(1)
    _, expected = gradients(model, batches)
    model.recompute = True
    capturing.capture(model, "region")
    _, found = gradients(model, batches)
    for name, gradient in expected.items():
        assert apart(found[name], gradient) <= GRADIENT.atol, name
    assert len(counted) == 2  # one that recomputes for all blocks, and the head


@needs_compiler
def test_a_write_in_place_inside_a_backward_does_not_spoil_the_gradients():
    """Not made functional before the cut, such a pair gives NaN beside a right value."""
    x, w = torch.randn(6, 8), torch.randn(8, 8)

    def body(x, w):
        h = x @ w
        e = torch.exp(h - h.amax(-1, keepdim=True))
        p = e / e.sum(-1, keepdim=True)

        def backward(dy):
            buffer = torch.empty_like(p)
            buffer[:, :4].copy_(p[:, :4])
            buffer[:, 4:].copy_(p[:, 4:])
            dh = buffer.mul_(dy)
            dh -= p * dh.sum(-1, keepdim=True)
            return dh @ w.T, x.T @ dh

        return p, backward

    dy = torch.randn(6, 8)
    expected = body(x, w)[1](dy)
    pair = compiler.compile_pair(body, [x, w])
    _, saved = pair.forward([x, w])
    for ours, theirs in zip(pair.backward(saved, dy), expected):
        assert apart(ours, theirs) <= GRADIENT.atol


@needs_compiler
def test_nothing_that_a_captured_step_leaves_behind_has_a_grad_fn():
    model = model_of("gpt2")
    capturing.capture(model, "region")
    optimizer = AdamW(model.parameters(), lr=1e-3)
    record = train_step(model, optimizer, window(), clip_norm=1.0)
    left = [record.loss, record.grad_norm, *model.parameters()]
    left += [p.grad for p in model.parameters()]
    left += [t for state in optimizer.state.values() for t in state.values()]
    for tensor in left:
        if isinstance(tensor.array, torch.Tensor):
            assert tensor.array.grad_fn is None
            assert not tensor.array.requires_grad


# ---- which pair ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "anew"),
    [
        ("dtype", [False, False]),
        ("recompute", [True]),
        ("autocast", [False, False]),
        ("setting", [False]),
    ],
)
def test_a_pair_runs_only_what_it_was_made_for(change, anew, uncompiled):
    model, batches = model_of("gpt2"), window(1)
    capturing.capture(model, "region")
    gradients(model, batches)
    if change == "dtype":
        model.to(nplm.float64)
    for block in model.blocks:
        block.norm1.eps = 0.5 if change == "setting" else block.norm1.eps
    model.recompute = change == "recompute"
    with nplm.autocast("torch:cpu", enabled=change == "autocast"):
        for _ in range(2):
            _, found = gradients(model, batches)
        assert uncompiled[2:] == anew
        capturing.capture(model, "off")
        _, expected = gradients(model, batches)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert found[name].dtype == gradient.dtype
        assert apart(found[name], gradient) <= GRADIENT.atol, name


def test_the_reference_and_what_is_not_recorded_run_no_pair(uncompiled):
    model, batches = model_of("gpt2"), window(1)
    capturing.capture(model, "region")
    with nplm.reference():
        gradients(model, batches)
    with nplm.no_grad():
        model(nplm.tensor(batches[0].inputs, device="torch:cpu"))
    assert uncompiled == []
    assert capturing.level(model) == "region"


# ---- falling back --------------------------------------------------------------------------------
def falls_back(model, words):
    with pytest.warns(UserWarning, match=words) as caught:
        loss, found = gradients(model, window())
    assert len([w for w in caught if "capture:" in str(w.message)]) == 1
    again, _ = gradients(model, window())  # a second warning would be an error
    assert loss == again
    return found


@needs_compiler
def test_a_torch_without_the_private_parts_gets_pairs_by_torch_compile_with_one_warning(
    monkeypatch,
):
    model = model_of("gpt2")
    _, expected = gradients(model, window())

    def missing(*_):
        raise ImportError("cannot import name 'min_cut_rematerialization_partition'")

    monkeypatch.setattr(compiler, "_private_halves", missing)
    capturing.capture(model, "region")
    found = falls_back(model, "by torch.compile, which recomputes: torch .* has other private")
    assert capturing.level(model) == "region"
    assert all(apart(found[name], expected[name]) <= GRADIENT.atol for name in expected)


def test_a_torch_that_cannot_trace_runs_op_by_op_with_one_warning(monkeypatch):
    model = model_of("gpt2")
    _, expected = gradients(model, window())
    monkeypatch.setitem(sys.modules, "torch.fx.experimental.proxy_tensor", None)
    capturing.capture(model, "region")
    found = falls_back(model, "falls back to off: capture: tracing failed: ModuleNotFoundError")
    assert capturing.level(model) == "off"
    assert all(apart(found[name], expected[name]) <= GRADIENT.atol for name in expected)


def test_what_cannot_be_traced_runs_op_by_op_with_one_warning(monkeypatch):
    model = model_of("gpt2")
    capturing.capture(model, "region")
    plain = type(model.blocks[0].mlp).forward

    def forward(mlp, x):
        return plain(mlp, x * 2 if x.array.sum().item() == 7 else x)

    monkeypatch.setattr(type(model.blocks[0].mlp), "forward", forward)
    falls_back(model, "tracing failed")
    assert capturing.level(model) == "off"


def test_a_block_with_a_buffer_runs_op_by_op_with_one_warning(uncompiled):
    model = model_of("gpt2")
    model.blocks[0].register_buffer("seen", nplm.zeros(1, device="torch:cpu"))
    capturing.capture(model, "region")
    falls_back(model, "region falls back to off: .* buffers")
    assert uncompiled == []


def test_a_graph_on_the_cpu_falls_back_to_regions_with_one_warning(monkeypatch):
    def missing(*_):
        raise compiler.CaptureError("capture: not here")

    monkeypatch.setattr(compiler, "compile_pair", missing)
    model = model_of("gpt2")
    capturing.capture(model, "graph")
    with pytest.warns(UserWarning, match="capture:") as caught:
        gradients(model, window())
    said = [str(w.message) for w in caught if "capture:" in str(w.message)]
    assert len(said) == 2
    assert "graph falls back to region" in said[0]
    assert "CUDA" in said[0]
    assert "region falls back to off" in said[1]


def test_numpy_models_and_unknown_levels_are_refused_in_one_sentence():
    with pytest.raises(ConfigError, match="needs a torch device"):
        capturing.capture(Decoder(preset("char")), "region")
    with pytest.raises(ConfigError, match="regio"):
        capturing.capture(model_of("gpt2"), "regio")
    capturing.capture(Decoder(preset("char")), "off")


def test_releasing_a_model_and_copying_it_gives_methods_of_their_own():
    model = model_of("gpt2")
    capturing.capture(model, "region")
    other = copy.deepcopy(model)
    ids = nplm.tensor(window()[0].inputs, device="torch:cpu")
    with nplm.no_grad():
        other.blocks[0].mlp.proj.weight.array.zero_()
        assert not torch.equal(other(ids).array, model(ids).array)
    assert capturing.level(other) == "off"
    capturing.capture(model, "off")
    assert "forward" not in vars(model.blocks[0])
    assert "loss" not in vars(model)
