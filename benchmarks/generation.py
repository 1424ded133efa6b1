"""Tokens a second against the number of tokens that are already made: greedy, one row, a cache."""

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nplm.bench.rounds import REST, BenchError, Engine, share_weights, workers
from nplm.bench.settings import Setting

PLACES = 8  # parts of the context in which speeds are averaged


def generate(setting: Setting, engines: Sequence[Engine], options: Any) -> dict[str, Any]:
    """Seconds a token of every engine; all make the same tokens, or BenchError."""
    n = setting.model.context - 1
    with workers(engines, setting) as crew, tempfile.TemporaryDirectory() as folder:
        share_weights(crew, str(Path(folder) / "weights"))
        expected = crew[0].ask("generate", n=n)["tokens"]
        for worker in crew[1:]:
            tokens = worker.ask("generate", n=n)["tokens"]
            if tokens != expected:
                at = next(i for i, (a, b) in enumerate(zip(tokens, expected)) if a != b)
                raise BenchError(
                    f"{worker.engine.name}: expected token {at} to be {expected[at]} as of "
                    f"{crew[0].engine.name}, got {tokens[at]}; nothing was timed"
                )
        seconds: list[list[list[float]]] = [[] for _ in crew]
        for i in range(options.rounds):
            for j in range(len(crew)):
                k = (i + j) % len(crew)
                time.sleep(REST)
                seconds[k].append(crew[k].ask("generate", n=n)["seconds"])
        peaks = [worker.ask("memory")["peak_bytes"] for worker in crew]
    found = {}
    ends = sorted({n * (i + 1) // PLACES for i in range(PLACES)} - {0})
    for engine, runs, peak in zip(engines, seconds, peaks):
        each = [statistics.median(times) for times in zip(*runs)]
        places = [statistics.median(each[a:b]) for a, b in zip([0, *ends], ends)]
        found[engine.name] = {
            "seconds": places, "median": statistics.median(each), "peak_bytes": peak
        }  # fmt: skip
    return {"tokens_made": ends, "engines": found}
