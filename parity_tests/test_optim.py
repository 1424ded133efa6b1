"""SGD, Adam and AdamW against torch.optim: updates, and state that travels both ways."""

import copy
import platform
from types import SimpleNamespace

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from nplm.parity import tolerances
from nplm.parity.tolerances import EXACT, assert_close, assert_close_at_scale, to_numpy

torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")

from side_by_side import run_without_fused_multiply_adds  # noqa: E402

import nplm  # noqa: E402
from nplm import optim  # noqa: E402
from nplm.backend import numpy as numpy_namespace  # noqa: E402
from nplm.backend.contract import FUNCTIONS  # noqa: E402
from nplm.optim import optimizer as optimizer_module  # noqa: E402
from nplm.optim.adam import adam_update  # noqa: E402
from nplm.optim.sgd import sgd_update  # noqa: E402

pytestmark = pytest.mark.step

devices = pytest.mark.parametrize("device", ["cpu", "torch:cpu"])
names = pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


class Pair:
    """The same parameters, groups and gradients in nplm (`ours`) and in torch (`theirs`)."""

    shapes = [(), (3,), (0,), (2, 3), (1, 1, 4)]  # noqa: RUF012
    loop = {"foreach": False, "fused": False}  # noqa: RUF012  the twin among torch's own

    def __init__(self, name, options, device="cpu", dtype="float64", groups=({},), seed=0):
        self.rng, self.reach = np.random.default_rng(seed), {}
        self.dtype, self.device = dtype, device
        values = [[self.draw(shape) for shape in self.shapes] for _ in groups]
        self.p = [[nplm.tensor(v, None, device, True) for v in group] for group in values]
        self.t = [[torch.tensor(v, requires_grad=True) for v in group] for group in values]
        self.ours = getattr(optim, name)(
            [{"params": p, **own} for p, own in zip(self.p, groups)], **options
        )
        self.theirs = getattr(torch.optim, name)(
            [{"params": t, **own} for t, own in zip(self.t, groups)], **options, **self.loop
        )

    def draw(self, shape):
        return np.asarray(self.rng.standard_normal(shape), self.dtype)

    def params(self):
        return [(p, t) for ps, ts in zip(self.p, self.t) for p, t in zip(ps, ts)]

    def step(self, skip=0.0, ours=True, theirs=True):
        """One update from fresh gradients; a share `skip` of the parameters gets none."""
        for p, t in self.params():
            g, p.grad, t.grad = self.draw(p.shape), None, None
            if self.rng.random() >= skip:
                p.grad, t.grad = nplm.tensor(g, None, self.device), torch.tensor(g)
        for optimizer in [self.ours] * ours + [self.theirs] * theirs:
            optimizer.step()
        for i, key, value in self.tensors():
            self.reach[i, key] = max(self.reach.get((i, key), 0.0), np.abs(value).max(initial=0))

    def tensors(self):
        """(parameter number, name, torch's values) of parameters and their states."""
        for i, (_, t) in enumerate(self.params()):
            yield i, "", to_numpy(t)
            for key, value in self.theirs.state.get(t, {}).items():
                if isinstance(value, torch.Tensor):
                    yield i, key, to_numpy(value)

    def check(self, tolerance=None):
        """Parameters and all state, each on the scale of the largest value that it ever had.

        Rounding is made where values are large; one that ends near zero keeps what it gathered.
        """
        tolerance = tolerance or getattr(tolerances, f"OPTIMIZER_{self.dtype[-2:]}")
        for i, (p, t) in enumerate(self.params()):
            assert_close_at_scale(p, t, tolerance, self.reach.get((i, ""), 0.0), f"parameter {i}")
            ours, theirs = self.ours.state.get(p, {}), self.theirs.state.get(t, {})
            assert ours.keys() == theirs.keys()
            for key in theirs:
                kind = EXACT if key == "step" else tolerance
                reach, what = self.reach.get((i, key), 0.0), f"{key} of parameter {i}"
                assert_close_at_scale(ours[key], theirs[key], kind, reach, what)


rates = st.floats(1e-4, 0.5)
decays = st.sampled_from([0, 0.0, 0.01, 0.3])
sgd_options = st.fixed_dictionaries(
    {"lr": rates, "weight_decay": decays, "maximize": st.booleans()}
).flatmap(
    lambda base: st.one_of(
        st.builds(
            lambda m, d: {**base, "momentum": m, "dampening": d},
            st.sampled_from([0, 0.5, 0.9]),
            st.sampled_from([0, 0.3, 1.0]),
        ),
        st.just({**base, "momentum": 0.9, "nesterov": True}),
    )
)
adam_options = st.fixed_dictionaries(
    {
        "lr": rates,
        "betas": st.tuples(
            st.sampled_from([0.0, 0.2, 0.5, 0.9, 0.99]), st.sampled_from([0.5, 0.95, 0.999])
        ),
        "eps": st.sampled_from([1e-8, 1e-3]),
        "weight_decay": decays,
        "amsgrad": st.booleans(),
        "maximize": st.booleans(),
    }
)
cases = st.one_of(
    st.tuples(st.just("SGD"), sgd_options),
    st.tuples(st.sampled_from(["Adam", "AdamW"]), adam_options),
)
own_options = st.sampled_from(
    [{}, {"lr": 0.01}, {"weight_decay": 0.1}, {"lr": 0, "maximize": True}]
)


# ---- the arithmetic ------------------------------------------------------------------------------
@devices
@dtypes
@examples(150)
@given(case=cases, groups=st.lists(own_options, min_size=1, max_size=3), seed=st.integers(0, 99))
def test_sixty_updates_equal_torchs(device, dtype, case, groups, seed):
    pair = Pair(*case, device, dtype, groups, seed)
    for k in range(60):
        pair.step(skip=0.2 if k % 3 else 0.0)
    pair.check()


BIT_CASES = [
    ("SGD", {"lr": 0.05}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1, "maximize": True}),
    ("Adam", {"lr": 0.01}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True, "betas": (0.4, 0.9)}),
    ("Adam", {"lr": 0.01, "betas": (0.1, 0.9), "decoupled_weight_decay": True}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.01, "amsgrad": True, "maximize": True, "eps": 1e-3}),
]


def compare_bits():
    """Run in a process whose torch has no fused multiply-adds; torch's square root in both."""
    assert torch.backends.cpu.get_cpu_capability() == "DEFAULT"
    numpy_namespace.sqrt = lambda x: torch.sqrt(torch.from_numpy(np.asarray(x))).numpy()
    Pair.shapes.append((1000,))
    for name, options in BIT_CASES:
        for dtype in ("float32", "float64"):
            for device in ("cpu", "torch:cpu"):
                pair = Pair(name, options, device, dtype, [{}, {"lr": 0.003}])
                with nplm.reference():  # the kernels take a square root of their own
                    for _ in range(60):
                        pair.step(skip=0.1)
                pair.check(EXACT)
    print("equal")


@pytest.mark.slow
@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="only there can torch run without FMA"
)
def test_without_fused_multiply_adds_every_bit_is_torchs():
    run = run_without_fused_multiply_adds("import test_optim; test_optim.compare_bits()")
    assert run.stdout.strip() == "equal", run.stderr


@devices
@names
def test_a_parameter_without_a_gradient_does_not_move(device, name):
    pair = Pair(name, {"lr": 0.1, "weight_decay": 0.5}, device)
    before = [to_numpy(p).copy() for p, _ in pair.params()]
    pair.step(skip=1.0)
    assert not pair.ours.state
    for (p, _), value in zip(pair.params(), before):
        assert_close(p, value, EXACT)


@names
def test_updates_write_into_the_arrays_they_were_given(name):
    pair = Pair(name, {"lr": 0.1})
    pair.step()
    state = [t.array for s in pair.ours.state.values() for t in s.values()]
    arrays = [p.array for p, _ in pair.params()] + state
    pair.step()
    state = [t.array for s in pair.ours.state.values() for t in s.values()]
    assert all(a is b for a, b in zip(arrays, [p.array for p, _ in pair.params()] + state))


def test_updates_ask_only_for_what_the_contract_lists():
    xp = SimpleNamespace(**{name: getattr(numpy_namespace, name) for name in FUNCTIONS})
    p, g, m, v, top = (np.ones(3) for _ in range(5))
    rest = {"lr": 0.1, "weight_decay": 0.1, "maximize": True}
    sgd_update.raw(xp, [p], [g], [m], [True], momentum=0.9, dampening=0, nesterov=True, **rest)
    for beta1 in (0.1, 0.9):
        adam_update.raw(
            xp, [p], [g], [m], [v], [top], [1], beta1=beta1, beta2=0.9, eps=1e-8,
            decoupled_weight_decay=False, amsgrad=True, **rest,
        )  # fmt: skip


def test_numpy_numbers_as_options_change_no_bit():
    plain = {"lr": 0.1, "weight_decay": 0.1, "eps": 1e-8, "betas": (0.9, 0.99)}
    numpy = {**dict.fromkeys(plain), "betas": (np.float64(0.9), np.float64(0.99))}
    numpy |= {key: np.float64(plain[key]) for key in ("lr", "weight_decay", "eps")}
    a, b = (Pair("AdamW", options, dtype="float32") for options in (plain, numpy))
    assert type(b.ours.param_groups[0]["lr"]) is float
    for _ in range(5):
        b.ours.param_groups[0]["lr"] = np.float64(0.1)  # what a user's own schedule may write
        a.step(theirs=False)
        b.step(theirs=False)
    for (p, _), (q, _) in zip(a.params(), b.params()):
        assert_close(p, q, EXACT)


def test_a_tensor_lr_becomes_a_python_float():
    p = nplm.zeros(2, requires_grad=True)
    optimizer = optim.Adam([p], lr=nplm.tensor(0.5), betas=(nplm.tensor(0.5), nplm.tensor(0.75)))
    assert type(optimizer.param_groups[0]["lr"]) is float
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.75)


def test_step_returns_the_loss_of_its_closure_and_records_there():
    p = nplm.ones(2, requires_grad=True)
    optimizer = optim.SGD([p], lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    with nplm.no_grad():
        assert optimizer.step(closure).item() == 2
    assert p.tolist() == [0, 0]


def test_zero_grad_forgets_or_zeroes():
    pair = Pair("SGD", {})
    pair.step()
    grads = [p.grad for p, _ in pair.params()]
    pair.ours.zero_grad(set_to_none=False)
    assert all(p.grad is g for (p, _), g in zip(pair.params(), grads))
    assert all(not np.any(to_numpy(g)) for g in grads)
    pair.ours.zero_grad()
    assert all(p.grad is None for p, _ in pair.params())


# ---- state that travels --------------------------------------------------------------------------
def state_options(name):
    return {"momentum": 0.9, "dampening": 0.1} if name == "SGD" else {"amsgrad": True}


@devices
@dtypes
@names
def test_a_run_goes_from_torch_to_nplm_to_torch_and_ends_where_torch_alone_ends(
    device, dtype, name
):
    options = {"lr": 0.05, "weight_decay": 0.1, **state_options(name)}
    pair = Pair(name, options, device, dtype, [{}, {"lr": 0.01}])
    alone = Pair(name, options, device, dtype, [{}, {"lr": 0.01}])

    def run(ours):
        for _ in range(10):
            pair.step(0.3, ours=ours, theirs=not ours)
            alone.step(0.3, ours=False)

    run(ours=False)
    for p, t in pair.params():
        p.array[...] = nplm.tensor(t.detach(), None, device).array
    pair.ours.load_state_dict(pair.theirs.state_dict())
    pair.check(EXACT)
    run(ours=True)
    for p, t in pair.params():
        t.data = torch.tensor(to_numpy(p))
    pair.theirs.load_state_dict(
        optimizer_module.convert_state(pair.ours.state_dict(), torch.tensor)
    )
    pair.check(EXACT)
    run(ours=False)
    pair.ours, pair.p = alone.theirs, alone.t  # torch alone, held against the mixed run
    pair.check()


@names
def test_state_dicts_have_torchs_layout(name):
    pair = Pair(name, {"lr": 0.05, **state_options(name)})
    pair.step(0.3)
    ours, theirs = pair.ours.state_dict(), pair.theirs.state_dict()
    assert ours.keys() == theirs.keys()
    assert {i: set(s) for i, s in ours["state"].items()} == {
        i: set(s) for i, s in theirs["state"].items()
    }
    assert ours["param_groups"] == [
        {**g, "foreach": None, "fused": None} for g in theirs["param_groups"]
    ]


@devices
@names
def test_a_loaded_state_is_a_copy_in_the_parameters_dtype(device, name):
    first = Pair(name, {"lr": 0.05, **state_options(name)}, "cpu", "float64")
    first.step()
    second = Pair(name, {"lr": 0.5}, device, "float32")
    second.ours.load_state_dict(first.ours.state_dict())
    assert second.ours.param_groups[0]["lr"] == 0.05
    for (p, _), (q, _) in zip(first.params(), second.params()):
        for key, value in second.ours.state[q].items():
            if key == "step":
                assert value.device == "cpu"
            else:
                assert (value.dtype, value.device) == (q.dtype, device)
            value.array[...] = 7
            assert not np.any(to_numpy(first.ours.state[p][key]) == 7)


def test_snapshots_as_numpy_arrays_load_and_do_not_follow_the_run():
    pair = Pair("AdamW", {"lr": 0.05})
    pair.step()
    saved = optimizer_module.convert_state(pair.ours.state_dict(), np.copy)
    pair.step()
    assert saved["state"][0]["step"] == 1
    pair.ours.load_state_dict(saved)
    assert {s["step"].item() for s in pair.ours.state.values()} == {1.0}


def test_old_state_dicts_are_completed_and_adamw_stays_decoupled():
    pair = Pair("AdamW", {"lr": 0.05})
    pair.step()
    saved = pair.theirs.state_dict()
    for group in saved["param_groups"]:
        for key in ("foreach", "fused", "capturable", "maximize", "amsgrad"):
            del group[key]
        group["decoupled_weight_decay"] = False
    for state in saved["state"].values():
        state["step"] = float(state["step"])
    pair.ours.load_state_dict(copy.deepcopy(saved))
    pair.theirs.load_state_dict(saved)
    assert pair.ours.state_dict()["param_groups"] == pair.theirs.state_dict()["param_groups"]
    pair.step()
    pair.check()


def broken(change):
    state = Pair("Adam", {}).ours.state_dict()
    state["param_groups"] = [{**g, "params": list(g["params"])} for g in state["param_groups"]]
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["param_groups"].append(s["param_groups"][0]), "number of parameter groups"),
        (lambda s: s["param_groups"][0]["params"].pop(), "doesn't match the size"),
        (lambda s: s["state"].update({1: {"exp_avg": np.ones((2, 3))}}), "shape"),
        (lambda s: s["param_groups"][0].update(differentiable=True), "first-order"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, message):
    pair = Pair("Adam", {"lr": 0.25})
    pair.step()
    before = pair.ours.state_dict()
    with pytest.raises(ValueError, match=message):
        pair.ours.load_state_dict(broken(change))
    after = pair.ours.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert all(after["state"][i] is before["state"][i] for i in before["state"])


def test_a_copied_optimizer_moves_its_own_parameters():
    p = nplm.ones(2, requires_grad=True)
    optimizer = optim.SGD([p], lr=0.5, momentum=0.9)
    optim.lr_scheduler.StepLR(optimizer, 1)
    other = copy.deepcopy(optimizer)
    (q,) = other.param_groups[0]["params"]
    q.grad = nplm.ones(2)
    other.step()
    assert (p.tolist(), q.tolist()) == ([1, 1], [0.5, 0.5])
