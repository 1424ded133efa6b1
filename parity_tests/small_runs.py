"""A run of 30 updates that takes a moment, stopped and resumed in this process or a fresh one.

Dropout, accumulation over three micro-batches with a short last window, a schedule, two epochs, and
early stopping that prevents a third one: every state that a run can have is in it.
"""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from nplm.models.config import PRESETS, DecoderConfig
from nplm.train import job as training
from nplm.train.checkpoint import latest_checkpoint, load_checkpoint
from nplm.train.config import ScheduleConfig, StopConfig, TrainConfig
from nplm.train.resume import corpus_of, settings_of
from nplm.train.run import RunFolder

TINY = DecoderConfig(vocab_size=65, context=8, n_layer=1, n_head=2, n_embd=16, dropout=0.1)
SMALL_PRESETS = {
    "test-tiny": TINY,
    # The gradient of attention's key bias is nothing but rounding, which Adam makes large.
    "test-plain": replace(TINY, bias=False),
}
ROOT = Path(__file__).resolve().parent.parent
TEXT = ("the quick brown fox jumps over the lazy dog and the dog sleeps on.\n" * 18)[:1165]
UPDATES = 30
OF_TIME = ("seconds", "attempt", "blas", "metrics_bytes")  # a line's length depends on its seconds


def small_config(folder: Path, **changes) -> TrainConfig:
    (folder / "text.txt").write_text(TEXT)
    settings = {
        "preset": "test-tiny", "data": (folder / "text.txt",), "epochs": 3, "batch_size": 3,
        "accumulate": 3, "lr": 0.03, "eval_every": 2, "sample_length": 12, "log_every": 1,
        "schedule": ScheduleConfig("StepLR", ("step_size=1", "gamma=0.1"), "epoch"),
        "stop": StopConfig(patience=5, delta=0.2), "out": folder / "runs", "keep": 40,
    }  # fmt: skip
    return TrainConfig(**{**settings, **changes})


def interrupted_at(step):
    """What wraps the records so that SIGTERM arrives in the update `step`."""

    def progress(records):
        for record in records:
            if record.step == step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield record

    return progress


@contextmanager
def small_presets():
    """The presets of these runs exist, for a moment."""
    PRESETS.update(SMALL_PRESETS)
    try:
        yield
    finally:
        for name in SMALL_PRESETS:
            del PRESETS[name]


def prepared(folder: RunFolder, **changes) -> training.Job:
    with small_presets():
        config = settings_of(folder)
        return training.prepare(replace(config, **changes), corpus_of(folder, config))


def begin(config: TrainConfig, stop_at: int | None = None) -> training.Result:
    with small_presets():
        job = training.prepare(config)
    return training.run(job, lambda _: None, interrupted_at(stop_at))


def go_on(folder: Path | RunFolder, stop_at: int | None = None, **changes) -> training.Result:
    folder = folder if isinstance(folder, RunFolder) else RunFolder.open(folder)
    job = prepared(folder, **changes)
    return training.run(job, lambda _: None, interrupted_at(stop_at), resume=folder)


def go_on_in_a_fresh_process(folder: Path, cwd: Path, hash_seed: int) -> None:
    code = "import small_runs, sys; small_runs.go_on(sys.argv[1])"
    here = str(Path(__file__).parent)
    environment = os.environ | {"PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": f"{here}:{ROOT}"}
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=cwd, env=environment, check=True)


# As `nplm train` does without settings: windows at random places, a cosine after a warm-up.
BY_STEPS = {
    "epochs": None, "steps": UPDATES, "schedule": ScheduleConfig(), "stop": StopConfig(),
}  # fmt: skip


def without_times(lines: list[str]) -> list[dict]:
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def differing(ours: dict, theirs: dict) -> list[str]:
    """The parts of two ends, and of their states, that are not equal: pytest would explain for
    minutes how the words of two random streams differ.
    """
    names = []
    for name in ours.keys() | theirs.keys():
        a, b = ours.get(name, ...), theirs.get(name, ...)  # ...: it is not there
        if a != b:
            inside = differing(a, b) if isinstance(a, dict) and isinstance(b, dict) else []
            names += [f"{name}.{part}" for part in inside] or [name]
    return sorted(names, key=str)


def end_of(folder: RunFolder) -> dict:
    """Everything that a finished run leaves, but for its times: to be compared bit by bit."""
    checkpoint = load_checkpoint(latest_checkpoint(folder))
    state = json.loads((checkpoint.path / "state.json").read_text())
    for name in OF_TIME:
        del state["progress"][name]
    del state["metrics"]
    return {
        "state": state,
        "model": (checkpoint.path / "model.safetensors").read_bytes(),
        "optimizer": (checkpoint.path / "optimizer.safetensors").read_bytes(),
        "average": [path.read_bytes() for path in checkpoint.path.glob("average.safetensors")],
        "metrics": without_times((folder.path / "metrics.jsonl").read_text().splitlines()),
        "samples": (folder.path / "samples.jsonl").read_bytes(),
        "best": json.loads((folder.checkpoints / "best.json").read_text())["step"],
    }


def metrics_of(folder):
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


def by_steps(folder, **changes):
    settings = {
        "epochs": None, "steps": UPDATES, "stop": StopConfig(), "accumulate": 1,
        "schedule": ScheduleConfig(),
    }  # fmt: skip
    return small_config(folder, **{**settings, **changes})


def parted(tmp_path, step, **changes):
    """The ends of a run that nobody stopped, and of one that was stopped after `step` updates."""
    ends = []
    for name, stop_at in (("whole", None), ("parted", step)):
        (tmp_path / name).mkdir()
        folder = begin(small_config(tmp_path / name, **changes), stop_at).folder
        if stop_at is not None:
            go_on(folder)
        ends.append(end_of(folder))
    return ends
