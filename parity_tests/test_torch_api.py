"""Methods and functions under torch's names: the same call on both libraries, the same numbers."""

import numpy as np
import pytest
from agreement import agree, normal
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from op_inputs import TF, array, index, shapes, silent

import nplm
from nplm.errors import BackendError, GraphError
from nplm.parity.tolerances import ROUNDING_32, assert_close

torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")

pytestmark = pytest.mark.op

# x (2, 3, 4), y (3, 4), i (2, 3, 2) integers below 2, m (2, 3, 4) booleans
CALLS = [
    lambda L, x, y, i, m: x.sum(dim=(0, -1), keepdim=True),
    lambda L, x, y, i, m: (x.sum(), x.sum(1), x.sum(-1, True), L.sum(x, dim=0, keepdim=True)),
    lambda L, x, y, i, m: (x.mean(), x.mean((0, 2)), L.mean(x, dim=-2, keepdim=True)),
    lambda L, x, y, i, m: (x.max(), x.min(), x.amax((0, 1)), x.amin(dim=2, keepdim=True)),
    lambda L, x, y, i, m: (*x.max(1), *x.min(dim=-1, keepdim=True), *L.max(x, dim=0)),
    lambda L, x, y, i, m: (x.max(1).values, x.min(0).indices, x.max(y), L.min(x, y)),
    lambda L, x, y, i, m: (x.argmax(), x.argmin(dim=1), x.argmax(-1, keepdim=True)),
    lambda L, x, y, i, m: (x.std(), x.std(1), x.std(dim=(0, 2), correction=0, keepdim=True)),
    lambda L, x, y, i, m: (x.var(), x.var(1), x.var(dim=(0, 2), correction=0, keepdim=True)),
    lambda L, x, y, i, m: (x.norm(), x.norm(2), x.norm(dim=1), x.norm(2, -1, True), L.norm(y)),
    lambda L, x, y, i, m: (x.logsumexp(1), L.logsumexp(x, dim=(0, 2), keepdim=True)),
    lambda L, x, y, i, m: (x.cumsum(0), L.cumsum(x, dim=-1), i.cumsum(1), m.cumsum(2)),
    lambda L, x, y, i, m: (m.any(), m.all(1), x.any(dim=(0, 2)), L.all(m, dim=-1, keepdim=True)),
    lambda L, x, y, i, m: (L.cat([x, x * 2], dim=-1), L.cat((y, y))),
    lambda L, x, y, i, m: (L.stack([y, y * 2]), L.stack([y, y], dim=-1), L.stack([y, y], 1)),
    lambda L, x, y, i, m: (x.split(2, dim=-1), L.split(x, 3, 2), x.split([1, 0, 2], 1)),
    lambda L, x, y, i, m: (x.chunk(3, -1), L.chunk(x, 2, dim=1), x[:0].chunk(3)),
    lambda L, x, y, i, m: (x.unbind(), L.unbind(x, dim=-1), list(y)),
    lambda L, x, y, i, m: (L.where(m, x, y), L.where(m, x, 0.0), L.where(m, -1, y)),
    lambda L, x, y, i, m: (L.where(m, 1.0, 2.0), L.where(m, 1, 2), L.where(m, True, 2)),
    lambda L, x, y, i, m: (x.masked_fill(m, -1e9), L.masked_fill(y, m, 2), i.masked_fill(i > 0, 5)),
    lambda L, x, y, i, m: (x.gather(0, i), L.gather(x, 2, i), x.gather(dim=-1, index=i)),
    lambda L, x, y, i, m: (x.index_select(1, i[0, :, 0]), L.index_select(y, -1, i[0, 0])),
    lambda L, x, y, i, m: (x.reshape(6, -1), x.reshape((4, 6)), x.view(24), L.reshape(x, (8, 3))),
    lambda L, x, y, i, m: (x.permute(2, 0, 1), L.permute(x, (1, 0, 2)), x.transpose(-1, 0)),
    lambda L, x, y, i, m: (x.mT, y.T, y.t(), L.t(y), L.transpose(x, 0, 2), x.swapaxes(0, 1)),
    lambda L, x, y, i, m: (x.unsqueeze(0).squeeze(), x.unsqueeze(-2).squeeze(-2), x.squeeze(0)),
    lambda L, x, y, i, m: (x[:1].squeeze((0, 1)), L.squeeze(x[:1], dim=0), x.squeeze(())),
    lambda L, x, y, i, m: (x.flatten(), x.flatten(1), L.flatten(x, 0, 1), x.flatten(end_dim=-2)),
    lambda L, x, y, i, m: (y.expand(2, -1, -1), y.unsqueeze(1).expand((3, 5, 4))),
    lambda L, x, y, i, m: (x.flip(0), x.flip(0, -1), L.flip(x, (1, 2)), x.flip(())),
    lambda L, x, y, i, m: (x.tril(), L.triu(y, 1), y.tril(-1), L.tril(x, diagonal=1)),
    lambda L, x, y, i, m: (x @ y.T, y @ x.mT, x[0, 0] @ y.T, y @ x[0, 0], x[0, 0] @ x[0, 0]),
    lambda L, x, y, i, m: (x.matmul(y.t()), L.matmul(x, y[0])),
    lambda L, x, y, i, m: (x + 1, 2 - x, x * 3, 1 / (x * x + 1), x / 2, -x, x**2, 2**x, abs(x)),
    lambda L, x, y, i, m: (x.add(y), x.sub(y), x.mul(y), x.div(y), x.pow(3), x.neg(), x.abs()),
    lambda L, x, y, i, m: (x > y, x <= 0, x == y, x != y, x < y, x >= y, (x > 0) & (y > 0)),
    lambda L, x, y, i, m: (~m, m | (x > 0), m & True, L.logical_or(i, i), L.logical_not(x)),
    lambda L, x, y, i, m: (x.exp(), x.sin(), x.cos(), x.tanh(), x.sigmoid(), x.erf(), x.sign()),
    lambda L, x, y, i, m: ((x * x + 1).log(), (x * x + 1).sqrt(), (x * x + 1).rsqrt()),
    lambda L, x, y, i, m: (x.clamp(-1, 1), x.clamp(min=0), L.clamp(x, max=0.5), i.clamp(0.5)),
    lambda L, x, y, i, m: (x.relu(), x.softmax(-1), L.log_softmax(x, dim=1), L.relu(y)),
    lambda L, x, y, i, m: (x.float(), x.long(), x.bool(), i.float(), i.double(), m.long()),
    lambda L, x, y, i, m: (x.to(L.float32), i.to(L.float64), y.type_as(x), x.clone()),
    lambda L, x, y, i, m: (L.zeros_like(x), L.ones_like(i), L.full_like(x, 3)),
    lambda L, x, y, i, m: (x.numel(), x.dim(), x.size(1), x.ndim, len(x), x.is_floating_point()),
    lambda L, x, y, i, m: (x[0, 0, 0].item(), y.tolist(), float(x.detach()[1, 2, 3])),
    lambda L, x, y, i, m: (int(i[0, 0, 0]), bool(m[0, 0, 0]), [5, 6][i[0, 0, 0]]),
    lambda L, x, y, i, m: (L.isnan(x / 0), L.isinf(x / 0), L.isfinite(x), L.maximum(x, y)),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_a_call_written_for_torch_gives_the_same_here(number, device):
    rng = np.random.default_rng(1)
    i, m = rng.integers(0, 2, (2, 3, 2)), rng.random((2, 3, 4)) < 0.5
    agree(CALLS[number], normal(2, 3, 4), normal(3, 4, seed=1), i, m, device=device)


NEW = [
    lambda L: (L.zeros(2, 3), L.ones((2,)), L.full((2, 2), 7), L.full((1,), 0.5), L.eye(3)),
    lambda L: (L.arange(5), L.arange(1, 9, 2), L.arange(0.0, 1.0, 0.25), L.arange(3.0)),
    lambda L: (L.tensor([1, 2]), L.tensor([[1.5]]), L.tensor(True), L.tensor([]), L.tensor(3)),
    lambda L: (L.tensor(np.ones(2)), L.as_tensor(np.ones(2, "i4")), L.zeros(2, dtype=L.int64)),
]


@pytest.mark.parametrize("number", range(len(NEW)))
def test_new_tensors_have_torch_s_values_and_dtypes(number):
    agree(NEW[number])


@examples(150)
@given(data=st.data())
def test_any_index_that_torch_takes_picks_the_same_elements(device, data):
    x = data.draw(array(shapes(max_dims=4)))
    key = data.draw(index(x.shape))

    def pick(L, x):
        tensor = (lambda k: nplm.tensor(k, device=device)) if L is nplm else torch.tensor
        parts = key if isinstance(key, tuple) else (key,)
        parts = tuple(tensor(k) if isinstance(k, np.ndarray) else k for k in parts)
        return x[parts if isinstance(key, tuple) else parts[0]]

    agree(pick, x, device=device)


INDICES = {
    "a list": lambda L: [0, 2],
    "a 0-d tensor is an integer": lambda L: L.tensor(1),
    "a 0-d tensor beside an array": lambda L: (L.tensor(1), slice(None), L.tensor([0, 2])),
    "an integer beside an array": lambda L: (0, slice(None), L.tensor([0, 2])),
    "int32": lambda L: L.tensor(np.array([1, 0], np.int32)),
    "a list in a tuple": lambda L: (slice(None), [0, 1]),
}


@pytest.mark.parametrize("kind", INDICES)
def test_indices_beyond_the_usual_mean_the_same(kind):
    agree(lambda L, x: x[INDICES[kind](L)], normal(3, 3, 4))


@pytest.mark.parametrize("kind", INDICES)
def test_assignment_by_index_writes_the_same_places(kind):
    def write(L, x):
        x = x.detach()
        values = x[INDICES[kind](L)] * 0 + L.arange(4).double()[: x[INDICES[kind](L)].shape[-1]]
        x[INDICES[kind](L)] = values
        x[..., 0] = 7
        return x

    agree(write, normal(3, 3, 4))


def test_a_basic_index_is_a_view(device):
    x = nplm.zeros(2, 2, device=device)
    x[1, 1].fill_(5)
    x[0].add_(1)
    assert x.tolist() == [[1, 1], [0, 5]]


# ---- dtypes --------------------------------------------------------------------------------------
DTYPES = ["float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"]
OPERANDS = st.one_of(
    st.tuples(st.sampled_from(DTYPES), st.sampled_from([(), (2,), (1, 2)])),
    st.sampled_from([True, 2, 0.5]),
)
ARITHMETIC = {
    "add": lambda L, x, y: x + y,
    "sub": lambda L, x, y: x - y,
    "mul": lambda L, x, y: x * y,
    "div": lambda L, x, y: x / y,
    "pow": lambda L, x, y: x**y,
    "eq": lambda L, x, y: x == y,
    "gt": lambda L, x, y: x > y,
    "where": lambda L, x, y: L.where(L.tensor([True, False]), x, y),
    "cat": lambda L, x, y: L.cat([x.reshape(-1), y.reshape(-1)]),
}


@pytest.mark.parametrize("name", ARITHMETIC)
@examples(60)
@given(one=OPERANDS, two=OPERANDS)
def test_dtypes_mix_as_in_torch(name, one, two):
    def operand(L, kind):
        return L.tensor(np.full(kind[1], 1, kind[0])) if isinstance(kind, tuple) else kind

    if not isinstance(one, tuple) and not isinstance(two, tuple):
        return
    f = ARITHMETIC[name]
    if name == "pow" and {kind[0] if isinstance(kind, tuple) else kind for kind in (one, two)} <= {
        "bool",
        True,
    }:
        return  # torch has booleans of it, NumPy int8: nobody asks
    try:
        expected = f(torch, operand(torch, one), operand(torch, two))
    except (RuntimeError, AttributeError):  # torch has no subtraction of booleans, for example
        return
    for device in ("cpu", "torch:cpu"):
        L = nplm if device == "cpu" else OnTorch
        result = f(L, operand(L, one), operand(L, two))
        assert str(result.dtype) == str(expected.dtype).removeprefix("torch.")
        assert_close(result, expected, ROUNDING_32)


class OnTorch:
    where, cat = nplm.where, nplm.cat
    tensor = staticmethod(lambda data: nplm.tensor(data, device="torch:cpu"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_reduces_and_grows_as_in_torch(dtype, device):
    x = np.array([[1, 0, 3], [2, 2, 1]]).astype(dtype)
    agree(lambda L, x: (x.sum(), x.sum(1), x.cumsum(0), (x * 1).amax(0)), x, device=device)
    agree(lambda L, x: (x[0, 0].sum(), x[0, 0].sum(0)), x, device=device)
    if dtype != "uint8":  # torch answers any() of uint8 with uint8, nplm with bool
        agree(lambda L, x: (x.any(0), x.any(), x[0, 0].all()), x, device=device)

    def functions(L, x):
        return x.exp(), x.sqrt(), x.sigmoid(), L.tanh(x), x.erf()

    agree(functions, x, device=device, tolerance=ROUNDING_32)


# ---- in place ------------------------------------------------------------------------------------
IN_PLACE = {
    "add_": lambda L, x, y: (x.add_(y), x.add_(1, alpha=2), x.add_(y[0], alpha=-0.5)),
    "sub_": lambda L, x, y: (x.sub_(y), x.sub_(0.5, alpha=2)),
    "mul_": lambda L, x, y: (x.mul_(y), x.mul_(2)),
    "div_": lambda L, x, y: (x.div_(y), x.div_(4)),
    "fill_": lambda L, x, y: (x.fill_(3),),
    "zero_": lambda L, x, y: (x[0].zero_(),),
    "copy_": lambda L, x, y: (x.copy_(y[0]), x[1].copy_(y[1].float())),
    "clamp_": lambda L, x, y: (x.clamp_(-0.5, 0.5), x.clamp_(min=0)),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_methods_change_the_tensor_itself(name, device):
    x, y = normal(2, 3), normal(2, 3, seed=1)

    def change(L, x, y):
        x, y = x.detach(), y.detach()
        last = IN_PLACE[name](L, x, y)[-1]
        return x, last

    agree(change, x, y, device=device)
    t = nplm.tensor(x, device=device)
    array = t.array
    IN_PLACE[name](nplm, t, nplm.tensor(y, device=device))
    assert t.array is array


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_methods_refuse_a_tensor_that_requires_a_gradient(name, device):
    x = nplm.tensor(normal(2, 3), device=device, requires_grad=True)
    y = nplm.tensor(normal(2, 3), device=device)
    with pytest.raises(GraphError, match=rf"{name}: an in-place change .*no_grad"):
        IN_PLACE[name](nplm, x, y)
    with nplm.no_grad():
        IN_PLACE[name](nplm, x, y)


def test_in_place_methods_refuse_another_backend_and_raw_arrays(device):
    x = nplm.zeros(2, device=device)
    other = nplm.zeros(2, device="cpu" if device != "cpu" else "torch:cpu")
    for method in ("add_", "sub_", "mul_", "div_"):
        with pytest.raises(BackendError, match=f"{method}: expected all tensors on one device"):
            getattr(x, method)(other)
        with pytest.raises(
            TypeError, match=f"{method}: expected a Tensor or a number, got ndarray"
        ):
            getattr(x, method)(np.ones(2))
    x.add_(np.float64(2))
    assert x.dtype == nplm.float32
    assert x.copy_(other + 3).tolist() == [3, 3]  # copy_ is how values travel


# ---- corners -------------------------------------------------------------------------------------
def test_the_gradient_of_std_is_0_where_all_are_equal(device):
    agree(lambda L, x: x.std(1), np.array([[2.0, 2.0], [1.0, 3.0]]), device=device)


@pytest.mark.parametrize("correction", [0, 1, 2, 3])
def test_variances_of_too_few_are_torch_s_infinities_and_nans(correction, device):
    for x in ([1.0, 2.0], [3.0], []):
        agree(
            silent(lambda L, x: (x.detach().var(correction=correction), x.detach().mean())),
            np.array(x),
            device=device,
        )


@pytest.mark.parametrize("call", [
    lambda L, x: x.reshape(5, -1), lambda L, x: x.view(7), lambda L, x: x.permute(0, 0),
    lambda L, x: x.reshape(-2), lambda L, x: x.reshape(3, -2), lambda L, x: x.reshape(-1, -1),
    lambda L, x: x.sum(2), lambda L, x: x.sum((0, 0)), lambda L, x: x.softmax(-3),
    lambda L, x: x.split([1, 1, 1]), lambda L, x: x.unsqueeze(4), lambda L, x: x @ x,
    lambda L, x: x @ L.tensor(1.0), lambda L, x: x.t().unsqueeze(0).t(), lambda L, x: x + x.T,
    lambda L, x: x @ x.T.float(), lambda L, x: x[0].tril(), lambda L, x: L.stack([x, x.T]),
    lambda L, x: x[2], lambda L, x: x[0, 0, 0], lambda L, x: x.expand(3, 3),
    lambda L, x: x.long().mean(),
    lambda L, x: L.cat([]), lambda L, x: x.item(), lambda L, x: bool(x), lambda L, x: x.clamp(),
    lambda L, x: x.double().numpy(), lambda L, x: len(x.sum()), lambda L, x: [1, 2][x[0, 0]],
    lambda L, x: L.tensor([[1], [1, 2]]), lambda L, x: x.detach().long().requires_grad_(),
])  # fmt: skip
def test_what_torch_refuses_is_refused(call, device):
    x = normal(2, 3)
    refusals = (RuntimeError, IndexError, ValueError, TypeError)
    with pytest.raises(refusals):
        call(torch, torch.tensor(x, requires_grad=True))
    with pytest.raises(refusals):
        call(nplm, nplm.tensor(x, device=device, requires_grad=True))


def test_bitwise_operators_of_integers_are_refused_not_taken_for_logic(device):
    i = nplm.tensor([6, 3], device=device)
    for f in (lambda: i & i, lambda: i | 1, lambda: ~i):
        with pytest.raises(TypeError, match="expected booleans"):
            f()


def test_relu_and_gelu_keep_nan(device):
    x = nplm.tensor([float("nan")], device=device)
    assert nplm.isnan(nplm.relu(x)).item()
    assert np.isnan(TF.relu(torch.tensor([float("nan")])).item())


LARGE = [
    [2**63, 1], [2**63], 2**63, [2**64], 2**64, [-(2**63) - 1, 1], [-(2**63), 2**63 - 1],
    [[2**63], [1]], [10**400], [2**63 - 1, 2**63], [True, 2**63], [np.int64(1), 2**63],
    [2**63, 1.5], [1.5, 2**64], [10**400, 1.5], [[1e30, 2], [2**70, 3]], [1e30, float("nan")],
]  # fmt: skip


@pytest.mark.parametrize("data", LARGE, ids=lambda data: repr(data)[:40])
@pytest.mark.parametrize("dtype", [None, "float32", "float64"])
def test_integers_beyond_int64_are_refused_unless_they_become_floats(data, dtype, device):
    outcomes = []
    for L, options in ((nplm, {"device": device}), (torch, {})):
        try:
            made = L.tensor(data, dtype=dtype and getattr(L, dtype), **options)
            outcomes.append((str(made.dtype).removeprefix("torch."), repr(made.tolist())))
        except (ValueError, OverflowError) as error:
            outcomes.append(type(error))
    assert outcomes[0] == outcomes[1]


def test_a_number_that_int64_cannot_hold_is_named_by_its_size():
    for data, dtype in (([2**64], None), ([2**64 - 1, 1], None), ([2**64], nplm.int32)):
        with pytest.raises(ValueError, match=r"integers in int64's range, .* of 6[45] bits"):
            nplm.tensor(data, dtype)
