"""Every figure and every number of docs/{accumulation,schedules,early_stopping}.md.

    python -m benchmarks.strategies [--out docs/figures] [--json docs/figures/strategies.json]
                                    [--steps N]

Small character decoders on the text that every Python carries; fixed seeds, NumPy, a few minutes on
two cores. `--steps N` ends every run after N updates: a look that takes seconds. The JSON holds
strings, written as the pages show them; another Python has another text and gives other numbers.
"""

import argparse
import json
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import nplm
from benchmarks.strategy_figures import (
    draw_accumulation,
    draw_early_stopping,
    draw_schedules,
    save,
)
from nplm.data import (
    Batch,
    CharTokenizer,
    RandomWindows,
    SequentialWindows,
    default_corpus,
    split_tokens,
)
from nplm.data.loader import IGNORE_INDEX
from nplm.models import Decoder, preset
from nplm.nn import Module
from nplm.optim import AdamW
from nplm.optim.lr_scheduler import StepLR
from nplm.optim.schedules import warmup_constant, warmup_cosine
from nplm.train import EarlyStopping, accumulate, evaluate, fit, train_step

SEED, CONTEXT, ROWS, MICRO, K = 1337, 32, 32, 4, 8  # a batch of 32 rows = 8 micro-batches of 4
SENTENCE = 128  # characters; a longer sentence is cut
LAYERS, HEADS, WIDTH, RATE, WARMUP = 2, 2, 64, 3e-3, 10  # updates of warm-up

CORPUS = default_corpus()
TOKENIZER = CharTokenizer.from_text(CORPUS.text)
TRAIN, VALIDATION = split_tokens(TOKENIZER.encode(CORPUS.text))


def decoder(
    n_layer: int = LAYERS, n_embd: int = WIDTH, context: int = CONTEXT, dtype: Any = None
) -> Decoder:
    """The same first weights for every run of one size."""
    nplm.manual_seed(SEED)
    config = preset(
        "char", vocab_size=TOKENIZER.vocab_size, context=context,
        n_layer=n_layer, n_head=HEADS, n_embd=n_embd,
    )  # fmt: skip
    return Decoder(config).to("cpu", dtype or nplm.float32)


# ---- accumulation --------------------------------------------------------------------------------
def beginning(context: int = CONTEXT, dtype: Any = None):
    """A fresh model, its optimizer and its schedule: a short warm-up, then the full rate."""
    model = decoder(context=context, dtype=dtype)
    optimizer = AdamW(model.parameters(), lr=RATE)
    return model, optimizer, warmup_constant(optimizer, WARMUP)


def same_curve(steps: int) -> dict[str, np.ndarray]:
    """The losses of batch 32 and of 8 times 4, in float32 and float64: the same rows in all."""
    curves = {}
    for name in ("float32", "float64"):
        for rows, k in ((ROWS, 1), (MICRO, K)):
            model, optimizer, scheduler = beginning(dtype=getattr(nplm, name))
            loader = RandomWindows(TRAIN, CONTEXT, rows, nplm.Generator().manual_seed(SEED))
            records = fit(model, optimizer, loader, accumulate=k, steps=steps, scheduler=scheduler)
            curves[f"{name} {k}x{rows}"] = np.array([float(r.loss) for r in records])
    return curves


def sentences(tokens: np.ndarray) -> list[np.ndarray]:
    found = re.split(r"(?<=[.:])\s+", TOKENIZER.decode(tokens))
    return [TOKENIZER.encode(s[: SENTENCE + 1]) for s in found if len(s) > 1]


def batch_of(rows: list[np.ndarray]) -> Batch:
    """Rows of unequal length: padded to the longest, and the padding has no target."""
    time = max(map(len, rows)) - 1
    inputs = np.zeros((len(rows), time), np.int64)
    targets = np.full((len(rows), time), IGNORE_INDEX)
    for i, row in enumerate(rows):
        inputs[i, : len(row) - 1], targets[i, : len(row) - 1] = row[:-1], row[1:]
    return Batch(inputs, targets)


def micro_batches(rows: list[np.ndarray], size: int) -> list[Batch]:
    return [batch_of(rows[i : i + size]) for i in range(0, len(rows), size)]


def ragged_windows(steps: int) -> Iterator[list[np.ndarray]]:
    """32 sentences at random an update, sorted by length: that is what saves padding."""
    rows, generator = sentences(TRAIN), nplm.Generator().manual_seed(SEED)
    for _ in range(steps):
        drawn = np.asarray(generator.randint(0, len(rows), (ROWS,)))
        yield sorted((rows[i] for i in drawn), key=len)


def gradient(window: list[Batch], model: Module, normalise: str) -> tuple[np.ndarray, float]:
    into: dict[Any, Any] = {}
    result = accumulate(window, model, normalise=normalise, into=into)
    grads = [np.asarray(into[p], np.float64).ravel() for p in model.parameters()]
    return np.concatenate(grads), float(result.loss)


def naive_errors(model: Module, rows: list[np.ndarray]) -> dict[str, float]:
    """What the naive division gets wrong in one update, at the weights as they are."""
    window = micro_batches(rows, MICRO)
    mixed = np.arange(ROWS).reshape(MICRO, K).T.ravel()  # every micro-batch gets all lengths
    exact, loss = gradient(window, model, "token")
    naive, naive_loss = gradient(window, model, "microbatch")
    spread, _ = gradient(micro_batches([rows[i] for i in mixed], MICRO), model, "microbatch")
    size = np.linalg.norm(exact)
    return {
        "sorted": np.linalg.norm(naive - exact) / size,
        "mixed": np.linalg.norm(spread - exact) / size,
        "cosine": naive @ exact / size / np.linalg.norm(naive),
        "gap": naive_loss - loss,
        "shortest": window[0].n_targets(),
        "longest": window[-1].n_targets(),
    }


def ragged_runs(steps: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The same sentences as one batch of 32, as 8 times 4, and as naive 8 times 4.

    Gives the validation losses of all, and the errors of a naive division along the second.
    """
    held_out = micro_batches(sorted(sentences(VALIDATION), key=len), ROWS)
    every = max(1, steps // 20)
    seen, errors = {"at": np.arange(every, steps + 1, every)}, []
    for name, size, normalise in (
        ("large", ROWS, "token"), ("token", MICRO, "token"), ("naive", MICRO, "microbatch"),
    ):  # fmt: skip
        model, optimizer, scheduler = beginning(SENTENCE)
        losses = []
        for step, rows in enumerate(ragged_windows(steps), 1):
            if name == "token":
                errors.append(naive_errors(model, rows))
            train_step(model, optimizer, micro_batches(rows, size), normalise=normalise)
            scheduler.step()
            if step % every == 0:
                losses.append(evaluate(model, held_out).loss)
        seen[name] = np.array(losses)
    return seen, {name: np.array([error[name] for error in errors]) for name in errors[0]}


# ---- schedules -----------------------------------------------------------------------------------
EPOCHS, BATCHES, PEAK, STEP_SIZE = 90, 32, 1e-2, 30  # batches an epoch; epochs a step
SMALL = (1, 32)  # layers, width


def schedules(steps: int | None) -> dict[str, dict[str, np.ndarray]]:
    """The same run under four schedules: lr of every update, losses of every epoch."""
    batches, epochs = (BATCHES, EPOCHS) if steps is None else (2, max(1, steps // 2))
    total = batches * epochs
    recipes = {
        "constant": (lambda optimizer: None, "step"),
        "StepLR": (lambda optimizer: StepLR(optimizer, step_size=STEP_SIZE, gamma=0.1), "epoch"),
        "warm-up": (lambda optimizer: warmup_constant(optimizer, total // 20), "step"),
        "cosine": (lambda optimizer: warmup_cosine(optimizer, total // 20, total, 0.0), "step"),
    }
    loader = SequentialWindows(TRAIN[: batches * ROWS * CONTEXT + 1], CONTEXT, ROWS)
    held_out = SequentialWindows(VALIDATION, CONTEXT, 128)
    seen = {}
    for name, (recipe, unit) in recipes.items():
        model = decoder(*SMALL)
        optimizer = AdamW(model.parameters(), lr=PEAK)
        lrs, losses, held, of_epoch = [], [], [], []
        for record in fit(model, optimizer, loader, epochs=epochs, clip_norm=1.0,
                          scheduler=recipe(optimizer), scheduler_unit=unit):  # fmt: skip
            lrs.append(record.lr)
            of_epoch.append(float(record.loss))
            if record.epoch_ended:
                losses.append(np.mean(of_epoch))
                held.append(evaluate(model, held_out).loss)
                of_epoch = []
        seen[name] = {key: np.array(values) for key, values in
                      (("lr", lrs), ("training", losses), ("validation", held))}  # fmt: skip
    return seen


# ---- early stopping ------------------------------------------------------------------------------
SLICE, EVERY, PATIENCE = 8_000, 20, 7  # characters to learn by heart; updates; evaluations


def overfit(steps: int | None) -> dict[str, Any]:
    """A run on a text that is too small, its stopper, and how it would have gone on."""
    every, total = (EVERY, 600) if steps is None else (1, steps)
    model = decoder()
    optimizer = AdamW(model.parameters(), lr=RATE)
    windows = RandomWindows(TRAIN[:SLICE], CONTEXT, ROWS, nplm.Generator().manual_seed(SEED))
    held_out = SequentialWindows(VALIDATION, CONTEXT, 128)
    stopper = EarlyStopping(patience=PATIENCE, path=None, trace_func=lambda text: None)
    seen: dict[str, Any] = {"at": [], "validation": [], "counter": [], "train": [], "stop": None}
    for record in fit(model, optimizer, windows, steps=total, clip_norm=1.0):
        seen["train"].append(float(record.loss))
        if record.step % every:
            continue
        loss = evaluate(model, held_out).loss
        seen["at"].append(record.step)
        seen["validation"].append(loss)
        if seen["stop"] is None:
            stopper(loss, model, step=record.step)
            seen["counter"].append(stopper.counter)
            if stopper.early_stop:
                seen["stop"] = record.step
    restored = decoder()
    stopper.restore_best(restored)
    seen |= {"best_step": stopper.best_step, "best": stopper.best_val_loss,
             "restored": evaluate(restored, held_out).loss, "every": every, "patience": PATIENCE,
             "at_stop": seen["validation"][len(seen["counter"]) - 1]}  # fmt: skip
    return seen


LABELS = {
    "constant": "constant", "StepLR": "StepLR", "warm-up": "warm-up, then constant",
    "cosine": "warm-up, then cosine",
}  # fmt: skip


# ---- numbers -------------------------------------------------------------------------------------
def signed(x: float) -> str:
    return f"{x:+.3f}".replace("-", "\N{MINUS SIGN}")


def accumulation_numbers(same: dict, runs: dict, naive: dict) -> dict[str, str]:
    """As docs/accumulation.md shows them."""
    apart = {d: np.abs(same[f"{d} 1x32"] - same[f"{d} 8x4"]) for d in ("float32", "float64")}
    return {
        "weights": f"{decoder().num_parameters():,}",
        "weights, sentences": f"{decoder(context=SENTENCE).num_parameters():,}",
        "layers": str(LAYERS),
        "heads": str(HEADS),
        "width": str(WIDTH),
        "context": str(CONTEXT),
        "characters of the longest sentence": str(SENTENCE),
        "full rate": f"{RATE:g}",
        "updates of warm-up": str(WARMUP),
        "updates": str(len(naive["gap"])),
        "rows of the large batch": str(ROWS),
        "rows of a micro-batch": str(MICRO),
        "micro-batches": str(K),
        "last loss, batch of 32": f"{same['float32 1x32'][-1]:.3f}",
        "last loss, 8 times 4": f"{same['float32 8x4'][-1]:.3f}",
        "largest gap, float32": f"{apart['float32'].max():.0e}",
        "largest gap, float64": f"{apart['float64'].max():.0e}",
        "targets of the shortest micro-batch, on average": f"{naive['shortest'].mean():.0f}",
        "targets of the longest micro-batch, on average": f"{naive['longest'].mean():.0f}",
        "error of the naive gradient, sorted": f"{100 * naive['sorted'].mean():.0f} %",
        "error of the naive gradient, mixed": f"{100 * naive['mixed'].mean():.0f} %",
        "cosine of the naive and the exact gradient, sorted": f"{naive['cosine'].mean():.2f}",
        "naive loss minus the loss": signed(naive["gap"].mean()),
        "largest validation gap, token": f"{np.abs(runs['token'] - runs['large']).max():.0e}",
        "largest validation gap, naive": f"{np.abs(runs['naive'] - runs['large']).max():.0e}",
    }


def schedule_numbers(seen: dict[str, dict[str, np.ndarray]]) -> dict[str, str]:
    """As docs/schedules.md shows them: the last epoch's losses, and the lowest."""
    updates, epochs = len(seen["constant"]["lr"]), len(seen["constant"]["training"])
    numbers = {
        "weights": f"{decoder(*SMALL).num_parameters():,}",
        "layers": str(SMALL[0]),
        "heads": str(HEADS),
        "width": str(SMALL[1]),
        "context": str(CONTEXT),
        "characters": f"{updates // epochs * ROWS * CONTEXT:,}",
        "rows of a batch": str(ROWS),
        "batches of an epoch": str(updates // epochs),
        "epochs": str(epochs),
        "updates": str(updates),
        "updates of warm-up": str(updates // 20),
        "full rate": f"{PEAK:g}",
        "epochs of a step": str(STEP_SIZE),
    }
    for name, curves in seen.items():
        for part in ("training", "validation"):
            numbers[f"last {part} loss, {LABELS[name]}"] = f"{curves[part][-1]:.3f}"
        numbers[f"lowest validation loss, {LABELS[name]}"] = f"{curves['validation'].min():.3f}"
    return numbers


def stopping_numbers(seen: dict[str, Any]) -> dict[str, str]:
    """As docs/early_stopping.md shows them."""
    return {
        "weights": f"{decoder().num_parameters():,}",
        "characters": f"{SLICE:,}",
        "updates between evaluations": str(seen["every"]),
        "patience": str(PATIENCE),
        "best update": str(seen["best_step"]),
        "stop": str(seen["stop"]),
        "best validation loss": f"{seen['best']:.3f}",
        "restored validation loss": f"{seen['restored']:.3f}",
        "validation loss at the stop": f"{seen['at_stop']:.3f}",
        "updates without a stop": str(len(seen["train"])),
        "validation loss without a stop": f"{seen['validation'][-1]:.3f}",
        "training loss without a stop": f"{np.mean(seen['train'][-seen['every'] :]):.3f}",
    }


def made_with() -> dict[str, str]:
    return {
        "command": "python -m benchmarks.strategies",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "text": f"{CORPUS.source}, sha256 {CORPUS.sha256[:16]}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    parser.add_argument("--json", type=Path, help="the numbers; default: strategies.json in --out")
    parser.add_argument("--steps", type=int, help="end every run after so many updates")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    steps = arguments.steps or 200
    parts = (same_curve(steps), *ragged_runs(steps))
    save(draw_accumulation(*parts), arguments.out / "accumulation.svg")
    scheduled = schedules(arguments.steps)
    save(draw_schedules(scheduled), arguments.out / "schedules.svg")
    stopped = overfit(arguments.steps)
    save(draw_early_stopping(stopped), arguments.out / "early_stopping.svg")
    numbers = {
        "made_with": made_with(),
        "accumulation": accumulation_numbers(*parts),
        "schedules": schedule_numbers(scheduled),
        "early_stopping": stopping_numbers(stopped),
    }
    path = arguments.json or arguments.out / "strategies.json"
    path.write_text(json.dumps(numbers, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
