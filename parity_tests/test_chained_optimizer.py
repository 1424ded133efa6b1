"""ChainedOptimizer: several optimizers as one, which are those alone bit for bit."""

from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nplm
from nplm import nn, optim
from nplm.data.loader import Batch
from nplm.errors import ConfigError
from nplm.models.config import DecoderConfig
from nplm.models.decoder import Decoder
from nplm.optim import ChainedOptimizer, lr_scheduler
from nplm.optim.optimizer import convert_state, map_arrays
from nplm.train import train_step
from nplm.train.lr_find import lr_find

pytestmark = pytest.mark.step

PAIRS = {  # two optimizers on matrices and on vectors
    "Muon and AdamW": (lambda p: optim.Muon(p, lr=0.02), lambda p: optim.AdamW(p, lr=0.01)),
    "SGD and Adafactor": (
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9), lambda p: optim.Adafactor(p, lr=0.03)),
    "ASGD and RMSprop": (
        lambda p: optim.ASGD(p, lr=0.1), lambda p: optim.RMSprop(p, lr=0.01, centered=True)),
    "Adam twice": (
        lambda p: optim.Adam([{"params": [q], "lr": 0.1 / (1 + i)} for i, q in enumerate(p)]),
        lambda p: optim.Adam(p, lr=0.3, amsgrad=True)),
}  # fmt: skip
pairs = pytest.mark.parametrize("pair", PAIRS)
SHAPES = [[(2, 3), (4, 2)], [(3,), (2,)]]


class Trial:
    """The parameters of two optimizers, and gradients that depend on the step alone."""

    def __init__(self, pair):
        rng = np.random.default_rng(3)
        self.params = [
            [nplm.tensor(rng.standard_normal(shape), requires_grad=True) for shape in shapes]
            for shapes in SHAPES
        ]
        self.parts = [make(p) for make, p in zip(PAIRS[pair], self.params)]
        self.chain = ChainedOptimizer(self.parts)

    def all(self):
        return [p for params in self.params for p in params]

    def gradients(self, step):
        rng = np.random.default_rng(step)
        for p in self.all():
            p.grad = nplm.tensor(rng.standard_normal(p.shape))

    def step(self, step, optimizers=None):
        self.gradients(step)
        for optimizer in [self.chain] if optimizers is None else optimizers:
            optimizer.step()


def frozen(value):
    """A nested value whose arrays are lists of numbers, to be compared with `==`."""
    if isinstance(value, dict):
        return {k: frozen(v) for k, v in value.items()}
    return map_arrays(value, lambda x: nplm.tensor(x).numpy().tolist())


def bits(trial):
    return [p.tolist() for p in trial.all()], frozen(trial.chain.state_dict())


@pairs
def test_its_steps_are_those_of_its_optimizers_alone(pair):
    together, alone = Trial(pair), Trial(pair)
    for step in range(12):
        together.step(step)
        alone.step(step, alone.parts)
    assert bits(together) == bits(alone)
    assert bits(together) != bits(Trial(pair))
    assert len(together.chain.state) == 4


@pairs
def test_its_groups_are_the_very_dicts_of_its_optimizers_in_order(pair):
    trial = Trial(pair)
    own = [group for part in trial.parts for group in part.param_groups]
    assert len(own) == len(trial.chain.param_groups)
    assert all(a is b for a, b in zip(own, trial.chain.param_groups))
    trial.step(1)
    entries = {p: e for part in trial.parts for p, e in part.state.items()}
    assert all(trial.chain.state[p] is entries[p] for p in trial.all())
    indices = [i for group in trial.chain.state_dict()["param_groups"] for i in group["params"]]
    assert indices == [0, 1, 2, 3]
    assert trial.chain.defaults is trial.parts[0].defaults


@pairs
@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad_reaches_every_parameter(pair, to_none):
    trial = Trial(pair)
    trial.gradients(1)
    trial.chain.zero_grad(set_to_none=to_none)
    if to_none:
        assert all(p.grad is None for p in trial.all())
    else:
        assert all(not p.grad.numpy().any() for p in trial.all())


@pairs
def test_a_scheduler_moves_the_rates_of_all_as_one_for_each_would(pair):
    together, alone = Trial(pair), Trial(pair)
    scheduler = lr_scheduler.StepLR(together.chain, 2, 0.3)
    schedulers = [lr_scheduler.StepLR(part, 2, 0.3) for part in alone.parts]
    rates = set()
    for step in range(9):
        together.step(step)
        alone.step(step, alone.parts)
        scheduler.step()
        for each in schedulers:
            each.step()
        lrs = [group["lr"] for part in alone.parts for group in part.param_groups]
        assert [group["lr"] for group in together.chain.param_groups] == lrs
        assert scheduler.get_last_lr() == lrs
        rates.add(tuple(lrs))
    assert bits(together) == bits(alone)
    assert len(rates) == 5


@pairs
@given(first=st.integers(0, 4), second=st.integers(0, 4))
def test_a_fresh_one_goes_on_from_its_state_dict_bit_for_bit(pair, first, second):
    whole, begun, fresh = Trial(pair), Trial(pair), Trial(pair)
    for step in range(first + second):
        whole.step(step)
    for step in range(first):
        begun.step(step)
    for group in begun.chain.param_groups:
        group["lr"] *= 0.5
    saved = convert_state(begun.chain.state_dict(), np.copy)
    for p, q in zip(fresh.all(), begun.all()):
        p.array[...] = q.array
    fresh.chain.load_state_dict(saved)
    assert bits(fresh) == bits(begun)
    for group in fresh.chain.param_groups:
        group["lr"] *= 2.0
    for step in range(first, first + second):
        fresh.step(step)
    assert bits(fresh) == bits(whole)


@pairs
def test_the_parts_of_a_state_are_those_of_its_optimizers(pair):
    trial = Trial(pair)
    trial.step(1)
    found = list(trial.chain.parts_of(trial.chain.state_dict()))
    assert [optimizer for optimizer, _ in found] == trial.parts
    for (optimizer, part), shapes, first in zip(found, SHAPES, (0, 2)):
        assert list(part["state"]) == [first + i for i in range(len(shapes))]
        own = optimizer.state_dict()
        assert frozen(list(part["state"].values())) == frozen(list(own["state"].values()))
        for a, b in zip(part["param_groups"], own["param_groups"], strict=True):
            assert {**a, "params": [i - first for i in a["params"]]} == b


def a_group_fewer(state):
    state["param_groups"].pop()


def a_group_more(state):
    state["param_groups"].append(deepcopy(state["param_groups"][-1]))


def a_parameter_fewer_in_the_last(state):
    state["param_groups"][-1]["params"].pop()
    del state["state"][3]


def another_shape_in_the_first(state):
    state["state"][0] = map_arrays(state["state"][0], lambda x: np.zeros((9,) * np.ndim(x)))


def another_shape_in_the_last(state):
    state["state"][3] = map_arrays(state["state"][3], lambda x: np.zeros((9,) * np.ndim(x)))


def a_state_of_nobody(state):
    state["state"][4] = state["state"][3]


def differentiable_in_the_last(state):
    state["param_groups"][-1]["differentiable"] = True


UNFIT = [a_group_fewer, a_group_more, a_parameter_fewer_in_the_last, another_shape_in_the_first,
         another_shape_in_the_last, a_state_of_nobody, differentiable_in_the_last]  # fmt: skip


@pairs
@pytest.mark.parametrize("spoil", UNFIT, ids=lambda f: f.__name__)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(pair, spoil):
    trial, other = Trial(pair), Trial(pair)
    trial.step(1)
    for step in (2, 3):
        other.step(step)
    other.chain.param_groups[0]["lr"] = 7.0
    saved = convert_state(other.chain.state_dict(), np.copy)
    groups = trial.chain.param_groups
    before = bits(trial)
    spoilt = deepcopy(saved)
    spoil(spoilt)
    with pytest.raises(ValueError, match=r"."):
        trial.chain.load_state_dict(spoilt)
    assert bits(trial) == before
    assert all(a is b for a, b in zip(groups, trial.chain.param_groups, strict=True))
    trial.chain.load_state_dict(saved)
    assert bits(trial) != before


def test_no_optimizer_one_by_closure_only_and_a_shared_parameter_are_refused():
    p, q = (nplm.ones(2, 2, requires_grad=True) for _ in range(2))
    with pytest.raises(ConfigError, match="expected at least one optimizer, got none"):
        ChainedOptimizer([])
    with pytest.raises(ConfigError, match="LBFGS steps by closure only; use it alone"):
        ChainedOptimizer([optim.SGD([p]), optim.LBFGS([q])])
    with pytest.raises(ValueError, match="some parameters appear in more than one optimizer"):
        ChainedOptimizer([optim.SGD([p, q]), optim.Adam([q])])
    chain = ChainedOptimizer([optim.SGD([p])])
    with pytest.raises(ConfigError, match="add the group to one of its optimizers"):
        chain.add_param_group({"params": [q]})
    assert len(chain.param_groups) == 1


def test_a_group_added_to_one_of_its_optimizers_is_in_it():
    p, q, r = (nplm.ones(2, 2, requires_grad=True) for _ in range(3))
    parts = [optim.SGD([p]), optim.Adam([q])]
    chain = ChainedOptimizer(parts)
    parts[0].add_param_group({"params": [r], "lr": 5.0})
    assert [group["lr"] for group in chain.param_groups] == [1e-3, 5.0, 1e-3]
    assert [group["params"] for group in chain.state_dict()["param_groups"]] == [[0], [1], [2]]


def test_one_of_chained_ones_is_one_of_their_optimizers_and_puts_them_back_too():
    trial, other = Trial("Muon and AdamW"), Trial("Muon and AdamW")
    nested = ChainedOptimizer([trial.chain])
    assert nested.optimizers == trial.parts
    trial.step(1, [nested])
    other.step(1)
    assert bits(trial) == bits(other)
    spoilt = deepcopy(convert_state(other.chain.state_dict(), np.copy))
    another_shape_in_the_last(spoilt)
    with pytest.raises(ValueError, match="of shape"):
        nested.load_state_dict(spoilt)
    assert bits(trial) == bits(other)


@pairs
def test_a_closure_is_evaluated_once_before_any_of_them_steps(pair):
    together, alone = Trial(pair), Trial(pair)
    seen = []

    def closure():
        assert nplm.is_grad_enabled()
        seen.append([p.tolist() for p in together.all()])
        together.gradients(5)
        return 42.0

    before = [p.tolist() for p in together.all()]
    with nplm.no_grad():
        assert together.chain.step(closure) == 42.0
    assert seen == [before]
    alone.step(5, alone.parts)
    assert bits(together) == bits(alone)
    assert together.chain.step() is None


# ---- copies --------------------------------------------------------------------------------------
def model_and_chain(lr=0.02):
    nplm.manual_seed(2)
    model = Decoder(DecoderConfig(vocab_size=11, context=6, n_layer=1, n_head=2, n_embd=8))
    hidden = [p for name, p in model.named_parameters() if "blocks" in name and p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not q for q in hidden)]
    return model, ChainedOptimizer([optim.Muon(hidden, lr=lr), optim.AdamW(others, lr=lr / 2)])


def batch(seed):
    ids = np.random.default_rng(seed).integers(0, 11, (3, 7))
    return Batch(ids[:, :-1], ids[:, 1:])


def test_a_copy_made_with_its_model_trains_by_itself():
    model, chain = model_and_chain()
    scheduler = lr_scheduler.StepLR(chain, 1, 0.5)  # it wraps `step`
    train_step(model, chain, [batch(0)])
    weights = frozen(model.state_dict())
    state = frozen(chain.state_dict())
    copied, optimizer = deepcopy((model, chain))
    own = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in own} == {id(p) for p in copied.parameters()}
    train_step(copied, optimizer, [batch(1)])
    assert frozen(model.state_dict()) == weights
    assert frozen(chain.state_dict()) == state
    train_step(model, chain, [batch(1)])
    assert frozen(model.state_dict()) == frozen(copied.state_dict()) != weights
    assert frozen(chain.state_dict()) == frozen(optimizer.state_dict())
    scheduler.step()
    assert [g["lr"] for g in chain.param_groups] == [0.01, 0.005]
    assert [g["lr"] for g in optimizer.param_groups] == [0.02, 0.01]


def test_a_range_test_keeps_the_ratio_of_its_rates_and_changes_nothing():
    model, chain = model_and_chain()
    train_step(model, chain, [batch(0)])
    before = frozen(model.state_dict()), frozen(chain.state_dict())
    found = lr_find(model, chain, [batch(i) for i in range(4)], lowest=1e-4, highest=0.05, steps=9)
    assert (frozen(model.state_dict()), frozen(chain.state_dict())) == before
    assert found.lrs[0] == 1e-4
    copied, twin = deepcopy((model, chain))
    losses = []
    for i, lr in enumerate(found.lrs):
        twin.optimizers[0].param_groups[0]["lr"] = lr
        twin.optimizers[1].param_groups[0]["lr"] = lr * 0.5
        losses.append(float(train_step(copied, twin, [batch(i % 4)]).loss))
    assert found.raw_losses == losses
    assert isinstance(model, nn.Module)
