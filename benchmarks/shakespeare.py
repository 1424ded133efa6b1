"""nanoGPT's character model for a CPU, trained by nplm and by its torch twin on the same batches.

    python -m benchmarks.shakespeare --data input.txt [--steps 2000] [--json FILE]

Context 64, batch 12, no dropout, no bias, AdamW 1e-3 -> 1e-4 (warm-up 100, cosine), beta2 0.99,
decay 0.1 on matrices, clip 1. Both start from the same weights; the loss is that of the whole
validation split. The times are of this process, one engine after the other: a first look, no ratio.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch

from nplm.parity.twin import TorchDecoder
from nplm.train import parts
from nplm.train.config import ScheduleConfig, TrainConfig
from nplm.train.job import Job, prepare
from nplm.train.loop import evaluate, fit

IGNORED = -100


def train_nplm(job: Job) -> float:
    c = job.config
    records = fit(
        job.model, job.optimizer, job.batches, scheduler=job.scheduler,
        clip_norm=c.clip_norm, steps=c.steps,
    )  # fmt: skip
    for record in records:
        if record.step % 250 == 0:
            print(f"  nplm   step {record.step:5d}  loss {float(record.loss):.4f}", flush=True)
    return evaluate(job.model, job.validation).loss


def train_torch(job: Job, twin: TorchDecoder) -> float:
    c = job.config
    decay = parts.weight_decay(c)
    groups = [
        {
            "params": [p for p in twin.parameters() if p.ndim >= 2],
            "weight_decay": decay,
        },
        {"params": [p for p in twin.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=c.lr, betas=(0.9, 0.99))
    floor, warmup = 0.1, c.schedule.warmup_steps

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        part = min((step - warmup) / (c.steps - warmup), 1.0)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * part))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for step in range(1, c.steps + 1):
        batch = next(job.batches)
        loss = torch_loss(twin, batch, "mean")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), c.clip_norm)
        optimizer.step()
        scheduler.step()
        if step % 250 == 0:
            print(f"  torch  step {step:5d}  loss {loss.item():.4f}", flush=True)
    total = n = 0.0
    with torch.no_grad():
        for batch in job.validation:
            total += float(torch_loss(twin, batch, "none").double().sum())
            n += batch.n_targets()
    return total / n


def torch_loss(twin: TorchDecoder, batch, reduction: str) -> torch.Tensor:
    logits = twin(torch.from_numpy(batch.inputs)).flatten(0, 1)
    targets = torch.from_numpy(batch.targets).flatten()
    return torch.nn.functional.cross_entropy(
        logits, targets, reduction=reduction, ignore_index=IGNORED
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--warmup-steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    schedule = ScheduleConfig(warmup_steps=arguments.warmup_steps)
    job = prepare(
        TrainConfig(
            data=(arguments.data,), steps=arguments.steps, schedule=schedule, seed=arguments.seed
        )
    )
    twin = TorchDecoder(job.model.config)
    start = {k: torch.from_numpy(np.array(v)) for k, v in job.model.state_dict().items()}
    twin.load_state_dict(start)
    print(job.plan())
    began = time.perf_counter()
    ours = train_nplm(job)
    between = time.perf_counter()
    job.batches.generator.manual_seed(arguments.seed)  # the same batches again
    theirs = train_torch(job, twin)
    ended = time.perf_counter()
    figures = {
        "validation_loss_nplm": ours, "validation_loss_torch": theirs, "apart": abs(ours - theirs),
        "seconds_nplm": between - began, "seconds_torch": ended - between,
    }  # fmt: skip
    for name, value in figures.items():
        print(f"{name:22s} {value:.4f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
