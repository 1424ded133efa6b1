"""EarlyStopping(semantics=...) beside the tools whose rules they are, call for call.

Each judge answers a loss with (stop, keep). Where a tool is no dependency of the tests its judge is
a twin, written from its source; the slow tests hold the twins to the installed tools.
"""

import functools
import importlib
import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest

import nplm
from nplm import nn
from nplm.errors import CheckpointError
from nplm.train import EarlyStopping
from nplm.train.packing import pack, unpack
from nplm.train.stopping_rules import RULES

pytestmark = pytest.mark.step

SEQUENCES = 5000  # for each semantics
NAN, INF = math.nan, math.inf
VALUES = [NAN, INF, -INF, -0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1 + 1e-9, 1 + 1e-7, -1.0, 1e300]
DELTAS = [0, 0, 0.0, 0.25, 0.5, 1e-9, 1e-4, 1.0, 1e300, INF]
NEGATIVE = [-0.25, -0.5, -1e-4, -INF]
OPTIONS = {  # of each semantics, what a sequence may be judged with
    "pytorchtools": {},
    "pytorchtools-2020": {},
    "keras": {
        "mode": ["min", "max"], "baseline": [None, 0.6, 0.75, INF], "start_from_epoch": [0, 0, 1, 3]
    },
    "lightning": {
        "mode": ["min", "max"], "check_finite": [True, False],
        "stopping_threshold": [None, None, 0.0, 0.25], "divergence_threshold": [None, None, 1.0],
    },
    "plateau": {"mode": ["min", "max"], "threshold_mode": ["rel", "abs"]},
    "transformers": {"mode": ["min", "max"]},
}  # fmt: skip
each_semantics = pytest.mark.parametrize("semantics", RULES)


# ---- the judges ----------------------------------------------------------------------------------
class Twin:
    """patience and delta as the tool got them; every option that was drawn, or its default."""

    def __init__(self, patience, delta, mode="min", **options):
        self.patience, self.delta, self.maximize = patience, delta, mode == "max"
        self.bad, self.best, self.options = 0, None, SimpleNamespace(**options)
        self.epoch = -1

    def above(self, a, b):
        return a > b if self.maximize else a < b

    def worst(self):
        return -INF if self.maximize else INF

    def wait(self):
        self.bad += 1
        return self.bad >= self.patience


class Classic(Twin):
    def __call__(self, loss):
        score = -loss
        if self.best is not None and score < self.best + self.delta:
            return self.wait(), False
        self.best, self.bad = score, 0
        return False, True


class KerasTwin(Twin):
    def improves(self, value, on):
        margin = abs(self.delta) if self.maximize else -abs(self.delta)
        with np.errstate(over="ignore"):
            return bool(self.above(np.float32(value - margin), np.float32(on)))

    def __call__(self, loss):
        self.epoch += 1
        if self.epoch < self.options.start_from_epoch:
            return False, False
        self.bad += 1
        if self.best is None or self.improves(loss, self.best):
            self.best = loss
            if self.options.baseline is None or self.improves(loss, self.options.baseline):
                self.bad = 0
            return False, True
        return self.bad >= self.patience and self.epoch > 0, False


class LightningTwin(Twin):
    def __call__(self, loss):
        o = self.options
        best = self.worst() if self.best is None else self.best
        if o.check_finite and not math.isfinite(loss):
            return True, False
        if o.stopping_threshold is not None and self.above(loss, o.stopping_threshold):
            return True, True
        if o.divergence_threshold is not None and self.above(-loss, -o.divergence_threshold):
            return True, False
        if self.above(loss - self.delta if self.maximize else loss + self.delta, best):
            self.best, self.bad = loss, 0
            return False, True
        return self.wait(), False


class TransformersTwin(Twin):
    def __call__(self, loss):
        stop = False
        if self.best is None or (
            self.above(loss, self.best) and abs(loss - self.best) > self.delta
        ):  # the callback, before the trainer looks for its best
            self.bad, stop = 0, self.patience <= 0
        else:
            stop = self.wait()
        if self.best is None:
            self.best = self.worst()
        keep = self.above(loss, self.best)
        self.best = loss if keep else self.best
        return stop, keep


def real_pytorchtools(patience, delta):
    package = importlib.import_module("early_stopping_pytorch")
    saved = []

    class Judge(package.EarlyStopping):
        def save_checkpoint(self, val_loss, model):
            saved.append(model)
            self.val_loss_min = val_loss

    judge, calls = Judge(patience, delta=delta, trace_func=lambda message: None), []

    def call(loss):
        calls.append(loss)
        judge(loss, len(calls))
        return judge.early_stop, saved[-1:] == [len(calls)]

    return call


@functools.cache
def plateau_optimizer():
    torch = importlib.import_module("torch")
    return torch.optim.SGD([torch.zeros(1)], lr=1.0)


def real_plateau(patience, delta, mode="min", threshold_mode="rel"):
    torch = importlib.import_module("torch")
    optimizer = plateau_optimizer()
    optimizer.param_groups[0]["lr"] = 1.0
    judge = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode, patience=patience, threshold=delta, threshold_mode=threshold_mode
    )

    def call(loss):
        judge.step(loss)
        reduced = optimizer.param_groups[0]["lr"] < 1
        return reduced, judge.num_bad_epochs == 0 and not reduced

    return call


def real_keras(patience, delta, **options):
    model, epochs, saved = SimpleNamespace(stop_training=False), [], []
    model.get_weights = lambda: saved.append(len(epochs)) or len(epochs)
    model.set_weights = lambda weights: setattr(call, "restored", weights)
    judge = importlib.import_module("keras").callbacks.EarlyStopping(
        min_delta=delta, patience=patience, restore_best_weights=True, **options
    )
    judge.set_model(model)
    judge.on_train_begin()

    def call(loss):
        epochs.append(loss)
        judge.on_epoch_end(len(epochs) - 1, {"val_loss": loss})
        return model.stop_training, saved[-1:] == [len(epochs)]

    call.end, call.restored = judge.on_train_end, None
    return call


def real_lightning(patience, delta, **options):
    torch = importlib.import_module("torch")
    module = importlib.import_module("lightning.pytorch.callbacks.early_stopping")
    judge = module.EarlyStopping("loss", min_delta=delta, patience=patience, **options)
    strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision)
    trainer = SimpleNamespace(
        fast_dev_run=False, strategy=strategy, should_stop=False, current_epoch=0
    )

    def call(loss):
        before = judge.best_score
        trainer.callback_metrics = {"loss": torch.tensor(loss, dtype=torch.float64)}
        judge._run_early_stopping_check(trainer)
        reached = judge.stopping_reason == module.EarlyStoppingReason.STOPPING_THRESHOLD
        return trainer.should_stop, reached or judge.best_score is not before  # another tensor

    return call


def real_transformers(patience, delta, mode="min"):
    tool = importlib.import_module("transformers")
    judge = tool.EarlyStoppingCallback(patience, delta)
    args = SimpleNamespace(
        greater_is_better=mode == "max", metric_for_best_model="loss", save_strategy="best"
    )
    state, control = tool.TrainerState(), tool.TrainerControl()
    trainer = SimpleNamespace(args=args, state=state)

    def call(loss):
        judge.on_evaluate(args, state, control, {"eval_loss": loss})
        keep = tool.Trainer._determine_best_metric(trainer, {"eval_loss": loss}, None)
        return control.should_training_stop, bool(keep)

    return call


JUDGES = {
    "pytorchtools": (real_pytorchtools, "early_stopping_pytorch"),
    "pytorchtools-2020": (Classic, None),
    "keras": (KerasTwin, None),
    "lightning": (LightningTwin, None),
    "plateau": (real_plateau, "torch"),
    "transformers": (TransformersTwin, None),
}
TOOLS = {"keras": real_keras, "lightning": real_lightning, "transformers": real_transformers}


# ---- what is judged ------------------------------------------------------------------------------
def drawn(semantics, seed):
    """A patience, a delta, options and losses: few values, plateaus, steps of just delta."""
    draw = random.Random(f"{semantics}{seed}")
    default = semantics == "pytorchtools"
    delta = draw.choice(DELTAS if default else DELTAS + NEGATIVE)
    options = {name: draw.choice(values) for name, values in OPTIONS[semantics].items()}
    mostly_finite = draw.random() < 0.6
    values = [v for v in VALUES if math.isfinite(v)] if mostly_finite else VALUES
    losses = [draw.choice(values)]
    for _ in range(draw.randrange(14)):
        step = delta if math.isfinite(delta) else 0.25
        last, sign = losses[-1], draw.choice([-1, -1, 1])
        kind = draw.randrange(4)
        near = last + sign * draw.choice([0.5, 1, 1.2, 2]) * step
        losses.append([draw.choice(values), last, near, draw.gauss(0.5, 0.5)][kind])
    return draw.randint(1 if default else 0, 4), delta, options, losses


class Net(nn.Module):
    """Its weights are the number of the call."""

    def __init__(self):
        super().__init__()
        self.register_buffer("call", nplm.tensor(0))

    def train_to(self, call):
        self.call.numpy()[...] = call


def through_json(state):
    return unpack(json.loads(json.dumps(pack(state, "stopper"), allow_nan=False)), "stopper")


def judge_for(semantics):
    judge, package = JUDGES[semantics]
    if package is not None:
        pytest.importorskip(package, reason=f"the judge is {package} itself: pip install it")
    return judge


@each_semantics
def test_every_call_stops_and_keeps_as_the_tool_does_and_the_best_weights_come_back(semantics):
    judge_of, ends = judge_for(semantics), {True: 0, False: 0}
    net = Net()
    for seed in range(SEQUENCES):
        patience, delta, options, losses = drawn(semantics, seed)
        stopper = EarlyStopping(patience, delta=delta, path=None, semantics=semantics, **options)
        judge, best = judge_of(patience, delta, **options), None
        for call, loss in enumerate(losses, 1):
            net.train_to(call)
            stop, keep = judge(loss)
            stopper(loss, net)
            best = call if keep else best
            where = (seed, patience, delta, options, losses[:call])
            assert (stopper.early_stop, stopper.best_call) == (stop, best), where
            assert (stopper.reason is not None) == stop
            if stop:
                break
        ends[stop] += 1
        net.train_to(-1)
        if best is None:
            with pytest.raises(CheckpointError, match="no weights were kept"):
                stopper.restore_best(net)
        else:
            stopper.restore_best(net)  # stopped, or at its end by itself
            assert net.call.item() == best
            assert stopper.val_loss_min == losses[best - 1] or math.isnan(losses[best - 1])
    assert min(ends.values()) > SEQUENCES / 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("semantics", TOOLS)
def test_the_twin_decides_as_the_installed_tool(semantics, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    pytest.importorskip(semantics, reason=f"the tool itself: pip install {semantics}")
    for seed in range(SEQUENCES):
        patience, delta, options, losses = drawn(semantics, seed)
        tool = TOOLS[semantics](patience, delta, **options)
        twin, best = JUDGES[semantics][0](patience, delta, **options), None
        for call, loss in enumerate(losses, 1):
            decision = tool(loss)
            assert twin(loss) == decision, (seed, patience, delta, options, losses[:call])
            best = call if decision[1] else best
            if decision[0]:
                break
        if semantics == "keras":  # the others leave the weights to another class
            tool.end()
            assert tool.restored == best


@each_semantics
def test_a_state_of_every_semantics_goes_on_the_same_in_a_stopper_of_another(semantics):
    others = list(RULES)
    for seed in range(150):
        patience, delta, options, losses = drawn(semantics, seed)
        whole = EarlyStopping(patience, delta=delta, path=None, semantics=semantics, **options)
        net = Net()
        for call, loss in enumerate(losses):
            fresh = EarlyStopping(path=None, semantics=others[call % len(others)])
            fresh.load_state_dict(through_json(whole.state_dict()))
            net.train_to(call)
            fresh(loss, net, step=call)
            whole(loss, net, step=call)
            assert repr(fresh.state_dict()) == repr(whole.state_dict())
            assert fresh.rule == whole.rule


# ---- what it says --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "losses", "reason"),
    [
        ({"semantics": "lightning"}, [2.0, NAN], "validation loss nan is not finite, at step 20"),
        ({"semantics": "lightning", "stopping_threshold": 0.5}, [2.0, 0.25],
         "validation loss 0.25 is better than stopping_threshold=0.5, at step 20"),
        ({"semantics": "lightning", "divergence_threshold": 5}, [2.0, 9.0],
         "validation loss 9 is worse than divergence_threshold=5, at step 20"),
        ({"semantics": "lightning", "check_finite": False}, [INF],
         "no improvement in 1 call, up to step 10"),
        ({"semantics": "keras", "delta": -0.25, "baseline": 1.5}, [2.0, 1.9],
         "no improvement of more than 0.25 that also beats the baseline 1.5 on 2.0000 (step 10) "
         "in 2 calls, up to step 20"),
        ({"semantics": "plateau", "delta": 0.25}, [2.0, 1.75, 1.75],
         "no improvement of more than 0.25 times that on 2.0000 (step 10) in 2 calls, "
         "up to step 30"),
        ({"semantics": "transformers"}, [INF, INF],
         "no improvement on inf in 1 call, up to step 20"),
        ({"semantics": "pytorchtools-2020", "delta": -0.25}, [2.0, 2.25, 3.0],
         "no improvement of more than -0.25 on 2.2500 (step 20) in 1 call, up to step 30"),
    ],
)  # fmt: skip
def test_the_reason_says_what_ended_it_in_words(settings, losses, reason):
    stopper = EarlyStopping(1, path=None, **settings)
    for call, loss in enumerate(losses, 1):
        assert not stopper.early_stop
        stopper(loss, step=10 * call)
    assert stopper.reason == reason


def test_messages_are_said_only_when_verbose(capsys):
    said = []
    for verbose in (False, True):
        for settings, losses in (
            ({"semantics": "keras", "start_from_epoch": 1, "baseline": 0.5}, [3.0, 2.0, 1.0]),
            ({"semantics": "lightning", "mode": "max"}, [2.0, 1.0, INF]),
        ):
            stopper = EarlyStopping(3, verbose, path=None, trace_func=said.append, **settings)
            for loss in losses:
                stopper(loss)
        assert verbose or not said
    assert said == [
        "EarlyStopping: validation loss before epoch 1: ignored",
        "EarlyStopping: validation loss improved, inf to 2.000000: no model to keep; "
        "not enough: 1 of 3",
        "EarlyStopping: validation loss improved, 2.000000 to 1.000000: no model to keep; "
        "not enough: 2 of 3",
        "EarlyStopping: validation loss improved, -inf to 2.000000: no model to keep",
        "EarlyStopping: validation loss 1.000000 does not improve on 2.000000: 1 of 3",
        "EarlyStopping: validation loss inf is not finite",
    ]
    assert capsys.readouterr().out == ""
