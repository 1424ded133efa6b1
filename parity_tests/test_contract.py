"""The spy: every op asks its arrays and its namespace only for what backend/contract.py lists.

Proxies of a NumPy array, its dtype and the namespace pass what is listed and refuse the rest.
"""

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from op_cases import CASES
from test_ops_parity import outputs, random_like

import nplm
from nplm.autograd.op import OPS, UPDATES
from nplm.backend import namespace_for
from nplm.backend import numpy as real
from nplm.backend.contract import ATTRIBUTES, FUNCTIONS, OPERATORS

pytestmark = pytest.mark.op

# Ops that no namespace can carry out alone.
TWO_NAMESPACES = {"transfer": "it takes an array from one namespace to the other"}

# Listed, and used by updates (optimizers), clipping or kernels rather than by an op.
MIRROR = "the mirror image of += or *=: an optimizer may write p -= lr * g"
FOR_UPDATES = {"__isub__": MIRROR, "__itruediv__": MIRROR}

SPECIAL = (
    {
        name
        for kind in (np.ndarray, float, int, list)
        for name in dir(kind)
        if name.startswith("__") and callable(getattr(kind, name, None))
    }
    - {name for name in dir(object)}
    - {"__class_getitem__", "__dlpack__"}
)
used: set[str] = set()


class SpyDtype:
    """Compared with another array's, handed to the namespace, printed; nothing else."""

    def __init__(self, dtype):
        self._dtype = dtype

    def __eq__(self, other):
        assert isinstance(other, SpyDtype), f"a dtype was compared with {other!r}"
        return self._dtype == other._dtype

    __hash__ = None

    def __str__(self):
        return str(self._dtype)


class SpyArray:
    """An array that answers for what the contract lists."""

    __array_ufunc__ = None

    def __init__(self, array):
        self._array = np.asarray(array)

    def __getattr__(self, name):
        assert name in ATTRIBUTES, f"an op asked an array for .{name}, which is not in ATTRIBUTES"
        used.add(name)
        if name == "dtype":
            return SpyDtype(self._array.dtype)
        if name == "reshape":
            return self._reshape
        return getattr(self._array, name)

    def _reshape(self, *shape):
        assert len(shape) == 1, f"reshape takes one tuple, got {shape}"
        assert isinstance(shape[0], tuple), f"reshape takes one tuple, got {shape}"
        return SpyArray(self._array.reshape(shape[0]))


def _special(name):
    def method(self, *args):
        assert name in OPERATORS, f"an op used {name}, which is not in OPERATORS"
        used.add(name)
        if name in ("__getitem__", "__setitem__"):
            parts = args[0] if isinstance(args[0], tuple) else (args[0],)
            for part in parts:
                assert part is None or part is Ellipsis or isinstance(part, int | slice), (
                    f"an op indexed an array with {type(part).__name__}; use xp.getitem"
                )
                if isinstance(part, slice):
                    assert part.step is None or part.step > 0, "an op used a negative step"
        args = [a if name.endswith("item__") and i == 0 else bare(a) for i, a in enumerate(args)]
        for a in args:
            assert not isinstance(a, np.generic), f"a NumPy scalar met an array in {name}"
        if name.startswith("__i") and name != "__invert__":
            getattr(self._array, name)(*args)
            return self
        return spied(getattr(self._array, name)(*args))

    return method


for _name in SPECIAL - {"__array_ufunc__"}:
    setattr(SpyArray, _name, _special(_name))
for _name in ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"):
    setattr(SpyArray, _name, _special(_name))


class SpyNamespace:
    """The NumPy namespace, of which only the listed functions can be seen."""

    def __getattr__(self, name):
        assert name in FUNCTIONS, f"an op asked for xp.{name}, which is not in FUNCTIONS"
        used.add(name)
        function = getattr(real, name)

        def call(*args, **options):
            return spied(
                function(*[bare(a) for a in args], **{k: bare(v) for k, v in options.items()})
            )

        return call


def bare(value):
    """Without proxies."""
    if isinstance(value, SpyArray):
        return value._array
    if isinstance(value, SpyDtype):
        return value._dtype
    if isinstance(value, tuple | list):
        return type(value)(bare(v) for v in value)
    return value


def spied(value):
    """With proxies."""
    if isinstance(value, tuple):
        return tuple(spied(v) for v in value)
    return SpyArray(value) if isinstance(value, np.ndarray | np.generic) else value


def run_through_the_spy(name, call):
    op, xp = OPS[name], SpyNamespace()
    options = {k: spied(v) if k == "index" else v for k, v in call.options.items()}
    if name == "cast":
        options["dtype"] = SpyDtype(options["dtype"])
    with real.quiet():
        value, backward = op.raw(xp, *[spied(x) for x in call.inputs], **options)
        expected, _ = op.raw(real, *call.inputs, **call.options)
        for ours, plain in zip(outputs(value), outputs(expected)):
            np.testing.assert_array_equal(bare(ours), plain)
        if backward is not None:
            dys = random_like([np.asarray(v) for v in outputs(expected)], 1)
            dys = [
                np.zeros(v.shape, int) if dy is None else dy
                for dy, v in zip(dys, outputs(expected))
            ]
            dys = spied(tuple(dys))
            needs = ((True,) * len(call.inputs),) if op.wants_needs else ()
            backward(dys if isinstance(value, tuple) else dys[0], *needs)


@pytest.mark.parametrize("name", sorted(set(CASES) - set(TWO_NAMESPACES)))
@examples(25)
@given(data=st.data())
def test_an_op_asks_only_for_what_the_contract_lists(name, data):
    run_through_the_spy(name, data.draw(CASES[name].calls(False)))


def test_every_op_went_through_the_spy():
    assert set(OPS) == set(CASES)
    assert set(TWO_NAMESPACES) < set(OPS)


def test_nothing_in_the_contract_is_unused():
    @examples(25)
    @given(data=st.data())
    def walk(data):
        for name in sorted(set(CASES) - set(TWO_NAMESPACES)):
            run_through_the_spy(name, data.draw(CASES[name].calls(False)))

    walk()
    listed = set(FUNCTIONS) | ATTRIBUTES | OPERATORS
    unused = sorted(listed - used - asked_by_updates() - set(FOR_UPDATES))
    assert not unused, f"drop from contract.py: {unused}"


def asked_by_updates():
    """The names `xp.<name>` and the in-place operators in the bodies of all updates."""

    operators = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "truediv"}
    names = set()
    for update in UPDATES.values():
        module = Path(inspect.getsourcefile(update.raw)).read_text()
        for node in ast.walk(ast.parse(module)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "xp":
                names.add(node.attr)
            if isinstance(node, ast.AugAssign) and type(node.op) in operators:
                names.add(f"__i{operators[type(node.op)]}__")
    return names


def test_updates_ask_only_for_what_the_contract_lists():

    assert UPDATES
    operators = {name for name in asked_by_updates() if name.startswith("__")}
    assert sorted(asked_by_updates() - operators - set(FUNCTIONS)) == []
    assert sorted(operators - OPERATORS) == []


def test_both_namespaces_define_every_function_with_the_same_arguments(device):
    xp = namespace_for(device)
    assert [name for name in FUNCTIONS if not callable(getattr(xp, name, None))] == []
    one, two = namespace_for("cpu"), namespace_for("torch:cpu")
    for name in FUNCTIONS:  # what both wrote in Python has the same parameters
        functions = [getattr(xp, name) for xp in (one, two)]
        if all(inspect.isfunction(f) and f.__module__.startswith("nplm") for f in functions):
            parameters = [[*inspect.signature(f).parameters] for f in functions]
            assert parameters[0] == parameters[1], name


@pytest.mark.parametrize("body", [
    lambda xp, x: x.T, lambda xp, x: x.max(), lambda xp, x: x.astype(x.dtype),
    lambda xp, x: xp.einsum("i,i->", x, x), lambda xp, x: x // 2, lambda xp, x: x[::-1],
    lambda xp, x: x[x > 0], lambda xp, x: len(x), lambda xp, x: float(x), lambda xp, x: x % 2,
    lambda xp, x: x * np.float64(2), lambda xp, x: x.reshape(3, 1), lambda xp, x: bool(x),
    lambda xp, x: x.dtype == np.float64, lambda xp, x: [v for v in x], lambda xp, x: xp.name,
])  # fmt: skip
def test_the_spy_sees_what_is_not_listed(body):
    with pytest.raises(AssertionError):
        body(SpyNamespace(), SpyArray(np.arange(3.0)))


def test_the_readme_of_a_function_is_its_signature():
    for name, text in FUNCTIONS.items():
        assert text.startswith("("), name
    assert nplm.backend.contract.__doc__
