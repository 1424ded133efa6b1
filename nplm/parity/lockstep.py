"""Lockstep: nplm and torch train the same model on the same data, and every value is compared.

`lockstep(Scenario(...))` is the proof; nplm_run.py and twin_run.py are its two sides. Read
recorder.py and divergence.py before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from nplm import optim
from nplm.errors import ConfigError
from nplm.models.config import DecoderConfig
from nplm.parity.divergence import Comparison, compare
from nplm.parity.nplm_run import NplmRun
from nplm.parity.trace import Place

Rows = tuple[np.ndarray, np.ndarray]  # tokens (N,), and for each whether it is ignored as a target
SMALL = DecoderConfig(vocab_size=29, context=12, n_layer=2, n_head=4, n_embd=32)
FAMILIES = {
    "gpt2": SMALL,
    "llama": replace(
        SMALL, norm="rms", positions="rope", activation="swiglu", n_kv_head=2, n_hidden=48,
        bias=False, tied=False,
    ),
}  # fmt: skip
NO_DECAY = ("Rprop",)  # optimizers without weight_decay


@dataclass(frozen=True)
class Scenario:
    """The settings of a run that both engines can make.

    groups      "decay": vectors do not decay; "layers": rates fall by `falls` a block; "one"
    window      micro-batches an update: `accumulate`, or by epoch as {0: 1, 1: 3}
    schedule_options  of SequentialLR and ChainedScheduler, `schedulers` is [(class, options), ...]
    resume_at   after this update nplm's objects are made anew and load their states; torch's run
                is not interrupted
    """

    model: DecoderConfig = SMALL
    steps: int = 12  # updates
    batch_size: int = 3  # rows of a micro-batch
    accumulate: int | Mapping[int, int] = 2  # micro-batches an update
    normalise: str = "token"  # or "microbatch"
    optimizer: str = "AdamW"  # a class of torch.optim
    options: Mapping[str, Any] = field(default_factory=dict)  # its arguments
    lr: float = 1e-2
    weight_decay: float = 0.1
    groups: str = "decay"
    falls: float = 0.8
    schedule: str | None = "StepLR"  # a class of torch.optim.lr_scheduler, or "SWALR"
    schedule_options: Mapping[str, Any] = field(
        default_factory=lambda: {"step_size": 3, "gamma": 0.5}
    )
    schedule_unit: str = "step"  # or "epoch"
    clip_norm: float | None = 1.0
    patience: int | None = 3  # validations; None: no early stopping
    delta: float = 0.0
    eval_every: int = 3  # updates
    average: str | None = None  # "ema" or "swa", after every update
    decay: float = 0.9  # of the EMA
    resume_at: int | None = None
    ignored: float = 0.2  # share of the targets that do not count
    rows: int = 20  # windows of the training text
    dtype: str = "float64"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer in ("LBFGS", "SparseAdam") or not hasattr(optim, self.optimizer):
            raise ConfigError(
                f"Scenario: expected an optimizer that steps without a closure on dense gradients, "
                f"got {self.optimizer!r}"
            )

    def window(self, epoch: int) -> int:
        """Micro-batches of an update in that epoch."""
        if not isinstance(self.accumulate, Mapping):
            return self.accumulate
        first = [e for e in self.accumulate if e <= epoch]
        return self.accumulate[max(first)] if first else 1

    def arguments(self) -> dict[str, Any]:
        """What the optimizer's class is called with, besides the groups."""
        return {"lr": self.lr, **self.options}

    def decays(self, matrix: bool) -> dict[str, float]:
        """The decay of a group of matrices, or of vectors."""
        if self.optimizer in NO_DECAY:
            return {}
        return {"weight_decay": self.weight_decay if matrix else 0.0}

    def data(self) -> tuple[Rows, Rows]:
        """Tokens to train on and tokens held out: each likely follows from the one before."""
        rng, V, T = np.random.default_rng(self.seed), self.model.vocab_size, self.model.context
        following = rng.permutation(V)
        parts = []
        for n in (self.rows * T - T // 3, 5 * T + 2):
            tokens = rng.integers(0, V, n)
            for i in np.flatnonzero(rng.random(n - 1) < 0.7):
                tokens[i + 1] = following[tokens[i]]
            ignored = rng.random(n) < self.ignored
            ignored[::T] = False  # so that no row is without a target
            parts.append((tokens, ignored))
        return parts[0], parts[1]


def lockstep(scenario: Scenario, *, mode: str = "isolated", device: str = "cpu") -> Comparison:
    """Train with both engines, update by update, and hold every value against its twin.

    mode    "isolated": nplm starts every phase from torch's values, so a divergence is where its
            cause is; "free": both go their own way
    device  of nplm's side: "cpu" (NumPy), "torch:cpu" or "cuda"

    Needs torch. The default random streams of both engines are put back at the end.
    """
    if mode not in ("isolated", "free"):
        raise ConfigError(f"lockstep: expected mode 'isolated' or 'free', got {mode!r}")
    from nplm.parity.three_way import fixed
    from nplm.parity.twin_run import TorchRun

    with fixed():  # one thread: sums of one order, and no waiting for cores that others use
        ours = NplmRun(scenario, device)
        theirs = TorchRun(scenario, ours.weights())
        ours.watch(theirs.recorder.trace if mode == "isolated" else None)
        return _compared(scenario, mode, ours, theirs)


def _compared(s: Scenario, mode: str, ours: NplmRun, theirs: Any) -> Comparison:
    """Both runs, a step at a time: no more than two steps are in memory."""
    kind = "Llama's settings" if s.model.norm == "rms" else "GPT-2's settings"
    title = f"{s.steps} updates, {kind}, {s.optimizer}"
    result: Comparison | None = None
    theirs_, ours_ = theirs.steps(), ours.steps()
    for _ in range(s.steps + 1):
        t, o = next(theirs_, None), next(ours_, None)
        expected, actual = theirs.recorder.trace, ours.trace
        result = compare(actual, expected, mode=mode, title=title, into=result)
        for step in {*expected.steps(), *actual.steps()}:
            expected.drop(step)
            actual.drop(step)
        if t is None or o is None:
            break
    theirs_.close()
    ours_.close()
    assert result is not None
    result.meta["scenario"] = {**asdict(s), "options": dict(s.options)}
    return result


def scenario_of(level: str, model: DecoderConfig, steps: int, dtype: str, seed: int) -> Scenario:
    """What `nplm parity model`, `step` or `run` compares, for one model."""
    bare = Scenario(model, dtype=dtype, seed=seed, rows=40, patience=None)
    if level == "model":
        return replace(bare, steps=1, accumulate=1, eval_every=2)
    if level == "step":
        return replace(bare, steps=1, accumulate=3, eval_every=1, patience=3, average="ema")
    return replace(
        bare, steps=steps, lr=3e-3, accumulate={0: 1, 2: 3}, schedule="CosineAnnealingLR",
        schedule_options={"T_max": steps}, eval_every=max(1, steps // 10), patience=steps,
        average="ema", resume_at=max(1, steps // 2),
    )  # fmt: skip


def joined(compared: Mapping[str, Comparison], level: str) -> Comparison:
    """Several runs as one comparison, their names before those of the tensors.

    Of `model` only what a forward and a backward pass give.
    """
    runs = list(compared.values())
    of_model = ("start", "batch", "forward", "loss", "backward", "gradient")
    result = replace(runs[0], title=f"{level} of {' and '.join(compared)}")
    result.measured, result.divergences, result.notes = [], [], []
    result.steps = max(run.steps for run in runs)
    result.meta = {
        **runs[0].meta,
        "scenario": {n: run.meta["scenario"] for n, run in compared.items()},
    }
    for name, run in compared.items():
        prefix = f"{name}/" if len(compared) > 1 else ""

        def named(place: Place, prefix: str = prefix) -> Place:
            return replace(place, name=prefix + place.name)

        for m in run.measured:
            if level != "model" or m.place.phase in of_model:
                result.measured.append(replace(m, place=named(m.place)))
        for d in run.divergences:
            if level != "model" or d.place.phase in of_model:
                result.divergences.append(replace(d, place=named(d.place)))
        if level != "model":  # notes are about parameters
            result.notes += [prefix + note for note in run.notes]
    result.first = result.divergences[0] if result.divergences else None
    return result
