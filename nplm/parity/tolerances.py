"""Every tolerance of the tests, each with its reason, and the one helper that uses them."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Tolerance:
    """|actual - expected| <= atol + rtol * |expected|, element by element."""

    rtol: float
    atol: float
    reason: str


EXACT = Tolerance(0.0, 0.0, "the same operations in the same order: the same bits")
FORMULA_64 = Tolerance(
    1e-10, 1e-10, "float64: the formula is proved; sums in another order differ by some 1e-13"
)
FINITE_DIFFERENCES = Tolerance(
    1e-6, 1e-8, "float64, central differences: truncation and rounding meet near 1e-9 of the value"
)
THEOREM_64 = Tolerance(
    1e-12, 1e-12, "float64: the same terms in another order of summation, relative to the tensor"
)
ROUNDING_32 = Tolerance(
    1e-6, 1e-7, "float32: two libraries round one elementary function a few last places apart"
)
KERNEL_32 = Tolerance(
    1e-4, 1e-5, "float32: a kernel adds up to a hundred terms near 1 in another order"
)
RUN_64 = Tolerance(
    1e-9, 1e-9, "float64: 60 updates let rounding grow; Adam divides by small second moments"
)
LISTING_64 = Tolerance(
    1e-11, 1e-11, "float64: a small model's weights and gradients near 1, after 60 to 600 updates"
)
OPTIMIZER_64 = Tolerance(
    1e-12,
    1e-12,
    "float64, of the largest value so far, 60 updates: torch fuses multiply-adds and takes MKL's "
    "square root (1 ulp off); without both the bits are equal, and a test shows it",
)
OPTIMIZER_32 = Tolerance(
    1e-4,
    1e-4,
    "float32, of the largest value so far, 60 updates: as OPTIMIZER_64, 2**29 times coarser",
)
LBFGS_64 = Tolerance(
    1e-9,
    1e-9,
    "float64, of the largest element or 1: a direction divides by differences of gradients, which "
    "lose digits as they shrink; the function is evaluated equally often",
)
MUON_BFLOAT16 = Tolerance(
    0.0,
    2e-2,
    "of the largest element: five rounds of bfloat16 (4e-3 each), where a sum in another order "
    "turns a rounding now and then; the rounding itself is torch's, bit for bit",
)
RUN_32 = Tolerance(
    0.0, 1e-5, "float32: a loss near 3 after a few updates, from equal weights and batches"
)
DRIFT_32 = Tolerance(
    1e-4,
    1e-4,
    "float32, 200 AdamW updates at lr 5e-3 (lr / 50): nplm and torch end some 5e-6 apart, torch's "
    "own float32 and float64 some 3e-5",
)
DRIFT_32_KEY_BIAS = Tolerance(
    0.0,
    1e-2,
    "float32, as DRIFT_32 (2 lr): attention ignores a shift of all keys, so this gradient is only "
    "rounding, and Adam makes whole steps of it; torch's float32 and float64 end 1e-3 apart",
)
ESTIMATE = Tolerance(
    0.1, 0.0, "bytes, estimated for a plan: it counts the large arrays and no small ones"
)


def to_numpy(value: Any) -> np.ndarray:
    """An nplm Tensor, a torch tensor, an array or a number as a NumPy array."""
    value = value.detach() if hasattr(value, "detach") else value
    return np.asarray(value)


def assert_close(actual: Any, expected: Any, tolerance: Tolerance, what: str = "value") -> None:
    """Same shape, same dtype, every element within the tolerance; NaN equals NaN."""
    a, e = to_numpy(actual), to_numpy(expected)
    assert a.shape == e.shape, f"{what}: shape {a.shape}, expected {e.shape}"
    assert a.dtype == e.dtype, f"{what}: dtype {a.dtype}, expected {e.dtype}"
    message = f"{what} ({tolerance.reason})"
    np.testing.assert_allclose(
        a, e, rtol=tolerance.rtol, atol=tolerance.atol, equal_nan=True, err_msg=message
    )


def assert_close_at_scale(
    actual: Any, expected: Any, tolerance: Tolerance, reach: float, what: str
) -> None:
    """As `assert_close`, in units of the largest expected element, or of `reach` if it is larger.

    `reach` is the largest value on the way: what ends near zero keeps the rounding it gathered.
    EXACT takes no units.
    """
    a, e = to_numpy(actual), to_numpy(expected)
    largest = max(float(np.abs(e).max(initial=1e-30)), reach)
    scale = e.dtype.type(1 if tolerance is EXACT else largest)
    assert_close(np.asarray(a / scale), np.asarray(e / scale), tolerance, what)
