"""What the README and docs show is what happens: every snippet and command is run."""

import re
import shlex

import pytest
from house import ROOT

from nplm.autograd.op import OPS
from nplm.autograd.overrides import KNOWN
from nplm.cli import main

pytestmark = pytest.mark.cli

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Appended to a training command, so that it takes a second; later flags win.
SHORT = (
    "--steps 2 --eval-every 2 --batch-size 2 --context 16 --sample-length 5 "
    "--schedule.warmup-steps 1"
)


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
    words = shlex.split(line)[1:]
    words = [str(run_folder) if w == "RUN" or w.startswith("runs/") else w for w in words]
    words += SHORT.split() if words[0] == "train" else ["--length", "3"]
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


def test_the_table_of_bad_input_has_a_row_for_every_test():
    import test_cli

    page = (ROOT / "docs" / "cli.md").read_text()
    table = page.split("| input | code |")[1]
    rows = re.findall(r"^\| [^|]+ \| (\d) \|", table, re.MULTILINE)
    tested = {str(code) for _, code, _ in test_cli.BAD.values()}
    assert tested <= set(rows)
