"""How many terms the sums behind a value have, and how large one is: from shapes and sizes alone.

A sum of n rounded terms of size s is off by about eps sqrt(n) s; tolerances.py budgets that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nplm.parity.trace import Place


@dataclass
class Seen:
    """An activation that was recorded in this micro-batch.

    place           of its forward entry
    backward_terms  of the sums that its gradient is made of
    size            of its columns, as `column_size` measures it
    layer           the module without children that made it, or None
    given           what went into that module
    gradient_size   of one term of its gradient, where a sum is known to cancel; else 0
    """

    place: Place
    backward_terms: int
    size: float = 0.0
    layer: Any = None
    given: Seen | None = None
    gradient_size: float = 0.0


def of_axes(shape: tuple[int, ...]) -> int:
    """For code that is not known: the lengths of all axes but the first, (B, T, C) -> T + C."""
    return max(1, sum(shape[1:]))


def forward_terms(layer: Any, shape: tuple[int, ...]) -> int:
    """Terms behind one output, of `shape`, of a module without children."""
    if sizes := getattr(layer, "normalized_shape", None):
        return math.prod(sizes)
    if features := getattr(layer, "in_features", None):
        return int(features)
    if hasattr(layer, "num_embeddings") or hasattr(layer, "p"):  # rows are copied; dropout scales
        return 1
    weight = getattr(layer, "weight", None)
    return math.prod(weight.shape[1:]) if weight is not None else of_axes(shape)


def backward_terms(layer: Any, shape: tuple[int, ...]) -> int:
    """Terms behind one element of the gradient of an input, of `shape`, of such a module."""
    if sizes := getattr(layer, "normalized_shape", None):
        return math.prod(sizes)
    if features := getattr(layer, "out_features", None):
        return int(features)
    if hasattr(layer, "p"):
        return 1
    weight = getattr(layer, "weight", None)
    if weight is None or len(weight.shape) < 2:
        return of_axes(shape)
    return int(weight.shape[0] * math.prod(weight.shape[2:]))  # a convolution


def gradient_terms(layer: Any, parameter: Any, n_inputs: int, n_outputs: int) -> int:
    """Terms behind one element of a parameter's gradient: rows of the batch, B T for a Linear."""
    if hasattr(layer, "num_embeddings"):
        return max(1, n_inputs)  # at most: every token the same
    shape = tuple(parameter.shape)
    normalized = tuple(getattr(layer, "normalized_shape", ()))
    per_row = math.prod(normalized) if normalized else shape[0] if shape else 1
    return max(1, n_outputs // max(1, per_row))


def column_size(array: np.ndarray) -> float:
    """The largest root mean square of a column: all axes but the last are rows.  (..., C) -> ()"""
    if array.size == 0 or array.dtype.kind != "f":
        return 0.0
    columns = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
    squares = np.einsum("rc,rc->c", columns, columns, dtype=np.float64) / len(columns)
    return float(np.sqrt(squares.max()))


def gradient_term_size(layer: Any, name: str, dy: np.ndarray, given: Seen | None) -> float:
    """How large one term of a parameter's gradient is, or 0 where that is not known.

    dy  gradient of the layer's output (..., out). A Linear's weight sums dy x, its bias and what a
    norm or an embedding has sum dy (times numbers near 1).
    """
    if not any(hasattr(layer, a) for a in ("in_features", "normalized_shape", "num_embeddings")):
        return 0.0
    is_product = hasattr(layer, "in_features") and name == "weight"
    return column_size(dy) * (given.size if is_product and given else 1.0)


def output_size(layer: Any, weight: np.ndarray | None, x: np.ndarray) -> float:
    """How large one term of a Linear's output is.  x (..., in), weight (out, in)"""
    if not hasattr(layer, "in_features") or weight is None:
        return 0.0
    return column_size(_turned(x)) * column_size(_turned(weight))


def input_gradient_size(
    layer: Any, weight: np.ndarray | None, x: np.ndarray, dy: np.ndarray
) -> float:
    """How large one term of the gradient of a layer's input is: it may be a sum that cancels.

    A Linear sums dy weight. A norm's terms are |dy| |weight| / deviation, and cancel where dy
    points along the row: with two channels they always do.
    """
    if hasattr(layer, "in_features") and weight is not None:
        return column_size(_turned(dy)) * column_size(weight)
    if not hasattr(layer, "normalized_shape") or dy.size == 0:
        return 0.0
    axes = tuple(range(-len(layer.normalized_shape), 0))
    rows = x.astype(np.float64)
    if type(layer).__name__ == "LayerNorm":
        rows = rows - rows.mean(axes, keepdims=True)
    eps = layer.eps if layer.eps is not None else float(np.finfo(x.dtype).eps)
    deviation = np.sqrt((rows**2).mean(axes, keepdims=True) + eps)
    largest = 1.0 if weight is None else float(np.abs(weight).max(initial=0.0))
    return float((np.abs(dy).astype(np.float64) / deviation).max(initial=0.0)) * largest


def if_larger(size: float, array: np.ndarray) -> float:
    """`size` where it is larger than every element, as after a sum that cancels; else 0."""
    return size if size > np.abs(array).max(initial=0) else 0.0


def _turned(array: np.ndarray) -> np.ndarray:
    """(..., n) -> (n, rows), so that column_size measures rows."""
    return array.reshape(-1, array.shape[-1]).T if array.ndim else array
