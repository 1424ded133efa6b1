"""How schedulers are called, against torch's: epochs, last_epoch, tensors, warnings, wrapped steps.

The rates themselves are in test_scheduler_rates.py, states in test_scheduler_state.py.
"""

import contextlib
import gc
import math
import warnings
import weakref

import numpy as np
import pytest
from examples import examples

torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")
torch.set_num_threads(1)

import scheduler_cases  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from scheduler_cases import (  # noqa: E402
    OPTIONS,
    OURS,
    SINGLE,
    THEIRS,
    Decay,
    class_of,
    lrs,
    make,
    move,
    optimizer_of,
    rates_of,
    walk,
)

import nplm  # noqa: E402

pytestmark = pytest.mark.step

kinds = pytest.mark.parametrize("kind", SINGLE)
WITH_EPOCH = [kind for kind in SINGLE if kind != "CosineAnnealingWarmRestarts"]  # no warning there


# ---- the learning rates --------------------------------------------------------------------------
@pytest.mark.parametrize("kind", WITH_EPOCH)
@examples(10)
@given(data=st.data())
def test_step_with_an_epoch_warns_and_uses_the_closed_form(kind, data):
    chosen = data.draw(OPTIONS[kind])
    epochs = data.draw(st.lists(st.integers(0, 250), min_size=1, max_size=4))
    words = (1.0,) if kind == "ReduceLROnPlateau" else ()
    seen = []
    for module, library in [(OURS, nplm), (THEIRS, torch)]:
        optimizer = optimizer_of(library)
        try:
            scheduler = class_of(module, kind)(optimizer, **chosen)
            optimizer.step()
            for epoch in epochs:
                with pytest.warns(UserWarning, match=r"epoch parameter in `scheduler.step\(\)`"):
                    scheduler.step(*words, epoch)
                seen.append((rates_of(optimizer), scheduler.last_epoch))
            scheduler.step(*words)
            seen.append(rates_of(optimizer))
        except (ValueError, ZeroDivisionError) as error:
            seen.append(type(error))
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]


@examples(40)
@given(
    chosen=OPTIONS["CosineAnnealingWarmRestarts"],
    epochs=st.lists(st.one_of(st.integers(0, 300), st.floats(0, 300)), min_size=1, max_size=6),
)
def test_warm_restarts_take_any_epoch_as_torchs_do(chosen, epochs):
    seen = []
    for module, library in [(OURS, nplm), (THEIRS, torch)]:
        optimizer = optimizer_of(library)
        scheduler = module.CosineAnnealingWarmRestarts(optimizer, **chosen)
        for epoch in epochs:
            scheduler.step(epoch)
            seen.append((rates_of(optimizer), scheduler.T_cur, scheduler.T_i))
        seen.append(walk(optimizer, [scheduler], 30))
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]


def test_lambdas_may_differ_by_group_and_give_numpy_numbers():
    seen = []
    for module, library in [(OURS, nplm), (THEIRS, torch)]:
        optimizer = optimizer_of(library)
        lambdas = [lambda e: 1 / (1 + e), lambda e: np.float64(math.cos(e))]
        seen.append(walk(optimizer, [module.LambdaLR(optimizer, lambdas)], 30))
        if library is nplm:
            assert all(type(lr) is float for lr in lrs(optimizer))
    assert seen[0] == seen[1]


def test_a_tensor_lr_of_torchs_optimizer_is_filled_in_place():
    seen = []
    for module in (OURS, THEIRS):
        lr = torch.tensor(0.1, dtype=torch.float64)
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
        scheduler = module.CosineAnnealingLR(optimizer, 7)
        optimizer.step()
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] is lr
        kept = [scheduler.base_lrs[0], optimizer.param_groups[0]["initial_lr"]]
        seen.append([float(x) for x in (lr, *scheduler.get_last_lr(), *kept)])
    assert seen[0] == seen[1]


def test_schedulers_of_both_libraries_chain_on_one_optimizer():
    seen = []
    for first, second in [(OURS, THEIRS), (THEIRS, THEIRS), (THEIRS, OURS)]:
        optimizer = optimizer_of(torch)
        chain = [make(first, optimizer, "LinearLR"), make(second, optimizer, "CosineAnnealingLR")]
        seen.append(walk(optimizer, chain, 50))
    assert seen[0] == seen[1] == seen[2]


# ---- last_epoch ----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [kind for kind in SINGLE if kind != "ReduceLROnPlateau"])
@examples(10)
@given(last_epoch=st.integers(0, 30))
def test_last_epoch_resumes_from_the_lr_in_the_groups(kind, last_epoch):
    seen = []
    for module, library in [(OURS, nplm), (THEIRS, torch)]:
        optimizer = optimizer_of(library)
        for group in optimizer.param_groups:
            group |= {"initial_lr": 0.2, "max_lr": 0.5, "min_lr": 0.01}
            group |= {"max_momentum": 0.9, "base_momentum": 0.7}
        scheduler = make(module, optimizer, kind, last_epoch=last_epoch)
        seen.append((walk(optimizer, [scheduler], 40), scheduler.last_epoch))
    assert seen[0] == seen[1]


def test_a_second_schedule_keeps_the_first_initial_lr():
    for module, library in [(OURS, nplm), (THEIRS, torch)]:
        optimizer = optimizer_of(library, [0.1])
        make(module, optimizer, "LinearLR")
        assert make(module, optimizer, "StepLR").base_lrs == [0.1]


def test_lambda_state_keeps_attributes_of_objects_and_drops_functions():
    optimizer = optimizer_of(nplm)
    state = OURS.LambdaLR(optimizer, [Decay(0.5), lambda epoch: 1.0]).state_dict()
    assert state["lr_lambdas"] == [{"rate": 0.5}, None]
    other = OURS.LambdaLR(optimizer, [Decay(0.9), lambda epoch: 2.0])
    other.load_state_dict(state)
    assert [f(1) for f in other.lr_lambdas] == [0.5, 2.0]
    assert state["lr_lambdas"] == [{"rate": 0.5}, None]


# ---- warnings and errors -------------------------------------------------------------------------
SEEN_FROM = (__file__, scheduler_cases.__file__)  # where the steps are


def said(act):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    return [(w.category, str(w.message).split(" ")[:3], w.filename) for w in caught]


def scheduler_first(scheduler, optimizer):
    for step in range(3):
        move(scheduler, step)
        optimizer.step()


def optimizer_first(scheduler, optimizer):
    for step in range(3):
        optimizer.step()
        move(scheduler, step)


def step_replaced(scheduler, optimizer):
    optimizer.step = lambda: None
    optimizer_first(scheduler, optimizer)


def get_lr_outside(scheduler, optimizer):
    with contextlib.suppress(NotImplementedError):  # ReduceLROnPlateau has none
        scheduler.get_lr()


@pytest.mark.parametrize(
    ("act", "n"),
    [(scheduler_first, 1), (optimizer_first, 0), (step_replaced, 1), (get_lr_outside, 1)],
)
@kinds
def test_warnings_come_when_torchs_do(act, n, kind):
    if kind == "ReduceLROnPlateau" or (
        kind == "CosineAnnealingWarmRestarts" and act is not get_lr_outside
    ):
        n = 0
    heard = []
    for module, library in [(OURS, nplm), (THEIRS, torch), (OURS, torch)]:
        optimizer = optimizer_of(library)
        scheduler = make(module, optimizer, kind)
        heard.append(
            said(lambda scheduler=scheduler, optimizer=optimizer: act(scheduler, optimizer))
        )
    assert [len(h) for h in heard] == [n] * 3
    assert all(category is UserWarning for h in heard for category, _, _ in h)
    assert all(file in SEEN_FROM for _, _, file in heard[0] + heard[2])  # the caller's line
    if n and act is not get_lr_outside:
        assert heard[0][0][1] == heard[1][0][1]


BAD = {
    "no optimizer": (TypeError, lambda m, o: m.StepLR(object(), 1)),
    "resume without initial_lr": (KeyError, lambda m, o: m.StepLR(o, 1, last_epoch=3)),
    "too few lambdas": (ValueError, lambda m, o: m.LambdaLR(o, [lambda e: 1.0])),
    "start factor 0": (ValueError, lambda m, o: m.LinearLR(o, start_factor=0)),
    "start factor 2": (ValueError, lambda m, o: m.LinearLR(o, start_factor=2)),
    "end factor 2": (ValueError, lambda m, o: m.LinearLR(o, end_factor=2)),
    "end factor -1": (ValueError, lambda m, o: m.LinearLR(o, end_factor=-1)),
    "no get_lr": (NotImplementedError, lambda m, o: m.LRScheduler(o)),
    "a state without lambdas": (KeyError, lambda m, o: make(m, o, "LambdaLR").load_state_dict({})),
}


@pytest.mark.parametrize("case", BAD)
def test_invalid_schedules_are_refused_as_torch_refuses_them(case):
    error, act = BAD[case]
    for module, library in [(OURS, nplm), (THEIRS, torch)]:
        with pytest.raises(error):
            act(module, optimizer_of(library))


def test_the_wrapped_step_still_returns_the_loss_and_keeps_no_optimizer_alive():
    optimizer = optimizer_of(nplm)
    scheduler = make(OURS, optimizer, "StepLR")
    assert optimizer.step(lambda: 5.0) == 5.0
    alive = weakref.ref(optimizer)
    gc.disable()
    try:
        del optimizer, scheduler
        assert alive() is None
    finally:
        gc.enable()
