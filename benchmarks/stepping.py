"""Whole updates (or one block): time, ratio and peak memory; memory over many updates."""

from collections.abc import Sequence
from typing import Any

from nplm.bench.rounds import Engine, measure, workers
from nplm.bench.settings import Setting

UPDATES = 1000  # over which memory must not grow
MARKS = 20  # times that it is looked at


def step(setting: Setting, engines: Sequence[Engine], options: Any) -> dict[str, Any]:
    """Every engine's time an update, in turns."""
    return {
        "tokens": setting.tokens,
        "engines": measure(setting, engines, options.rounds, options.steps),
    }


def memory(setting: Setting, engines: Sequence[Engine], options: Any) -> dict[str, Any]:
    """Peak memory of every engine, and how nplm's grows over a thousand updates."""
    found = measure(setting, engines, rounds=2, steps=2)
    updates = options.steps or UPDATES
    at, resident = [], []
    with workers(engines[:1], setting) as (worker,):
        for i in range(MARKS):
            done, end = updates * i // MARKS, updates * (i + 1) // MARKS
            if end > done:
                answer = worker.ask("steps", n=end - done)
                at.append(end)
                resident.append(answer["resident_bytes"])
    settled = resident[len(resident) // MARKS :]  # after a twentieth every buffer is there
    growth = {
        "updates": at, "resident_bytes": resident, "grown_bytes": resident[-1] - settled[0]
    }  # fmt: skip
    return {"tokens": setting.tokens, "engines": found, "growth": growth}
