"""NumPy's kernels of norms, activations and cross_entropy are their references, only faster.

Read nplm/backend/numpy_kernels/{norm,activation,loss}.py first; test_overrides.py walks the table.
"""

import weakref

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from op_inputs import array, integers, sides

import nplm.nn.functional  # noqa: F401  it loads the fused ops
from nplm.autograd.op import OPS, OVERRIDES
from nplm.backend import numpy as xp
from nplm.backend import threads
from nplm.backend.numpy_kernels import activation, loss, norm, tiles
from nplm.parity.tolerances import (
    EXACT,
    FORMULA_64,
    KERNEL_32,
    ROUNDING_32,
    assert_close,
    assert_close_at_scale,
)

pytestmark = pytest.mark.op
KERNELS = {
    "layer_norm": norm.layer_norm, "rms_norm": norm.rms_norm, "gelu": activation.gelu,
    "silu": activation.silu, "swiglu": activation.swiglu, "relu": activation.relu,
    "softmax": activation.softmax, "log_softmax": activation.log_softmax,
    "cross_entropy": loss.cross_entropy,
}  # fmt: skip
DTYPES = st.sampled_from([np.float32, np.float64])


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of some rows, and parts for threads from two rows on."""
    monkeypatch.setattr(tiles, "TILE", 8)
    monkeypatch.setattr(tiles, "LEAST", 2)


@pytest.fixture
def n_threads():
    before = threads.get_num_threads()
    yield threads.set_num_threads
    threads.set_num_threads(before)


def accepted(name, arrays, options):
    """Whether the table sends these arguments to our kernel."""
    entries = OVERRIDES[name, "numpy"]
    return any(kernel is KERNELS[name] and when(*arrays, **options) for when, kernel in entries)


def results(body, arrays, options, dy):
    """(value, every gradient) in memory of their own."""
    with xp.quiet():
        value, backward = body(xp, *arrays, **options)
        value = np.array(value)
        return [value, *(None if g is None else np.array(g) for g in backward(dy))]


def hold(name, arrays, options, seed=0, takes=True):
    """The kernel against its reference on these arguments; neither they nor dy may change."""
    assert accepted(name, arrays, options) == takes, (name, [np.shape(a) for a in arrays], options)
    with xp.quiet():
        y = np.asarray(OPS[name].raw(xp, *arrays, **options)[0])
    dy = np.random.default_rng(seed).standard_normal(y.shape).astype(y.dtype)
    given_ = [*arrays, dy]
    before = [None if a is None else a.copy() for a in given_]
    ours = results(KERNELS[name], arrays, options, dy)
    for a, b in zip(given_, before):
        if a is not None:
            assert_close(a, b, EXACT, f"an argument of {name}, afterwards")
    tolerance = KERNEL_32 if y.dtype == np.float32 else FORMULA_64
    for i, (a, b) in enumerate(zip(ours, results(OPS[name].raw, arrays, options, dy), strict=True)):
        assert (a is None) == (b is None), f"{name}: gradient {i}"
        if a is not None:
            assert_close(a, b, tolerance, f"{name}, value or gradient {i}")
    return ours


@st.composite
def calls(draw, name):
    """(arrays, options) for op `name`: odd sizes, one row, any layout."""
    dtype = draw(DTYPES)

    def drawn(*shape, low=-6.0, high=6.0):
        x = draw(array(shape, False, low, high))
        return x.astype(dtype, order="K")

    lead = draw(st.lists(sides(1, 5), max_size=2))
    C = draw(st.sampled_from([1, 2, 3, 7, 16, 33]))
    if name.endswith("_norm"):
        n_axes = draw(st.integers(1, len(lead) + 1))
        row = (*lead, C)[len(lead) + 1 - n_axes :]
        weight = drawn(*row) if draw(st.booleans()) else None
        bias = [drawn(*row) if draw(st.booleans()) else None] if name == "layer_norm" else []
        eps = draw(st.sampled_from([1e-5, 1e-2]))
        return (drawn(*lead, C), weight, *bias), {"n_axes": n_axes, "eps": eps}
    if name == "cross_entropy":
        N = draw(sides(1, 9))
        targets = draw(integers((N,), 0, C)).astype(draw(st.sampled_from(["i8", "i4", "u1"])))
        ignore = draw(st.sampled_from([-100, 0, int(targets[0])]))
        reduction = draw(st.sampled_from(["mean", "sum", "none"]))
        return (drawn(N, C), targets), {"ignore_index": ignore, "reduction": reduction}
    if name in ("softmax", "log_softmax"):
        return (drawn(*lead, C),), {"dim": draw(st.sampled_from([-1, len(lead)]))}
    options = {"approximate": draw(st.sampled_from(["none", "tanh"]))} if name == "gelu" else {}
    return tuple(drawn(*lead, C) for _ in range(2 if name == "swiglu" else 1)), options


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_equals_its_reference(name, small_tiles, n_threads):
    @examples(60)
    @given(call=calls(name), n=st.integers(1, 3), seed=st.integers(0, 99))
    def holds(call, n, seed):
        n_threads(n)
        hold(name, *call, seed)

    holds()


def large(name, rows, dtype=np.float32):
    """Arguments of a model's sizes, with more than one tile in two parts."""
    rng = np.random.default_rng(rows)
    x, other = rng.standard_normal((2, rows, 1100)).astype(dtype) * 3
    if name.endswith("_norm"):
        more = (rng.standard_normal(1100).astype(dtype),) * (2 if name == "layer_norm" else 1)
        return (x, *more), {}
    if name == "cross_entropy":
        return (x, rng.integers(0, 1100, rows)), {}
    return (x, other) if name == "swiglu" else (x,), {"dim": -1} if "softmax" in name else {}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_equals_its_reference_at_a_models_sizes(name, dtype, n_threads):
    n_threads(2)
    arrays, options = large(name, 217, dtype)
    hold(name, arrays, {"approximate": "tanh"} if name == "gelu" else options)


@pytest.mark.parametrize("name", KERNELS)
def test_parts_on_threads_add_up_to_the_whole(name, n_threads):
    arrays, options = large(name, 217)
    found = []
    for n in (1, 2, 3):
        n_threads(n)
        found.append(hold(name, arrays, options))
        again = hold(name, arrays, options)
        for a, b in zip(found[-1], again):
            if a is not None:
                assert_close(a, b, EXACT, f"{name} on {n} threads, twice")
    sums = 2 if name.endswith("_norm") else 9  # dweight and dbias are added up in other parts
    rounding = name.endswith("_norm") or "softmax" in name or name == "cross_entropy"
    for more in found[1:]:
        for i, (a, b) in enumerate(zip(more, found[0])):
            if a is not None:  # a product with ones may add a row up in another order
                assert_close(a, b, KERNEL_32 if i >= sums or rounding else EXACT, f"{name}, {i}")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", [n for n in KERNELS if n != "cross_entropy"])
def test_nan_infinities_and_huge_numbers_end_as_in_the_reference(name, dtype):
    odd = [np.nan, np.inf, -np.inf, 1e15, -1e15, 0.0, -0.0, 1.5, -90.0, 90.0]
    for at in range(len(odd)):
        row = np.array(odd, dtype)
        if "norm" in name or "softmax" in name:  # one of them makes the whole row odd
            row = np.where(
                np.arange(len(odd)) == at, row, np.linspace(-1, 1, len(odd), dtype=dtype)
            )
        x = np.stack([row, np.linspace(-1, 2, len(odd), dtype=dtype)])
        arrays = (x,)
        if name == "swiglu":  # silu(-90) is -0 here and -7e-38 there: times infinity, NaN or -inf
            tame = np.full_like(x, 1.0 + at)
            arrays = (x, tame) if at % 2 else (tame, x)
        options = {"dim": -1} if "softmax" in name else {}
        hold(name, arrays, options)
        if name == "gelu":
            hold(name, arrays, {"approximate": "tanh"})


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_of_odd_rows_ends_as_in_the_reference(reduction):
    rows = np.array([[np.nan, 1, 2], [np.inf, 0, 1], [-np.inf, 0, 1], [-np.inf] * 3, [0, 1, 2]])
    for dtype in (np.float32, np.float64):
        for targets in ([0, 1, 2, 1, 0], [0, 0, 0, 0, 0], [-100, 0, -100, -100, 2], [-100] * 5):
            logits = rows.astype(dtype)
            hold("cross_entropy", (logits, np.array(targets)), {"reduction": reduction})


def test_gelu_in_float32_is_rounded_as_well_as_the_normal_distribution_itself():
    x = np.linspace(-4, 4, 20_001)
    y, backward = activation.gelu(xp, x.astype(np.float32))
    true, true_backward = OPS["gelu"].raw(xp, x.astype(np.float32).astype(float))
    (slope,), (true_slope,) = backward(np.ones_like(y)), true_backward(np.ones_like(x))
    for what, a, b in (("value", y, true), ("slope", slope, true_slope)):
        assert_close_at_scale(a, b.astype(np.float32), ROUNDING_32, 4.0, what)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "cross_entropy"])
def test_large_logits_do_not_overflow(name):
    for x in np.random.default_rng(0).standard_normal((3, 4, 9)) * 1e4:
        more = (np.arange(4),) if name == "cross_entropy" else ()
        (value, *_) = hold(name, (x, *more), {"dim": -1} if not more else {})
        assert np.isfinite(value).all()


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_declines_what_it_does_not_do(name):
    empty, whole = np.zeros((0, 3), np.float32), np.ones((2, 3), int)
    options = {"dim": -1} if "softmax" in name else {}
    for x in (empty, whole):
        more = {"swiglu": (x,), "cross_entropy": (np.zeros(len(x), int),)}.get(name, ())
        assert not accepted(name, (x, *more), options)


def test_kernels_decline_other_settings():
    x, v = np.ones((2, 3), np.float32), np.ones(3)
    targets = np.zeros(2, int)
    assert not accepted("layer_norm", (x, v), {})  # a weight of another dtype
    assert not accepted("layer_norm", (x, None, np.ones(2, np.float32)), {})
    assert not accepted("rms_norm", (x, np.ones(2, np.float32)), {})
    assert not accepted("gelu", (x,), {"approximate": "sigmoid"})
    assert not accepted("swiglu", (x, x[:1]), {})
    assert not accepted("swiglu", (x[0, 0], x[0, 0]), {})
    for dim in (0, -2, None, (0, 1), 2):
        assert not accepted("softmax", (x,), {"dim": dim})
    assert not accepted("cross_entropy", (x, targets, np.ones(3, np.float32)), {})
    assert not accepted("cross_entropy", (x, targets), {"label_smoothing": 0.1})
    assert not accepted("cross_entropy", (x, targets), {"reduction": "max"})
    assert not accepted("cross_entropy", (x, targets[:1]), {})
    assert not accepted("cross_entropy", (x, targets.astype(float)), {})


@examples(20)
@given(lead=st.lists(sides(1, 4), max_size=2), H=sides(1, 5), dtype=DTYPES)
def test_the_gradients_of_a_packed_swiglu_lie_side_by_side(lead, H, dtype):
    packed = np.random.default_rng(0).standard_normal((*lead, 2 * H)).astype(dtype)
    gate, up = packed[..., :H], packed[..., H:]
    y, backward = activation.swiglu(xp, gate, up)
    dgate, dup = backward(np.ones_like(y))
    assert dgate.base is dup.base
    whole = dgate.base
    assert whole.shape == packed.shape
    assert whole.flags.c_contiguous
    assert np.shares_memory(whole[..., :H], dgate)
    assert_close(np.concatenate([dgate, dup], -1), whole, EXACT, "the packed gradient")
    hold("swiglu", (gate, up), {})


@pytest.mark.parametrize("name", KERNELS)
def test_what_a_kernel_keeps_is_not_its_input(name):
    arrays, options = large(name, 3)
    arrays = tuple(a.copy() for a in arrays)
    alive = weakref.ref(arrays[0])
    _, backward = KERNELS[name](xp, *arrays, **options)
    del arrays
    assert alive() is None, f"{name}: backward={backward} keeps its first argument"


def test_tiles_cover_every_row_once_in_order(small_tiles):
    for n in range(9):
        for width in (1, 3, 100):
            seen = []
            tiles.in_tiles(n, width, lambda i, j, seen=seen: seen.extend(range(i, j)))
            assert sorted(seen) == list(range(n))
