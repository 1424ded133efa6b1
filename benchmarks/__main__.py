"""nplm beside torch and others: python -m benchmarks SUBJECT [--against ENGINE ...] [--config ...]

Engines: nplm, reference (nplm, every override off), torch, torch.compile, autograd, mygrad; with
":N" on N threads of their own (nplm:1). Each has its own process; they take turns; the losses and
gradients of all agree before one is timed, or the exit code is 1.  `train` has flags of its own
(training.py); `python -m benchmarks.gpu` runs everything that a card is needed for.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import generation, ops, results, scaling, stepping, tables, training
from nplm.backend.threads import get_num_threads
from nplm.bench import machine
from nplm.bench.rounds import Engine
from nplm.bench.settings import CONFIGS, in_words
from nplm.cli.arguments import parse
from nplm.errors import ConfigError, NplmError, unknown

# subject -> (what measures one configuration, the configurations where none is given)
SUBJECTS: dict[str, tuple[Callable[..., dict[str, Any]], tuple[str, ...]]] = {
    "step": (stepping.step, ("a", "b")),
    "ops": (ops.ops, ("b",)),
    "generate": (generation.generate, ("b",)),
    "scaling": (scaling.scaling, ("a",)),
    "memory": (stepping.memory, ("a",)),
}


@dataclass(frozen=True)
class Options:
    """Measure nplm.  The subject comes first: step, ops, generate, scaling, memory; train, which
    has flags of its own; or tables, which writes docs/benchmarks.md, the README's table and the
    chart anew from the JSON.
    """

    against: tuple[str, ...] = ()  # engines that nplm is held against: torch torch.compile nplm:1
    config: tuple[str, ...] = ()  # a, b, c, c-padded, d, llama, block; none: the subject's usual
    threads: int | None = None  # of engines without ":N"; None: the physical cores, for ops 1
    rounds: int = 8  # turns of every engine
    steps: int | None = None  # updates a turn; None: as many as last half a second
    json: Path | None = None  # file that the results are written to, beside what it holds
    add: tuple[Path, ...] = ()  # tables: files of results that are added to the JSON first

    def check(self) -> None:
        """Raise a ConfigError that lists everything that is out of range."""
        problems = [
            f"{name}: expected at least 1, at most 1,000,000, got {value}"
            for name in ("threads", "rounds", "steps")
            if (value := getattr(self, name)) is not None and not 1 <= value <= 10**6
        ]
        problems += [unknown("config", c, CONFIGS) for c in self.config if c not in CONFIGS]
        for name in self.against:
            try:
                Engine.parse(name, 1)
            except ConfigError as error:
                problems.append(str(error))
        if problems:
            raise ConfigError("; ".join(problems))


def main(arguments: list[str]) -> int:
    """Measure and print one subject; 0, or the exit code of what went wrong."""
    subject, words = (arguments[0], arguments[1:]) if arguments else ("", [])
    try:
        if subject in ("-h", "--help"):
            words = ["--help"]
        elif subject not in (others := (*SUBJECTS, "train", "tables")):
            raise ConfigError(unknown("subject", subject, others))
        command = " ".join(["python -m benchmarks", subject, *words])
        if subject == "train":
            training.main(parse(training.Options, words, "python -m benchmarks train"), command)
            return 0
        options = parse(Options, words, f"python -m benchmarks {subject}")
        if subject == "tables":
            tables.write(options.json or tables.RESULTS, options.add)
        else:
            run(subject, options, command)
    except NplmError as error:
        print(f"benchmarks {subject}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run(subject: str, options: Options, command: str) -> None:
    """Every configuration of a subject: printed, and added to the JSON."""
    measure, usual = SUBJECTS[subject]
    # One op alone is measured as a shard runs it.
    threads = options.threads or (1 if subject == "ops" else get_num_threads())
    engines = [Engine.parse(name, threads) for name in dict.fromkeys(("nplm", *options.against))]
    facts = {**machine.facts(), "blas": machine.numpy_blas()}
    print(f"{tables.where(facts)}; {threads} threads", flush=True)
    for name in options.config or usual:
        result = {
            "subject": subject, "config": name, "sizes": in_words(CONFIGS[name]),
            "threads": threads, "rounds": options.rounds, "command": command,
            "date": time.strftime("%Y-%m-%d"), "machine": facts,
            **measure(CONFIGS[name], engines, options),
        }  # fmt: skip
        print("\n" + tables.SHOWN[subject]([result]), flush=True)
        if options.json is not None:
            results.add(options.json, f"{subject} {name} {threads}", result)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
