"""EarlyStopping beside the class of early-stopping-pytorch, call for call, and what ours adds."""

import inspect
import io
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nplm
from nplm import nn
from nplm.errors import CheckpointError, ConfigError, StorageError
from nplm.parity.tolerances import EXACT, assert_close
from nplm.train import EarlyStopping
from nplm.train.packing import pack, unpack

pytestmark = pytest.mark.step

COMMON = (
    "patience", "verbose", "delta", "counter", "best_val_loss", "val_loss_min", "early_stop"
)  # fmt: skip
EACH_PLACE = pytest.mark.parametrize("place", ["file", "memory"])

# Few different values, so that ties, and distances of exactly delta, come up all the time.
losses_drawn = st.lists(
    st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25])
    | st.floats(width=64),
    max_size=30,
)
rules = {
    "patience": st.integers(1, 4),
    "delta": st.sampled_from([0, 0.0, 0.25, 0.5, 1e-9, 1e300, math.inf]),
}


class Net(nn.Module):
    """Tied weights and buffers of two dtypes."""

    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.wte.weight
        self.register_buffer("seen", nplm.tensor([0, 7]))
        self.register_buffer("scale", nplm.tensor(0.5))

    def train_in_place(self):
        """Change every array where it lies, as an optimizer does."""
        with nplm.no_grad():
            for value in (self.wte.weight, self.seen, self.scale):
                value += 1


def bits(model):
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def assert_same_weights(model, expected):
    assert list(model.state_dict()) == list(expected)
    for name, value in model.state_dict().items():
        assert_close(value, expected[name], EXACT, name)


def through_json(state):
    return unpack(json.loads(json.dumps(pack(state, "stopper"), allow_nan=False)), "stopper")


def place_for(place, folder):
    return folder / "best.pt" if place == "file" else None


def public(stopper):
    return {name: getattr(stopper, name) for name in stopper.state_dict() if name != "weights"}


# ---- the rule ------------------------------------------------------------------------------------
@given(losses=losses_drawn, **rules)
def test_every_call_leaves_what_the_class_of_the_books_leaves(losses, patience, delta):
    package = pytest.importorskip(
        "early_stopping_pytorch", reason="the judge: pip install early-stopping-pytorch"
    )
    asked, saved = [], {"ours": [], "theirs": []}

    def model(whose):
        """What is asked for its state when it is saved."""
        net = nn.Module()
        net.state_dict = lambda: saved[whose].append(len(asked)) or {}
        return net

    judge = package.EarlyStopping(patience, delta=delta, trace_func=lambda message: None)
    ours = EarlyStopping(patience, delta=delta)
    assert ours.trace_func is package.EarlyStopping().trace_func is print
    assert all(getattr(ours, name) == getattr(judge, name) for name in (*COMMON, "path"))
    ours.path, judge.path = None, io.BytesIO()
    for loss in losses:
        asked.append(loss)
        judge(loss, model("theirs"))
        ours(loss, model("ours"))
        assert saved["ours"] == saved["theirs"]
        for name in COMMON:
            assert getattr(ours, name) == getattr(judge, name), (name, asked)
        assert type(ours.val_loss_min) is float
        assert ours.best_call == (saved["theirs"] or [None])[-1]
        assert ours.calls == len(asked)
        assert (ours.reason is not None) == ours.early_stop


def test_defaults_and_order_of_arguments_are_those_of_the_class_of_the_books():
    package = pytest.importorskip(
        "early_stopping_pytorch", reason="the judge: pip install early-stopping-pytorch"
    )

    def arguments(of):
        by_name = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
        found = inspect.signature(of).parameters.values()
        return [(p.name, p.default) for p in found if p.kind not in by_name]

    assert arguments(EarlyStopping) == arguments(package.EarlyStopping)
    theirs = [name for name, _ in arguments(package.EarlyStopping.__call__)]
    assert [name for name, _ in arguments(EarlyStopping.__call__)] == theirs


@pytest.mark.parametrize(
    "loss",
    [2, 2.0, np.float32(2), np.float64(2), np.int64(2), np.array(2.0), nplm.tensor(2.0),
     nplm.tensor(2.0, requires_grad=True) * 1],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_a_loss_may_be_any_real_number(loss):
    stopper = EarlyStopping(path=None)
    stopper(loss)
    assert stopper.best_val_loss == stopper.val_loss_min == 2
    assert type(stopper.best_val_loss) is type(stopper.val_loss_min) is float


def test_a_loss_on_torch_is_a_number_too():
    pytest.importorskip("torch", reason="the second namespace is PyTorch: pip install torch")
    stopper = EarlyStopping(path=None)
    stopper(nplm.tensor(2.0, device="torch:cpu"))
    assert stopper.best_val_loss == 2


@pytest.mark.parametrize(
    "loss", ["1.0", None, 1j, True, np.bool_(True), [1.0], np.zeros(1), nplm.zeros(1, 2),
     np.timedelta64(1, "s"), np.timedelta64(1, "ns"), np.array(1, "m8[ns]")],
    ids=repr,
)  # fmt: skip
def test_what_is_no_real_number_is_refused_and_changes_nothing(loss):
    stopper = EarlyStopping(path=None)
    before = stopper.state_dict()
    with pytest.raises(TypeError, match="EarlyStopping: expected val_loss as a real number"):
        stopper(loss)
    assert stopper.state_dict() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [("patience", 0), ("patience", -1), ("patience", 2.5), ("patience", True), ("patience", "3"),
     ("patience", None), ("delta", -0.1), ("delta", math.nan), ("delta", -math.inf)],
)  # fmt: skip
def test_a_wrong_setting_is_answered_with_one_sentence(name, value):
    with pytest.raises(ConfigError, match=rf"EarlyStopping: expected a .*{name} >= "):
        EarlyStopping(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("delta", "0.1"), ("delta", None), ("path", 3)])
def test_a_setting_of_another_type_is_refused(name, value):
    with pytest.raises(TypeError, match="EarlyStopping: expected "):
        EarlyStopping(**{name: value})


# ---- what it says --------------------------------------------------------------------------------
def test_the_reason_names_the_best_loss_and_its_call():
    stopper = EarlyStopping(patience=3, path=None)
    for loss in (math.nan, 2.0, 1.46614, 1.5, math.nan, 1.46614):
        stopper(loss)
        assert stopper.reason is None
    stopper(1.6)
    assert stopper.early_stop
    reason = "no improvement on 1.4661 (call 3) in 3 calls"
    assert stopper.reason == reason
    stopper(1.0)  # too late: it stays stopped, and why
    assert stopper.early_stop
    assert stopper.reason == reason
    assert (stopper.best_call, stopper.counter) == (8, 0)


def test_the_reason_speaks_of_steps_where_the_loop_gives_them():
    stopper = EarlyStopping(patience=1, delta=0.01, path=None)
    for step, loss in ((100, 2.0), (200, 1.5), (300, 1.495)):
        stopper(loss, step=step)
    assert stopper.best_step == 200
    assert stopper.reason == (
        "no improvement of more than 0.01 on 1.5000 (step 200) in 1 call, up to step 300"
    )


def test_it_speaks_only_when_verbose(tmp_path, capsys):
    for verbose in (False, True):
        said = []
        path = tmp_path / "best.pt"
        stopper = EarlyStopping(2, verbose=verbose, path=path, trace_func=said.append)
        for loss in (2.0, math.nan, 3.0, 1.0):
            stopper(loss, Net())
        stopper(0.5)
        if not verbose:
            assert said == []
    assert said == [
        f"EarlyStopping: validation loss improved, inf to 2.000000: weights in {path}",
        "EarlyStopping: validation loss is NaN: ignored",
        "EarlyStopping: validation loss 3.000000 does not improve on 2.000000: 1 of 2",
        f"EarlyStopping: validation loss improved, 2.000000 to 1.000000: weights in {path}",
        "EarlyStopping: validation loss improved, 1.000000 to 0.500000: no model to keep",
    ]
    EarlyStopping(verbose=True, path=None)(1.0, Net())
    assert capsys.readouterr().out.endswith("weights in memory\n")


# ---- the best weights ----------------------------------------------------------------------------
@EACH_PLACE
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_best_weights_come_back_to_the_last_bit(place, dtype, device, tmp_path):
    model = Net().to(device, getattr(nplm, dtype))
    stopper = EarlyStopping(patience=2, path=place_for(place, tmp_path))
    for loss, best in ((2.0, False), (1.0, True), (1.5, False), (math.nan, False), (1.0, False)):
        model.train_in_place()
        if best:
            expected = bits(model)
        stopper(loss, model)
    model.train_in_place()
    for _ in range(2):  # what was kept is still good after it was given back once
        stopper.restore_best(model)
        assert_same_weights(model, expected)
        assert model.head.weight is model.wte.weight
        assert model.scale.device == device
        model.train_in_place()


def test_the_file_is_safetensors_whatever_its_name(tmp_path):
    model = Net()
    EarlyStopping(path=tmp_path / "checkpoint.pt")(1.0, model)
    loaded = nplm.load(tmp_path / "checkpoint.pt")
    assert_same_weights(model, {name: loaded[name] for name in model.state_dict()})
    assert len(loaded) == len(model.state_dict())


@pytest.mark.parametrize("obstacle", ["missing folder", "folder in its place"])
def test_a_failed_save_changes_nothing(obstacle, tmp_path):
    model = Net()
    stopper = EarlyStopping(path=tmp_path / "good.pt")
    stopper(2.0, model)
    expected, before = bits(model), stopper.state_dict()
    stopper.path = tmp_path / "gone" / "best.pt" if obstacle == "missing folder" else tmp_path
    model.train_in_place()
    with pytest.raises(StorageError, match="could not be written"):
        stopper(1.0, model)
    assert stopper.state_dict() == before
    stopper.path = tmp_path / "good.pt"
    stopper.restore_best(model)
    assert_same_weights(model, expected)


@EACH_PLACE
def test_restoring_needs_weights_of_the_best_call(place, tmp_path):
    model = Net()
    stopper = EarlyStopping(path=place_for(place, tmp_path))
    with pytest.raises(CheckpointError, match="no weights were kept"):
        stopper.restore_best(model)
    stopper(2.0, model)
    stopper(1.0)  # better, but without a model: the older weights are not the best ones
    with pytest.raises(CheckpointError, match="no weights were kept"):
        stopper.restore_best(model)


@EACH_PLACE
def test_weights_of_another_model_are_refused_and_copy_nothing(place, tmp_path):
    stopper = EarlyStopping(path=place_for(place, tmp_path))
    stopper(1.0, Net())
    other = nn.Linear(3, 5)
    before = bits(other)
    with pytest.raises(CheckpointError, match="not the weights of this model"):
        stopper.restore_best(other)
    assert_same_weights(other, before)


def test_a_file_that_is_gone_or_damaged_is_named(tmp_path):
    model, path = Net(), tmp_path / "best.pt"
    stopper = EarlyStopping(path=path)
    stopper(1.0, model)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"best\.pt: damaged"):
        stopper.restore_best(model)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"best\.pt: no such file"):
        stopper.restore_best(model)


# ---- going on in another process -----------------------------------------------------------------
@EACH_PLACE
@given(losses=losses_drawn, **rules)
def test_a_state_through_json_goes_on_the_same_from_every_call(
    place, losses, patience, delta, tmp_path_factory
):
    path = place_for(place, tmp_path_factory.mktemp("stopper"))
    if path is not None:
        losses = losses[:6]  # every improvement writes and syncs a file
    whole, model = EarlyStopping(patience, delta=delta, path=path), Net()
    for at, loss in enumerate(losses):
        state = through_json(whole.state_dict())
        fresh = EarlyStopping(path=path)  # of another patience and delta: the state has both
        fresh.load_state_dict(state)
        assert public(fresh) == public(whole)
        whole(loss, model, step=at * 10)
        fresh(loss, model, step=at * 10)
        assert public(fresh) == public(whole)
        if whole.kept:
            restored = [Net(), Net()]
            for stopper, net in zip((fresh, whole), restored):
                stopper.restore_best(net)
            assert_same_weights(restored[0], bits(restored[1]))
        model.train_in_place()


def test_weights_in_memory_travel_with_the_state_and_those_in_a_file_do_not(tmp_path):
    model = Net()
    expected = bits(model)
    states = {}
    for place in ("file", "memory"):
        stopper = EarlyStopping(path=place_for(place, tmp_path))
        stopper(1.0, model)
        states[place] = through_json(stopper.state_dict())
    model.train_in_place()
    for place, path in (
        ("memory", None),
        ("memory", tmp_path / "x"),
        ("file", tmp_path / "best.pt"),
    ):
        other = EarlyStopping(path=path)
        other.load_state_dict(states[place])
        other.restore_best(model)
        assert_same_weights(model, expected)
        model.train_in_place()
    lost = EarlyStopping(path=None)
    lost.load_state_dict(states["file"])
    with pytest.raises(CheckpointError, match=r"are in the file .*best\.pt.* path=None"):
        lost.restore_best(model)


def test_a_state_that_lacks_something_is_refused_whole():
    stopper = EarlyStopping(path=None)
    stopper(1.0)
    before = stopper.state_dict()
    with pytest.raises(CheckpointError, match="the state lacks counter, best_call"):
        stopper.load_state_dict({key: 5 for key in before if key not in ("counter", "best_call")})
    assert stopper.state_dict() == before
