"""The chart of docs/benchmarks.md: nplm's time and peak memory, divided by torch's."""

from pathlib import Path
from typing import Any

from benchmarks.strategy_figures import BLUE, GREEN, GREY, ORANGE, plt, save


def draw(held: dict[str, Any], path: Path) -> None:
    """A group of bars a configuration; the line is torch itself."""
    shown = [
        r for r in held.values()
        if r["subject"] == "step" and "torch" in r["engines"] and r["config"] != "block"
    ]  # fmt: skip
    if not shown:
        return
    figure, axis = plt.subplots(figsize=(9, 3.6))
    bars = (
        ("time / torch", BLUE, lambda e: e["torch"]["ratio"]["median"]),
        ("time / torch.compile", GREEN,
         lambda e: e["torch.compile"]["ratio"]["median"] if "torch.compile" in e else 0.0),
        ("memory / torch", ORANGE, lambda e: e["torch"]["peak_ratio"]),
    )  # fmt: skip
    for k, (label, color, value) in enumerate(bars):
        at = [i + 0.26 * (k - 1) for i in range(len(shown))]
        values = [value(r["engines"]) for r in shown]
        drawn = axis.bar(at, values, width=0.24, color=color, label=label)
        axis.bar_label(drawn, [f"{v:.2f}" if v else "" for v in values], fontsize=8)
    axis.axhline(1.0, color=GREY, lw=1.2, ls="--")
    names = [f"{r['config']}, {r['threads']} thr." for r in shown]
    axis.set_xticks(range(len(shown)), names)
    axis.set(title="nplm divided by torch: below 1 it is faster, or smaller", ylabel="ratio")
    axis.grid(visible=False, axis="x")
    axis.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)
