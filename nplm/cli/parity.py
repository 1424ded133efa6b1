"""`nplm parity [LEVEL]`: hold nplm against PyTorch, on this machine, and name what differs."""

from __future__ import annotations

import difflib
import json
import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from nplm import backend, files
from nplm.cli.arguments import parse
from nplm.errors import ConfigError, unknown
from nplm.models.config import PRESETS, preset

LEVELS = {
    "ops": "every op: value and gradients, float64, and float32 three ways",
    "layers": "every layer likewise",
    "model": "one forward and backward pass of both families, activation by activation",
    "step": "one update: accumulation, clipping, optimizer, schedule",
    "run": "a whole training run with a resumption in its middle",
}


@dataclass(frozen=True)
class ParityConfig:
    """Hold nplm against PyTorch.  The level comes first: ops, layers, model, step or run (default).

    --list-faults lists what can be planted. The exit code is 0 where everything is within its
    budget, and 1 where something diverged.
    """

    dtype: Literal["float64", "float32"] = "float64"  # of the run; ops and layers take both
    mode: Literal["free", "isolated"] | None = None  # None: free, in float32 isolated
    steps: int = 200  # updates of a run
    family: Literal["gpt2", "llama", "both"] = "both"  # whose settings the model has
    preset: str | None = None  # a named model instead of the two small ones
    dropout: float = 0.1  # probability, in model, step and run
    seed: int = 0  # of weights, data and draws
    fault: str | None = None  # plant this fault in nplm and see it found
    report: Path | None = None  # file to write: .html, .json or .txt
    device: str = "cpu"  # of nplm's side: cpu (NumPy), torch:cpu or cuda

    def check(self) -> None:
        """Raise a ConfigError that lists everything that is out of range."""
        problems = []
        if not 1 <= self.steps <= 10**6:
            problems.append(f"steps: expected at least 1, at most 1,000,000, got {self.steps}")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout: expected a probability in [0, 1), got {self.dropout}")
        if not 0 <= self.seed < 2**31:
            problems.append(f"seed: expected 0 to 2^31 - 1, got {self.seed}")
        if self.preset is not None and self.preset not in PRESETS:
            problems.append(unknown("preset", self.preset, PRESETS))
        if problems:
            raise ConfigError("; ".join(problems))


def main(arguments: list[str]) -> int:
    """Print one table and the verdict; 0 if everything is equal, 1 if not."""
    level, words = "run", list(arguments)
    if words and not words[0].startswith("-"):
        level = words.pop(0)
        if level not in LEVELS:
            raise ConfigError(unknown("level", level, LEVELS))
    listed = "--list-faults" in words
    config = parse(ParityConfig, [w for w in words if w != "--list-faults"], "nplm parity")
    _require_torch()
    if listed:
        return _list_faults()
    backend.require_device(config.device)
    if config.report is not None:
        _check_report(level, config.report)
    if config.fault is not None:
        if level != "run":
            raise ConfigError(f"fault: it is planted in a short run, so expected no '{level}'")
        return _with_fault(config)
    if level in ("ops", "layers"):
        return _rows(level, config)
    return _lockstep(level, config)


def _require_torch() -> None:
    try:
        found = find_spec("torch")
    except (ImportError, ValueError):  # what stands in its place cannot be imported
        found = None
    if found is None:
        raise ConfigError(
            "parity needs PyTorch, which is the judge and is not installed: run `pip install torch`"
        )


def _check_report(level: str, path: Path) -> None:
    from nplm.parity.report import check_suffix

    check_suffix(path)
    if level in ("ops", "layers") and path.suffix.lower() == ".html":
        raise ConfigError(f"report: {level} are a table, so expected .json or .txt, got '{path}'")


# ---- ops and layers ------------------------------------------------------------------------------
def _rows(level: str, config: ParityConfig) -> int:
    from nplm.parity import layers, ops
    from nplm.parity.three_way import table

    run = ops.run_ops if level == "ops" else layers.run_layers
    rows = run(seed=config.seed, device=config.device)
    shown = table(rows)
    print(shown, end="")
    if config.report is not None:
        if config.report.suffix.lower() == ".json":
            shown = json.dumps(rows.to_json(), allow_nan=False) + "\n"
        files.write_text(config.report, shown)
        print(f"written: {config.report}")
    return 0 if rows.equal else 1


# ---- model, step and run -------------------------------------------------------------------------
def _lockstep(level: str, config: ParityConfig) -> int:
    from nplm.parity import lockstep

    mode = config.mode or ("free" if config.dtype == "float64" else "isolated")
    models = dict(lockstep.FAMILIES)
    if config.family != "both":
        models = {config.family: models[config.family]}
    if config.preset is not None:
        models = {config.preset: preset(config.preset)}
    compared = {}
    for name, model in models.items():
        scenario = lockstep.scenario_of(
            level, replace(model, dropout=config.dropout), config.steps, config.dtype, config.seed
        )
        if sys.stderr is not None and sys.stderr.isatty():
            print(f"{name}: {scenario.steps} updates on both engines ...", file=sys.stderr)
        compared[name] = lockstep.lockstep(scenario, mode=mode, device=config.device)
    joined = lockstep.joined(compared, level)
    return _tell(joined, config)


def _tell(comparison: Any, config: ParityConfig) -> int:
    from nplm.parity import report

    print(report.text(comparison), end="")
    if config.report is not None:
        report.write_report(comparison, config.report)
        print(f"written: {config.report}")
    return 0 if comparison.equal else 1


# ---- faults --------------------------------------------------------------------------------------
def _list_faults() -> int:
    from nplm.parity.faults import FAULTS

    width = max(map(len, FAULTS))
    for name, fault in FAULTS.items():
        print(f"{name:<{width}}  {fault.sentence}")
    print(f"\n{len(FAULTS)} faults; plant one: nplm parity --fault {next(iter(FAULTS))}")
    return 0


def _with_fault(config: ParityConfig) -> int:
    from nplm.parity import faults

    name = str(config.fault)
    if name not in faults.FAULTS:
        near = difflib.get_close_matches(name, list(faults.FAULTS), n=1, cutoff=0.3)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(
            f"unknown fault '{name}': {hint}`nplm parity --list-faults` shows all of them"
        )
    fault = faults.FAULTS[name]
    mode = config.mode or fault.modes[0]
    comparison = faults.find(name, mode, config.seed, config.device)
    code = _tell(comparison, config)
    print(f"\nplanted: {fault.sentence}")
    if comparison.first is None:
        why = fault.unseen if config.device == "cpu" else fault.unseen or fault.numpy_only
        print(f"not found in {mode} mode" + (f": {why}" if why else ""))
    elif fault.expects(comparison.first.place):
        print("found, where it was planted")
    else:
        print("found, but the first place is not the one that was planted")
    return code
