"""Numbers by step as a line of rising characters, for a terminal."""

from __future__ import annotations

import math
import sys

BLOCKS, PLAIN = "▁▂▃▄▅▆▇█", "_.-:=+*#"  # eight heights; PLAIN for terminals without blocks


def curve_of(curve: dict[int, float], width: int, low: float, high: float, heights: str) -> str:
    """Mean losses of equal stretches of steps as characters of rising height."""
    width, end = min(width, len(curve)), max(curve)
    stretches: list[list[float]] = [[] for _ in range(width)]
    for step, loss in curve.items():
        stretches[min(max(step - 1, 0) * width // end, width - 1) if end else 0].append(loss)
    drawn = ""
    for losses in stretches:
        if not all(map(math.isfinite, losses)):
            drawn += "x"
        elif not losses:
            drawn += " "
        else:
            mean = sum(loss / len(losses) for loss in losses)  # no sum that overflows
            share = (mean / 2 - low / 2) / (high / 2 - low / 2) if high > low else 0
            drawn += heights[min(int(share * len(heights)), len(heights) - 1)]
    return drawn


def heights_to_show() -> str:
    """The heights that the terminal has."""
    return BLOCKS if can_show(BLOCKS) else PLAIN


def can_show(characters: str) -> bool:
    """Whether the terminal has all of these characters."""
    try:
        characters.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
