"""Engines of the torch path held against each other: agreement, then turns.

On CUDA they live in one process and their memory is told apart; on the CPU each has its own
(rounds.py). Read torch_path.py before.
"""

from __future__ import annotations

import gc
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import torch

from nplm.bench import machine, rates
from nplm.bench.rounds import (
    GRADIENT_32,
    LOSS_32,
    BenchError,
    Engine,
    distances,
    ratios,
    take_turns,
    workers,
    worst_of,
)
from nplm.bench.settings import Setting
from nplm.bench.torch_path import How, Theirs, about, build
from nplm.parity.tolerances import RATIO, Tolerance

LOSS_BF16 = Tolerance(
    1e-3, 0.0, "bfloat16: a mean over a batch was measured 1e-5 to 1e-4 from float32, torch's too"
)
ENGAGED = 20.0  # nearer to float32 than torch's bfloat16 by so much: it is no bfloat16
TRUTH_ROWS = 4  # at a time: the gradient in float32 needs no more memory than an update
COLD = (("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1"),)  # or there is no compiling to time


# ---- agreement -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Found:
    """What an engine computed before it was timed."""

    loss: float
    apart: Mapping[str, float]  # of each gradient from torch's in float32, of its norm
    seconds: float = 0.0  # of this first call


def judge(found: Mapping[str, Found], truth: float, dtype: str) -> dict[str, dict[str, Any]]:
    """Hold losses and gradients against torch's in float32: {engine: what tables say}.

    float32: as rounds.py. bfloat16: nplm's gradients may be RATIO times as far away as torch's own
    in bfloat16, eager or compiled: of the same tensor, or of a typical one where torch was lucky.
    Raises BenchError for what is further away.
    """
    torchs = [f.apart for name, f in found.items() if not name.startswith("nplm")]
    result = {}
    for name, f in found.items():
        off, which = worst_of(f.apart)
        result[name] = {
            "loss": f.loss, "first_seconds": f.seconds, "gradient_off": off,
            "gradient_worst": which,
        }  # fmt: skip
        loss_limit = LOSS_32.rtol if dtype == "float32" else LOSS_BF16.rtol
        if not abs(f.loss - truth) <= loss_limit * abs(truth):
            raise BenchError(
                f"{name}: expected the loss {truth:.9g} of torch in float32, to {loss_limit:g} of "
                f"it, got {f.loss:.9g}; nothing was timed"
            )
        if dtype != "float32" and not name.startswith("nplm"):
            continue
        if dtype != "float32" and off * ENGAGED < max(worst_of(apart)[0] for apart in torchs):
            raise BenchError(
                f"{name}: asked for bfloat16, but its gradients are float32's: off by {off:.0e} at "
                "most; nothing was timed"
            )
        for tensor, distance in f.apart.items():
            limit = GRADIENT_32.atol if dtype == "float32" else _envelope(torchs, tensor)
            if not distance <= limit:
                raise BenchError(
                    f"{name}: the gradient of {tensor} is {distance:.1e} of its norm away from "
                    f"torch's in float32, expected at most {limit:.1e}; nothing was timed"
                )
    return result


def _envelope(torchs: Sequence[Mapping[str, float]], tensor: str) -> float:
    """How far from float32 a gradient in bfloat16 may be."""
    typical = max(statistics.median(apart.values()) for apart in torchs)
    return RATIO * max(typical, *(apart[tensor] for apart in torchs))


# ---- engines in one process ----------------------------------------------------------------------
class Memory:
    """The bytes of one engine among several in a process, on CUDA; else those of the process."""

    def __init__(self, device: str) -> None:
        self.device, self.held, self.peak = device, 0, 0

    @contextmanager
    def during(self) -> Iterator[None]:
        """Whatever is allocated inside is this engine's: no other one works meanwhile."""
        if self.device != "cuda":
            yield
            self.held, self.peak = machine.resident_bytes(), machine.peak_bytes()
            return
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield
        # What it held before counts, what the others hold does not.
        self.peak = self.held + torch.cuda.max_memory_allocated() - before
        self.held += torch.cuda.memory_allocated() - before


@dataclass
class Local:
    """An engine in this process: what rounds.take_turns asks of a worker."""

    setting: Setting
    how: How
    memory: Memory = field(init=False)
    highest: int = 0  # peak of any call since `feed`: a CUDA graph allocates when it is captured

    def __post_init__(self) -> None:
        self.memory = Memory(self.how.device)
        with self.memory.during():
            self.path = build(self.setting.model, self.how)
        self.feed(self.setting)

    @property
    def engine(self) -> How:
        """Whose name tables say."""
        return self.how

    def feed(self, setting: Setting) -> None:
        """Other batches from now on."""
        self.setting, self.highest = setting, 0
        self.path.feed(setting)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count the memory."""
        with self.path.listening(), self.memory.during():
            yield
        self.highest = max(self.highest, self.memory.peak)

    def gradients(self) -> tuple[float, dict[str, torch.Tensor], float]:
        """The loss, copies of the gradients, and the seconds that both took."""
        rates.wait(self.how.device)
        began = time.perf_counter()
        with self.working():
            loss, found = self.path.gradients()
            value = float(loss)
        taken = time.perf_counter() - began
        return value, {name: g.clone() for name, g in found.items()}, taken

    def ask(self, do: str, **keywords: Any) -> dict[str, Any]:
        """ "steps": the seconds of n updates, the loss before the last, and the engine's memory."""
        assert do == "steps"
        with self.working():
            seconds, loss = rates.seconds(self.path.step, keywords["n"], self.how.device)
            loss = float(loss)
        graph = self.path.level() == "graph"
        peak = self.highest if graph else self.memory.peak
        return {"seconds": seconds, "loss": loss, "peak_bytes": peak,
                "resident_bytes": self.memory.held}  # fmt: skip

    def truth(self) -> tuple[float, dict[str, torch.Tensor]]:
        """The loss and the gradients in float32; torch's engines alone can tell."""
        assert isinstance(self.path, Theirs)
        with self.working():
            loss, found = self.path.truth(self.setting, TRUTH_ROWS)
        if self.how.device == "cuda":  # what is handed out is no longer this engine's
            self.memory.held -= sum(g.nbytes for g in found.values())
        return float(loss), found

    def about(self) -> dict[str, str]:
        """As torch_path.about."""
        with self.working():
            return about(self.path)


def agree_here(crew: Sequence[Local]) -> dict[str, dict[str, Any]]:
    """Give every engine of this process the same weights and hold them against torch in float32.

    Raises BenchError for what is out of tolerance.
    """
    reference = next(local for local in crew if isinstance(local.path, Theirs))
    start = {name: p.clone() for name, p in reference.path.parameters().items()}
    loss, truth = reference.truth()
    found = {}
    for local in crew:
        for name, p in local.path.parameters().items():
            p.copy_(start[name])
        mine, gradients, taken = local.gradients()
        apart = {name: distance(truth[name], g) for name, g in gradients.items()}
        found[local.how.name] = Found(mine, apart, taken)
        if missing := truth.keys() - apart.keys():
            raise BenchError(f"{local.how.name}: no gradient of {min(missing)}; nothing was timed")
    return judge(found, loss, crew[0].how.dtype)


def distance(truth: torch.Tensor, x: torch.Tensor) -> float:
    """|x - truth| / |truth|, Euclidean norms."""
    size = float(truth.double().norm())
    off = float((x.double() - truth.double()).norm())
    return off / size if size else (0.0 if off == 0 else math.inf)


def measure_here(
    crew: Sequence[Local], rounds: int, steps: int | None = None,
    left: Callable[[], float] = lambda: math.inf,
) -> dict[str, Any]:  # fmt: skip
    """Agreement, then turns of the engines of this process: what `rounds.measure` gives.

    left: the seconds that remain for the turns, asked when they begin.
    """
    agreement = agree_here(crew)
    said = {local.how.name: checked(local.how, local.about()) for local in crew}
    timed = take_turns(crew, rounds, steps, left())
    for local in crew:
        checked(local.how, {"level": local.path.level(), "told": local.path.told})
    return results([local.how for local in crew], timed, agreement, said)


# ---- engines in processes ------------------------------------------------------------------------
def measure_apart(
    setting: Setting, hows: Sequence[How], threads: int, rounds: int, steps: int | None = None
) -> dict[str, Any]:
    """`measure_here` on the CPU, with a process for every engine."""
    engines = [
        Engine("train", threads, how.name, "nplm.bench.torch_path:InWorker",
               how.environment() + COLD)
        for how in hows
    ]  # fmt: skip
    plain = How("torch", "cpu", "float32")
    exact = Engine("train", threads, "torch in float32", engines[0].runs, plain.environment())
    with tempfile.TemporaryDirectory(prefix="nplm-bench-") as folder:
        path, other = str(FilePath(folder) / "truth"), str(FilePath(folder) / "gradients")
        with workers([exact], setting) as (worker,):
            truth = worker.ask("gradients", path=path)
        with workers(engines, setting) as crew:
            found = {}
            for worker in crew:
                name, answer = worker.engine.name, worker.ask("gradients", path=other)
                if answer["shapes"] != truth["shapes"]:
                    raise BenchError(f"{name}: gradients of other shapes than torch's")
                apart = distances(path, other, truth["shapes"])
                found[name] = Found(answer["loss"], apart, answer["seconds"])
            agreement = judge(found, truth["loss"], hows[0].dtype)
            timed = take_turns(crew, rounds, steps)
            # Afterwards: it runs an update under torch's profiler, which takes memory.
            said = {how.name: checked(how, w.ask("about")["versions"])
                    for how, w in zip(hows, crew)}  # fmt: skip
    return results(hows, timed, agreement, said)


# ---- both ----------------------------------------------------------------------------------------
def checked(how: How, said: dict[str, str]) -> dict[str, str]:
    """What an engine says of itself; a BenchError if it is not what was asked for."""
    if said["level"] != how.capture:
        raise BenchError(
            f"{how.name}: asked for capture {how.capture}, got {said['level']}: "
            + (said.get("told") or "no reason was given")
        )
    kernel = said.get("attention")
    if kernel and how.attention != "best" and how.attention not in kernel:
        raise BenchError(f"{how.name}: asked for attention by {how.attention}, got {kernel}")
    return said


def results(
    hows: Sequence[How], timed: Sequence[dict[str, Any]], agreement: Mapping[str, dict[str, Any]],
    said: Mapping[str, dict[str, str]],
) -> dict[str, Any]:  # fmt: skip
    """{engine: times, loss, memory ...}; nplm's first engine with the same kernel is divided by."""
    found = {}
    for how, times in zip(hows, timed):
        result = {"versions": said[how.name], **times, **agreement[how.name]}
        compiles = how.engine == "torch.compile" or how.capture != "off"
        taken = max(0.0, result["first_seconds"] - result["median"])
        result["compile_seconds"] = taken if compiles else None
        same = [i for i, h in enumerate(hows)
                if h.engine == "nplm" and h.attention == how.attention]  # fmt: skip
        ours = timed[same[0] if same else 0]
        if ours is not times:
            result["ratio"] = ratios(ours["rounds"], times["rounds"])
            result["peak_ratio"] = ours["peak_bytes"] / times["peak_bytes"]
        found[how.name] = result
    return found


def release() -> None:
    """Forget what was compiled, and give memory back: before engines of another shape."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def fed(crew: list[Local], setting: Setting, hows: Sequence[How]) -> None:
    """Give every engine the batches of a setting; `crew` keeps them from one setting to the next.

    What was compiled for other batches is forgotten, so that compiling is timed every time. A CUDA
    graph holds the memory of its batches: an engine with graphs is made anew.
    """
    for i, how in enumerate(hows):
        if i == len(crew):
            crew.append(Local(setting, how))
        elif how.capture == "graph":
            crew[i] = Local(setting, how)
        else:
            crew[i].feed(setting)
    release()
