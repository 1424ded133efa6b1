"""Runs units in processes of their own: what fails, breaks or takes too long ends alone.

A child runs the units of a group one after the other and writes a line before and after each. The
parent reads them, ends a child whose unit is over its limit, and starts another for what is left.
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.units import UNITS, Ask, Unit

Result = dict[str, Any]  # "state": passed, failed, cut, left out; "seconds", "found", "error"
LOOK = 0.1  # seconds between looks at what a child wrote
START = 90.0  # seconds that a child may need until its first unit: torch loads, the card wakes up


# ---- the child -----------------------------------------------------------------------------------
def work(ask: Ask, names: Sequence[str], report: Path) -> None:
    """Run units and write a line of JSON before and after each."""
    with report.open("a") as file:

        def write(line: dict[str, Any]) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        for name in names:
            unit, began = UNITS[name], time.monotonic()
            write({"unit": name, "state": "begun"})
            print(f"---- {name}", flush=True)
            try:
                found = unit.run(replace(ask, until=began + 0.85 * unit.seconds))
            except Exception as error:  # a unit's failure is its own
                traceback.print_exc()
                sys.stderr.flush()
                line: Result = {"state": "failed", "error": f"{type(error).__name__}: {error}"}
            else:
                line = {"state": "passed", "found": found}
            write({"unit": name, "seconds": time.monotonic() - began, **line})


# ---- the parent ----------------------------------------------------------------------------------
def run(
    ask: Ask, units: Sequence[Unit], seconds: float, folder: Path, log: Path,
    tell: Callable[[str, Result], None], module: str = "benchmarks.gpu",
) -> None:  # fmt: skip
    """Run all units within so many seconds; `tell` hears of each as soon as it has ended.

    folder: for what children write, gone afterwards. log: gets what they print. module: what a
    child runs.
    """
    end = time.monotonic() + seconds
    left = list(units)
    while left:
        group = [u for u in left if u.group == left[0].group]
        if end - time.monotonic() < 5:
            for u in left:
                tell(u.name, {"state": "left out", "error": f"the {seconds:.0f} seconds are over"})
            return
        ended = _child(ask, group, end, folder, log, tell, module)
        left = [u for u in left if u.name not in ended]


def _child(
    ask: Ask, group: Sequence[Unit], end: float, folder: Path, log: Path,
    tell: Callable[[str, Result], None], module: str,
) -> set[str]:  # fmt: skip
    """Start a process for a group; the names of the units that have ended when it has."""
    report = folder / f"report-{time.monotonic_ns()}.jsonl"
    report.touch()
    command = [sys.executable, "-m", module, "--device", ask.device]
    command += ["--small"] * ask.small + [
        "--report",
        str(report),
        "--only",
        *(u.name for u in group),
    ]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if ask.small:  # so little work that threads only wait for each other
        environment["OMP_NUM_THREADS"] = "1"
    else:  # what is compiled is compiled here, or there is no compiling to time
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
        environment["TRITON_CACHE_DIR"] = str(folder / "triton")
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with log.open("a") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=root,
                                 env=environment, start_new_session=True)  # fmt: skip
    ended: set[str] = set()
    current, since, limit = group[0].name, time.monotonic(), START
    by_name = {u.name: u for u in group}
    with report.open() as lines:
        while True:
            running = child.poll() is None  # asked first: what it wrote last is then there
            for line in _whole_lines(lines):
                name = line.pop("unit")
                if line["state"] == "begun":
                    current, since, limit = name, time.monotonic(), by_name[name].seconds
                else:
                    ended.add(name)
                    tell(name, line)
            if not running or len(ended) == len(group):
                break
            now = time.monotonic()
            if now > end or now - since > limit:
                _end(child)
                why = f"the limit of {limit:.0f} seconds" if now <= end else "the end of the suite"
                tell(current, {"state": "cut", "seconds": now - since, "error": f"cut at {why}"})
                return ended | {current}
            time.sleep(LOOK)
    _end(child)
    if len(ended) < len(group) and current not in ended:
        said = {"state": "failed", "error": f"its process ended with code {child.returncode}"}
        tell(current, said)
        ended.add(current)
    elif not ended:  # it ended without a word: do not start it for ever
        tell(group[0].name, {"state": "failed", "error": "its process did not start"})
        ended.add(group[0].name)
    return ended


def _whole_lines(file: Any) -> list[Result]:
    """The lines that are written to their end since the last look."""
    found = []
    while True:
        place, line = file.tell(), file.readline()
        if not line.endswith("\n"):
            file.seek(place)
            return found
        found.append(json.loads(line))


def _end(child: "subprocess.Popen[bytes]") -> None:
    """End a child, and the compilers that it started: they are in its session."""
    with suppress(subprocess.TimeoutExpired):
        child.wait(timeout=2)  # one that is done goes by itself
    with suppress(ProcessLookupError, PermissionError):  # nothing of it is left
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
