"""Plant a fault, run both engines, and see what the comparison names.  Read planting.py before.

`find` returns what `lockstep` saw: nothing here tells it which fault it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from nplm.errors import ConfigError, unknown
from nplm.models.config import DecoderConfig
from nplm.parity.divergence import Comparison
from nplm.parity.faults import of_attention, of_data, of_loops, of_models, of_optimizers, of_steps
from nplm.parity.faults.planting import Fault, planted
from nplm.parity.lockstep import Scenario, lockstep
from nplm.parity.nplm_run import NplmRun

_ALL = [
    *of_data.DATA, *of_models.EMBEDDINGS, *of_models.NORMS, *of_models.LINEARS,
    *of_models.ACTIVATIONS, *of_attention.ATTENTION, *of_attention.ROPE, *of_steps.LOSS,
    *of_steps.ACCUMULATION, *of_steps.CLIPPING, *of_optimizers.ADAM, *of_optimizers.OTHERS,
    *of_loops.SCHEDULES, *of_loops.AVERAGES, *of_loops.VALIDATION, *of_loops.STOPPING,
    *of_loops.RANDOM, *of_loops.RESUMING,
]  # fmt: skip
FAULTS: dict[str, Fault] = {fault.name: fault for fault in _ALL}

TINY = DecoderConfig(vocab_size=17, context=8, n_layer=1, n_head=2, n_embd=16)


def base(seed: int = 0) -> Scenario:
    """The run that every fault changes as little as it can: two updates of two micro-batches."""
    return Scenario(
        TINY, steps=2, batch_size=2, accumulate=2, schedule=None, schedule_options={},
        patience=None, eval_every=100, rows=9, seed=seed,
    )  # fmt: skip


def plant(name: str) -> AbstractContextManager[None]:
    """A context manager in which nplm has that fault.  Raises ConfigError for no such name."""
    if name not in FAULTS:
        raise ConfigError(unknown("fault", name, FAULTS))
    return planted(FAULTS[name])


def find(name: str, mode: str = "isolated", seed: int = 0, device: str = "cpu") -> Comparison:
    """Run both engines with the fault planted in nplm, which runs on `device`.

    A run that the fault ends with an error is compared as far as it went; a note says so.
    """
    with plant(name), _compared_to_the_end() as errors, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library warns of some faults by itself
        found = lockstep(FAULTS[name].scenario(base(seed)), mode=mode, device=device)
    found.notes += [f"nplm's run ended with {type(e).__name__}: {e}" for e in errors]
    return found


@contextmanager
def _compared_to_the_end() -> Iterator[list[Exception]]:
    """An error of nplm's run ends that run, and not the comparison."""
    errors: list[Exception] = []
    inner = NplmRun.steps

    def steps(run: NplmRun) -> Iterator[int]:
        try:
            yield from inner(run)
        except Exception as error:
            errors.append(error)

    run: Any = NplmRun
    run.steps = steps
    try:
        yield errors
    finally:
        run.steps = inner
