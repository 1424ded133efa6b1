"""Names put together from ops (ops/extras.py, ops/creation.py, nn): the same call on both."""

import math

import numpy as np
import pytest
from agreement import agree, normal
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from op_inputs import array, axis, integers, shapes, sides, torch
from side_by_side import assert_same, assert_same_place_in_the_stream, both, seed_both

import nplm
from nplm import nn
from nplm.errors import BackendError, DataError, GraphError
from nplm.parity.tolerances import EXACT, FORMULA_64, assert_close

pytestmark = pytest.mark.op

REFUSALS = (RuntimeError, IndexError, ValueError, TypeError)


# x (2, 3, 4), y (3, 4), i (2, 3) integers below 3, m (2, 3, 4) booleans
CALLS = [
    lambda L, x, y, i, m: (*x.sort(), *L.sort(x, 0), *x.sort(1, True), *L.sort(y, descending=True)),
    lambda L, x, y, i, m: (*x.sort(stable=True, dim=-2), x.sort().values, x.sort(0).indices),
    lambda L, x, y, i, m: (*i.sort(stable=True), *m.sort(1, True), *x[0, 0, 0].sort()),
    lambda L, x, y, i, m: (x.argsort(), L.argsort(x, 1), y.argsort(0, True), y.argsort(dim=1)),
    lambda L, x, y, i, m: (*x.topk(2), *L.topk(x, 1, 0), *x.topk(3, dim=1, largest=False)),
    lambda L, x, y, i, m: (*x.topk(0), *x[0, 0, 0].topk(1), *x[0, 0, 0].topk(0), *y.topk(4)),
    lambda L, x, y, i, m: (y.topk(k=2, sorted=False).values.sum(), y.topk(L.tensor(2)).indices),
    lambda L, x, y, i, m: (y.mm(y.t()), L.mm(y, mat2=y.T), i.mm(i.T), y[:0].mm(y.T)),
    lambda L, x, y, i, m: (x.bmm(x.mT), L.bmm(x, x.transpose(1, 2)), L.bmm(input=x, mat2=x.mT)),
    lambda L, x, y, i, m: (y[0].dot(y[1]), L.dot(x[0, 0], y[0]), L.dot(y[0], tensor=y[2])),
    lambda L, x, y, i, m: (y[0].outer(x[0, 0]), L.outer(y[:, 0], y[0]), L.outer(y[0], i[0])),
    lambda L, x, y, i, m: (x.square(), L.square(y), i.square(), m.square(), i.bool().square()),
    lambda L, x, y, i, m: (x.clip(-0.5, 0.5), L.clip(y, min=0), L.clip(x, max=0.3), i.clip(0.5)),
    lambda L, x, y, i, m: (y.expand_as(x), y[0].expand_as(x), x.sum().expand_as(y)),
    lambda L, x, y, i, m: (x.view_as(x.reshape(4, 6)), y.view_as(y.t()), i.view_as(i.reshape(-1))),
    lambda L, x, y, i, m: (y.repeat(2, 3), y.repeat((2, 1, 3)), x.sum().repeat(2), i.repeat(1, 1)),
    lambda L, x, y, i, m: (y.repeat(0, 1), y[:0].repeat(2, 2), y[0].repeat(3), m.repeat(1, 2, 1)),
    lambda L, x, y, i, m: (x.int(), i.int(), m.int(), (x * 3).int(), x.to(L.int), i.to(L.float)),
    lambda L, x, y, i, m: (x.to(L.double), i.to(L.long), m.to(L.bool), x.to(dtype=L.float)),
    lambda L, x, y, i, m: (x.new_zeros(2, 3), x.new_ones((2,)), i.new_zeros(()), m.new_ones(1)),
    lambda L, x, y, i, m: (x.new_full((2, 2), 3), i.new_full((1,), 3.7), x.new_full((), L.inf)),
    lambda L, x, y, i, m: (x.new_tensor([1, 2]), i.new_tensor(1.5), m.new_tensor([0, 2])),
    lambda L, x, y, i, m: (x.new_zeros(2, dtype=L.int64), x.new_tensor([1], dtype=L.float32)),
    lambda L, x, y, i, m: (x.new_ones(2, requires_grad=True), x.new_tensor([1.0]).requires_grad),
    lambda L, x, y, i, m: (x.ndimension(), x.nelement(), x.sum().ndimension(), y[:0].nelement()),
    lambda L, x, y, i, m: (x.equal(x * 1), L.equal(x, x + 1), x.equal(y), L.equal(i, i.float())),
    lambda L, x, y, i, m: (L.isclose(x, x * 1.1, 0.095, 0), L.isclose(x * 1.1, x, 0.095, 0)),
    lambda L, x, y, i, m: (i + 2**24).isclose(i + 2**24 + 1, rtol=0, atol=0),
    lambda L, x, y, i, m: (L.equal(x * 0, y * 0), i.equal(i[:1] * 0), L.equal(y[:0], y[:0].T)),
    lambda L, x, y, i, m: (L.equal(x / 0 * 0, x / 0 * 0), y[:0].equal(y[:0]), m.equal(~m)),
    lambda L, x, y, i, m: (x.isclose(x + 1e-6), L.isclose(x, x + 1e-6, rtol=1e-3), x.isclose(y)),
    lambda L, x, y, i, m: (i.isclose(i + 1, rtol=0.5), m.isclose(~m), i.isclose(i, 0, 0)),
    lambda L, x, y, i, m: (L.isclose(x / 0, x / 0), L.isclose(x / 0, y / 0), x.isclose(y, 0, 0.5)),
    lambda L, x, y, i, m: (L.isclose(x * L.nan, x * L.nan), x.isclose(x * L.nan, equal_nan=True)),
    lambda L, x, y, i, m: L.isclose(x * L.nan, y * L.nan, equal_nan=True),
    lambda L, x, y, i, m: (x * L.pi, x.clamp(max=L.inf), L.finfo(L.float).eps),
    lambda L, x, y, i, m: (L.nn.functional.one_hot(i), L.nn.functional.one_hot(i[0, 0], 5)),
    lambda L, x, y, i, m: L.nn.functional.one_hot(i[:0], num_classes=2),
    lambda L, x, y, i, m: (L.nn.Identity(3, a=4)(x), L.nn.Tanh()(x), L.nn.Sigmoid()(y)),
    lambda L, x, y, i, m: (L.nn.Softmax(1)(x), L.nn.LogSoftmax(dim=-1)(x), L.nn.Softmax(dim=0)(y)),
    lambda L, x, y, i, m: (L.nn.Flatten()(x), L.nn.Flatten(0, 1)(x), L.nn.Flatten(end_dim=-2)(x)),
    lambda L, x, y, i, m: L.nn.NLLLoss()(x.log_softmax(1), i.new_ones(2, 4)),
    lambda L, x, y, i, m: L.nn.NLLLoss(y[:, 0].detach(), reduction="none")(y.T, i.new_ones(4)),
    lambda L, x, y, i, m: L.nn.NLLLoss(None, None, 1, None, "sum")(y.T, i.reshape(-1)[:4]),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_a_call_written_for_torch_gives_the_same_here(number, device):
    rng = np.random.default_rng(3)
    i, m = rng.integers(0, 3, (2, 3)), rng.random((2, 3, 4)) < 0.5
    agree(CALLS[number], normal(2, 3, 4), normal(3, 4, seed=1), i, m, device=device)


@examples(60)
@given(data=st.data())
def test_order_along_any_axis_with_equals_and_nan(device, data):
    """Values, places and gradients of sort and topk, on any shape and layout."""
    x = data.draw(array(shapes(min_side=0), smooth=data.draw(st.booleans())))
    if x.size and data.draw(st.booleans()):
        x.reshape(-1)[0] = np.nan
    dim, descending = data.draw(axis(x.ndim)), data.draw(st.booleans())
    k = data.draw(sides(0, x.shape[dim] if x.ndim else 1))
    agree(lambda L, x: L.sort(x, dim=dim, descending=descending, stable=True), x, device=device)
    agree(lambda L, x: L.argsort(x, dim=dim, descending=descending, stable=True), x, device=device)
    agree(lambda L, x: L.topk(x.detach(), k, dim, descending)[0], x, device=device)
    if len(np.unique(x)) == x.size:  # of equals torch may take another one
        agree(lambda L, x: L.topk(x, k, dim, descending), x, device=device)


@examples(30)
@given(data=st.data())
def test_any_number_of_repetitions(device, data):
    x = data.draw(array(shapes()))
    times = data.draw(st.lists(sides(0, 2), min_size=max(x.ndim, 1), max_size=4))
    agree(lambda L, x: x.repeat(times), x, device=device)


def test_a_repeated_tensor_is_a_copy(device):
    for shape, times in (((1,), (3,)), ((2, 2), (1, 1))):
        x = nplm.zeros(shape, device=device)
        x.repeat(times).add_(1)
        assert not x.any()


@examples(60)
@given(data=st.data())
def test_one_hot_of_any_classes(device, data):
    ids = data.draw(integers(data.draw(shapes()), 0, 4))
    n = data.draw(st.sampled_from([4, 7, *([-1] if ids.size else [])]))
    agree(lambda L, i: L.nn.functional.one_hot(i, n), ids, device=device)


# ---- new tensors ---------------------------------------------------------------------------------
@examples(100)
@given(
    ends=st.tuples(*[st.sampled_from([-3, 0, 1, 10, 0.5, -2.25, 1e6])] * 2),
    steps=st.integers(0, 40),
    dtype=st.sampled_from([None, "float32", "float64", "int64", "int32"]),
)
def test_linspace_counts_each_half_from_its_own_end(ends, steps, dtype):
    def call(L):
        kind = {} if dtype is None else {"dtype": getattr(L, dtype)}
        return L.linspace(*ends, steps, **kind), L.linspace(L.tensor(0.0), 1, steps=3)

    agree(call, tolerance=EXACT)


def test_linspace_goes_to_a_device_and_wants_a_gradient(device):
    x = nplm.linspace(0, 1, 5, device=device, requires_grad=True)
    assert x.device == device
    assert x.is_leaf
    assert x.requires_grad
    assert x.tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_from_numpy_shares_memory():
    values = np.zeros((2, 2))
    x = nplm.from_numpy(values)
    values[0, 0] = 3
    x[1, 1] = 4
    assert x.tolist() == values.tolist() == [[3, 0], [0, 4]]
    assert x.dtype == nplm.double
    assert nplm.from_numpy(values[:, :1]).shape == (2, 1)


def test_dtypes_and_constants_have_their_short_names():
    short = ("float", "double", "int", "long", "bool")
    assert [str(getattr(nplm, name)) for name in short] == [
        str(getattr(torch, name)).removeprefix("torch.") for name in short
    ]
    assert (nplm.pi, nplm.inf) == (torch.pi, torch.inf)
    assert math.isnan(nplm.nan)
    for ours, theirs in ((nplm.float, torch.float), (nplm.double, torch.double)):
        for name in ("eps", "max", "min", "tiny", "bits"):
            assert getattr(nplm.finfo(ours), name) == getattr(torch.finfo(theirs), name)


@pytest.mark.parametrize("name", ["cpu", "torch:cpu", "cuda", "cuda:1"])
def test_a_device_is_its_name(name):
    assert nplm.device(name) == nplm.device(nplm.device(name)) == name
    assert nplm.device("torch:cuda:1") == nplm.device("cuda", 1) == "cuda:1"


def test_a_tensor_goes_to_a_device_that_was_named(device):
    assert nplm.zeros(2).to(nplm.device(device)).device == nplm.device(device)


@pytest.mark.parametrize("name", ["gpu", "torch", "torch:", "cuda:x", "cpu:1", "", "cuda:1:1"])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(BackendError, match="unknown device"):
        nplm.device(name)
    with pytest.raises(BackendError, match="unknown device"):
        nplm.device(name, 1)


# ---- draws ---------------------------------------------------------------------------------------
DRAWS = {
    "rand_like": lambda L, x, g: L.rand_like(x, **g),
    "randn_like": lambda L, x, g: L.randn_like(x, **g),
    "uniform_": lambda L, x, g: x.uniform_(**g),
    "uniform_ of an interval": lambda L, x, g: x.uniform_(-2, to=3.5, **g),
    "normal_": lambda L, x, g: x.normal_(**g),
    "normal_ of a mean": lambda L, x, g: x.normal_(1.5, std=0.1, **g),
    "multinomial": lambda L, x, g: x.square().reshape(-1).multinomial(3, **g),
    "multinomial of rows": lambda L, x, g: L.multinomial(x.square(), 2, False, **g),
    "multinomial with replacement": lambda L, x, g: L.multinomial(x * x, 5, replacement=True, **g),
    "one of each row": lambda L, x, g: L.multinomial(x * x, num_samples=1, **g),
}


@pytest.mark.parametrize("own_generator", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(2, 3), (5, 7)])
@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_torch_s_bit_by_bit(name, shape, dtype, own_generator, device):
    def call(L, x):
        x, g = x.detach(), {"generator": L.Generator().manual_seed(5)} if own_generator else {}
        results = [DRAWS[name](L, x, g) for _ in range(2)]
        return results if name.endswith("_") else [*results, x]

    seed_both(7)
    agree(call, normal(*shape).astype(dtype), device=device, tolerance=EXACT)
    assert_same_place_in_the_stream()


def test_like_draws_take_another_dtype_and_device(device):
    x = nplm.zeros(3, 2, dtype=nplm.int64)
    for draw in (nplm.rand_like, nplm.randn_like):
        y = draw(x, dtype=nplm.float64, device=device, requires_grad=True)
        assert (y.shape, y.dtype, y.device) == (x.shape, nplm.float64, device)
        assert y.requires_grad


# ---- in place ------------------------------------------------------------------------------------
def test_masked_fill_in_place(device):
    m = np.random.default_rng(1).random((2, 3)) < 0.5

    def change(L, x, m):
        x = x.detach()
        same = x.masked_fill_(m, -1e9) is x
        x[0].masked_fill_(m[1], L.tensor(2).to(x.device))
        return x, same, x.long().masked_fill_(m[:, :1], 3), (x > 0).masked_fill_(m, True)

    agree(change, normal(2, 3), m, device=device)


IN_PLACE = {
    "masked_fill_": lambda x: x.masked_fill_(x.detach() > 0, 1.0),
    "normal_": lambda x: x.normal_(),
    "uniform_": lambda x: x.uniform_(),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_methods_write_the_same_array_and_refuse_to_be_recorded(name, device):
    x = nplm.tensor(normal(2, 3), device=device, requires_grad=True)
    before = x.array
    with pytest.raises(GraphError, match=rf"{name}: an in-place change"):
        IN_PLACE[name](x)
    with nplm.no_grad():
        assert IN_PLACE[name](x) is x
    assert x.array is before
    IN_PLACE[name](x.detach()[:, 1:])
    assert x.requires_grad


# ---- refusals ------------------------------------------------------------------------------------
@pytest.mark.parametrize("call", [
    lambda L, x: x.topk(4), lambda L, x: x.topk(-1), lambda L, x: x.topk(1.0),
    lambda L, x: (x > 0).topk(1), lambda L, x: x.topk(1, 2), lambda L, x: x.sort(2),
    lambda L, x: x.sort(0, True, True), lambda L, x: x.argsort(-3), lambda L, x: x.mm(x[0]),
    lambda L, x: x.mm(x), lambda L, x: x.mm(x.unsqueeze(0)), lambda L, x: x.bmm(x),
    lambda L, x: L.bmm(x.repeat(1, 1, 1), x.T.repeat(3, 1, 1)), lambda L, x: x.mm(x.T.float()),
    lambda L, x: x.dot(x), lambda L, x: x[0].dot(x[:, 0]), lambda L, x: x[0].dot(x[0].float()),
    lambda L, x: x.outer(x[0]), lambda L, x: x.repeat(2), lambda L, x: x.repeat(2, -1),
    lambda L, x: x.expand_as(x[0]), lambda L, x: x.view_as(x[0]), lambda L, x: x.clip(),
    lambda L, x: x.isclose(x.float()), lambda L, x: x.isclose(x, -1.0), lambda L, x: x.new_full(2),
    lambda L, x: L.linspace(0, 1, -1), lambda L, x: L.from_numpy([1.0]),
    lambda L, x: L.nn.functional.one_hot(x), lambda L, x: L.nn.functional.one_hot(x.long() - 9),
    lambda L, x: L.nn.functional.one_hot(x.long() * 0 + 2, 2),
    lambda L, x: L.nn.functional.one_hot(x[:0].long()),
    lambda L, x: L.nn.functional.one_hot(x[:0].long(), 0),
    lambda L, x: x.long().normal_(), lambda L, x: x.long().uniform_(),
    lambda L, x: L.randn_like(x.long()), lambda L, x: x.detach().uniform_(2, 1),
    lambda L, x: x.detach().normal_(0, -1), lambda L, x: x.detach().square().multinomial(4),
    lambda L, x: x.long().square().multinomial(1), lambda L, x: (-x.square()).multinomial(1),
    lambda L, x: x.detach().masked_fill_(x.long(), 1.0),
    lambda L, x: x.detach()[0].masked_fill_(x > 0, 1.0),
])  # fmt: skip
def test_what_torch_refuses_is_refused(call, device):
    ours, theirs = both(normal(2, 3), device)
    with pytest.raises(REFUSALS):
        call(torch, theirs)
    with pytest.raises(REFUSALS):
        call(nplm, ours)


def test_one_hot_names_the_class_that_does_not_fit(device):
    with pytest.raises(DataError, match=r"one_hot: classes must be integers in \[0, 2\).*got 5 at"):
        nplm.nn.functional.one_hot(nplm.tensor([0, 5], device=device), 2)


# ---- modules -------------------------------------------------------------------------------------
PRINTED = [
    lambda n: n.Identity(3, a=4), lambda n: n.Tanh(), lambda n: n.Sigmoid(), lambda n: n.Softmax(),
    lambda n: n.Softmax(dim=1), lambda n: n.LogSoftmax(-1), lambda n: n.Flatten(),
    lambda n: n.Flatten(0, end_dim=2), lambda n: n.NLLLoss(ignore_index=3),
    lambda n: n.Sequential(n.Flatten(), n.Tanh(), n.Identity()),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(PRINTED)))
def test_repr_and_state_are_torch_s(number):
    assert repr(PRINTED[number](nn)) == repr(PRINTED[number](torch.nn))
    assert_same(
        lambda L: (list(PRINTED[number](L.nn).state_dict()), PRINTED[number](L.nn).training)
    )


def test_softmax_without_a_dim_warns_as_torch(device):
    ours, theirs = both(normal(2, 3), device)
    for name in ("Softmax", "LogSoftmax"):
        with pytest.warns(UserWarning, match="Implicit dimension"):
            result = getattr(nn, name)()(ours)
        with pytest.warns(UserWarning, match="Implicit dimension"):
            assert_close(result, getattr(torch.nn, name)()(theirs), FORMULA_64)


def test_a_weight_of_nllloss_is_a_buffer(device):
    def run(L):
        loss = L.nn.NLLLoss(L.tensor([1.0, 2.0]))
        return list(loss.state_dict()), len(list(loss.parameters())), loss.ignore_index

    assert_same(run)
    moved = nn.NLLLoss(nplm.ones(2)).to(device)
    assert moved.weight.device == device
