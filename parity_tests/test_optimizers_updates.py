"""Every optimizer that is neither Adam nor SGD, against torch.optim: 100 updates, every option.

Muon and LBFGS have files of their own. `Pair` in test_optim.py holds both libraries.
"""

import platform

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from test_contract import SpyNamespace, spied
from test_optim import Pair, decays, devices, dtypes, rates

from nplm.parity.tolerances import EXACT, OPTIMIZER_64, assert_close, to_numpy

torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")

from side_by_side import run_without_fused_multiply_adds  # noqa: E402

import nplm  # noqa: E402
from nplm import optim  # noqa: E402
from nplm.autograd.op import Update  # noqa: E402
from nplm.backend import numpy as numpy_namespace  # noqa: E402

pytestmark = pytest.mark.step


class Twins(Pair):
    """A Pair with more axes; torch's Adafactor divides by the size and cannot have an empty one."""

    loop = {"foreach": False}  # noqa: RUF012
    shapes = [(), (1,), (3,), (2, 3), (1, 1, 4), (2, 3, 2)]  # noqa: RUF012
    factor = 1.0  # on the next gradients

    def draw(self, shape):
        return np.asarray(super().draw(shape) * self.factor, self.dtype)


shares = st.sampled_from([0.0, 0.2, 0.5, 0.9, 0.99])
betas = st.tuples(shares, st.sampled_from([0.5, 0.95, 0.999]))
small = st.sampled_from([1e-8, 1e-3])
decoupled = {"decoupled_weight_decay": st.booleans()}
OPTIONS = {
    "NAdam": {"betas": betas, "eps": small, "momentum_decay": st.sampled_from([0, 4e-3, 0.5])}
    | decoupled,
    "RAdam": {"betas": betas, "eps": small} | decoupled,
    "Adamax": {"betas": betas, "eps": small},
    "RMSprop": {
        "alpha": st.sampled_from([0.9, 0.99]),  # less, centered: v - a^2 cancels
        "eps": small,
        "momentum": st.sampled_from([0, 0.5, 0.9]),
        "centered": st.booleans(),
    },
    "Adagrad": {
        "lr_decay": st.sampled_from([0, 0.1]),
        "initial_accumulator_value": st.sampled_from([0, 0.3]),
        "eps": st.sampled_from([1e-10, 1e-3]),
    },
    "Adadelta": {"rho": st.sampled_from([0.0, 0.5, 0.9, 1.0]), "eps": st.sampled_from([1e-6, 0.1])},
    "Rprop": {
        "etas": st.sampled_from([(0.5, 1.2), (0.3, 2.0)]),
        "step_sizes": st.sampled_from([(1e-6, 50), (0.01, 0.1)]),
    },
    "ASGD": {
        "lambd": st.sampled_from([0, 1e-4, 0.1]),
        "alpha": st.sampled_from([0.5, 0.75]),
        "t0": st.sampled_from([0, 20, 1e6]),
    },
    "Adafactor": {
        "beta2_decay": st.sampled_from([0.0, -0.3, -0.8]),
        "eps": st.sampled_from([(None, 1e-3), (1e-3, 0.1)]),
        "d": st.sampled_from([1.0, 2.0]),
    },
}
NAMES = sorted(OPTIONS)
names = pytest.mark.parametrize("name", NAMES)


def options_of(name):
    shared = {"lr": rates, "maximize": st.booleans()}
    shared |= {} if name == "Rprop" else {"weight_decay": decays}
    return st.fixed_dictionaries(shared | OPTIONS[name])


def groups_of(name):
    own = [{}, {"lr": 0.01}, {"lr": 0.2, "maximize": True}]
    own += [] if name == "Rprop" else [{"weight_decay": 0.1}]
    return st.lists(st.sampled_from(own), min_size=1, max_size=2)


# Every entry of every state, with whatever options it takes.
FULL = {
    "RMSprop": {"centered": True, "momentum": 0.9},
    "Adagrad": {"initial_accumulator_value": 0.3, "lr_decay": 0.1},
    "ASGD": {"t0": 8, "lambd": 0.1},
}


def full(name):
    return {"lr": 0.05, **FULL.get(name, {})}


# ---- the arithmetic ------------------------------------------------------------------------------
@names
@dtypes
@examples(10)
@given(data=st.data())
def test_a_hundred_updates_equal_torchs(name, dtype, data):
    device = data.draw(st.sampled_from(["cpu", "torch:cpu"]))
    options, groups = data.draw(options_of(name)), data.draw(groups_of(name))
    pair = Twins(name, options, device, dtype, groups, data.draw(st.integers(0, 99)))
    for k in range(100):
        pair.step(skip=0.2 if k % 3 else 0.0)
    pair.check()


@devices
@names
def test_gradients_of_zeros_do_what_they_do_in_torch(name, device):
    pair = Twins(name, full(name), device)
    for k in range(12):
        pair.factor = float(k not in (0, 1, 5, 6))
        pair.step()
        pair.check()


@devices
@names
def test_a_parameter_without_a_gradient_is_left_alone(name, device):
    pair = Twins(name, full(name), device)
    before = [to_numpy(p).copy() for p, _ in pair.params()]
    pair.step(skip=1.0)
    pair.check()  # the same entries of the state: Adagrad has some
    for (p, _), value in zip(pair.params(), before):
        assert_close(p, value, EXACT)


@names
def test_parameters_of_any_memory_layout_end_at_the_same_values(name):
    rng = np.random.default_rng(0)
    wide, gradients = rng.standard_normal((6, 8)), rng.standard_normal((5, 3, 8))
    ends = []
    for view in (wide.copy().T, wide.T.copy(), np.repeat(wide.T, 2, 1)[:, ::2]):
        p = nplm.Tensor(view[:, ::2], requires_grad=True)
        optimizer = getattr(optim, name)([p], **full(name))
        for g in gradients:
            p.grad = nplm.tensor(g.T)
            optimizer.step()
        ends.append(p.detach().numpy().copy())
    tolerance = OPTIMIZER_64 if name == "Adafactor" else EXACT  # it sums, in memory's order
    assert_close(ends[1], ends[0], tolerance)
    assert_close(ends[2], ends[0], tolerance)


@names
def test_an_update_writes_into_the_arrays_it_was_given(name):
    pair = Twins(name, full(name))

    def arrays():
        state = [t.array for s in pair.ours.state.values() for t in s.values()]
        return [p.array for p, _ in pair.params()] + state

    pair.step()
    before = arrays()
    pair.step()
    assert all(a is b for a, b in zip(before, arrays()))


@names
def test_an_update_asks_only_for_what_the_contract_lists(name, monkeypatch):
    def through_the_spy(self, *lists, **options):
        arrays = [[spied(getattr(t, "array", t)) for t in values] for values in lists]
        self.raw(SpyNamespace(), *arrays, **options)

    monkeypatch.setattr(Update, "__call__", through_the_spy)
    pair = Twins(name, full(name) | ({} if name == "Rprop" else {"weight_decay": 0.1}))
    for _ in range(10):
        pair.step()
    pair.check()


@devices
@names
def test_gradients_of_nan_and_infinity_do_what_they_do_in_torch(name, device):
    for bad in (np.nan, np.inf, -np.inf):
        pair = Twins(name, full(name), device)
        for k in range(4):
            pair.factor = bad if k == 1 else 1.0
            pair.step()
            for p, t in pair.params():
                assert_close(p, t, OPTIMIZER_64)


BIT_CASES = [
    ("NAdam", {"weight_decay": 0.1}),
    ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True}),
    ("RAdam", {"weight_decay": 0.1, "betas": (0.4, 0.9)}),
    ("Adamax", {"weight_decay": 0.1}),
    ("RMSprop", {"centered": True, "momentum": 0.9}),
    ("RMSprop", {"weight_decay": 0.1, "maximize": True}),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.3}),
    ("Adadelta", {"weight_decay": 0.1}),
    ("Rprop", {"maximize": True}),
    ("ASGD", {"t0": 20, "lambd": 0.1, "weight_decay": 0.1}),
]


def compare_bits():
    """As in test_optim.py: run in a process whose torch has no fused multiply-adds."""
    assert torch.backends.cpu.get_cpu_capability() == "DEFAULT"
    numpy_namespace.sqrt = lambda x: torch.sqrt(torch.from_numpy(np.asarray(x))).numpy()
    Twins.shapes.append((1000,))
    for name, options in BIT_CASES:
        for dtype in ("float32", "float64"):
            for device in ("cpu", "torch:cpu"):
                pair = Twins(name, {"lr": 0.05, **options}, device, dtype, [{}, {"lr": 0.003}])
                for _ in range(40):
                    pair.step(skip=0.1)
                try:
                    pair.check(EXACT)
                except AssertionError as error:
                    raise AssertionError(f"{name} {options} {dtype} {device}") from error
    print("equal")


@pytest.mark.slow
@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="only there can torch run without FMA"
)
def test_without_fused_multiply_adds_every_bit_is_torchs():
    run = run_without_fused_multiply_adds(
        "import test_optimizers_updates; test_optimizers_updates.compare_bits()"
    )
    assert run.stdout.strip() == "equal", run.stderr


# ---- options that change on the way --------------------------------------------------------------
def test_rmsprop_starts_a_momentum_that_is_switched_on_later():
    p = nplm.ones(2, requires_grad=True)
    optimizer = optim.RMSprop([p])
    for momentum in (0, 0.9):
        optimizer.param_groups[0]["momentum"] = momentum
        p.grad = nplm.ones(2)
        optimizer.step()
    assert set(optimizer.state[p]) == {"step", "square_avg", "momentum_buffer"}


def test_adagrad_gives_a_later_group_its_first_sum():
    ends = []
    for library, module in ((nplm, optim), (torch, torch.optim)):
        p, q = (library.ones(2, requires_grad=True) for _ in range(2))
        optimizer = module.Adagrad([p], initial_accumulator_value=0.5)
        optimizer.add_param_group({"params": [q], "initial_accumulator_value": 0.1})
        assert q not in optimizer.state
        q.grad = library.ones(2)
        optimizer.step()
        ends.append(to_numpy(optimizer.state[q]["sum"]))
    assert_close(ends[0], ends[1], EXACT)
