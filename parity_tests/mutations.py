"""Break the code on purpose, one place at a time, and show that the named test goes red.

    python parity_tests/mutations.py [--only WORD]

Works on a copy in a temporary folder. Exits with 1 if a mutation cannot be applied or goes unseen.
A check that has not been seen to fail does not count: see test_mutations.py.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mutation import Mutation
from mutation_cases import MUTATIONS

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(
    ".git", "runs", "venv", ".venv", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
)


@dataclass(frozen=True)
class Outcome:
    """What one mutation led to."""

    mutation: Mutation
    red: bool
    said: str  # pytest's last words


def apply(mutation: Mutation, root: Path) -> str | None:
    """Change the file under `root` and return its old text (None: there was none)."""
    path = root / mutation.file
    before = path.read_text() if path.exists() else None
    if mutation.old is None:
        path.write_text((before or "") + mutation.new)
        return before
    if before is None or before.count(mutation.old) < 1:
        raise LookupError(f"{mutation.file}: the text to replace is gone: {mutation.old!r}")
    path.write_text(before.replace(mutation.old, mutation.new, 1))
    return before


def undo(mutation: Mutation, root: Path, before: str | None) -> None:
    path = root / mutation.file
    path.unlink() if before is None else path.write_text(before)


def run_test(test: str, root: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(root), "CI": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", test]
    return subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=False
    )


def copy_of_the_tree(parent: Path) -> Path:
    root = parent / "tree"
    shutil.copytree(ROOT, root, ignore=LEFT_OUT)
    # One house test asks git which files there are.
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return root


def check(mutation: Mutation, root: Path) -> Outcome:
    before = apply(mutation, root)
    try:
        result = run_test(mutation.test, root)
    finally:
        undo(mutation, root, before)
    lines = result.stdout.strip().splitlines() or result.stderr.strip().splitlines() or ["nothing"]
    # 1: tests ran and one failed. Anything else (2: collection broke, 4: no such test) is no proof.
    named = re.escape(mutation.test.split("::")[1].split("[")[0])
    red = result.returncode == 1 and re.search(rf"FAILED .*{named}", result.stdout) is not None
    return Outcome(mutation, red, lines[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="mutations whose name contains this")
    only = parser.parse_args().only
    chosen = [m for m in MUTATIONS if only in m.name]
    with tempfile.TemporaryDirectory() as folder:
        root = copy_of_the_tree(Path(folder))
        green = {m.test for m in chosen}
        for test in sorted(green):
            result = run_test(test, root)
            if result.returncode != 0:
                print(f"red before any mutation: {test}\n{result.stdout[-2000:]}")
                return 1
        outcomes = []
        for mutation in chosen:
            outcomes.append(check(mutation, root))
            seen = "red  " if outcomes[-1].red else "GREEN"
            print(f"{seen}  {mutation.name:58s} {mutation.test}", flush=True)
            if not outcomes[-1].red:
                print("       " + outcomes[-1].said)
    unseen = sum(not outcome.red for outcome in outcomes)
    print(f"{len(outcomes) - unseen} of {len(outcomes)} mutations were noticed")
    return 1 if unseen else 0


if __name__ == "__main__":
    sys.exit(main())
