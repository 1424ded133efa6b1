"""The whole suite for a card: checks, then timings, in under nine minutes.

    python -m benchmarks.gpu --out DIR [--device cuda|cpu] [--small] [--only UNIT ...]

Needs NumPy and torch alone. Writes summary.txt, checks.json, timings.json (what `python -m
benchmarks tables --add` reads) and log.txt; what has ended is in them at once. The exit code is 1
unless every unit has passed.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.gpu import suite, units
from benchmarks.gpu.units import Ask

SECONDS = 525.0  # of the whole suite: nine minutes, less the start and the end of Python


def main(words: list[str]) -> int:
    """Run the suite, or as its child some of its units."""
    a = arguments(words)
    ask = Ask(a.device, a.small)
    if (why := unusable(a.device, a.list)) is not None:
        print(f"benchmarks.gpu: {why}", file=sys.stderr)
        return 1
    from benchmarks.gpu import checks, modes, timings  # noqa: F401  they enter their units

    if a.list:
        print("\n".join(f"{u.seconds:4.0f} s  {u.name}" for u in units.chosen(ask, a.only)))
        return 0
    if a.report is not None:
        suite.work(ask, a.only, a.report)
        return 0
    wanted = units.chosen(ask, a.only)
    if not wanted:
        print(f"benchmarks.gpu: --only: no unit begins with {' or '.join(a.only)}; see --list",
              file=sys.stderr)  # fmt: skip
        return 2
    a.out.mkdir(parents=True, exist_ok=True)
    files = Files(a.out, " ".join(["python -m benchmarks.gpu", *words]), len(wanted))
    with tempfile.TemporaryDirectory(prefix="nplm-gpu-", ignore_cleanup_errors=True) as folder:
        suite.run(ask, wanted, a.seconds, Path(folder), files.log, files.tell)
    return files.end()


def arguments(words: list[str]) -> argparse.Namespace:
    """The command line, by argparse: a bare machine has nothing else."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    out = Path(os.environ.get("OUT") or ".")
    parser.add_argument("--out", type=Path, default=out, help="folder of the results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny shapes: shows that it works")
    parser.add_argument("--only", nargs="+", default=(), help="units, or how their names begin")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the whole suite")
    parser.add_argument("--list", action="store_true", help="say what the units are, and end")
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)  # a child writes there
    found = parser.parse_args(words)
    found.only = tuple(found.only)
    return found


def unusable(device: str, listed: bool) -> str | None:
    """Why the suite cannot run here (or be listed), in a sentence."""
    try:
        import torch
    except ImportError:
        return "needs torch, which is not installed: run `pip install torch`"
    if device == "cuda" and not listed and not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device; `--device cpu --small` needs none"
    return None


class Files:
    """What is written to the folder, again after every unit."""

    def __init__(self, folder: Path, command: str, n_units: int) -> None:
        self.folder, self.command, self.n_units = folder, command, n_units
        self.log = folder / "log.txt"
        self.log.write_text("")
        self.began, self.results = time.monotonic(), dict[str, suite.Result]()

    def tell(self, name: str, result: suite.Result) -> None:
        """One unit has ended."""
        self.results[name] = result
        print(in_words(name, result), flush=True)
        timed: dict[str, Any] = {}
        for r in self.results.values():
            timed |= r.get("found", {}).get("results", {})
        for key in timed:
            timed[key] = timed[key] | {"command": self.command}
        rest = {n: {**r, "found": {k: v for k, v in r.get("found", {}).items() if k != "results"}}
                for n, r in self.results.items()}  # fmt: skip
        for file, content in (("checks.json", rest), ("timings.json", timed)):
            (self.folder / file).write_text(json.dumps(content, indent=1) + "\n")
        lines = [self.command, *(in_words(n, r) for n, r in self.results.items())]
        if timed:
            lines += ["", tables.train(list(timed.values()))]
        (self.folder / "summary.txt").write_text("\n".join([*lines, "", self.verdict(), ""]))

    def verdict(self) -> str:
        """One sentence."""
        states = [r["state"] for r in self.results.values()]
        good, taken = states.count("passed"), time.monotonic() - self.began
        return f"{good} of {self.n_units} units passed in {taken:.0f} s"

    def end(self) -> int:
        """Say how it went; the exit code."""
        print(self.verdict())
        passed = all(r["state"] == "passed" for r in self.results.values())
        return 0 if passed and len(self.results) == self.n_units else 1


def in_words(name: str, result: suite.Result) -> str:
    """A unit in a line."""
    said = result.get("error") or result.get("found", {}).get("says", "")
    return f"{result['state']:8} {result.get('seconds', 0.0):6.1f} s  {name}: {said}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
