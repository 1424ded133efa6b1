"""Updates of GPT-2 and Llama, 124M, in bfloat16, beside torch: a batch is a unit."""

import time
from functools import partial
from typing import Any

import torch

from benchmarks import training
from benchmarks.gpu import modes
from benchmarks.gpu.units import Ask, unit
from nplm.bench import rates, torch_turns
from nplm.bench.settings import Setting
from nplm.bench.torch_path import How

ROUNDS = 5
Engines = tuple[tuple[str, str, str], ...]  # engine, capture, attention
BEST: Engines = (
    ("nplm", "region", "best"), ("torch", "off", "best"), ("torch.compile", "off", "best"),
)  # fmt: skip
SAME_KERNEL: Engines = (
    ("nplm", "region", "flash"), ("torch.compile", "off", "flash"),
    ("nplm", "region", "cudnn"), ("torch.compile", "off", "cudnn"),
)  # fmt: skip
LAUNCHES: Engines = (("nplm", "graph", "best"), ("nplm", "off", "best"), ("torch", "off", "best"))


def measure(ask: Ask, model: str, batch: int, engines: Engines, what: str = "") -> dict[str, Any]:
    """One batch: agreement, then turns.  What is left of the unit's time ends the turns."""
    setting = modes.setting(ask) if ask.small else Setting(training.MODELS[model], batch)
    dtype = "bfloat16"
    hows = [How(engine, ask.device, dtype, capture, attention)
            for engine, capture, attention in engines]  # fmt: skip
    if "rate" not in ask.kept:
        ask.kept["rate"] = rates.matrix_rate(ask.device, dtype, torch.get_num_threads())
        ask.kept["facts"] = training.where(ask.device)
    crews = ask.kept.setdefault("crews", {})
    if (model, engines) not in crews:
        crews.clear()  # the engines of another model: their memory goes first
        torch_turns.release()
    crew = crews.setdefault((model, engines), [])
    began = time.monotonic()
    try:
        torch_turns.fed(crew, setting, hows)
        found = torch_turns.measure_here(crew, ROUNDS, 2 if ask.small else None, ask.left)
    except BaseException:
        crews.clear()  # they may be in any state
        raise
    result = training.record(model, setting, hows, found, ask.kept["rate"], ask.kept["facts"], "")
    rounds = min(len(e["rounds"]) for e in found.values())
    result |= {"threads": torch.get_num_threads(), "rounds": rounds}
    ours, theirs = found[hows[0].name], min(
        (e["median"], name) for name, e in found.items() if not name.startswith("nplm")
    )  # fmt: skip
    says = (
        f"{setting.tokens / ours['median']:,.0f} tokens/s, {theirs[0] / ours['median']:.2f} times "
        f"{theirs[1]}'s" + (f"; cut after {rounds} of {ROUNDS} rounds" if rounds < ROUNDS else "")
    )
    key = training.key(result) + what
    return {"says": says, "results": {key: result}, "seconds timed": time.monotonic() - began}


def enter(model: str, batch: int, engines: Engines, seconds: float, what: str, **more: Any) -> None:
    """A unit of one batch."""
    run = partial(measure, model=model, batch=batch, engines=engines, what=what)
    unit(f"{model} B{batch}{what}", "timings", seconds, **more)(run)


CUDA = {"devices": ("cuda",)}
enter("gpt2", 32, BEST, 110, "")
for _batch in (64, 16, 4):
    enter("gpt2", _batch, BEST, 90, "", **CUDA)
for _batch in (1, 2):
    enter("gpt2", _batch, LAUNCHES, 45, " launches", **CUDA)
enter("llama", 32, BEST, 80, "", **CUDA)
enter("gpt2", 32, SAME_KERNEL, 90, " one kernel", **CUDA)
for _batch in (64, 16, 4):
    enter("llama", _batch, BEST, 80, "", **CUDA)
