"""What docs/cli.md says of output that cannot be written, of Ctrl-C, and of two runs at once."""

import io
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_cli import SMALL, TEXT

from nplm.cli import main
from nplm.train.checkpoint import load_checkpoint

pytestmark = pytest.mark.cli


# ---- the output, Ctrl-C, two runs ----------------------------------------------------------------
@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_a_terminal_that_lacks_a_character_ends_nothing(capsys, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("naïve 🦊 and 🐶. " * 60, encoding="utf-8")
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    arguments = ["train", "--data", tmp_path / "text.txt", "--out", tmp_path / "runs", *SMALL]
    assert main([str(a) for a in arguments]) == 0
    assert main(["generate", str(next((tmp_path / "runs").iterdir()))]) == 0
    shown = ascii_only.buffer.getvalue()
    assert b"?" in shown
    assert b"--prompt and" in shown  # the first word of the text that this terminal can show


@pytest.mark.parametrize("where", ["closed", "full"])
def test_an_output_that_cannot_be_written_ends_with_5(capsys, monkeypatch, tmp_path, text, where):
    if where == "full" and not Path("/dev/full").exists():
        pytest.skip("only Linux has a file that is always full")
    for words in (["train", "--data", str(text), "--out", str(tmp_path), *SMALL], ["--version"]):
        output = open("/dev/full", "w") if where == "full" else None  # noqa: SIM115
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", output)
            code = main(words)
        err = capsys.readouterr().err
        assert (code, "standard output" in err, len(err.splitlines())) == (5, True, 1), err
        if output:
            output.close()  # what is left goes nowhere, and raises nothing


SHELL = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from nplm.cli import main; sys.exit(main(sys.argv[1:]))"
)


def start(*arguments):
    command = [sys.executable, "-c", SHELL, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_ctrl_c_ends_with_130_and_whole_checkpoints(tmp_path, text):
    process = start("train", "--data", text, "--out", tmp_path, *SMALL, "--steps", 10**6)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*/checkpoints/best.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err) == (130, "")
    assert "interrupted, and a checkpoint is kept" in out
    checkpoints = list(tmp_path.glob("*/checkpoints/step-*"))
    assert checkpoints
    for path in checkpoints:
        load_checkpoint(path)


def test_two_runs_at_once_get_folders_of_their_own(tmp_path, text):
    processes = [start("train", "--data", text, "--out", tmp_path / "runs", *SMALL) for _ in "ab"]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    folders = sorted((tmp_path / "runs").iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 4
        assert sum(f"run folder {folder}\n" in out for out, _ in said) == 1
