"""Engines held against each other: workers that take turns, and agree before they are timed.

A turn is a few updates of one engine.  Every round gives each engine a turn, so what disturbs the
machine disturbs all; ratios are taken round by round.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nplm.bench.settings import Setting
from nplm.errors import ConfigError, NplmError, unknown
from nplm.parity.tolerances import Tolerance

_HERE = "nplm.bench"
# name -> (classes by the part that is measured, environment, the package that it needs)
ENGINES: dict[str, tuple[dict[str, str], dict[str, str], str | None]] = {
    "nplm": (
        {"model": f"{_HERE}.trainer:Trainer", "block": f"{_HERE}.trainer:BlockTrainer",
         "ops": f"{_HERE}.ops:Ops"}, {}, None),
    "reference": (
        {"model": f"{_HERE}.trainer:Trainer", "block": f"{_HERE}.trainer:BlockTrainer",
         "ops": f"{_HERE}.ops:Ops"}, {"NPLM_REFERENCE": "1"}, None),
    "torch": (
        {"model": f"{_HERE}.torch_trainer:TorchTrainer",
         "block": f"{_HERE}.torch_trainer:TorchBlockTrainer",
         "ops": f"{_HERE}.torch_ops:TorchOps"}, {}, "torch"),
    "torch.compile": (
        {"model": f"{_HERE}.torch_trainer:CompiledTrainer",
         "block": f"{_HERE}.torch_trainer:CompiledBlockTrainer"},
        {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}, "torch"),  # or there is nothing to time
    "autograd": ({"block": "benchmarks.peers:AutogradBlock"}, {}, "autograd"),
    "mygrad": ({"block": "benchmarks.peers:MyGradBlock"}, {}, "mygrad"),
}  # fmt: skip
LOSS_32 = Tolerance(2e-6, 0.0, "float32: a mean over up to a thousand tokens, each near log V")
GRADIENT_32 = Tolerance(
    0.0,
    2e-5,
    "float32, the norm of the difference over the tensor's own: two engines were measured 2e-6 "
    "apart, sums of a thousand tokens in another order; a wrong term is off by 1e-3 or more",
)
REST, TURN = 0.1, 0.5  # seconds: for idle pools to stop spinning; that a turn lasts at least


class BenchError(NplmError):
    """An engine failed, or two engines do not compute the same."""


@dataclass(frozen=True)
class Engine:
    """An engine by its name, on so many threads.  `name` is what tables and JSON say.

    runs         the class that measures it, "module:name", instead of its kind's in ENGINES
    environment  is set in its process, beside its kind's: how it is told what it shall do
    """

    kind: str
    threads: int
    name: str
    runs: str = ""
    environment: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str, threads: int) -> Engine:
        """ "torch" or "torch:1".  Raises ConfigError for an unknown name or a bad number."""
        kind, colon, number = text.partition(":")
        if kind not in ENGINES:
            raise ConfigError(unknown("engine", kind, ENGINES))
        if colon and not (number.isdecimal() and 1 <= int(number) <= 1024):
            raise ConfigError(f"{text}: expected 1 to 1024 threads after the colon, got {number!r}")
        package = ENGINES[kind][2]
        if not installed(package):
            raise ConfigError(
                f"engine {kind}: needs {package}, which is not installed: run `pip install "
                f"{package}`"
            )
        return cls(kind, int(number) if colon else threads, text)


def installed(package: str | None) -> bool:
    """Whether a package can be found; None is always there."""
    try:
        return package is None or find_spec(package) is not None
    except (ImportError, ValueError):  # what stands in its place cannot be imported
        return False


class Worker:
    """One engine in a process of its own (worker.py).  Leave it with `close`."""

    def __init__(self, engine: Engine, setting: Setting, part: str | None = None) -> None:
        part = part or setting.part
        classes, more, _ = ENGINES.get(engine.kind, ({part: engine.runs}, {}, None))
        if part not in classes:
            raise ConfigError(f"engine {engine.kind}: measures no {part}")
        specification = {
            "engine": classes[part], "setting": setting.to_json(), "threads": engine.threads
        }  # fmt: skip
        limits = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = {k: v for k, v in os.environ.items() if k != "NPLM_REFERENCE"}
        environment |= dict.fromkeys(limits, str(engine.threads)) | more | dict(engine.environment)
        self.engine = engine
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nplm.bench.worker", json.dumps(specification)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True,
            stderr=None if os.environ.get("NPLM_DEBUG") else subprocess.DEVNULL,  # warnings
        )  # fmt: skip
        self.requests: Any = self.process.stdin
        self.answers: Any = self.process.stdout

    def ask(self, do: str, **keywords: Any) -> dict[str, Any]:
        """The answer to one request.  Raises BenchError with the engine's own error."""
        try:
            self.requests.write(json.dumps({"do": do, **keywords}) + "\n")
            self.requests.flush()
            line = self.answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self.process.wait()
            raise BenchError(
                f"{self.engine.name}: its process ended with code {code}"
                + ("; out of memory? try a smaller batch" if code == -9 else "")
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchError(f"{self.engine.name}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process and wait for it."""
        with suppress(BrokenPipeError):
            self.requests.close()
        self.answers.close()
        self.process.wait()


@contextmanager
def workers(
    engines: Sequence[Engine], settings: Setting | Sequence[Setting], part: str | None = None
) -> Iterator[list[Worker]]:
    """A worker an engine; `settings` is one for all, or one for each."""
    each = [settings] * len(engines) if isinstance(settings, Setting) else settings
    with ExitStack() as stack:
        started = []
        for engine, setting in zip(engines, each):
            started.append(Worker(engine, setting, part))
            stack.callback(started[-1].close)
        yield started


# ---- agreement -----------------------------------------------------------------------------------
def agree(crew: Sequence[Worker]) -> dict[str, Any]:
    """Give every engine the first one's weights, and compare losses and gradients with it.

    Returns {engine: loss, how far the worst gradient is off and its name, seconds of that first
    call}.  Raises BenchError for what is out of tolerance, before anything is timed.
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="nplm-bench-") as folder:
        weights = str(Path(folder) / "weights")
        paths = [str(Path(folder) / f"gradients-{i}") for i in range(len(crew))]
        share_weights(crew, weights)
        for worker, path in zip(crew, paths):
            name = worker.engine.name
            answer = worker.ask("gradients", path=path)
            if worker is crew[0]:
                shapes, loss = answer["shapes"], answer["loss"]
                found[name] = {"loss": loss, "first_seconds": answer["seconds"]}
                continue
            if answer["shapes"] != shapes:
                raise BenchError(f"{name}: gradients of other shapes than {crew[0].engine.name}'s")
            off, tensor = _worst(paths[0], path, shapes)
            found[name] = {
                "loss": answer["loss"], "first_seconds": answer["seconds"],
                "gradient_off": off, "gradient_worst": tensor,
            }  # fmt: skip
            if not abs(answer["loss"] - loss) <= LOSS_32.rtol * abs(loss):
                raise BenchError(
                    f"{name}: expected the loss {loss:.9g} of {crew[0].engine.name}, got "
                    f"{answer['loss']:.9g}; nothing was timed"
                )
            if not off <= GRADIENT_32.atol:
                raise BenchError(
                    f"{name}: the gradient of {tensor} is {off:.1e} of its norm away from "
                    f"{crew[0].engine.name}'s, expected at most {GRADIENT_32.atol:g}; nothing was "
                    "timed"
                )
            os.remove(path)
    return found


def share_weights(crew: Sequence[Worker], path: str) -> None:
    """Give every engine the first one's weights, by way of a file."""
    shapes = crew[0].ask("save", path=path)["shapes"]
    for worker in crew:
        if worker.ask("shapes")["shapes"] != shapes:
            first = crew[0].engine.name
            raise BenchError(
                f"{worker.engine.name}: expected the parameters of {first}, got others"
            )
        worker.ask("load", path=path)


def _worst(ours: str, theirs: str, shapes: list[Any]) -> tuple[float, str]:
    """The largest |a - b| / |a| of all tensors (Euclidean norms), and which; NaN is the worst."""
    return worst_of(distances(ours, theirs, shapes))


def worst_of(apart: Mapping[str, float]) -> tuple[float, str]:
    """The largest of the distances and its name; NaN is the worst."""
    which = max(apart, key=lambda name: (math.isnan(apart[name]), apart[name]))
    return apart[which], which


def distances(ours: str, theirs: str, shapes: list[Any], chunk: int = 1 << 20) -> dict[str, float]:
    """|a - b| / |a| of every tensor (Euclidean norms) in two files of the same float32 tensors."""
    found = {}
    with open(ours, "rb") as a, open(theirs, "rb") as b:
        for name, shape in shapes:
            left, apart, size = math.prod(shape), 0.0, 0.0
            while left:
                n = min(left, chunk)
                x, y = (np.fromfile(f, np.float32, n).astype(np.float64) for f in (a, b))
                apart, size, left = (
                    apart + float(((x - y) ** 2).sum()),
                    size + float(x @ x),
                    left - n,
                )
            found[name] = math.sqrt(apart / size) if size else (0.0 if not apart else math.inf)
    return found


# ---- timing --------------------------------------------------------------------------------------
def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) == 1:
        return dict.fromkeys(("median", "q1", "q3"), values[0])
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3}


class Asked(Protocol):
    """A worker, or an engine in this process that answers like one."""

    def ask(self, do: str, **keywords: Any) -> dict[str, Any]:
        """The answer to one request."""


def take_turns(
    crew: Sequence[Asked], rounds: int, steps: int | None = None, budget: float = math.inf
) -> list[dict[str, Any]]:
    """For every worker its seconds an update (a median a round), and the last answer's rest.

    steps: updates a turn; None: as many as last half a second. The first update of a turn is not
    counted: the others have had the caches. Ends early, after two rounds, once `budget` seconds
    are over.
    """
    began = time.perf_counter()
    turns = []
    for worker in crew:
        first = worker.ask("steps", n=2)["seconds"]
        turns.append(steps or max(2, min(50, math.ceil(TURN / max(first[-1], 1e-4)))))
    found: list[dict[str, Any]] = [{"rounds": []} for _ in crew]
    for i in range(rounds):
        if i >= 2 and time.perf_counter() - began > budget:
            break
        order = [(i + j) % len(crew) for j in range(len(crew))]  # none is always the first
        for k in order:
            time.sleep(REST)
            answer = crew[k].ask("steps", n=turns[k] + 1)
            found[k]["rounds"].append(statistics.median(answer.pop("seconds")[1:]))
            found[k] |= answer
    for result in found:
        result |= spread(result["rounds"])
    return found


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """ours / theirs, round by round."""
    return spread([a / b for a, b in zip(ours, theirs)])


def measure(
    setting: Setting,
    engines: Sequence[Engine],
    rounds: int,
    steps: int | None = None,
    budget: float = math.inf,
) -> dict[str, Any]:
    """Agreement, then turns of all engines; the first one is divided by each of the others.

    {engine: {"threads", "versions", "loss", "rounds", "median", "q1", "q3" (seconds an update),
    "peak_bytes", "ratio": {"median", ...} of the first engine's time to this one's ...}}
    """
    with workers(engines, setting) as crew:
        agreement = agree(crew) if len(crew) > 1 or setting.part == "model" else {}
        timed = take_turns(crew, rounds, steps, budget)
        found = {}
        for worker, times in zip(crew, timed):
            e, about = worker.engine, worker.ask("about")
            result = {"threads": e.threads, "versions": about["versions"], **times}
            result |= agreement.get(e.name, {})
            result["compile_seconds"] = (
                max(0.0, result["first_seconds"] - result["median"])
                if e.kind == "torch.compile" else None
            )  # fmt: skip
            if worker is not crew[0]:
                result["ratio"] = ratios(timed[0]["rounds"], times["rounds"])
                result["peak_ratio"] = timed[0]["peak_bytes"] / times["peak_bytes"]
            found[e.name] = result
    return found
