"""Arithmetic that rounds once where NumPy would round twice: torch's fused multiply-add."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)


def fused_multiply_add(x: Array, a: float, b: float) -> Array:
    """x * a + b rounded once, torch's fused instruction (unless x * a comes near underflow).

    Boldo and Melquiond, "Emulation of FMA and correctly rounded sums" (2008).
    """
    if b == 0:
        return np.asarray(x * x.dtype.type(a) + x.dtype.type(b))
    a64, b64 = np.array(a, F64), np.array(b, F64)
    if x.dtype == F32:  # products of float32 are exact in float64
        return _sum_to_odd(x * a64, b64).astype(F32)
    product = x * a64
    (x1, x2), (a1, a2) = _halves(x), _halves(a64)
    product_error = x2 * a2 - (((product - x1 * a1) - x2 * a1) - x1 * a2)
    low, low_error = _two_sum(b64, product_error)
    high, high_error = _two_sum(product, low)
    return high + _sum_to_odd(low_error, high_error)


def _halves(x: Array) -> tuple[Array, Array]:
    """x in two parts of 26 bits, whose products are exact (Veltkamp)."""
    high = x * (2.0**27 + 1) - (x * (2.0**27 + 1) - x)
    return high, x - high


def _two_sum(x: Array, y: Array) -> tuple[Array, Array]:
    """The rounded sum, and exactly what the rounding took (Knuth)."""
    total = x + y
    y_in_total = total - x
    return total, (x - (total - y_in_total)) + (y - y_in_total)


def _sum_to_odd(x: Array, y: Array) -> Array:
    """x + y, but inexact sums end in bit 1: then rounding again gives what rounding once gives."""
    total, error = _two_sum(x, y)
    bits = total.view(np.int64)
    outwards = np.where((error > 0) == (total > 0), 1, -1)  # away from zero, or towards it
    bits += np.where((error != 0) & (bits & 1 == 0), outwards, 0)
    return total
