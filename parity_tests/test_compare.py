"""compare: what differs, losses side by side, curves; runs of odd length and with odd metrics."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys

import pytest
from tiny_runs import make_runs, nplm, snapshot

from nplm import files
from nplm.cli import compare, curves
from nplm.train.history import History, differences

pytestmark = pytest.mark.cli


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_runs(tmp_path_factory.mktemp("compare"))


@pytest.fixture
def run(made, tmp_path):
    """A copy of a run of four updates, to be changed."""
    return shutil.copytree(made[0], tmp_path / "run")


@pytest.fixture
def short(made):
    """A run of two updates."""
    return made[1]


def section(out, title):
    """The lines below a title, up to the next blank line."""
    return out.split(f"\n{title}")[1].split("\n\n")[0].splitlines()[1:]


def test_compare_shows_what_differs_and_nothing_else(capsys, run, short):
    before = {**snapshot(run), **snapshot(short)}
    code, out, _ = nplm(capsys, "compare", run, short)
    assert code == 0
    rows = [line.split() for line in section(out, "settings that differ")]
    assert rows == [["run", "1", "run", "2"], ["steps", "4", "2"], ["seed", "1", "1337"],
                    ["name", "long", "short"]]  # fmt: skip
    assert {**snapshot(run), **snapshot(short)} == before
    assert max(map(len, out.splitlines())) <= 80 or len(str(run)) > 70


def test_compare_has_a_row_a_validation_of_any_run_and_marks_each_best(capsys, run, short):
    out = nplm(capsys, "compare", run, short)[1]
    losses = [History.read(folder).curve("validation_loss") for folder in (run, short)]
    rows = [line.split() for line in section(out, "validation loss")[1:]]
    assert rows == [
        ["2", f"{losses[0][2]:.4f}", f"{losses[1][2]:.4f}*"],
        ["4", f"{losses[0][4]:.4f}*"],
    ]
    assert losses[0][4] < losses[0][2]
    results = {line[:18].strip(): line[18:].split() for line in section(out, "results")[1:]}
    assert results["updates"] == ["4", "2"]
    assert results["best step"] == ["4", "2"]
    assert results["best loss"] == [f"{losses[0][4]:.4f}", f"{losses[1][2]:.4f}"]


def test_compare_counts_tokens_and_time_of_updates(run):
    lines = [{"step": i, "loss": 1.0, "tokens": 30, "seconds": 0.5} for i in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    history = History.read(run)
    assert (history.seconds(), history.tokens_per_second()) == (1.5, 60)
    assert history.best() is None


def test_compare_ends_with_the_last_sample_of_each_run(capsys, run, short):
    files.append_line(run / "samples.jsonl", json.dumps(
        {"step": 5, "prompt": "", "text": "\x1b[31mred\n" + "wide " * 40 + "\nx" * 9}))  # fmt: skip
    out = nplm(capsys, "compare", run, short)[1]
    assert "\x1b" not in out
    sample = section(out, "last sample of run 1, at step 5")
    assert sample[0] == "     [31mred"
    assert sample[1].endswith("...")
    assert len(sample[1]) == 80
    assert sample[-1] == "    ... 5 lines more"
    assert "last sample of run 2, at step 2" in out


ODD = {  # metrics.jsonl of a run -> what its page says
    "nothing": ([], "no update yet"),
    "one line": ([{"step": 1, "loss": 2.5}], "2.5000  ▁  2.5000"),
    "NaN": (
        [{"step": 1, "loss": 2.0, "validation_loss": "NaN"}, {"step": 2, "loss": "NaN"}], "x  nan"),
    "infinity": ([{"step": 1, "loss": "Infinity", "validation_loss": "-Infinity"}], "inf  x  inf"),
    "no loss": ([{"step": 0}], "no update yet"),
    "no figures": ([{"step": 1, "loss": [], "seconds": None, "tokens": {}}], "nan  x  nan"),
    "a huge step": ([{"step": 1, "loss": 1}, {"step": 10**12, "loss": 10**400}], "x  nan"),
    "equal losses": ([{"step": i, "loss": 3} for i in (1, 2, 3)], "3.0000  ▁▁▁  3.0000"),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_compare_takes_runs_with_odd_metrics(capsys, run, tmp_path, case):
    lines, says = ODD[case]
    other = shutil.copytree(run, tmp_path / "other")
    for name in ("metrics.jsonl", "samples.jsonl"):
        (other / name).write_text("")
    (other / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for folders in ((other, run), (other, other), (run, other, other)):
        code, out, _ = nplm(capsys, "compare", *folders)
        assert code == 0
        assert "has written no sample yet" in out
    assert says in nplm(capsys, "compare", other, other)[1]


def test_a_nan_validation_is_shown_and_never_the_best(capsys, run):
    lines = [{"step": 1, "validation_loss": "NaN"}, {"step": 2, "validation_loss": 2.0},
             {"step": 3, "validation_loss": 2.0}]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = nplm(capsys, "compare", run, run)[1]
    rows = [line.split() for line in section(out, "validation loss")[1:]]
    assert rows == [["1", "nan", "nan"], ["2", "2.0000*", "2.0000*"], ["3", "2.0000", "2.0000"]]


def test_a_half_written_line_is_left_out_of_the_comparison(capsys, run):
    path = run / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    assert section(nplm(capsys, "compare", run, run)[1], "results")[1].split() == [
        "updates", "3", "3",
    ]  # fmt: skip


@pytest.mark.parametrize("n", [2, 3])
def test_a_page_of_two_or_three_runs_has_80_columns(capsys, run, monkeypatch, n):
    monkeypatch.chdir(run.parent)
    record = json.loads((run / "run.json").read_text())
    folders = []
    for i in range(n):
        record["config"]["data"] = [f"/some/where/far/away/in/the/home/of/{i}" * 3]
        record["config"]["a.very.long.name.of.a.setting.that.nobody.would.like.to.type"] = i
        folders.append(shutil.copytree(run, run.parent / f"run{i}").name)
        (run.parent / folders[-1] / "run.json").write_text(json.dumps(record))
        metrics = "".join(f'{{"step": {s}, "loss": {9 / s}}}\n' for s in range(1, 500))
        (run.parent / folders[-1] / "metrics.jsonl").write_text(metrics)
    out = nplm(capsys, "compare", *folders)[1]
    assert max(map(len, out.splitlines())) <= 80
    assert out.count("..") >= n


def test_curves_share_their_axes_and_have_a_form_in_ascii():
    falling = {step: 4.0 - 3 * (step - 1) / 7 for step in range(1, 9)}
    assert curves.curve_of(falling, 8, 1.0, 4.0, curves.BLOCKS) == "█▇▆▅▄▃▂▁"
    assert curves.curve_of(falling, 8, 1.0, 4.0, curves.PLAIN) == "#*+=:-._"
    assert curves.curve_of({**falling, 3: math.nan}, 4, 1.0, 4.0, curves.PLAIN) == "#x-_"
    low = {step: 1.0 for step in range(1, 5)}
    empty = History(None, {}, [], None)
    runs = [dataclasses.replace(empty, metrics=[{"step": s, "loss": x} for s, x in curve.items()])
            for curve in (falling, low)]  # fmt: skip
    lines = list(compare._curves(["a", "b"], runs, curves.BLOCKS))
    assert lines[1] == "  b  1.0000  ▁▁▁▁  1.0000"


def test_compare_draws_in_ascii_where_the_terminal_has_nothing_else(run):
    out = subprocess.run(
        [sys.executable, "-c", "from nplm.cli import main; main()", "compare", run, run],
        capture_output=True, env={"PYTHONIOENCODING": "ascii"}, check=True,
    )  # fmt: skip
    assert b"?" not in out.stdout.split(b"last sample")[0]
    assert b"  #" in out.stdout


def test_compare_wants_two_runs_and_nothing_but_runs(capsys, run, tmp_path):
    for words, code, says in [
        ([], 2, "two runs or more, got 0"), ([run], 2, "two runs or more, got 1"),
        ([run, tmp_path], 3, "run.json"), ([run, tmp_path / "no"], 3, "no such file"),
        ([run, run, "--hlp"], 2, "did you mean --help?"),
    ]:  # fmt: skip
        got, out, err = nplm(capsys, "compare", *words)
        assert (got, out, says in err) == (code, "", True), err


def test_settings_that_one_run_lacks_are_shown_as_a_dash():
    a, b = (History(None, s, [], None) for s in ({"x": 1, "y": []}, {"x": 1, "z": None}))
    assert differences([a, b]) == {"y": ["none", "-"], "z": ["-", "None"]}
