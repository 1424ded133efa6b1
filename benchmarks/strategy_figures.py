"""The figures of docs/*.md: what benchmarks/strategies.py measured, drawn in one style.

Colours are Okabe and Ito's, which colour-blind readers tell apart; lines differ in style as well.
"""

import io
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"
STYLE = {
    "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white",
    "font.size": 10, "axes.axisbelow": True, "axes.titlesize": 10.5, "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e6e6e6", "grid.linewidth": 0.7, "lines.linewidth": 1.5,
    "legend.frameon": False, "legend.fontsize": 9, "svg.hashsalt": "nplm",
}  # fmt: skip


plt.rcParams.update(STYLE)


def log_gap(axis: Any, at: np.ndarray, gap: np.ndarray, **options: Any) -> None:
    """A gap on a logarithmic axis.  Where it is 0 there is no point; one between two 0 is a dot."""
    there = np.concatenate([[False], gap > 0, [False]])
    alone = list(np.flatnonzero(there[1:-1] & ~there[:-2] & ~there[2:]))
    options = {"marker": ".", "ms": 3, "markevery": alone, **options}
    axis.semilogy(at, np.where(gap > 0, gap, np.nan), **options)
    axis.minorticks_off()


def draw_accumulation(same: dict, runs: dict, naive: dict) -> Any:
    figure, ((loss, error), (gap, held)) = plt.subplots(2, 2, figsize=(9, 6.2))
    at = np.arange(1, len(naive["gap"]) + 1)
    loss.plot(at, same["float32 1x32"], color=BLUE, lw=4, alpha=0.35, label="one batch of 32 rows")
    loss.plot(at, same["float32 8x4"], color=ORANGE, lw=1.2, label="8 micro-batches of 4 rows")
    loss.set(title="Equal micro-batches: the same curve", ylabel="training loss")
    loss.legend()
    for name, color, style in (("float32", BLUE, "-"), ("float64", GREEN, "--")):
        apart = np.abs(same[f"{name} 1x32"] - same[f"{name} 8x4"])
        log_gap(gap, at, apart, color=color, ls=style, label=name)
    gap.set(
        title="... up to rounding (no point: equal)",
        ylabel="gap between the two losses",
        xlabel="update",
    )
    gap.legend(loc="center right")
    for name, color, style in (("sorted", ORANGE, "-"), ("mixed", BLUE, "--")):
        label = {"sorted": "sorted by length", "mixed": "lengths mixed"}[name]
        error.plot(at, 100 * naive[name], color=color, ls=style, lw=1.2, label=label)
    error.set(title="Sentences: the naive division's gradient", ylabel="relative error in %")
    error.set_ylim(0, 1.25 * 100 * naive["sorted"].max())
    error.legend(ncols=2, loc="upper left")
    for name, label, color, style in (
        ("naive", "naive: loss / 8", ORANGE, {"ls": "-", "marker": "o"}),
        ("token", "token: sums / N", BLUE, {"ls": "--", "marker": "s"}),
    ):
        options = {"color": color, "label": label, "ms": 3.5, "markevery": 1, **style}
        log_gap(held, runs["at"], np.abs(runs[name] - runs["large"]), **options)
    held.set(title="... and where it leads", ylabel="gap to one batch of 32", xlabel="update")
    held.legend(loc="lower right", title="validation loss of", title_fontsize=9, alignment="left")
    return figure


SCHEDULES = (  # name, label, colour, line
    ("constant", "constant", GREY, "-"),
    ("StepLR", "StepLR(30, 0.1), moved per epoch", ORANGE, "-."),
    ("warm-up", "warm-up, then constant", GREEN, "--"),
    ("cosine", "warm-up, then cosine", BLUE, "-"),
)


def draw_schedules(seen: dict[str, dict[str, np.ndarray]]) -> Any:
    figure, (lr, train, held) = plt.subplots(
        3, 1, figsize=(8, 8), sharex=True, height_ratios=(1, 1.4, 1.4)
    )
    for name, label, color, style in SCHEDULES:
        curves = seen[name]
        epochs = len(curves["training"])
        per_epoch = len(curves["lr"]) // epochs
        rates = curves["lr"][:: max(1, per_epoch // 8)]  # a point a few updates: a small file
        options = {"color": color, "ls": style, "label": label}
        if name == "constant":  # below the others, wide enough to be seen
            options |= {"lw": 4, "alpha": 0.5}
        lr.plot(np.linspace(0, epochs, len(rates), endpoint=False), rates, **options)
        train.plot(np.arange(1, epochs + 1), curves["training"], **options)
        held.plot(np.arange(1, epochs + 1), curves["validation"], **options)
    lr.set(ylabel="learning rate", title="Four schedules, the same model and text")
    lr.set_ylim(0, 1.12 * max(curves["lr"].max() for curves in seen.values()))
    train.set(ylabel="training loss")
    train.legend()
    held.set(ylabel="validation loss", xlabel="epoch")
    return figure


def draw_early_stopping(seen: dict[str, Any]) -> Any:
    figure, (loss, counter) = plt.subplots(
        2, 1, figsize=(8, 5.8), sharex=True, height_ratios=(3, 1)
    )
    n, at, held = len(seen["counter"]), np.array(seen["at"]), np.array(seen["validation"])
    train = np.array(seen["train"])[: len(at) * seen["every"]].reshape(len(at), -1).mean(1)
    for values, color, name in ((train, GREY, "training"), (held, BLUE, "validation")):
        loss.plot(at[:n], values[:n], color=color, label=name)
        loss.plot(at[n - 1 :], values[n - 1 :], color=color, ls=":")
    loss.axhline(seen["restored"], color=GREEN, ls="--", lw=1.2, label="restored weights")
    loss.plot(seen["best_step"], seen["best"], "o", color=GREEN, ms=8, label="best update")
    if seen["stop"] is not None:
        for axis in (loss, counter):
            axis.axvline(seen["stop"], color=ORANGE, lw=1.2)
        loss.text(seen["stop"] + 6, loss.get_ylim()[1], "stop; dotted: without it", color=ORANGE,
                  va="top")  # fmt: skip
    loss.set(ylabel="loss", title="A text that is too small is learned by heart")
    loss.legend(loc="lower left")
    width = 0.7 * seen["every"]
    counter.bar(at[:n], seen["counter"], width=width, color=ORANGE)
    counter.axhline(seen["patience"], color=GREY, ls="--", lw=1.2)
    counter.text(
        at[-1],
        seen["patience"] - 0.4,
        f"patience {seen['patience']}",
        color="#555555",
        ha="right",
        va="top",
    )
    counter.set(ylabel="counter", xlabel="update", ylim=(0, seen["patience"] + 1))
    return figure


def save(figure: Any, path: Path) -> None:
    """Write an SVG with the same bytes for the same data, and two decimals of a point."""
    figure.tight_layout()
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None})
    plt.close(figure)
    path.write_text(re.sub(r"(?<=[ML \"])(\d+\.\d\d)\d+", r"\1", written.getvalue()))
    print(path)
