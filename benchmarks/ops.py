"""Every op that a model calls, at its sizes: forward and backward by each engine."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nplm.bench.rounds import Engine, agree, workers
from nplm.bench.settings import Setting

LEAST = 2e-5  # seconds: what takes nplm less is a view, or too small to matter


def ops(setting: Setting, engines: Sequence[Engine], options: Any) -> dict[str, Any]:
    """Seconds of one call by op, for nplm, its reference and those it is held against."""
    engines = [e for e in engines if e.kind in ("nplm", "reference", "torch")]
    if not any(e.kind == "reference" for e in engines):
        engines.insert(1, replace(engines[0], kind="reference", name="reference"))
    with workers(engines, setting) as crew:
        agree(crew)
    rows = []
    with workers(engines, setting, part="ops") as crew:
        for call in crew[0].ask("calls")["calls"]:
            seconds: dict[str, list[float]] = {e.name: [] for e in engines}
            for _ in range(options.rounds):
                for worker in crew:
                    times = worker.ask("op", call=call, n=1 + (options.steps or 3))["seconds"]
                    seconds[worker.engine.name] += times[1:]
            medians = {name: statistics.median(s) if s else None for name, s in seconds.items()}
            own = (medians[engines[0].name], medians["reference"])
            if max(s or 0.0 for s in own) >= LEAST:
                shapes = [x["shape"] for x in call["inputs"] if isinstance(x, dict)]
                rows.append(
                    {"name": call["name"], "shapes": shapes, "options": call["options"],
                     "calls": call["calls"], "seconds": medians}
                )  # fmt: skip
    rows.sort(key=lambda row: -row["calls"] * (row["seconds"][engines[0].name] or 0.0))
    return {"engines": [e.name for e in engines], "ops": rows}
