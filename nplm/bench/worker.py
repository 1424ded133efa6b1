"""A process that measures one engine: a line of JSON is a request, and a line of JSON its answer.

Started by rounds.py, since engines in one process spoil each other's timings: their thread pools
spin, and their memory adds up.  `python -m nplm.bench.worker '{"engine": ..., "setting": ...}'`
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from nplm.bench import machine
from nplm.bench.settings import Setting

Answer = dict[str, Any]


class Measured:
    """What can be asked of an engine.  Each method is a request, its keywords the request's."""

    def __init__(self, engine: str, setting: Answer, threads: int) -> None:
        module, _, name = engine.partition(":")
        self.engine = getattr(import_module(module), name)(Setting.from_json(setting), threads)

    def about(self) -> Answer:
        """Versions.  An engine may run an update to see what it runs: ask it last."""
        return {"versions": self.engine.versions()}

    def shapes(self) -> Answer:
        """The names and shapes of the weights in their order."""
        return {"shapes": [[name, list(array.shape)] for name, array in self.engine.weights()]}

    def save(self, path: str) -> Answer:
        """Write every weight, one after the other."""
        return _write(path, self.engine.weights())

    def load(self, path: str) -> Answer:
        """Take the weights that another engine saved, one by one: nothing is held twice."""
        with open(path, "rb") as file:
            for _, array in self.engine.weights():
                array[...] = np.fromfile(file, array.dtype, array.size).reshape(array.shape)
        return {}

    def gradients(self, path: str) -> Answer:
        """The loss, and a file of every gradient: whoever asked compares."""
        began = time.perf_counter()
        loss, arrays = self.engine.gradients()
        return {"loss": loss, "seconds": time.perf_counter() - began, **_write(path, arrays)}

    def steps(self, n: int) -> Answer:
        """The seconds of n updates, the loss before the last, and the memory of the process."""
        seconds, loss = [], float("nan")
        for _ in range(n):
            began = time.perf_counter()
            loss = self.engine.step()
            seconds.append(time.perf_counter() - began)
        return {"seconds": seconds, "loss": loss, **self.memory()}

    def memory(self) -> Answer:
        """The peak of the process, and what it holds now, in bytes."""
        return {"peak_bytes": machine.peak_bytes(), "resident_bytes": machine.resident_bytes()}

    def profile(self, n: int) -> Answer:
        """Where the time of n updates goes."""
        found: Answer = self.engine.profile(n)
        return found

    def generate(self, n: int) -> Answer:
        """n tokens, greedily, and the seconds of each."""
        tokens, seconds = self.engine.generate(n)
        return {"tokens": tokens, "seconds": seconds, **self.memory()}

    def calls(self) -> Answer:
        """The ops that an update calls, with the shapes of their inputs."""
        return {"calls": self.engine.calls()}

    def op(self, call: Answer, n: int) -> Answer:
        """The seconds of n runs of one op, forward and backward."""
        seconds = self.engine.op(call, n)
        return {"seconds": seconds, "median": seconds and statistics.median(seconds)}


def _write(path: str, arrays: list[tuple[str, np.ndarray]]) -> Answer:
    with open(path, "wb") as file:
        for _, array in arrays:
            np.ascontiguousarray(array).tofile(file)
    return {"shapes": [[name, list(array.shape)] for name, array in arrays]}


def serve(made: Callable[[], Measured], requests: Any, answers: Any) -> None:
    """Answer requests until there are no more; an error is an answer too."""
    measured: Measured | None = None
    for line in requests:
        try:
            measured = measured or made()
            request = json.loads(line)
            answer = getattr(measured, request.pop("do"))(**request)
        except Exception as error:  # whoever asked says it, with the engine's name
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Serve standard input; what an engine prints itself goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # for engines in benchmarks/
    specification = json.loads(sys.argv[1])
    serve(lambda: Measured(**specification), sys.stdin, answers)


if __name__ == "__main__":
    main()
