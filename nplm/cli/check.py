"""`nplm check RUN`: every file of a run is read and verified; nothing is changed."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from nplm import files
from nplm.cli.arguments import parse
from nplm.errors import CheckpointError, DataError
from nplm.train import report
from nplm.train.checkpoint import best_checkpoint, checkpoint_steps, load_checkpoint
from nplm.train.history import read_lines
from nplm.train.resume import Progress, corpus_of, newest_good, progress_of, settings_of
from nplm.train.run import RunFolder

LEFTOVERS = {  # how the name of something begins that no run reads -> what it is
    ".tmp-": "being written, or left when a run was killed",
    ".del-": "being removed, or left when a run was killed",
    "rejected-": "a checkpoint that a resume rejected and put aside",
}


@dataclass(frozen=True)
class CheckConfig:
    """Verify every file of a run, and say what a resume would use.  Changes nothing."""

    run: Path  # the run's folder

    def check(self) -> None:
        """Every path is worth a look."""


@dataclass
class Findings:
    """Prints a line for each thing as it is found, and remembers what the lines are held to."""

    run: RunFolder
    total: int = 0
    damaged: int = 0
    newest: int | None = None  # step of the newest checkpoint that loads
    progress: Progress | None = None  # what that one says of the run

    def say(self, verdict: str, name: str, text: str) -> None:
        """One line: verdict, file, and what there is to say about it."""
        self.total += verdict != "leftover"
        self.damaged += verdict == "damaged"
        print(f"{verdict:<8}  {name:<25}  {self.short(text)}", flush=True)

    def short(self, text: str) -> str:
        """One line, without the folder that every path begins with."""
        return " ".join(text.replace(f"{self.run.path}/", "").split())


def main(arguments: list[str]) -> int:
    """List every part of a run with a verdict; a CheckpointError if one of them is damaged."""
    path = parse(CheckConfig, arguments, "nplm check").run
    files.require_safetensors()
    names = files.list_directory(path)
    if not {"run.json", "checkpoints"} & set(names):
        raise CheckpointError(f"{path}: not a run: it holds no run.json; check the path")
    found = Findings(RunFolder(path))
    _check_record(found, names)
    _check_checkpoints(found)
    for name in ("metrics", "samples"):
        least = getattr(found.progress, f"{name}_bytes") if found.progress else 0
        _check_lines(found, f"{name}.jsonl", "step", least)
    if "attempts.jsonl" in names:
        _check_lines(found, "attempts.jsonl", "attempt")
    for folder, prefix in ((path, ""), (found.run.checkpoints, "checkpoints/")):
        _name_leftovers(found, folder, prefix)
    print(found.short(_outlook(found.run)))
    if found.damaged:
        raise CheckpointError(f"{path}: {found.damaged} of {found.total} parts damaged, see above")
    return 0


def _outlook(run: RunFolder) -> str:
    """After which step a resume would go on, or why it cannot."""
    try:
        corpus_of(run, settings_of(run))
        return f"A resume would go on after step {newest_good(run, lambda _: None)[0].step}"
    except (CheckpointError, DataError) as error:
        return f"A resume is not possible: {error}"


def _check_record(found: Findings, names: list[str]) -> None:
    """run.json, and the text if it was kept."""
    corpus = None
    try:
        record = found.run.info()
        settings_of(found.run)
        versions, corpus = record.get("versions"), record.get("corpus")
        version = versions.get("nplm") if isinstance(versions, dict) else "unknown"
        found.say("ok", "run.json", f"made {record.get('created')} by nplm {version}")
    except CheckpointError as error:
        found.say("damaged", "run.json", str(error))
    kept = str(corpus.get("source") if isinstance(corpus, dict) else "").startswith("pydoc_data")
    if "corpus.txt" in names or kept:
        try:
            sha256 = files.sha256_of(found.run.path / "corpus.txt")
            if isinstance(corpus, dict) and corpus.get("sha256") != sha256:
                raise CheckpointError("its SHA-256 differs from run.json's")
            found.say("ok", "corpus.txt", f"SHA-256 {sha256[:8]}...")
        except CheckpointError as error:
            found.say("damaged", "corpus.txt", str(error))


def _check_checkpoints(found: Findings) -> None:
    """Every checkpoint by its own files, then best.json."""
    try:
        steps = checkpoint_steps(found.run)
    except CheckpointError as error:
        return found.say("damaged", "checkpoints", str(error))
    best, problem = _best(found.run)
    for step in steps:
        notes = ["best"] if best == found.run.checkpoint(step) else []
        notes += ["newest"] if step == steps[-1] else []
        _check_checkpoint(found, step, notes)
    if problem:
        found.say("damaged", "checkpoints/best.json", problem)
    elif best:
        found.say("ok", "checkpoints/best.json", f"names {best.name}")
    return None


def _best(run: RunFolder) -> tuple[Path | None, str | None]:
    """The best checkpoint, and what is wrong with best.json."""
    try:
        return best_checkpoint(run), None
    except CheckpointError as error:
        return None, str(error)


def _check_checkpoint(found: Findings, step: int, notes: list[str]) -> None:
    path = found.run.checkpoint(step)
    name = f"checkpoints/{path.name}"
    try:
        checkpoint = load_checkpoint(path)
        entries = files.read_json(path / files.MANIFEST)["files"].values()
        if checkpoint.step != step:
            raise CheckpointError(f"{path / 'state.json'}: it is of step {checkpoint.step}")
    except CheckpointError as error:
        if step in checkpoint_steps(found.run):  # else the run has rotated it away meanwhile
            found.say("damaged", name, str(error))
        return
    found.newest, found.progress = step, None
    with contextlib.suppress(CheckpointError):  # saved by other means than `nplm train`
        found.progress = progress_of(checkpoint)
    size = report.amount(sum(entry["bytes"] for entry in entries))
    found.say("ok", name, ", ".join([f"step {step}", size, *notes]))


def _check_lines(found: Findings, name: str, counter: str, least: int = 0) -> None:
    """A file of lines, of which the newest good checkpoint has seen the first `least` bytes."""
    path = found.run.path / name
    try:
        entries, problems = read_lines(path, counter)
        if problems:  # the run may be writing this very line
            time.sleep(0.1)
            entries, problems = read_lines(path, counter)
        if (size := files.size_of(path)) < least:
            problems.insert(
                0, f"lines are missing: {size} bytes, and {least} at step {found.newest}"
            )
        elif least and files.read_bytes(path)[least - 1 : least] != b"\n":
            problems.insert(0, f"no line ends at {least} bytes, as one did at step {found.newest}")
    except CheckpointError as error:
        return found.say("damaged", name, str(error))
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return found.say("damaged", name, problems[0] + more)
    if not entries:
        return found.say("ok", name, "nothing in it yet")
    lines = report.counted(len(entries), "line")
    span = f"{counter} {entries[0][counter]} to {entries[-1][counter]}"
    return found.say("ok", name, f"{lines}, {span}")


def _name_leftovers(found: Findings, folder: Path, prefix: str) -> None:
    if not files.is_directory(folder):
        return
    for name in files.list_directory(folder):
        for beginning, what in LEFTOVERS.items():
            if name.startswith(beginning):
                found.say("leftover", prefix + name, what)
