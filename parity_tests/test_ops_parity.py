"""Every op of the table against torch, finite differences and its own contract, on both backends.

The bodies are called raw: `op.raw(xp, *arrays, **options)` -> value, backward.  Read op_cases.py.
"""

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from op_cases import CASES, Call

import nplm
from nplm.autograd.op import OPS
from nplm.backend import namespace_for
from nplm.parity.tolerances import FINITE_DIFFERENCES, FORMULA_64, assert_close, to_numpy

torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")

pytestmark = pytest.mark.op

every_op = pytest.mark.parametrize("name", sorted(CASES))
NUMBERS = [2, 0.5, np.float64(0.5), np.float32(1.5), np.int64(2)]


def as_torch(x):
    """Arrays (also inside an index or a list) as torch tensors with memory of their own layout."""
    if isinstance(x, np.ndarray):
        return torch.from_numpy(x if x.flags.writeable else x.copy(order="K"))
    if isinstance(x, tuple):
        return tuple(as_torch(v) for v in x)
    return x


def native(x, device):
    return x if device == "cpu" else as_torch(x)


def place_of(x):
    return "torch:cpu" if isinstance(x, torch.Tensor) else "cpu"


def freeze(x):
    """A copy in the same layout that cannot be written."""
    if isinstance(x, np.ndarray):
        x = x.view()
        x.flags.writeable = False
    return x


def outputs(value):
    return value if isinstance(value, tuple) else (value,)


def random_like(values, seed):
    """What flows back: numbers for every floating output."""
    rng = np.random.default_rng(seed)
    return [
        np.asarray(rng.uniform(-1, 1, v.shape), v.dtype) if v.dtype.kind == "f" else None
        for v in map(to_numpy, values)
    ]


def run_raw(name, call, device, dys=None):
    """(outputs, gradients) of an op's body; the gradients are None without a backward."""
    op, xp = OPS[name], namespace_for(device)
    arrays = [native(x, device) for x in call.inputs]
    options = {k: native(v, device) for k, v in call.options.items()}
    with xp.quiet():
        value, backward = op.raw(xp, *arrays, **options)
        if backward is None or dys is None:
            return outputs(value), None
        dys = tuple(
            native(np.zeros(v.shape, int) if dy is None else dy, place_of(v))
            for dy, v in zip(dys, outputs(value))
        )
        needs = ((True,) * len(arrays),) if op.wants_needs else ()
        grads = backward(dys if isinstance(value, tuple) else dys[0], *needs)
    return outputs(value), grads


def run_twin(name, call, dys):
    """(outputs, gradients) of the torch function."""
    case = CASES[name]
    wants = case.takes_gradient(call)
    inputs = [
        as_torch(x).clone().requires_grad_(want) if isinstance(x, np.ndarray) else x
        for x, want in zip(call.inputs, wants)
    ]
    values = outputs(case.twin(*inputs, **{k: as_torch(v) for k, v in call.options.items()}))
    if True not in wants:
        return values, None
    leaves = [x for x, want in zip(inputs, wants) if want]
    pairs = [(v, torch.from_numpy(dy).to(v.dtype)) for v, dy in zip(values, dys) if dy is not None]
    grads = iter(
        torch.autograd.grad(
            [v for v, _ in pairs], leaves, [dy for _, dy in pairs], allow_unused=True
        )
    )
    return values, [next_or_zeros(grads, x) if want else None for x, want in zip(inputs, wants)]


def next_or_zeros(grads, x):
    grad = next(grads)
    return torch.zeros_like(x) if grad is None else grad


def test_every_op_has_a_case_and_every_case_an_op():
    assert sorted(OPS) == sorted(CASES)


@every_op
@examples(60)
@given(data=st.data())
def test_values_and_gradients_equal_torch(name, device, data):
    call = data.draw(CASES[name].calls(False))
    values, _ = run_raw(name, call, device)
    dys = random_like(values, data.draw(st.integers(0, 99)))
    values, grads = run_raw(name, call, device, dys)
    expected, expected_grads = run_twin(name, call, dys)
    assert len(values) == len(expected)
    for value, twin in zip(values, expected):
        assert_close(value, twin, FORMULA_64)
    if expected_grads is None:
        assert grads is None or not any(CASES[name].takes_gradient(call))
        return
    for i, (x, grad) in enumerate(zip(call.inputs, expected_grads)):
        if grad is not None:
            assert_close(grads[i], grad, FORMULA_64, f"gradient {i} of {name}")
        elif not isinstance(x, np.ndarray) or x.dtype.kind != "f":
            assert grads[i] is None, f"{name}: input {i} has no gradient"


@every_op
@examples(10)
@given(data=st.data())
def test_gradients_equal_finite_differences(name, device, data):
    call = data.draw(CASES[name].calls(True))
    wants = CASES[name].takes_gradient(call)
    if True not in wants:
        return
    values, _ = run_raw(name, call, device)
    dys = random_like(values, 1)
    _, grads = run_raw(name, call, device, dys)
    for i, (x, want) in enumerate(zip(call.inputs, wants)):
        if want:
            slopes = central_differences(name, call, i, device, dys)
            assert_close(grads[i], slopes.reshape(x.shape), FINITE_DIFFERENCES, f"input {i}")


def central_differences(name, call, i, device, dys, h=1e-5):
    """d(sum of outputs times dys) / d(every element of input i), one element at a time."""
    slopes = np.zeros(call.inputs[i].size)
    for place in range(slopes.size):
        ends = []
        for step in (h, -h):
            x = call.inputs[i].copy()
            x.flat[place] += step
            moved = Call((*call.inputs[:i], x, *call.inputs[i + 1 :]), call.options)
            ends.append(run_raw(name, moved, device)[0])
        for up, down, dy in zip(*ends, dys):
            if dy is not None:
                slopes[place] += ((to_numpy(up) - to_numpy(down)) * dy).sum() / (2 * h)
    return slopes


@every_op
@examples(10)
@given(data=st.data())
def test_inputs_and_dy_are_not_written(name, device, data):
    call = data.draw(CASES[name].calls(False))
    before = [np.array(x) if isinstance(x, np.ndarray) else x for x in call.inputs]
    frozen = Call(tuple(map(freeze, call.inputs)), call.options)
    values, _ = run_raw(name, frozen if device == "cpu" else call, device)
    dys = random_like(values, 2)
    kept = [None if dy is None else dy.copy() for dy in dys]
    if device == "cpu":
        run_raw(name, frozen, device, [freeze(dy) for dy in dys])  # a write raises
    else:
        run_raw(name, call, device, dys)  # from_numpy shares memory: a write shows
    for x, old in zip([*call.inputs, *dys], before + kept):
        if isinstance(x, np.ndarray):
            np.testing.assert_array_equal(x, old)


# ---- dtypes: through Tensors, as users call them -------------------------------------------------
def as_float32(x):
    return x.astype(np.float32) if isinstance(x, np.ndarray) and x.dtype == np.float64 else x


def check_float32(name, call, device):
    """Every floating output and gradient of float32 inputs is float32, as in torch."""
    if name == "cast":
        call = Call(call.inputs, {"dtype": np.dtype("float32")})
    inputs = [as_float32(x) for x in call.inputs]
    wants = CASES[name].takes_gradient(call)
    leaves = [
        nplm.tensor(x, device=device, requires_grad=want) if isinstance(x, np.ndarray) else x
        for x, want in zip(inputs, wants)
    ]
    options = {k: native(v, device) for k, v in call.options.items()}
    results = outputs(OPS[name](*leaves, **options))
    expected = run_twin(name, Call(tuple(map(plain, inputs)), call.options), [])[0]
    for result, twin in zip(results, expected):
        assert str(result.dtype) == str(twin.dtype).removeprefix("torch."), name
        assert result.shape == tuple(twin.shape)
    total = sum((r * 0.5).sum() for r in results if r.requires_grad)
    if True in wants and isinstance(total, nplm.Tensor):
        total.to(device).backward()
    for leaf, want in zip(leaves, wants):
        if want and leaf.grad is not None:
            assert leaf.grad.dtype == nplm.float32, f"{name}: the gradient's dtype grew"
            assert leaf.grad.shape == leaf.shape


def plain(x):
    return x.item() if isinstance(x, np.generic) else x


@every_op
@examples(10)
@given(data=st.data())
def test_no_dtype_grows(name, device, data):
    check_float32(name, data.draw(CASES[name].calls(False)), device)


BINARY = ["add", "sub", "mul", "div", "pow", "maximum", "minimum", "where", "eq", "lt"]


@pytest.mark.parametrize("number", NUMBERS, ids=repr)
@pytest.mark.parametrize("name", BINARY)
def test_no_dtype_grows_beside_a_number(name, number, device):
    x = np.array([[0.5, 1.5, 2.0]])
    lead = (np.array([[True, False, True]]),) if name == "where" else ()
    check_float32_of_numbers(name, lead, x, number, device)


def check_float32_of_numbers(name, lead, x, number, device):
    for operands in ((x, number), (number, x)):
        for shape in (x.shape, ()):
            arrays = [np.resize(v, shape) if isinstance(v, np.ndarray) else v for v in operands]
            kinds = tuple(v if isinstance(v, np.ndarray) else plain(v) for v in arrays)
            case = CASES[name]
            wants = case.takes_gradient(Call((*lead, *kinds)))
            leaves = [
                nplm.tensor(as_float32(v), device=device, requires_grad=want)
                if isinstance(v, np.ndarray)
                else v
                for v, want in zip((*lead, *arrays), wants)
            ]
            result = OPS[name](*leaves)
            assert result.dtype in (nplm.float32, nplm.bool_)
            if result.requires_grad:
                result.sum().backward()
                assert [t.grad.dtype for t, w in zip(leaves, wants) if w] == [nplm.float32]
