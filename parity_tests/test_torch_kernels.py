"""Every torch kernel beside torch.autograd's own function, in float32 and float64.

Against the reference ops the table of test_overrides.py holds them, in bfloat16
test_torch_bfloat16.py; optimizers, CUDA's branches: test_torch_updates.py, test_torch_cuda.py.
"""

import functools
import shutil
from itertools import permutations

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from op_cases import CASES, Call
from test_ops_parity import as_float32, as_torch, outputs, random_like, run_twin

import nplm
from nplm.autograd.op import OPS, OVERRIDES, choose
from nplm.backend import capture as compiler
from nplm.backend import namespace_for
from nplm.parity.tolerances import (
    FORMULA_64,
    KERNEL_32,
    ROUNDING_32,
    assert_close,
    assert_close_at_scale,
)

torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")

from nplm.backend.torch_kernels import attention, head, loss, prefer_attention  # noqa: E402
from nplm.backend.torch_kernels import attention_choice as choice  # noqa: E402
from nplm.backend.torch_kernels.sinks import TorchSink  # noqa: E402

pytestmark = pytest.mark.op

XP = namespace_for("torch:cpu")
TABLE = [
    (name, place)
    for (name, backend), entries in sorted(OVERRIDES.items())
    if backend == "torch" and name in OPS
    for place, (_, kernel) in enumerate(entries)
    if not getattr(kernel, "bfloat16_only", False)
]


def in_dtype(call, dtype):
    inputs = tuple(map(as_float32, call.inputs)) if dtype == "float32" else call.inputs
    return Call(inputs, call.options)


def apply(kernel, op, inputs, options, dys, needs=None):
    """(outputs, gradients) of a kernel on tensors."""
    value, backward = kernel(XP, *inputs, **options)
    values = tuple(v.clone() for v in outputs(value))  # a closure may overwrite what it kept
    more = ((True,) * len(inputs) if needs is None else needs,) if op.wants_needs else ()
    return values, backward(dys if isinstance(value, tuple) else dys[0], *more)


@pytest.mark.parametrize(("name", "place"), TABLE)
@examples(60)
@given(data=st.data())
def test_a_kernel_equals_torch_autograd_and_writes_to_nothing_it_was_given(name, place, data):
    dtype = data.draw(st.sampled_from(["float32", "float64"]))
    call = in_dtype(data.draw(CASES[name].calls(False)), dtype)
    when, kernel = OVERRIDES[name, "torch"][place]
    inputs, options = [as_torch(x) for x in call.inputs], call.options
    if when is not None and not when(*inputs, **options):
        return
    before = [x.clone() if isinstance(x, torch.Tensor) else x for x in inputs]
    value, backward = kernel(XP, *inputs, **options)
    dys = tuple(as_torch(dy) for dy in random_like(outputs(value), data.draw(st.integers(0, 9))))
    if backward is None:
        return
    dys_before = [dy.clone() for dy in dys]
    values, grads = apply(kernel, OPS[name], inputs, options, dys)
    twin_dys = [dy.numpy() for dy in dys]
    expected, expected_grads = run_twin(name, call, twin_dys)

    tolerance = KERNEL_32 if dtype == "float32" else FORMULA_64
    for a, b in zip(values, outputs(expected), strict=True):
        assert_close(a, b, tolerance, name)
    for i, g in enumerate(expected_grads or ()):
        if g is not None:
            assert_close(grads[i], g, tolerance, f"gradient {i} of {name}")
    for x, y in zip([*before, *dys_before], [*inputs, *dys], strict=True):
        if isinstance(x, torch.Tensor):
            assert torch.equal(x, y), f"{name} wrote to what it was given"
    for x in (*values, *grads):
        assert x is None or (x.grad_fn is None and not x.requires_grad)


@pytest.mark.parametrize("name", sorted({name for name, _ in TABLE if OPS[name].wants_needs}))
def test_what_nobody_needs_is_not_computed(name):
    x, w, ids = torch.randn(5, 3), torch.randn(4, 3), torch.tensor([0, 3, 1, 1, 2])
    inputs = {"embedding": (ids, w), "linear_cross_entropy": (x, w, ids)}.get(name, (x, w, None))
    kernel = choose(name, XP, inputs, {})
    _, backward = kernel(XP, *inputs)
    dy = torch.ones(()) if name == "linear_cross_entropy" else torch.ones(5, 4)
    assert backward(dy, (False,) * len(inputs)) == (None,) * len(inputs)


# ---- linear_cross_entropy in chunks --------------------------------------------------------------
def head_run(reduction, budget, monkeypatch, ignored=(1, 6), record=True):
    monkeypatch.setitem(head.BUDGET, "cpu", budget)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(11, 5, generator=generator, dtype=torch.float64)
    w = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    t = torch.randint(0, 7, (11,), generator=generator)
    t[list(ignored)] = -100
    x, w = nplm.Tensor(x, requires_grad=record), nplm.Tensor(w, requires_grad=record)
    loss = nplm.nn.functional.linear_cross_entropy(x, w, nplm.Tensor(t), reduction=reduction)
    if record:
        loss.backward(0.7)
    twin_x, twin_w = (v.array.clone().requires_grad_(True) for v in (x, w))
    twin = torch.nn.functional.cross_entropy(twin_x @ twin_w.T, t, reduction=reduction)
    twin.backward(torch.full_like(twin, 0.7))
    return (loss, x.grad, w.grad), (twin, twin_x.grad, twin_w.grad)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("rows", [1, 2, 4, 10])
def test_chunks_of_rows_give_the_loss_and_the_gradients_of_all_logits(reduction, rows, monkeypatch):
    ours, theirs = head_run(reduction, 4 * 7 * rows, monkeypatch)
    for a, b in zip(ours, theirs):
        assert_close(a.array, b, FORMULA_64)


def test_chunks_without_any_target_give_no_gradient(monkeypatch):
    (loss, dx, dw), _ = head_run("mean", 4 * 7 * 2, monkeypatch, ignored=range(11))
    assert torch.isnan(loss.array)
    assert not dx.array.any()
    assert not dw.array.any()


def test_chunks_make_no_gradients_where_nothing_is_recorded(monkeypatch):
    def refuse(*args):
        raise AssertionError("a gradient was made")

    monkeypatch.setattr(head, "gradient_in_place", refuse)
    with nplm.no_grad():
        (loss, *_), (twin, *_) = head_run("sum", 4 * 7 * 2, monkeypatch, record=False)
    assert_close(loss.array, twin, FORMULA_64)


def test_losses_of_single_tokens_are_made_in_chunks_where_nothing_is_recorded(monkeypatch):
    made, whole = [], head.log_probabilities
    monkeypatch.setattr(
        head, "log_probabilities", lambda x, owned: made.append(len(x)) or whole(x, owned=owned)
    )
    with nplm.no_grad():
        (losses, *_), (twin, *_) = head_run("none", 4 * 7 * 4, monkeypatch, record=False)
    assert made == [4, 4, 3]
    assert_close(losses.array, twin, FORMULA_64)


def test_rows_that_are_worked_off_in_parts_are_all_worked_off(monkeypatch):
    monkeypatch.setattr(loss, "_CHUNK", 7 * 4)
    logits = torch.randn(11, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 7, (11,))
    targets[9] = -100
    torch.nn.functional.cross_entropy(logits, targets).backward()
    given = (logits.detach(), targets)
    _, backward = choose("cross_entropy", XP, given, {})(XP, *given)
    assert_close(backward(torch.ones((), dtype=torch.float64))[0], logits.grad, FORMULA_64)


# ---- sinks ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("kept", [False, True])
def test_a_sink_adds_up_whatever_comes_first_in_float32_and_alters_nothing_that_is_lent(kept):
    generator = torch.Generator().manual_seed(0)
    lent, a, b, values = (
        torch.randn(shape, generator=generator) for shape in [(3, 4), (3, 5), (5, 4), (6, 4)]
    )
    before, low, ids = lent.clone(), lent.bfloat16(), torch.tensor([2, 0, 2, 2, 1, 0])
    arrivals = {
        "lent": lambda sink: sink.add(lent),
        "bfloat16": lambda sink: sink.take(low.clone()),
        "product": lambda sink: sink.add_product(a, b),
        "rows": lambda sink: sink.add_rows(ids, values, (3, 4)),
    }
    total = lent + low + a @ b + torch.zeros(3, 4).index_add_(0, ids, values)
    for order in permutations(arrivals):
        memory = torch.full((3, 4), torch.nan) if kept else None
        sink = TorchSink(lent, memory)
        for name in order:
            arrivals[name](sink)
        assert sink.array.dtype == torch.float32
        assert sink.array is memory or not kept
        assert_close_at_scale(sink.array, total, ROUNDING_32, 1.0, f"{order}")
        assert torch.equal(lent, before)


@pytest.mark.parametrize("padding", [None, 1])
def test_a_row_of_padding_gets_no_gradient_in_a_sink_either(padding):
    ids, w, dy = torch.tensor([[1, 2, 1], [0, 1, 3]]), torch.randn(4, 3), torch.randn(2, 3, 3)
    options, sink = {"padding_idx": padding}, TorchSink(w)
    for _ in range(2):
        _, backward = choose("embedding", XP, (ids, w), options)(XP, ids, w, **options)
        assert backward(dy, (False, sink)) == (None, None)
    _, dw = OPS["embedding"].raw(XP, ids, w, **options)[1](dy, (False, True))
    assert_close(sink.array, 2 * dw, KERNEL_32)


# ---- gradients that lie side by side -------------------------------------------------------------
def test_swiglu_hands_the_layer_below_one_array(monkeypatch):
    x = torch.randn(3, 4, 10)
    pieces, back = choose("split", XP, (x,), {})(XP, x, [5, 5], -1)
    _, gated = choose("swiglu", XP, pieces, {})(XP, *pieces)
    dys = gated(torch.randn(3, 4, 5))
    (whole,) = back(dys)
    assert whole.data_ptr() == dys[0].data_ptr()
    assert torch.equal(whole, torch.cat(dys, -1))
    (swapped,) = back(dys[::-1])
    assert torch.equal(swapped, torch.cat(dys[::-1], -1))


def test_halves_of_two_arrays_are_not_taken_for_one():
    x = torch.randn(3, 10)
    pieces, back = choose("split", XP, (x,), {})(XP, x, [5, 5], -1)
    swiglu = choose("swiglu", XP, pieces, {})
    (first, _), (_, second) = (swiglu(XP, *pieces)[1](torch.randn(3, 5)) for _ in range(2))
    (whole,) = back((first, second))
    assert torch.equal(whole, torch.cat((first, second), -1))


def test_split_joins_heads_in_the_memory_order_of_their_layer():
    B, T, H, D = 2, 5, 6, 4
    x = torch.randn(B, T, H, D).transpose(1, 2)
    _, back = choose("split", XP, (x,), {})(XP, x, [2, 2, 2], 1)
    dys = [torch.randn(B, T, 2, D).transpose(1, 2) for _ in range(3)]
    (whole,) = back(dys)
    assert torch.equal(whole, torch.cat(dys, 1))
    assert whole.transpose(1, 2).is_contiguous()


# ---- attention -----------------------------------------------------------------------------------
def heads(B=2, H=4, G=2, T=6, S=6, D=8, dtype=torch.float64):
    """q, k, v as parts of one layer's output."""
    q = torch.randn(B, T, H * D, dtype=dtype).view(B, T, H, D).transpose(1, 2)
    k, v = torch.randn(B, S, 2 * G, D, dtype=dtype).transpose(1, 2).chunk(2, 1)
    return q, k, v


def test_a_causal_mask_on_unequal_lengths_is_left_to_the_reference():
    """Kernels for cards align it with the last key, the op with the first."""
    assert choose("attention", XP, heads(S=3), {"causal": True}) is None


@pytest.fixture
def forgetful():
    """Refusals and preferences of one test."""
    yield choice.refusals
    choice.refusals.clear()
    prefer_attention(None)


def attend(q, k, v, dy, causal=True):
    kernel = choose("attention", XP, (q, k, v), {"causal": causal})
    assert kernel is not None
    assert not getattr(kernel, "bfloat16_only", False)
    y, backward = kernel(XP, q, k, v, causal=causal)
    return y, *backward(dy)[:3]


def assert_equals_the_reference(q, k, v, dy, causal=True):
    y, backward = OPS["attention"].raw(XP, q, k, v, causal=causal)
    for a, b in zip(attend(q, k, v, dy, causal), (y, *backward(dy)[:3]), strict=True):
        assert_close(a, b, FORMULA_64)


@pytest.mark.parametrize(("G", "S", "causal"), [(4, 6, True), (2, 6, True), (1, 3, False)])
def test_heads_in_groups_and_other_lengths_equal_the_reference(G, S, causal):
    q, k, v = heads(G=G, S=S)
    layouts = (torch.randn(2, 4, 6, 8), torch.randn(2, 8, 6, 4).transpose(1, 3))
    for dy in layouts:
        assert_equals_the_reference(q, k, v, dy.double(), causal)


@pytest.mark.parametrize(
    "arguments",
    [
        {"mask": torch.ones(6, 6, dtype=torch.bool)},
        {"keep": torch.ones(2, 4, 6, 6, dtype=torch.bool), "dropout_p": 0.1},
    ],
)
def test_masks_are_left_to_the_reference(arguments):
    q, k, v = heads(G=4)
    options = {"dropout_p": arguments.pop("dropout_p", 0.0), "causal": True}
    arrays = (q, k, v, arguments.get("mask"), arguments.get("keep"))
    assert choose("attention", XP, arrays, options) is None


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_kernel_that_refuses_a_shape_is_passed_over_and_not_asked_again(
    where, monkeypatch, forgetful
):
    asked = []

    def refusing(q, k, v, causal, scale):
        asked.append(q.shape)
        if where == "forward":
            raise RuntimeError("no such head size\nand a stack")
        return attention.cpu_flash(q, k, v, causal, scale)[0], refuse

    def refuse(dy):
        raise RuntimeError("no such head size")

    monkeypatch.setitem(attention.KERNELS, "cpu", refusing)
    q, k, v = heads(G=4)
    for _ in range(2):
        assert_equals_the_reference(q, k, v, torch.randn(2, 4, 6, 8, dtype=torch.float64))
    assert len(asked) == 1
    assert list(forgetful.values()) == ["no such head size"]


def test_too_little_memory_is_no_refusal(monkeypatch, forgetful):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(attention.KERNELS, "cpu", full)
    with pytest.raises(torch.OutOfMemoryError):
        attend(*heads(G=4), torch.randn(2, 4, 6, 8))
    assert not forgetful


def test_the_order_of_kernels_is_by_device_dtype_and_head_size():
    def names(*arguments):
        return [name for name, _ in choice.order(*arguments)]

    assert names("cpu", torch.float64, 64, False) == ["cpu"]
    assert names("cuda", torch.bfloat16, 64, True) == ["cudnn", "flash", "efficient"]
    assert names("cuda", torch.bfloat16, 64, False) == ["flash", "cudnn", "efficient"]
    assert names("cuda", torch.bfloat16, 256, True) == ["flash", "efficient"]
    assert names("cuda", torch.bfloat16, 60, True) == ["efficient"]
    assert names("cuda", torch.float32, 64, True) == ["efficient"]
    assert names("cuda", torch.float64, 64, True) == []


def test_a_preferred_kernel_that_a_device_lacks_changes_nothing(forgetful):
    prefer_attention("flash")
    q, k, _ = heads()
    assert choice.candidates(q, k, True) == ["cpu"]
    with pytest.raises(ValueError, match="expected one of cpu, cudnn"):
        prefer_attention("fast")


def test_rope_keeps_the_layout_of_heads():
    q, *_ = heads(dtype=torch.float32)
    angles = torch.linspace(0.0, 3.0, 24).reshape(6, 4)
    y, backward = choose("rope", XP, (q, angles.cos(), angles.sin()), {})(
        XP, q, angles.cos(), angles.sin()
    )
    assert y.stride() == q.stride()
    assert_close_at_scale(backward(y)[0], q, ROUNDING_32, 1.0, "turned forth and back")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_is_as_long_a_program_for_a_large_vocabulary(dtype):
    """Chunks that keep an array in the cache would each copy it, once they are compiled."""
    lengths = []
    for size in (65, 20_000):
        x, w = torch.randn(64, 8, dtype=dtype), torch.randn(size, 8)
        targets = torch.arange(64)

        def body(x, w, targets=targets):
            with nplm.autocast("torch:cpu", enabled=dtype == torch.bfloat16):
                loss, backward = head.linear_cross_entropy(None, x, w, targets, reduction="sum")
            return loss, lambda dy: backward(dy, (True, True))[:2]

        graph, *_ = compiler._trace(body, [x, w])
        lengths.append(len(graph.graph.nodes))
    assert lengths[0] == lengths[1]


@pytest.mark.skipif(not shutil.which("g++"), reason="Inductor compiles C++ on the CPU: install g++")
def test_a_compiled_backward_drops_each_argument_once_it_has_read_it():
    """Held to the end, the logits of a large vocabulary would lie beside their gradient."""
    x, w = torch.randn(8, 8), torch.randn(8, 8)
    pair = compiler.compile_pair(lambda x, w: (x @ w, lambda dy: (dy @ w.t(), x.t() @ dy)), [x, w])
    _, saved = pair.forward([x, w])
    arguments = [*saved, torch.ones(8, 8)]
    found = pair._backward(arguments)
    assert arguments == []
    assert torch.equal(found[1], x.t() @ torch.ones(8, 8))


def test_a_compiled_function_in_another_wrapper_is_called_as_it_stands():
    """As another torch may have it: what is not known is not opened."""

    def holding(compiled_fn, params_flat):
        return lambda *arguments: (compiled_fn, params_flat, arguments)

    inner = holding("never called", [])
    for compiled in (inner, functools.wraps(inner)(lambda *a: inner(*a)), lambda *a: (0, 0, a)):
        assert compiler._emptying(compiled)([1, 2])[2] == (1, 2)
