"""The learning-rate range test: what it suggests, and that every bit of state is put back."""

import copy
import math

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import TEXT, nplm

import nplm as lib
from nplm.data import Batch, RandomWindows
from nplm.data.dataloader import DataLoader
from nplm.data.loader import TokenWindows, collate_windows
from nplm.errors import ConfigError, DataError
from nplm.models import Decoder, DecoderConfig
from nplm.optim import SGD, AdamW
from nplm.optim.lr_scheduler import StepLR
from nplm.parity.tolerances import FORMULA_64, assert_close
from nplm.train import train_step
from nplm.train.lr_find import RangeTest, lr_find

pytestmark = pytest.mark.step

TOKENS = np.random.default_rng(0).integers(0, 11, 90)
SIZES = {"vocab_size": 11, "context": 6, "n_layer": 1, "n_head": 2, "n_embd": 8, "dropout": 0.2}


def windows(kind="random"):
    generator = lib.Generator().manual_seed(5)
    if kind == "random":
        return RandomWindows(TOKENS, 6, 2, generator)
    if kind == "list":
        source = windows()
        return [next(source) for _ in range(5)]
    generator = None if kind == "default stream" else generator
    loader = DataLoader(
        TokenWindows(TOKENS, 6), 2, shuffle=True, generator=generator, collate_fn=collate_windows
    )
    if kind in ("begun", "resumed"):
        begun = iter(loader)
        next(begun), next(begun)
    if kind == "resumed":
        loader.load_state_dict(loader.state_dict())
    return loader


KINDS = ["random", "list", "shuffled", "default stream", "begun", "resumed"]


class Training:
    """A model in the middle of its training, and everything that the next update depends on."""

    def __init__(self, kind="random", device="cpu", updates=3):
        lib.manual_seed(3)
        self.model = Decoder(DecoderConfig(**SIZES)).to(device)
        self.optimizer = AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = StepLR(self.optimizer, step_size=2)
        for batch in [next(windows()) for _ in range(updates)]:
            train_step(self.model, self.optimizer, [batch])
            self.scheduler.step()
        self.model.eval()
        self.model.blocks.train()
        self.kept = [p.grad for p in self.model.parameters()]
        self.loader = windows(kind)

    def bytes(self):
        """All of it, to be compared."""
        model, optimizer = self.model, self.optimizer
        gradients = [p.grad for p in model.parameters()]
        assert all(a is b for a, b in zip(gradients, self.kept))
        state = {
            i: {k: (id(v), v.numpy().tobytes()) for k, v in optimizer.state[p].items()}
            for i, p in enumerate(model.parameters()) if p in optimizer.state
        }  # fmt: skip
        options = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        place = self.loader.state_dict() if hasattr(self.loader, "state_dict") else None
        return {
            "weights": [(id(p), p.detach().numpy().tobytes()) for p in model.parameters()],
            "gradients": [None if g is None else g.numpy().tobytes() for g in gradients],
            "moments": state,
            "groups": (options, len(optimizer.state)),
            "attributes": sorted(vars(optimizer)),
            "scheduler": self.scheduler.state_dict(),
            "modes": [m.training for m in model.modules()],
            "stream": lib.get_rng_state(),
            "place": copy.deepcopy(place),
        }

    def losses(self):
        """What the next updates give: also what no state names would be seen here."""
        self.model.train()
        batches = iter(self.loader)
        records = [train_step(self.model, self.optimizer, [next(batches)]) for _ in range(4)]
        return [(float(r.loss), float(r.grad_norm)) for r in records]


def assert_untouched(before, training):
    after = training.bytes()
    for name, value in before.items():
        assert after[name] == value, name


@pytest.mark.parametrize("updates", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_is_put_back(kind, updates, device):
    training = Training(kind, device, updates)
    before = training.bytes()
    found = lr_find(training.model, training.optimizer, training.loader, steps=12, accumulate=2)
    assert len(found.lrs) == 12
    assert len(set(found.raw_losses)) == 12
    assert_untouched(before, training)
    assert training.losses() == Training(kind, device, updates).losses()


@pytest.mark.parametrize("kind", ["random", "begun", "default stream"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, SystemExit])
@pytest.mark.parametrize("when", [1, 7])
def test_every_bit_is_put_back_when_it_is_interrupted(kind, error, when):
    training, calls = Training(kind), []
    before = training.bytes()

    def loss_fn(logits, targets):
        calls.append(1)
        if len(calls) == when:
            raise error
        return logits.sum()

    with pytest.raises(error):
        lr_find(training.model, training.optimizer, training.loader, loss_fn=loss_fn)
    assert_untouched(before, training)
    assert training.losses() == Training(kind).losses()


def test_every_bit_is_put_back_when_the_loader_fails():
    class Failing(RandomWindows):
        def __next__(self):
            batch = super().__next__()
            self.count = getattr(self, "count", 0) + 1
            if self.count > 5:
                raise OSError("the disk has gone")
            return batch

    training = Training()
    training.loader = Failing(TOKENS, 6, 2, lib.Generator().manual_seed(5))
    before = training.bytes()
    with pytest.raises(OSError, match="the disk has gone"):
        lr_find(training.model, training.optimizer, training.loader)
    assert_untouched(before, training)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_it_ends_at_a_loss_that_is_not_finite_and_puts_every_bit_back(bad):
    training, calls = Training(), []
    before = training.bytes()

    def loss_fn(logits, targets):
        calls.append(1)
        return logits.sum() * (bad if len(calls) == 6 else 1e-6)

    with np.errstate(all="ignore"):
        found = lr_find(training.model, training.optimizer, training.loader, loss_fn=loss_fn)
    assert len(found.losses) == len(calls) == 6
    assert not math.isfinite(found.losses[-1])
    assert found.stopped == f"at {found.lrs[-1]:.3g} the loss or the norm was not finite"
    assert_untouched(before, training)


def test_it_ends_where_the_loss_is_a_multiple_of_its_lowest():
    for limit, n in ((4.0, 6), (None, 20)):
        calls = []

        def loss_fn(logits, targets, calls=calls):
            calls.append(1)
            return logits.sum() * 0 + (3.0 if len(calls) < 6 else 15.0) * targets.numel()

        training = Training()
        found = lr_find(
            training.model, training.optimizer, training.loader, steps=20, loss_fn=loss_fn,
            stop_above=limit, smoothing=0.0,
        )  # fmt: skip
        assert len(found.losses) == n
        assert (found.stopped is None) == (limit is None)
        assert found.losses[:6] == [3.0] * 5 + [15.0]


def test_the_rates_go_from_the_lowest_to_the_highest():
    training = Training()
    arguments = (training.model, training.optimizer, training.loader)
    options = {"lowest": 1e-4, "highest": 1e-2, "steps": 5, "stop_above": None}
    found = lr_find(*arguments, **options)
    assert (found.lrs[0], found.lrs[-1]) == (1e-4, 1e-2)
    assert_close(np.array(found.lrs), np.array([1e-4, 10**-3.5, 1e-3, 10**-2.5, 1e-2]), FORMULA_64)
    found = lr_find(*arguments, mode="linear", **options)
    assert_close(np.array(found.lrs), np.linspace(1e-4, 1e-2, 5), FORMULA_64)


def test_groups_keep_the_ratios_of_their_rates_and_the_updates_are_train_steps():
    def made():
        lib.manual_seed(1)
        model = Decoder(DecoderConfig(**{**SIZES, "dropout": 0.0}))
        ps = list(model.parameters())
        return model, SGD([{"params": ps[:3], "lr": 0.5}, {"params": ps[3:]}], lr=2.0)

    batches = windows("list")
    found = lr_find(*made(), batches, lowest=0.1, highest=0.4, steps=4, smoothing=0, mode="linear")
    model, optimizer = made()
    losses = []
    for lr, batch in zip(found.lrs, batches):
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = lr * 0.25, lr
        losses.append(float(train_step(model, optimizer, [batch]).loss))
    assert found.raw_losses == losses == found.losses


def test_the_smoothed_loss_begins_unbiased():
    training = Training()
    found = lr_find(training.model, training.optimizer, training.loader, steps=6, smoothing=0.9)
    mean = 0.0
    for i, (raw, smooth) in enumerate(zip(found.raw_losses, found.losses)):
        mean = 0.9 * mean + (1 - 0.9) * raw
        assert smooth == mean / (1 - 0.9 ** (i + 1))
    assert_close(np.array(found.losses[0]), np.array(found.raw_losses[0]), FORMULA_64)


# ---- the suggestion ------------------------------------------------------------------------------
losses = st.lists(st.floats(0.1, 9) | st.sampled_from([float("nan"), float("inf")]), max_size=40)


@examples(80)
@given(losses, st.integers(0, 12), st.integers(0, 3))
def test_the_suggestion_is_lightnings(values, begin, end):
    torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")
    lrs = [1e-5 * 1.3**i for i in range(len(values))]
    kept = [(lr, v) for lr, v in list(zip(lrs, values))[begin : len(lrs) - end] if math.isfinite(v)]
    got = RangeTest(lrs, values).suggest(begin, end)
    if len(kept) < 2:
        assert got is None
        return
    x, y = torch.tensor(kept, dtype=torch.float64).T
    slopes = torch.gradient(y, spacing=[x])[0]
    at = [lr for lr, _ in kept].index(got)
    near = slopes[at] - slopes.min()  # two slopes may be equal but for rounding
    assert float(near) == 0 or abs(float(near / slopes.min())) < FORMULA_64.rtol


def test_the_suggestion_leaves_out_ten_points_and_the_last_and_knows_the_logarithm():
    lrs = [10.0 ** (-8 + i / 4) for i in range(30)]
    values = [9.0, 1.0] + [5.0] * 12 + [5.0 - 0.3 * i for i in range(8)] + [3.0] * 7 + [0.0]
    assert RangeTest(lrs, values).suggestion == lrs[15]
    assert RangeTest(lrs, values).suggest(0, 0) == lrs[0]
    assert RangeTest(lrs, values).suggest(against="logarithm") in lrs[15:21]
    assert RangeTest(lrs[:12], values[:12]).suggestion is None
    with pytest.raises(ConfigError, match="against 'rate' or 'logarithm', got 'log'"):
        RangeTest(lrs, values).suggest(against="log")


# ---- what it refuses -----------------------------------------------------------------------------
@pytest.mark.parametrize(("options", "says"), [
    ({"lowest": 0.0}, "0 < lowest < highest, got 0.0 and 1.0"), ({"highest": 1e-9}, "and 1e-09"),
    ({"highest": float("inf")}, "and inf"), ({"lowest": float("nan")}, "got nan"),
    ({"steps": 0}, "steps must be at least 1"), ({"mode": "cosine"}, "'linear', got 'cosine'"),
    ({"stop_above": 1.0}, "greater than 1 or None, got 1.0"), ({"accumulate": 0}, "at least 1"),
    ({"smoothing": 1.0}, r"smoothing in \[0, 1\), got 1.0"),
])  # fmt: skip
def test_odd_arguments_are_refused_and_change_nothing(options, says):
    training = Training()
    before = training.bytes()
    with pytest.raises(ConfigError, match=says):
        lr_find(training.model, training.optimizer, training.loader, **options)
    assert_untouched(before, training)


def test_a_loader_that_cannot_be_read_again_is_refused_before_it_is_read():
    training, batches = Training(), iter(windows("list"))
    with pytest.raises(ConfigError, match="list_iterator cannot be read again"):
        lr_find(training.model, training.optimizer, batches)
    assert len(list(batches)) == 5


def test_a_loader_without_targets_is_refused():
    training = Training()
    empty = Batch(np.zeros((1, 6), int), np.full((1, 6), -100))
    for loader in ([], [empty]):
        with pytest.raises(DataError, match="no batch with a target"):
            lr_find(training.model, training.optimizer, loader)


# ---- nplm lr-find --------------------------------------------------------------------------------
SMALL = ["--batch-size", "2", "--context", "8", "--updates", "30", "--lowest", "1e-4", "--highest",
         "0.1"]  # fmt: skip


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def test_lr_find_prints_a_table_a_curve_and_a_suggestion_and_writes_nothing(text, capsys):
    code, out, _ = nplm(capsys, "lr-find", "--data", "text.txt", *SMALL)
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert lines["range"].endswith("30 updates of 16 tokens, learning rates 0.0001 to 0.1 "
                                   "(exponential)")  # fmt: skip
    assert "1.00e-04" in lines
    assert any(c in lines["loss"] for c in "▁▂▃▄▅▆▇█")
    rate = lines["steepest"].split()[1]
    assert lines["next"] == f"next       nplm train --lr {rate} with the settings of this test"
    assert 1e-4 < float(rate) < 0.1
    assert all(len(line) <= 100 for line in out.splitlines())
    assert [p.name for p in text.iterdir()] == ["text.txt"]


def test_lr_find_draws_in_ascii_where_blocks_cannot_be_shown(text, capsys, monkeypatch):
    monkeypatch.setattr("nplm.cli.curves.can_show", lambda characters: False)
    code, out, _ = nplm(
        capsys, "lr-find", "--data", "text.txt", "--mode", "linear", "--epochs", "1", *SMALL
    )
    assert code == 0
    assert out.isascii()
    assert "Lightning" not in out


def test_lr_find_takes_a_file_of_settings_of_a_run(text, capsys):
    (text / "run.toml").write_text(
        'data = ["text.txt"]\nlr = 0.5\nsteps = 9\n[schedule]\nname = "StepLR"\n'
        'options = ["step_size=2"]\n'
        "[stop]\npatience = 2\n"
    )
    code, out, _ = nplm(capsys, "lr-find", "--config", "run.toml", *SMALL)
    assert (code, "30 updates" in out) == (0, True)


@pytest.mark.parametrize(("words", "code", "says"), [
    (["--lr", "0.1", "--schedule.name", "constant"], 2, "does not use --lr, --schedule.name"),
    (["--updates", "12"], 2, "updates: expected at least 13, at most 1,000,000, got 12"),
    (["--lowest", "2", "--batch-size", "0"], 2, "0, got 0; lowest: expected 0 < lowest < highest"),
    (["--highest", "nan"], 2, "got 1e-06 and nan"), (["--mode", "cosine"], 2, "'linear'"),
    (["--stop-above", "1"], 2, "stop_above: expected more than 1 or None, got 1"),
    (["--updats", "3"], 2, "did you mean --updates?"),
    (["--data", "gone.txt"], 3, "gone.txt"),
    (["--data", "text.txt", *SMALL, "--lowest", "1e20", "--highest", "1e30"], 1, "ended after"),
])  # fmt: skip
def test_lr_find_refuses_in_one_sentence(text, capsys, words, code, says):
    got, _, err = nplm(capsys, "lr-find", *words)
    assert (got, says in err) == (code, True), err


def test_lr_find_suggests_nothing_where_the_loss_did_not_fall(text, capsys, monkeypatch):
    rising = RangeTest([10.0**i for i in range(30)], [1.0 + i for i in range(30)])
    monkeypatch.setattr("nplm.cli.lr_find.lr_find", lambda *args, **options: rising)
    code, out, err = nplm(capsys, "lr-find", "--data", "text.txt")
    assert (code, "next" in out) == (1, False)
    assert "the loss did not fall; try a lower --lowest, or more --updates" in err
