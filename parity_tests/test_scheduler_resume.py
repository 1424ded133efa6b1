"""Resuming a schedule in every order: nplm's is right or refuses; torch's may go on wrong.

    python parity_tests/test_scheduler_resume.py

prints the table of docs/schedules.md.
"""

from pathlib import Path

import pytest
from examples import examples

torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from scheduler_cases import (  # noqa: E402
    KINDS,
    LIBRARIES,
    OURS,
    THEIRS,
    lrs,
    make,
    optimizer_of,
    walk,
)

import nplm  # noqa: E402
from nplm.errors import ConfigError  # noqa: E402

pytestmark = pytest.mark.step
AT, ALL = 5, 60
GOOD = "build, load optimizer, load scheduler"
# how each order brings an optimizer and a scheduler back from their two states
ORDERS = {
    GOOD: "BOS",
    "build, load scheduler, load optimizer": "BSO",
    "load optimizer, build, load scheduler": "OBS",
    "build, load scheduler only": "BS",
}
RIGHT, REFUSED = "right", "refused"


def resume(library, kind, order, states):
    """An optimizer and a scheduler after the steps of an order."""
    optimizer, scheduler = optimizer_of(library), None
    for letter in order:
        if letter == "B":
            scheduler = make(LIBRARIES[library], optimizer, kind)
        elif letter == "O":
            optimizer.load_state_dict(states["O"])
        else:
            scheduler.load_state_dict(states["S"])
    return optimizer, scheduler


def verdict(library, kind, order, at=AT):
    """What becomes of the rates, from the first update after the resumption on."""
    whole = optimizer_of(library)
    scheduler = make(LIBRARIES[library], whole, kind)
    walk(whole, [scheduler], at)
    states = {"O": whole.state_dict(), "S": scheduler.state_dict()}
    states["O"]["param_groups"] = [dict(g) for g in states["O"]["param_groups"]]
    expected = walk(whole, [scheduler], ALL - at, first=at)
    optimizer, scheduler = resume(library, kind, order, states)
    try:
        seen = walk(optimizer, [scheduler], ALL - at, first=at)
    except ConfigError:
        return REFUSED
    wrong = [i for i, (a, b) in enumerate(zip(seen, expected)) if a != b]
    if not wrong and len(seen) == len(expected):
        return RIGHT
    if len(wrong) > ALL // 2:
        return "wrong to the end"
    return f"wrong, {len(wrong)} update" + ("s" if len(wrong) > 1 else "")


def table():
    """The matrix in Markdown, torch beside nplm; schedulers that fare alike share a row."""
    rows = {}
    for kind in KINDS:
        cells = tuple(
            f"{verdict(torch, kind, order)} / {verdict(nplm, kind, order)}"
            for order in ORDERS.values()
        )
        rows.setdefault(cells, []).append(kind)
    head = ["torch / nplm", *ORDERS]
    lines = [head]
    lines += [[", ".join(kinds), *cells] for cells, kinds in rows.items()]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([text[0], "|---" * len(head) + "|", *text[1:]])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_order_of_restoring_is_right_or_refused(kind, order):
    got = verdict(nplm, kind, ORDERS[order])
    if order in list(ORDERS)[:2] or verdict(torch, kind, ORDERS[order]) == RIGHT:
        assert got == RIGHT
    else:
        assert got == REFUSED


@pytest.mark.parametrize("kind", KINDS)
@examples(8)
@given(at=st.integers(0, 50), order=st.sampled_from(list(ORDERS)))
def test_no_step_and_no_order_goes_on_wrong(kind, at, order):
    assert verdict(nplm, kind, ORDERS[order], at) in (RIGHT, REFUSED)


def test_torch_goes_wrong_where_the_table_says_so():
    wrong = {
        order: {kind for kind in KINDS if verdict(torch, kind, letters) != RIGHT}
        for order, letters in ORDERS.items()
    }
    good, also_good, late, alone = wrong.values()
    assert good == also_good == set()
    assert {"LambdaLR", "CyclicLR", "OneCycleLR", "LinearLR", "ConstantLR", "SequentialLR"} <= late
    assert {"StepLR", "ExponentialLR", "CosineAnnealingLR"} <= alone


def test_the_docs_show_this_table():
    page = (Path(__file__).parent.parent / "docs/schedules.md").read_text()
    if "| torch / nplm |" not in page:
        pytest.skip("docs/schedules.md has no table of resuming yet")
    assert table() in page


# ---- the error -----------------------------------------------------------------------------------
def saved(kind="ExponentialLR", steps=AT):
    optimizer = optimizer_of(nplm)
    scheduler = make(OURS, optimizer, kind)
    walk(optimizer, [scheduler], steps)
    return optimizer, scheduler


def test_the_error_names_both_rates_and_what_to_do():
    was, scheduler = saved()
    optimizer = optimizer_of(nplm)
    again = make(OURS, optimizer, "ExponentialLR")
    again.load_state_dict(scheduler.state_dict())
    optimizer.step()
    with pytest.raises(ConfigError) as error:
        again.step()
    assert isinstance(error.value, ValueError)
    for part in (f"lr={lrs(was)[0]!r}", "lr=0.1;", "param_groups[0]", "load the states of the",
                 "'_group_lrs' out of the state", "ExponentialLR"):  # fmt: skip
        assert part in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_without_the_rates_is_not_checked(kind):
    """As torch's; and the way to go on at another lr on purpose."""
    optimizer = optimizer_of(nplm)
    for group, lr in zip(optimizer.param_groups, [0.5, 0.25]):
        group["lr"] = lr
    theirs = optimizer_of(torch)
    other = make(THEIRS, theirs, kind)
    walk(theirs, [other], AT)
    scheduler = make(OURS, optimizer, kind)
    scheduler.load_state_dict(other.state_dict())
    walk(optimizer, [scheduler], 3)


@pytest.mark.parametrize("kind", ["SequentialLR", "ChainedScheduler"])
def test_combined_states_are_checked_through_their_members(kind):
    _, scheduler = saved(kind)
    again = make(OURS, optimizer_of(nplm), kind)
    again.load_state_dict(scheduler.state_dict())
    again.optimizer.step()
    with pytest.raises(ConfigError, match="saved at lr="):
        again.step()


@pytest.mark.parametrize("at", [3, 4, 16, 17])
def test_a_sequence_is_checked_at_a_milestone_too(at):
    _, scheduler = saved("SequentialLR", at)
    again = make(OURS, optimizer_of(nplm, (9.0, 9.0)), "SequentialLR")
    again.load_state_dict(scheduler.state_dict())
    again.optimizer.step()
    before = again.state_dict()
    with pytest.raises(ConfigError, match="saved at lr="):
        again.step()
    assert again.state_dict() == before


def two(optimizer):
    return [make(OURS, optimizer, "CosineAnnealingLR"), make(OURS, optimizer, "StepLR")]


def test_only_the_first_scheduler_that_steps_is_checked():
    whole = optimizer_of(nplm)
    schedulers = two(whole)
    expected = walk(whole, schedulers, 30)
    stopped, resumed = optimizer_of(nplm), optimizer_of(nplm)
    before, after = two(stopped), two(resumed)
    walk(stopped, before, 9)
    resumed.load_state_dict(stopped.state_dict())
    for scheduler, old in zip(after, before):
        scheduler.load_state_dict(old.state_dict())
    assert walk(resumed, after, 21, first=9) == expected[9:]


def test_a_constructor_that_comes_later_does_not_hide_a_wrong_rate():
    was, scheduler = saved("CosineAnnealingLR")
    optimizer = optimizer_of(nplm)
    first = make(OURS, optimizer, "CosineAnnealingLR")
    optimizer.load_state_dict(was.state_dict())
    first.load_state_dict(scheduler.state_dict())
    make(OURS, optimizer, "LinearLR")  # moves the lr that was just loaded
    optimizer.step()
    with pytest.raises(ConfigError, match="saved at lr="):
        first.step()


def test_saving_again_before_the_first_step_keeps_what_is_to_be_checked():
    _, scheduler = saved()
    states = [scheduler.state_dict()]
    for _ in range(2):
        again = make(OURS, optimizer_of(nplm), "ExponentialLR")
        again.load_state_dict(states[-1])
        states.append(again.state_dict())
    assert states[1] == states[2] == states[0]


def test_torchs_optimizers_are_checked_too():
    whole = optimizer_of(torch)
    scheduler = make(OURS, whole, "PolynomialLR")
    walk(whole, [scheduler], AT)
    again = make(OURS, optimizer_of(torch), "PolynomialLR")
    again.load_state_dict(scheduler.state_dict())
    again.optimizer.step()
    with pytest.raises(ConfigError, match="saved at lr="):
        again.step()


def test_groups_that_came_after_the_load_are_not_asked():
    optimizer, scheduler = saved("ReduceLROnPlateau")
    scheduler.load_state_dict(scheduler.state_dict())
    optimizer.add_param_group({"params": [nplm.zeros(1, requires_grad=True)], "lr": 0.7})
    scheduler.step(1.0)
    assert lrs(optimizer)[2] == 0.7


if __name__ == "__main__":
    print(table())
