"""python -m benchmarks train: updates of nplm on torch tensors beside torch, eager and compiled.

What an engine is stands in nplm/bench/torch_path.py, how they take turns in torch_turns.py.
"""

import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import results, tables
from nplm.backend.threads import get_num_threads
from nplm.bench import machine
from nplm.bench.settings import CONFIGS, Setting, in_words
from nplm.errors import ConfigError, unknown
from nplm.models.config import DecoderConfig, preset

# A GPT-2 and a Llama of 124 million parameters, with nanoGPT's vocabulary: a multiple of 64
MODELS: dict[str, DecoderConfig] = {
    "gpt2": preset("gpt2", vocab_size=50304, dropout=0.0),
    "llama": preset(
        "tiny-llama", vocab_size=50304, context=1024, n_layer=12, n_head=12, n_kv_head=12,
        n_embd=768, n_hidden=2048, tied=True,
    ),
    **{name: s.model for name, s in CONFIGS.items() if s.part == "model" and name != "llama"},
    "tiny-llama": CONFIGS["llama"].model,
}  # fmt: skip
USUAL: dict[str, dict[str, Any]] = {  # by device, where nothing is asked for
    "cuda": {"model": ("gpt2",), "batch": (4, 16, 32, 64), "dtype": "bfloat16",
             "capture": "region"},
    "cpu": {"model": ("b", "c"), "batch": (4,), "dtype": "float32", "capture": "off"},
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Time updates on torch tensors against torch on a twin of the same shape."""

    against: tuple[str, ...] = ("torch", "torch.compile")  # torch, torch.compile
    device: str = "cpu"  # cpu, cuda
    model: tuple[str, ...] = ()  # gpt2, llama (124M), a, b, c, c-padded, d, tiny-llama
    batch: tuple[int, ...] = ()  # rows of an update, one measurement each
    dtype: str | None = None  # float32, bfloat16; None: bfloat16 on cuda
    capture: tuple[str, ...] = ()  # nplm's levels: off, region, graph; none: region on cuda
    attention: tuple[str, ...] = ("best",)  # best, or one kernel for all: flash, cudnn, efficient
    threads: int | None = None  # on the CPU; None: the physical cores
    rounds: int = 8  # turns of every engine
    steps: int | None = None  # updates a turn; None: as many as last half a second
    json: Path | None = None  # file that the results are written to, beside what it holds

    def check(self) -> None:
        """Raise a ConfigError that lists everything that is out of range."""
        known = {
            "against": ("torch", "torch.compile"), "device": tuple(USUAL), "model": tuple(MODELS),
            "dtype": ("float32", "bfloat16"), "capture": ("off", "region", "graph"),
            "attention": ("best", "flash", "cudnn", "efficient"),
        }  # fmt: skip
        problems = []
        for name, allowed in known.items():
            given = getattr(self, name)
            given = given if isinstance(given, tuple) else (given,) if given else ()
            problems += [unknown(name, value, allowed) for value in given if value not in allowed]
        numbers = {"threads": self.threads, "rounds": self.rounds, "steps": self.steps}
        problems += [
            f"{name}: expected at least 1, at most 1,000,000, got {value}"
            for name, value in [*numbers.items(), *(("batch", n) for n in self.batch)]
            if value is not None and not 1 <= value <= 10**6
        ]
        for name in ("against", "attention"):
            if not getattr(self, name):
                problems.append(f"{name}: expected at least one of {', '.join(known[name])}")
        if problems:
            raise ConfigError("; ".join(problems))


def main(options: Options, command: str) -> None:
    """Measure every model at every batch; print each result and add it to the JSON."""
    if find_spec("torch") is None:
        raise ConfigError("train: needs torch, which is not installed: run `pip install torch`")
    from nplm.backend import require_device
    from nplm.bench import rates, torch_turns
    from nplm.bench.torch_path import How

    require_device("torch:cpu" if options.device == "cpu" else options.device)
    usual = USUAL[options.device]
    dtype = options.dtype or usual["dtype"]
    captures = options.capture or (usual["capture"],)
    threads = options.threads or get_num_threads()
    hows = [
        How(engine, options.device, dtype, capture, attention)
        for attention in dict.fromkeys(options.attention)
        for engine, capture in (
            *(("nplm", c) for c in dict.fromkeys(captures)),
            *((t, "off") for t in dict.fromkeys(options.against)),
        )
    ]
    rate = rates.matrix_rate(options.device, dtype, threads)
    facts = where(options.device)
    print(f"{tables.where(facts)}; {tables.rate_in_words(rate, dtype)}", flush=True)
    for name in options.model or usual["model"]:
        crew: list[Any] = []
        for batch in options.batch or usual["batch"]:
            setting = Setting(MODELS[name], batch)
            if options.device == "cpu":
                found = torch_turns.measure_apart(
                    setting, hows, threads, options.rounds, options.steps
                )
            else:
                torch_turns.fed(crew, setting, hows)
                found = torch_turns.measure_here(crew, options.rounds, options.steps)
            result = record(name, setting, hows, found, rate, facts, command)
            result |= {"threads": threads, "rounds": options.rounds}
            print("\n" + tables.train([result]), flush=True)
            if options.json is not None:
                results.add(options.json, key(result), result)


def key(result: dict[str, Any]) -> str:
    """What the result is filed under."""
    return f"train {result['config']} {result['device']} {result['dtype']} B{result['batch']}"


def record(
    name: str, setting: Setting, hows: Any, engines: dict[str, Any], rate: dict[str, Any],
    facts: dict[str, Any], command: str,
) -> dict[str, Any]:  # fmt: skip
    """One measurement as the JSON keeps it."""
    from nplm.bench.rates import flops_per_token

    return {
        "subject": "train", "config": name, "sizes": in_words(setting), "command": command,
        "date": time.strftime("%Y-%m-%d"), "machine": facts, "device": hows[0].device,
        "dtype": hows[0].dtype, "batch": setting.batch_size, "tokens": setting.tokens,
        "flops_per_token": flops_per_token(setting.model), "matrix_rate": rate,
        "engines": engines,
    }  # fmt: skip


def where(device: str) -> dict[str, Any]:
    """The machine, and the card."""
    facts = {**machine.facts(), "blas": machine.numpy_blas()}
    if device == "cuda":
        import torch

        found = torch.cuda.get_device_properties(0)
        facts["card"] = f"{found.name}, {found.total_memory / 2**30:.0f} GiB"
    return facts
