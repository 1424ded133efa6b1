"""`nplm bench`: what an update of a model costs here, op by op, and beside torch's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from nplm.backend.threads import get_num_threads
from nplm.bench import machine, rounds
from nplm.bench.flops import step_flops
from nplm.bench.profile import table
from nplm.bench.settings import Setting, in_words
from nplm.cli.arguments import parse
from nplm.cli.presets import parameters
from nplm.errors import ConfigError
from nplm.models.config import preset
from nplm.train import report
from nplm.train.config import TrainConfig

ROUNDS, BUDGET = 8, 20.0  # turns of every engine, and the seconds after which there are no more
PROFILED = 2.0  # seconds that the profile lasts, about
LARGEST = 10**6  # of a count: what is larger is a slip of the finger


@dataclass(frozen=True)
class BenchConfig:
    """Time the updates of a model on random tokens: time, memory, share of every op, beside torch.

    --json prints the figures as JSON. Every engine has a process of its own; their losses and
    gradients agree before anything is timed, or the exit code is 1.
    """

    preset: str = "char"  # model: char, tiny-llama or gpt2
    vocab_size: int | None = None  # tokens; None: the preset's
    context: int | None = None  # positions a token sees; None: the preset's
    dropout: float = 0.0  # probability
    batch_size: int = TrainConfig.batch_size  # rows in a micro-batch
    accumulate: int = TrainConfig.accumulate  # micro-batches an update
    threads: int | None = None  # None: the physical cores that this process may use
    steps: int | None = None  # updates a turn, of eight; None: as many as last half a second
    against: Literal["torch", "none"] | None = None  # None: torch, if it is installed

    def check(self) -> None:
        """Raise a ConfigError that lists everything that is out of range."""
        problems = []
        for name in ("vocab_size", "steps"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= LARGEST:
                problems.append(f"{name}: expected at least 1, at most {LARGEST:,}, got {value}")
        try:
            TrainConfig(
                preset=self.preset, context=self.context, dropout=self.dropout,
                batch_size=self.batch_size, accumulate=self.accumulate, threads=self.threads,
            ).check()  # fmt: skip
        except ConfigError as error:
            problems.append(str(error))
        if self.against == "torch" and not rounds.installed("torch"):
            problems.append(
                "against: needs PyTorch, which is not installed: run `pip install torch`, or leave "
                "--against out"
            )
        if problems:
            raise ConfigError("; ".join(problems))

    @property
    def setting(self) -> Setting:
        """The model and the batches."""
        changes: dict[str, Any] = {"dropout": self.dropout}
        for name in ("vocab_size", "context"):
            if getattr(self, name) is not None:
                changes[name] = getattr(self, name)
        return Setting(preset(self.preset, **changes), self.batch_size, self.accumulate)


def main(arguments: list[str]) -> int:
    """Measure and print; 0, or 1 where torch computes something else."""
    words = [word for word in arguments if word != "--json"]
    config = parse(BenchConfig, words, "nplm bench")
    as_json = len(words) < len(arguments)
    if not as_json:
        print("\n".join(_plan(config)), flush=True)
    found = measure(config)
    print(json.dumps(found, indent=1) if as_json else _shown(found), end="\n" if as_json else "")
    return 0


def measure(config: BenchConfig) -> dict[str, Any]:
    """Times of every engine and nplm's profile, in JSON's types.  Raises BenchError."""
    setting, threads = config.setting, config.threads or get_num_threads()
    names = ["nplm"]
    if config.against == "torch" or (config.against is None and rounds.installed("torch")):
        names.append("torch")
    engines = [rounds.Engine.parse(name, threads) for name in names]
    found = rounds.measure(setting, engines, ROUNDS, config.steps, BUDGET)
    updates = max(1, min(20, int(PROFILED / found["nplm"]["median"])))
    with rounds.workers(engines[:1], setting) as (worker,):
        worker.ask("steps", n=1)
        profile = worker.ask("profile", n=updates)
    return {
        "preset": config.preset, "setting": setting.to_json(), "tokens": setting.tokens,
        "flops": step_flops(setting), "machine": machine.facts(), "engines": found,
        "profile": profile,
    }  # fmt: skip


def _plan(config: BenchConfig) -> list[str]:
    setting, facts = config.setting, machine.facts()
    held = [f"{k}={v}" for k, v in facts["environment"].items()]
    return [
        f"model      {config.preset}: {parameters(setting.model):,} parameters, "
        f"{in_words(setting)}",
        f"machine    {facts['cpu']}, {facts['cores']} cores, NumPy {facts['numpy']}",
        *([f"held by    {' '.join(held)}"] if held else []),
        f"update     {setting.tokens:,} tokens, {sum(step_flops(setting).values()) / 1e9:,.1f} "
        "billion operations counted",
    ]


def _shown(found: dict[str, Any]) -> str:
    ours, theirs = found["engines"]["nplm"], found["engines"].get("torch")
    seconds, flops = ours["median"], sum(found["flops"].values())
    lines = [
        f"time       {_ms(ours)} an update, {found['tokens'] / seconds:,.0f} tokens/s, "
        f"{flops / seconds / 1e9:,.0f} GFLOP/s, on {report.counted(ours['threads'], 'thread')}",
        f"memory     {report.amount(ours['peak_bytes'])} at its peak",
    ]
    if theirs is None:
        lines.append("torch      not measured: it needs `pip install torch`, and no --against none")
    else:
        ratio = theirs["ratio"]
        lines += [
            f"torch      {_ms(theirs)}, {report.amount(theirs['peak_bytes'])}: nplm takes "
            f"{ratio['median']:.2f} of its time ({ratio['q1']:.2f} to {ratio['q3']:.2f}) and "
            f"{theirs['peak_ratio']:.2f} of its memory",
            f"           gradients agree: {theirs['gradient_worst']} is the worst, "
            f"{theirs['gradient_off']:.0e} of its norm off",
        ]
    return "\n".join(lines) + "\n\n" + table(found["profile"])


def _ms(times: dict[str, Any]) -> str:
    return f"{1e3 * times['median']:.1f} ms ({1e3 * times['q1']:.1f} to {1e3 * times['q3']:.1f})"
