"""`nplm schedule`: the rates that it prints and draws are those of the optimizer, step by step."""

import builtins
import io
import re
import sys

import pytest
from tiny_runs import nplm as run

import nplm
from nplm.cli import VERBS, schedule
from nplm.optim import SGD
from nplm.optim.schedules import RECIPES, get_schedule

pytestmark = pytest.mark.cli


@pytest.fixture(autouse=True)
def verb(monkeypatch):
    monkeypatch.setitem(VERBS, "schedule", VERBS.get("schedule", "show a learning-rate schedule"))


def real_rates(name, steps, lr, **settings):
    optimizer = SGD([nplm.zeros(1, requires_grad=True)], lr=lr)
    scheduler, seen = get_schedule(name, optimizer, **settings), []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def printed(out):
    """{step: (rate, part of the full rate)} of the table."""
    rows = re.findall(r"^ +([\d,]+) +(\S+) +(\d\.\d{4})$", out, re.M)
    return {int(step.replace(",", "")): (float(lr), float(part)) for step, lr, part in rows}


@pytest.mark.parametrize(
    ("name", "flags", "settings"),
    [
        ("cosine", ["--warmup-steps", 20], {"total_steps": 200, "warmup_steps": 20}),
        ("nanogpt", [], {"total_steps": 200, "warmup_steps": 20}),
        ("inverse_sqrt", ["--warmup-steps", 20], {"warmup_steps": 20}),
        (
            "warmup_stable_decay",
            ["--decay-steps", 50, "--decay-type", "1-sqrt", "--warmup-steps", 20],
            {"total_steps": 200, "decay_steps": 50, "decay_type": "1-sqrt", "warmup_steps": 20},
        ),
        (
            "polynomial",
            ["--power", 2, "--lr-end", 0.001, "--warmup-steps", 20],
            {"total_steps": 200, "power": 2.0, "lr_end": 0.001, "warmup_steps": 20},
        ),
    ],
)
def test_the_table_has_the_optimizers_rates_at_the_marks(capsys, name, flags, settings):
    code, out, err = run(capsys, "schedule", name, "--steps", 200, "--lr", 0.02, *flags)
    assert (code, err) == (0, "")
    assert out.startswith(f"{name}: 200 updates, full rate 0.02\n")
    rates, rows = real_rates(name, 200, 0.02, **settings), printed(out)
    assert list(rows) == [0, 1, 19, 20, 50, 100, 150, 199]
    for step, (lr, part) in rows.items():
        assert (f"{lr:.6g}", f"{part:.4f}") == (
            f"{rates[step]:.6g}",
            f"{rates[step] / 0.02:.4f}",
        )


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_shown_without_knowing_it(capsys, name):
    extra = {"warmup_stable_decay": ["--decay-steps", 20]}.get(name, [])
    extra = ["--min-lr-ratio", 0.1] if "min_lr" in name else extra
    code, out, err = run(capsys, "schedule", name, "--steps", 100, "--show", *extra)
    assert (code, err) == (0, "")
    assert len(printed(out)) > 4
    assert max(map(len, out.splitlines())) <= 80


def curve(out):
    rows = [line.split("|", 1)[1] for line in out.splitlines() if "|" in line]
    width = max(map(len, rows))
    return [row.ljust(width) for row in rows]


def heights(rows, cells):
    """The height of every column in eighths of a row."""
    return [sum(cells.index(row[c]) for row in rows) for c in range(len(rows[0]))]


@pytest.mark.parametrize("steps", [64, 1009])
def test_show_draws_the_curve_in_eighths_of_a_row(capsys, steps):
    code, out, _ = run(capsys, "schedule", "linear", "--steps", steps, "--show")
    rates = real_rates("linear", steps, 1e-3, total_steps=steps)
    assert code == 0
    shown = [rates[column * (steps - 1) // 63] for column in range(64)]
    drawn = heights(curve(out), schedule.EIGHTHS)
    assert drawn + [0] * (64 - len(drawn)) == [round(64 * lr / 1e-3) for lr in shown]
    assert "  1.00e-03 |" in out
    assert "       0 |" in out
    assert out.splitlines()[-1].split() == ["step", "0", f"{steps - 1:,}"]


def test_without_show_there_is_no_curve(capsys):
    _, out, _ = run(capsys, "schedule", "linear")
    assert not set(schedule.EIGHTHS[1:]) & set(out)
    assert "|" not in out


def test_a_terminal_without_blocks_gets_ascii(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert schedule.main(["cosine", "--steps", "80", "--show"]) == 0
    sys.stdout.flush()
    rows = curve(raw.getvalue().decode("ascii"))
    assert len(rows) == schedule.ROWS
    columns = ["".join(column) for column in zip(*rows)]
    assert columns[0] == "#" * schedule.ROWS
    counts = [column.count("#") for column in columns]
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("steps", [1, 2, 3, 10**9])
def test_very_short_and_very_long_runs_are_drawn(capsys, steps):
    code, out, err = run(capsys, "schedule", "linear", "--steps", steps, "--show")
    assert (code, err) == (0, "")
    assert printed(out)[0] == (0.001, 1.0)


def test_a_run_that_only_ever_has_rate_0_is_drawn(capsys):
    code, out, _ = run(capsys, "schedule", "constant_with_warmup", "--steps", 1,
                       "--warmup-steps", 9, "--show")  # fmt: skip
    assert (code, printed(out)) == (0, {0: (0.0, 0.0)})


def test_png_writes_a_figure(capsys, tmp_path):
    pytest.importorskip("matplotlib", reason="figures: pip install numpy-lm[plot]")
    path = tmp_path / "cosine.png"
    code, out, _ = run(capsys, "schedule", "cosine", "--png", path)
    assert code == 0
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert f"written: {path}" in out


def test_png_without_matplotlib_says_what_to_install(capsys, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    path = tmp_path / "x.png"
    code, _, err = run(capsys, "schedule", "cosine", "--png", path)
    assert (code, path.exists()) == (2, False)
    assert "pip install matplotlib" in err


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        ([], 2, "NAME is missing: expected nplm schedule NAME"),
        (["cosin"], 2, "did you mean 'cosine'?"),
        (["linear", "--steps", 0], 2, "steps: expected at least 1"),
        (["linear", "--lr", "nan", "--steps", 0], 2, "0; lr: expected a positive number"),
        (["linear", "--warmup-steps", 2000], 2, "below total_steps=1000, got 2000"),
        (["linear", "--power", 2], 2, "unknown setting of schedule 'linear' 'power'"),
        (["polynomial", "--power", "inf"], 2, "power: expected a finite number >= 0"),
        (["polynomial", "--lr-end", "-1"], 2, "lr_end: expected a finite number >= 0"),
        (["cosine", "--num-cycles", "nan"], 2, "num_cycles: expected a finite number"),
        (["cosine_with_min_lr"], 2, "expected one of min_lr and min_lr_ratio"),
        (["cosine_with_min_lr", "--min-lr", 1], 2, "min_lr_ratio in [0, 1], got 1000"),
        (["warmup_stable_decay"], 2, "needs decay_steps"),
        (["warmup_stable_decay", "--decay-steps", -1], 2, "none below 0"),
        (["inverse_sqrt", "--timescale", 0], 2, "timescale > 0"),
        (["linear", "--shwo"], 2, "unknown flag '--shwo'"),
    ],
)
def test_bad_input_gets_one_sentence_and_its_exit_code(capsys, flags, code, says):
    got, _, err = run(capsys, "schedule", *flags)
    assert (got, says in err) == (code, True), (got, err)
    assert err.count("\n") == 1


def test_a_figure_that_cannot_be_written_is_refused_with_its_path(capsys):
    pytest.importorskip("matplotlib", reason="a figure needs matplotlib: pip install matplotlib")
    code, _, err = run(capsys, "schedule", "linear", "--png", ".")
    assert (code, err.count("\n")) == (5, 1), err
