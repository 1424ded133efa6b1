"""Whole updates on the device: NumPy's, torch's, captured or not, for long, with recomputation."""

import gc
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch._dynamo.utils import counters

from benchmarks.gpu.units import Ask, CheckError, unit
from nplm.backend import capture as compiler
from nplm.bench import torch_turns
from nplm.bench.settings import Setting
from nplm.bench.torch_path import How, Ours
from nplm.bench.torch_turns import Local
from nplm.bench.trainer import Trainer
from nplm.models.config import DecoderConfig
from nplm.parity.tolerances import DRIFT_32, Tolerance

UPDATES = 20
LOSSES = {
    "float32": DRIFT_32,
    "bfloat16": Tolerance(
        5e-3, 0.0, "bfloat16, a loss after up to 20 updates at lr 3e-4: roundings of 2**-8 that "
        "captured kernels make elsewhere; torch's own eager and compiled differ by 1e-3",
    ),
}  # fmt: skip
LEAST_SAVED = 3.0  # recomputation: activations before, over activations with it
FAMILIES = {
    "gpt2": {"activation": "gelu_tanh"},
    "llama": {"norm": "rms", "positions": "rope", "activation": "swiglu", "bias": False},
}


def setting(ask: Ask, family: str = "gpt2", layers: int = 4, batch: int = 4) -> Setting:
    """A model that is compiled in seconds."""
    sizes = {"vocab_size": 2048, "context": 256, "n_layer": layers, "n_head": 8, "n_embd": 512}
    if ask.small:
        sizes = {"vocab_size": 65, "context": 16, "n_layer": 2, "n_head": 2, "n_embd": 32}
    return Setting(DecoderConfig(**sizes, **FAMILIES[family]), batch)


def levels(ask: Ask) -> tuple[str, ...]:
    """Every level of capture that this device has."""
    return ("off", "region", "graph") if ask.device == "cuda" else ("off", "region")


def families(ask: Ask, dtype: str) -> tuple[str, ...]:
    """One in float32; in bfloat16 both, or tiny ones another: compiling takes the time here."""
    if dtype == "float32":
        return ("llama",)
    return ("gpt2",) if ask.small else tuple(FAMILIES)


def apart(name: str, losses: list[float], expected: list[float], dtype: str) -> float:
    """The largest difference of two curves; a CheckError where it is over the budget."""
    t = LOSSES[dtype]
    for i, (a, b) in enumerate(zip(losses, expected, strict=True)):
        if not abs(a - b) <= t.atol + t.rtol * abs(b):
            raise CheckError(f"{name}: update {i + 1}: loss {a:.7g}, expected {b:.7g} ({t.reason})")
    return max(abs(a - b) for a, b in zip(losses, expected))


@unit("numpy", "checks", 60)
def numpy(ask: Ask) -> dict[str, Any]:
    """Updates in float32 are NumPy's; nothing in one is known to torch's autograd."""
    said = {}
    for family in FAMILIES:
        s = setting(ask, family, layers=2, batch=2)
        ours = Ours(s.model, How("nplm", ask.device, "float32"))
        ours.feed(s)
        theirs = Trainer(s, 1)
        for (_, p), x in zip(theirs.model.named_parameters(), ours.parameters().values()):
            p.array[...] = x.cpu().numpy()
        losses = [ours.step() for _ in range(UPDATES)]
        recorded = [x for x in [*losses, *ours.parameters().values()] if x.requires_grad]
        if recorded:
            raise CheckError(f"{family}: {len(recorded)} tensors of an update are torch autograd's")
        expected = [theirs.step() for _ in range(UPDATES)]
        said[family] = apart(family, [float(x) for x in losses], expected, "float32")
    worst = max(said.values())
    return {"says": f"{UPDATES} updates, losses {worst:.1e} apart", "apart": said}


@unit("capture float32", "checks", 100)
def capture_float32(ask: Ask) -> dict[str, Any]:
    """Levels of capture against each other and against torch, in float32."""
    return check_capture(ask, "float32")


@unit("capture bfloat16", "checks", 100)
def capture_bfloat16(ask: Ask) -> dict[str, Any]:
    """The same in bfloat16."""
    return check_capture(ask, "bfloat16")


def check_capture(ask: Ask, dtype: str) -> dict[str, Any]:
    """Gradients within torch's budget, then losses of some updates; the level is the asked one."""
    said: dict[str, Any] = {}
    for family in families(ask, dtype):
        s = setting(ask, family)
        hows = [How("nplm", ask.device, dtype, level) for level in levels(ask)]
        crew = [Local(s, how) for how in (*hows, How("torch", ask.device, dtype))]
        agreement = torch_turns.agree_here(crew)
        curves = {}
        for local in crew:
            with local.working():
                curves[local.how.name] = [float(local.path.step()) for _ in range(UPDATES)]
            said_of = {"level": local.path.level(), "told": local.path.told}
            torch_turns.checked(local.how, said_of)
        for name, losses in curves.items():
            off = apart(f"{family}, {name}", losses, curves["nplm off"], dtype)
            said[f"{family}, {name}"] = {
                "loss apart": off, "gradient off": agreement[name]["gradient_off"]
            }  # fmt: skip
    worst = max(x["loss apart"] for x in said.values())
    return {"says": f"{', '.join(levels(ask))}, torch: losses {worst:.1e} apart", "apart": said}


# ---- what must not compile anew ------------------------------------------------------------------
@dataclass
class Compilations:
    """How often something was compiled or recorded while it was looked at."""

    pairs: int = 0
    graphs: int = 0
    by_torch: int = 0


@contextmanager
def counted() -> Iterator[Compilations]:
    """Count what nplm compiles and records, and what torch's compilers do for whomever."""
    found = Compilations()
    before = sum(counters["stats"].values()) + sum(counters["inductor"].values())
    with (
        patch.object(compiler, "compile_pair", wraps=compiler.compile_pair) as pairs,
        patch.object(compiler, "record", wraps=compiler.record) as graphs,
    ):
        yield found
    found.pairs, found.graphs = pairs.call_count, graphs.call_count
    after = sum(counters["stats"].values()) + sum(counters["inductor"].values())
    found.by_torch = after - before


@unit("settings compile nothing", "checks", 60)
def settings_compile_nothing(ask: Ask) -> dict[str, Any]:
    """Another learning rate at every update, and another weight decay, compile nothing anew."""
    said = {}
    for level in levels(ask)[1:]:
        ours = Ours((s := setting(ask)).model, How("nplm", ask.device, "bfloat16", level))
        ours.feed(s)
        with counted() as first:
            for _ in range(2):
                ours.step()
        with counted() as later:
            for i in range(10):
                for group in ours.optimizer.param_groups:
                    group["lr"] = 1e-3 / (i + 1)
                    group["weight_decay"] = 0.01 * i
                ours.step()
        if ours.level() != level or not first.pairs:
            raise CheckError(f"{level}: nothing was captured: level {ours.level()}")
        if later != Compilations():
            raise CheckError(f"{level}: another lr or weight decay compiled anew: {later}")
        said[level] = {"pairs": first.pairs, "graphs": first.graphs}
    return {"says": f"10 learning rates and decays; {said}", "compiled before": said}


# ---- memory --------------------------------------------------------------------------------------
def tensor_bytes(ask: Ask) -> int:
    """The bytes of all tensors that are alive: the card's count, or on the CPU our own."""
    gc.collect()
    if ask.device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    alive = {
        x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
        for x in gc.get_objects()
        if type(x) is torch.Tensor and x.device.type == "cpu"
    }
    return sum(alive.values())


@unit("memory does not grow", "checks", 80)
def memory_does_not_grow(ask: Ask) -> dict[str, Any]:
    """Hundreds of updates hold what a few do, at every level."""
    updates, said = (20, 60) if ask.small else (50, 500), {}
    for level in levels(ask):
        ours = Ours((s := setting(ask)).model, How("nplm", ask.device, "bfloat16", level))
        ours.feed(s)
        held = []
        for n in (updates[0], updates[1] - updates[0]):
            for _ in range(n):
                ours.step()
            held.append(tensor_bytes(ask))
        if held[1] > held[0]:
            raise CheckError(
                f"{level}: {held[1] - held[0]:,} bytes more after {updates[1]} updates than after "
                f"{updates[0]}"
            )
        said[level] = held
    return {"says": f"{updates[1]} updates, {', '.join(levels(ask))}", "bytes": said}


@unit("recompute", "checks", 60)
def recompute(ask: Ask) -> dict[str, Any]:
    """Blocks that run again in the backward: equal gradients, a third of the activations."""
    s = setting(ask, layers=12, batch=16)
    crew, found, peaks = [], [], []
    for again in (False, True):
        local = Local(s, How("nplm", ask.device, "bfloat16"))
        path: Any = local.path
        path.model.recompute = again
        local.gradients()  # the first one makes what stays: gradients, copies
        loss, gradients, _ = local.gradients()
        crew.append(loss)
        found.append(gradients)
        peaks.append(local.memory.peak - local.memory.held)
    equal = [bool(torch.equal(g, found[1][name])) for name, g in found[0].items()]
    off = max(torch_turns.distance(g, found[1][name]) for name, g in found[0].items())
    # The same kernels on the same numbers: what adds in no fixed order on a card may differ a bit.
    if not (abs(crew[0] - crew[1]) <= 1e-6 * abs(crew[0]) and off <= LIMIT_AGAIN.atol):
        raise CheckError(f"other gradients: {off:.1e} of their norm apart, loss {crew}")
    saved = peaks[0] / peaks[1] if ask.device == "cuda" else None
    if saved is not None and saved < LEAST_SAVED:
        raise CheckError(f"activations: {peaks[0]:,} bytes and {peaks[1]:,}, expected a third")
    says = f"{statistics.mean(equal):.0%} of gradients to the bit, worst {off:.1e}"
    return {"says": says + (f", activations / {saved:.1f}" if saved else ""), "peaks": peaks}


LIMIT_AGAIN = Tolerance(
    0.0, 1e-3, "bfloat16, the norm of the difference over the tensor's own: attention's backward "
    "adds with atomics, whose order is not fixed; a wrong block is off by 0.1 or more",
)  # fmt: skip
