"""What the README and docs show is what happens: every snippet and command is run."""

import re
import shlex

import pytest
from bad_input import BAD, OTHERS
from house import ROOT

from nplm.autograd.op import OPS
from nplm.autograd.overrides import KNOWN
from nplm.cli import main
from nplm.cli.arguments import read_settings
from nplm.parity.trace import Trace
from nplm.train.config import TrainConfig

pytestmark = pytest.mark.cli

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Appended to a training command, so that it takes a second; later flags win.
SHORT = "--steps 2 --eval-every 2 --batch-size 8 --context 16 --sample-length 5"


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


SNIPPETS = [
    pytest.param(code, id=f"{page.name}-{i}")
    for page in PAGES
    for i, code in enumerate(blocks(page, "python"))
]
COMMANDS = [
    pytest.param(line, id=f"{page.name}: {line}")
    for page in PAGES
    for block in blocks(page, "console")
    for line in block.splitlines()
    if line.startswith("nplm ")
]


def test_there_is_something_to_run():
    assert SNIPPETS
    assert COMMANDS


@pytest.mark.parametrize("code", SNIPPETS)
def test_every_python_snippet_runs(code, tmp_path, monkeypatch):
    if "import torch" in code:
        pytest.importorskip("torch", reason="the snippet compares with PyTorch: pip install torch")
    monkeypatch.chdir(tmp_path)
    for name in ("old", "new"):  # the folders of two traces, for docs/parity.md
        Trace({"engine": "torch"}).save(tmp_path / name / "trace")
    ops, names = dict(OPS), set(KNOWN)
    exec(compile(code, "snippet", "exec"), {"__name__": "snippet"})
    for name in OPS.keys() - ops.keys():  # an op that a snippet made is forgotten again
        del OPS[name]
    KNOWN.intersection_update(names)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    assert main(["train", *SHORT.split(), "--out", str(out)]) == 0
    return next(out.iterdir())


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_runs(line, run_folder, tmp_path, monkeypatch, capsys):
    if "torch:cpu" in line:
        pytest.importorskip("torch", reason="the command needs PyTorch: pip install torch")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moby_dick.txt").write_text("Call me Ishmael. " * 50)
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "one.txt").write_text("Call me Ishmael. " * 50)
    (tmp_path / "settings.toml").write_text("".join(blocks(ROOT / "docs" / "cli.md", "toml")))
    words = shlex.split(line)[1:]
    words = [str(run_folder) if w == "RUN" or w.startswith("runs/") else w for w in words]
    short = {"train": SHORT.split(), "generate": ["--length", "3"]}.get(words[0], [])
    words += short if "--resume" not in words else []
    if "--schedule.warmup-steps" in words:  # it has to end before the run does
        words += ["--schedule.warmup-steps", "1"]
    assert main(words) == 0, capsys.readouterr().err


def test_ci_runs_the_commands_of_the_readme():
    shown = [line for block in blocks(ROOT / "README.md", "sh") for line in block.splitlines()]
    assert len(shown) == 2
    script = (ROOT / ".ci" / "run").read_text()
    for line in shown:
        assert line in script.replace(' --out "$work/runs"', ""), line


def test_no_page_has_a_place_that_waits_for_text():
    for page in PAGES:
        assert not re.findall(r"^(?:[A-Z_]{6,}|TODO.*|XXX.*)$", page.read_text(), re.MULTILINE), (
            page
        )


def test_no_page_names_another_projects_distribution():
    for page in PAGES:
        assert "pip install nplm" not in page.read_text(), page


def test_the_tables_of_bad_input_are_what_is_tested():
    page = (ROOT / "docs" / "cli.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \| [^|]+ \|$", page, re.MULTILINE)
    tested = {row: code for row, (_, code, _) in BAD.items()}
    tested |= {row: code for row, (code, _) in OTHERS.items()}
    assert {row: int(code) for row, code in rows} == tested
    for _, test in OTHERS.values():
        file, name = test.split("::")
        assert f"def {name}(" in (ROOT / "parity_tests" / file).read_text(), test


def test_every_settings_file_shown_is_one(tmp_path):
    shown = [block for page in PAGES for block in blocks(page, "toml")]
    assert shown
    for block in shown:
        (tmp_path / "shown.toml").write_text(block)
        made, problems = read_settings(TrainConfig, tmp_path / "shown.toml")
        assert not problems
        made.check()
