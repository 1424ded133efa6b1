"""NumPy's kernels of attention, rope and split against the reference ops, and what they copy."""

import tracemalloc

import numpy as np
import pytest
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from op_inputs import array, laid_out

import nplm
from nplm.autograd.op import OPS
from nplm.backend import numpy as xp
from nplm.backend import threads
from nplm.backend.numpy_kernels import attention as kernels
from nplm.backend.numpy_kernels import shape as shape_kernels
from nplm.nn import CausalSelfAttention
from nplm.parity.tolerances import (
    EXACT,
    FORMULA_64,
    KERNEL_32,
    assert_close,
    assert_close_at_scale,
)

pytestmark = pytest.mark.op

LENGTHS = st.sampled_from([1, 2, 3, 7, 63, 64, 65, 100, 129])


def heads(x, n):
    """The (B, n, T, D) heads of a (B, T, n D), as the model views them."""
    return x.reshape(*x.shape[:2], n, -1).transpose(0, 2, 1, 3)


def packed_qkv(rng, B, H, G, T, D, dtype="float64", size=1.0):
    """One (B, T, (H + 2 G) D) array, and q, k, v as views of it."""
    x = rng.normal(0, size, (B, T, (H + 2 * G) * D)).astype(dtype)
    q, k, v = np.split(x, [H * D, (H + G) * D], -1)
    return x, heads(q, H), heads(k, G), heads(v, G)


@st.composite
def calls(draw):
    """Arguments of a causal attention that the kernel takes, and dy."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    B, G, R, D = (draw(st.integers(1, n)) for n in (2, 2, 3, 5))
    H, T, dtype = G * R, draw(LENGTHS), draw(st.sampled_from("fd"))
    layout = draw(st.sampled_from(["packed", "plain", "fortran", "strided", "offset"]))
    E = D if layout == "packed" else draw(st.integers(1, 5))
    size = draw(st.sampled_from([0.5, 4.0]))  # of scores below and beyond the kernel's reach
    if layout == "packed":
        _, q, k, v = packed_qkv(rng, B, H, G, T, D, dtype, size)
    else:
        shapes = (B, H, T, D), (B, G, T, D), (B, G, T, E)
        q, k, v = (laid_out(rng.normal(0, size, s), layout).astype(dtype, "K") for s in shapes)
    dy = rng.normal(size=(B, T, H * E)).astype(dtype)
    dy = laid_out(heads(dy, H), draw(st.sampled_from(["plain", "fortran"])))
    p = draw(st.sampled_from([None, 0.0, 0.3]))
    keep = None if p is None else rng.random((B, H, T, T)) >= p
    scale = draw(st.sampled_from([None, 1.0, -0.5, 0.0]))
    return (q, k, v, None, keep), {"causal": True, "scale": scale, "dropout_p": p or 0.0}, dy


def run(body, arrays, options, dy):
    """(value, gradients), the value copied before the backward."""
    with xp.quiet():
        value, backward = body(xp, *arrays, **options)
        return value.copy(), backward(dy)


def assert_same(kernel, name, arrays, options, dy, reach=1.0):
    """The kernel equals op `name`; gradients in units of `reach`, the largest value on the way."""
    tolerance = FORMULA_64 if dy.dtype == np.float64 else KERNEL_32
    before = [x.copy() for x in (*arrays, dy) if x is not None]
    y, grads = run(kernel, arrays, options, dy)
    expected, expected_grads = run(OPS[name].raw, arrays, options, dy)
    assert_close(y, expected, tolerance, name)
    for i, (a, b) in enumerate(zip(grads, expected_grads, strict=True)):
        assert (a is None) == (b is None)
        if a is not None:
            assert_close_at_scale(a, b, tolerance, reach, f"gradient {i} of {name}")
    for x, was in zip([x for x in (*arrays, dy) if x is not None], before):
        np.testing.assert_array_equal(x, was)  # nothing was written to


# ---- attention -----------------------------------------------------------------------------------
@examples(150)
@given(calls())
def test_attention_equals_its_reference_and_writes_to_no_input(call):
    arrays, options, dy = call
    assert kernels._is_causal(*arrays, **options)
    q, k, v, *_ = arrays
    largest = max(np.abs(q).max(), np.abs(k).max()) * np.abs(v).max() * np.abs(dy).max()
    assert_same(kernels.attention, "attention", arrays, options, dy, float(largest))


@pytest.mark.parametrize(
    "changed",
    [
        {"causal": False},
        {"mask": np.ones((3, 3), bool)},
        {"keep": np.ones((2, 4, 3, 3), bool), "dropout_p": 1.0},
        {"keep": np.ones((3, 3), bool), "dropout_p": 0.5},
        {"q": np.zeros((2, 4, 2, 5))},
        {"q": np.zeros((2, 3, 3, 5))},
        {"q": np.zeros((4, 3, 5))},
        {"q": np.zeros((2, 4, 3, 5), np.float32)},
        dict.fromkeys("qkv", np.zeros((2, 2, 3, 5), int)),
        {"k": np.zeros((1, 2, 3, 5))},
        {"v": np.zeros((2, 2, 3, 0))},
        {"v": np.zeros((2, 2, 4, 5))},
    ],
)
def test_what_the_kernel_does_not_do_is_left_to_the_reference(changed):
    q, k, v = np.zeros((2, 4, 3, 5)), np.zeros((2, 2, 3, 5)), np.zeros((2, 2, 3, 5))
    call = {"q": q, "k": k, "v": v, "mask": None, "keep": None, "causal": True}
    assert kernels._is_causal(**call)
    assert not kernels._is_causal(**(call | changed))


def test_an_empty_batch_passes():
    x = nplm.zeros(0, 3, 8, requires_grad=True)
    layer = CausalSelfAttention(8, 2)
    layer(x).sum().backward()
    assert x.grad.shape == (0, 3, 8)
    assert not kernels._is_causal(*[np.zeros((0, 2, 3, 4))] * 3, causal=True)


def special_rows():
    """q, k, v (1, 1, 5, 2) in float32 with one thing amiss."""
    fine = np.random.default_rng(0).normal(size=(3, 1, 1, 5, 2)).astype("float32")
    for what, place in ((np.nan, 0), (np.inf, 0), (-np.inf, 1), (np.nan, 2), (1e30, 1)):
        q, k, v = fine.copy()
        (q, k, v)[place][0, 0, 2, 1] = what
        yield q, k, v
    q, k, v = fine.copy()
    q[...], k[...] = 9, 9  # exp of a score overflows
    yield q, k, v
    q, k, v = fine.copy()
    q[...], k[...] = 1e30, -1e30  # every score is -inf: rows that may look nowhere
    yield q, k, v


@pytest.mark.parametrize("qkv", list(special_rows()))
def test_nan_and_infinity_pass_through_a_block_as_in_the_reference(qkv):
    arrays, options = (*qkv, None, None), {"causal": True}
    assert_same(kernels.attention, "attention", arrays, options, np.ones_like(qkv[0]))


def test_a_far_score_in_one_head_changes_no_bit_of_another():
    rng = np.random.default_rng(0)
    _, q, k, v = packed_qkv(rng, 2, 3, 3, 70, 4, "float32")
    dy = rng.normal(size=q.shape).astype("float32")
    calm, calm_grads = run(kernels.attention, (q, k, v), {"causal": True}, dy)
    q[1, 2, 65] = 1e3
    wild, wild_grads = run(kernels.attention, (q, k, v), {"causal": True}, dy)
    assert not np.array_equal(calm[1, 2], wild[1, 2])
    for a, b in zip((calm, *calm_grads[:3]), (wild, *wild_grads[:3])):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1, :2], b[1, :2])


@pytest.mark.parametrize("sizes", [(1, 4, 4, 100, 8), (1, 6, 2, 65, 4), (5, 2, 1, 70, 4)])
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threads_and_tiles_change_no_bit(sizes, dropout, dtype, monkeypatch):
    rng = np.random.default_rng(0)
    _, q, k, v = packed_qkv(rng, *sizes, dtype)
    B, H, G, T, _ = sizes
    dy = rng.normal(size=q.shape).astype(dtype)
    keep = rng.random((B, H, T, T)) < 0.7 if dropout else None
    options = {"causal": True, "dropout_p": 0.3 if dropout else 0.0}
    y, grads = run(kernels.attention, (q, k, v, None, keep), options, dy)
    before = threads.get_num_threads()
    monkeypatch.setattr(kernels, "_LEAST", 1)
    try:
        for n, tile in ((1, 1), (2, 1 << 18), (3, 1 << 18), (3, 1)):
            threads.set_num_threads(n)
            monkeypatch.setattr(kernels, "_TILE", tile)
            with threads.one_blas_thread():
                tiles = kernels._tiles(B, H, G, T)
                assert len(tiles) >= min(n if tile > 1 else B * G, B * G)
                again, more = run(kernels.attention, (q, k, v, None, keep), options, dy)
            for a, b in zip((y, *grads[:3]), (again, *more[:3]), strict=True):
                assert_close(b, a, EXACT, f"{n} threads")
    finally:
        threads.set_num_threads(before)


@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 3), st.integers(1, 300))
def test_tiles_cover_every_head_of_every_row_once(B, G, R, T):
    seen = np.zeros((B, G), int)
    for rows, groups in kernels._tiles(B, G * R, G, T):
        seen[rows, groups] += 1
    assert (seen == 1).all()


def test_heads_are_shared_out_only_where_each_product_stays_on_its_thread(monkeypatch):
    monkeypatch.setattr(threads, "team", lambda: 2)
    assert len(kernels._tiles(1, 12, 12, 256)) == 1  # this BLAS may have threads of its own
    with threads.one_blas_thread():
        assert len(kernels._tiles(1, 12, 12, 256)) == 2
        assert len(kernels._tiles(1, 2, 2, 16)) == 1  # too little for two


def test_what_is_kept_for_backward_leaves_out_the_masked_blocks():
    H, T, D = 4, 512, 8
    _, q, k, v = packed_qkv(np.random.default_rng(0), 1, H, H, T, D, "float32")
    kernels.attention(xp, q, k, v, causal=True)  # scratch is there
    tracemalloc.start()
    y, _backward = kernels.attention(xp, q, k, v, causal=True)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    full = H * T * T * y.itemsize
    assert kept < 0.6 * full
    assert peak < 0.65 * full


# ---- from the packed qkv and back, without a copy ------------------------------------------------
def model_path(x, H, G, D):
    """split -> heads -> attention -> (B, T, C) with the kernels, and the way back for dy."""
    (q, k, v), join = shape_kernels.split(xp, x, [H * D, G * D, G * D], dim=-1)
    y, backward = kernels.attention(xp, heads(q, H), heads(k, G), heads(v, G), causal=True)
    B, T, _ = x.shape

    def back(dy):  # as transpose and reshape send the gradients on
        grads = backward(dy.reshape(B, T, H, D).swapaxes(1, 2))[:3]
        return grads, join(tuple(g.swapaxes(1, 2).reshape(B, T, -1) for g in grads))[0]

    return y, back


@pytest.mark.parametrize("sizes", [(2, 4, 4, 65, 8), (1, 6, 2, 10, 4), (3, 2, 1, 1, 2), (1,) * 5])
def test_packed_heads_go_through_without_a_copy(sizes):
    rng = np.random.default_rng(0)
    B, H, G, T, D = sizes
    x, q, k, v = packed_qkv(rng, B, H, G, T, D)
    y, back = model_path(x, H, G, D)
    merged = y.swapaxes(1, 2).reshape(B, T, H * D)
    assert merged.flags.c_contiguous
    assert np.shares_memory(merged, y)
    assert not np.shares_memory(y, model_path(x, H, G, D)[0])  # fresh memory at each call
    dy = rng.normal(size=(B, T, H * D))
    grads, dx = back(dy)
    assert all(g.base is grads[0].base and np.shares_memory(dx, g) for g in grads)
    assert dx.flags.c_contiguous
    _, expected = run(OPS["attention"].raw, (q, k, v), {"causal": True}, heads(dy, H))
    merged = [g.swapaxes(1, 2).reshape(B, T, -1) for g in expected[:3]]
    assert_close(dx, np.concatenate(merged, -1), FORMULA_64, "dqkv")


@pytest.mark.parametrize(
    ("groups", "theta", "dropout"), [(4, None, 0.0), (4, 1e4, 0.0), (2, 1e4, 0.0), (1, None, 0.4)]
)
def test_the_layer_is_the_same_with_and_without_the_kernels(groups, theta, dropout):
    nplm.manual_seed(0)
    layer = CausalSelfAttention(16, 4, groups, dropout=dropout, rope_theta=theta).double()
    x = nplm.randn(2, 70, 16, dtype=nplm.float64, requires_grad=True)

    def once():
        nplm.manual_seed(1)
        tensors = [x, *layer.parameters()]
        for t in tensors:
            t.grad = None
        y = layer(x)
        (y * y).sum().backward()
        return [y.detach().numpy().copy(), *(t.grad.numpy().copy() for t in tensors)]

    with nplm.reference():
        expected = once()
    for a, b in zip(once(), expected, strict=True):
        assert_close(a, b, FORMULA_64, "y or a gradient")


def test_a_second_use_of_the_packed_array_adds_to_its_gradient_out_of_place():
    rng = np.random.default_rng(0)
    B, H, T, D = 2, 2, 5, 3
    start, weight = rng.normal(size=(2, B, T, 3 * H * D))

    def once():
        x = nplm.tensor(start, requires_grad=True)
        z = x * 1.0
        q, k, v = (t.view(B, T, H, D).transpose(1, 2) for t in z.split([H * D] * 3, -1))
        for t in (q, k, v, z):
            t.retain_grad()
        y = nplm.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        ((y * y).sum() + (z * nplm.tensor(weight)).sum()).backward()
        return [t.grad.numpy() for t in (x, q, k, v, z)]

    with nplm.reference():
        expected = once()
    for a, b in zip(once(), expected, strict=True):
        assert_close(a, b, FORMULA_64, "gradient")


# ---- split ---------------------------------------------------------------------------------------
@st.composite
def splits(draw):
    """x, sizes, an axis, and gradients of the pieces that lie in memory in one way or another."""
    shape = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    axis = draw(st.integers(0, len(shape) - 1))
    sizes = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    shape[axis] = sum(sizes)
    x = draw(array(tuple(shape)))
    whole = np.random.default_rng(0).normal(size=x.shape)
    how = draw(st.sampled_from(["adjacent", "apart", "shuffled", "padded", "turned", "other"]))
    if how == "padded":
        whole = np.concatenate([whole, whole], axis)
    if how == "turned":
        whole = np.asfortranarray(whole)
    if how == "other":
        whole = whole[..., ::-1]
    pieces = np.split(whole, np.cumsum(sizes), axis)[: len(sizes)]
    if how == "apart":
        pieces = [p.copy() for p in pieces]
    if how == "shuffled":  # equal shapes in another order
        assume(len(set(sizes)) == 1)
        pieces = pieces[::-1]
    return x, sizes, draw(st.sampled_from([axis, axis - x.ndim])), pieces, how


@examples(200)
@given(splits())
def test_split_equals_its_reference_wherever_its_gradients_lie(drawn):
    x, sizes, dim, pieces, how = drawn
    values, join = shape_kernels.split(xp, x, sizes, dim)
    expected, _ = OPS["split"].raw(xp, x, sizes, dim)
    for a, b in zip(values, expected, strict=True):
        assert a.base is b.base
        assert_close(a, b, EXACT, "piece")
    (dx,) = join(tuple(pieces))
    assert_close(dx, np.concatenate(pieces, dim), EXACT, how)
    if how == "adjacent" and x.size and pieces[0].base is not None:
        assert dx.base is pieces[0].base


def not_one_array():
    """Pieces (sizes 2 and 2 of 4) that are no array by themselves, and what is amiss."""
    x, other = np.arange(16.0).reshape(4, 4), np.arange(16.0).reshape(4, 4)
    yield "two arrays", (x[:2], other[2:])
    yield "another order", (x[2:], x[:2])
    yield "a gap", (np.arange(20.0).reshape(5, 4)[:2], np.arange(20.0).reshape(5, 4)[3:])
    yield "another dtype", (x[:2], x.view("int64")[2:])
    yield "twice the same", (x[:2], x[:2])


@pytest.mark.parametrize(("what", "pieces"), list(not_one_array()))
def test_pieces_that_are_no_one_array_are_joined_by_copying(what, pieces):
    _, join = shape_kernels.split(xp, np.zeros((4, *pieces[0].shape[1:])), [2, 2], 0)
    (dx,) = join(pieces)
    assert not any(np.shares_memory(dx, piece) for piece in pieces)
    assert_close(dx, np.concatenate(pieces), EXACT, what)


def test_one_piece_is_that_piece():
    x = np.arange(9.0).reshape(3, 3)
    for piece in (x.T, x[1:], np.frombuffer(x.tobytes()).reshape(3, 3), np.frombuffer(x.tobytes())):
        _, join = shape_kernels.split(xp, np.zeros(piece.shape), [len(piece)], 0)
        assert_close(join((piece,))[0], piece, EXACT, "piece")


def test_split_keeps_nothing_for_its_backward():
    x = np.zeros(6)
    _, join = shape_kernels.split(xp, x, [2, 4], 0)
    assert not any(cell.cell_contents is x for cell in join.__closure__)


# ---- rope ----------------------------------------------------------------------------------------
@examples(100)
@given(st.data())
def test_rope_equals_its_reference(data):
    T, half = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 4))
    batch = data.draw(st.sampled_from([(), (3,), (2, 3), (0, 2)]))
    dtype = data.draw(st.sampled_from(["float32", "float64"]))
    x = data.draw(array((*batch, T, 2 * half))).astype(dtype, "K")
    angles = data.draw(array((T, half)))
    cos, sin = np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)
    dy = data.draw(array(x.shape)).astype(dtype, "K")
    assert kernels._is_rotation(x, cos, sin)
    assert_same(kernels.rope, "rope", (x, cos, sin), {}, dy)


def test_rope_keeps_the_order_of_heads_in_memory():
    x, q, _, _ = packed_qkv(np.random.default_rng(0), 2, 3, 3, 5, 4)
    y, backward = kernels.rope(xp, q, np.ones((5, 2)), np.zeros((5, 2)))
    for a in (y, backward(q)[0]):
        assert a.transpose(0, 2, 1, 3).flags.c_contiguous
        assert not np.shares_memory(a, x)
        assert_close(a, q, EXACT, "turned by nothing")


@pytest.mark.parametrize(
    ("shape", "angles", "dtype"),
    [((3, 5), (3, 2), "d"), ((3, 4), (2, 2), "d"), ((3, 4), (3, 2), "f"), ((4,), (1, 2), "d")],
)
def test_rope_leaves_odd_heads_and_other_dtypes_to_the_reference(shape, angles, dtype):
    assert not kernels._is_rotation(np.zeros(shape), *[np.zeros(angles, dtype)] * 2)
