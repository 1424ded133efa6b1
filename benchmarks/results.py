"""The JSON that results are kept in: one entry a measurement, by its name."""

import json
from pathlib import Path
from typing import Any


def held(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where there is none."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def add(path: Path, name: str, result: dict[str, Any]) -> None:
    """Write one result beside what the file holds."""
    path.write_text(json.dumps(held(path) | {name: result}, indent=1) + "\n")
