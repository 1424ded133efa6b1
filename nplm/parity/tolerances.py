"""Every tolerance of the tests, each with its reason, and the one helper that uses them."""

import math
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
MUON_RUN = Tolerance(
    0.0,
    0.25,
    "of an update's largest element: Muon lifts each singular value by up to 3.4 a round, and "
    "bfloat16's roundings with it. Two matrices 1e-6 apart give torch updates 4e-2 apart at full "
    "rank and 0.7 at a low one; runs lie between, nplm and torch up to 8e-2 apart",
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


# ---- the random stream ---------------------------------------------------------------------------
# torch's kernels for CPUs without AVX2 and AVX512 round x * a + b twice and call the C library for
# log, cos and sin. The angle's last bit and cancellation near zero make that up to 9 units in the
# last place of the largest number drawn (ATEN_CPU_CAPABILITY=default, 18 million normals).
OTHER_CPU_ULPS = 16

# ---- errors of ops and layers, three ways (three_way.py) -----------------------------------------
HALF_ULP = 2.0**-24  # float32: what rounding the true number once may cost, relative to it
FORMULA = FORMULA_64.rtol / 100  # float64, of the largest element: sums of 1e4 terms reorder 1e-13
RATIO = 2.0  # nplm's float32 error over torch's: torch's own variants differ by as much
STALE = 1.5  # an op below this needs no reason any more; between the two another CPU may decide
# Errors below this are equal: a number that is rounded once is off by some 0.5 (worst) and 0.29
# (typical) of HALF_ULP times two; whoever is luckier there is not better.
FLOOR = HALF_ULP / 2

# ---- budgets of whole runs (divergence.py) -------------------------------------------------------
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


@dataclass(frozen=True)
class Budget:
    """How far one element may be off: multiples of eps times a size, and of the learning rate.

    ulps     multiples of eps times the size of what was computed
    eps      of the run's dtype
    summed   the size is sqrt(terms) times that of one term (the largest element, where the size of
             a term is not known), plus the largest element; else it is the largest element
    lr_ulps  multiples of eps times the learning rate
    update   isolated runs: this fraction of a parameter's largest change (updates.py adds it)
    growth   free runs: from step 2 on both are this times step**2 as large ...
    cap      ... up to this fraction of the size
    any_dtype  Python numbers and arrays of another dtype may stand there
    """

    ulps: float
    eps: float
    reason: str
    summed: bool = False
    lr_ulps: float = 0.0
    growth: float = 0.0
    cap: float = math.inf
    any_dtype: bool = False
    update: float = 0.0

    def allowed(self, largest: float, terms: int, scale: float, lr: float, step: int) -> float:
        """The largest |actual - expected|, for the reference's largest element."""
        size = largest
        if self.summed:
            size += terms**0.5 * (scale or largest)
        return self.share(step) * size + min(self.lr_ulps * self._grown(step), self.cap) * lr

    def share(self, step: int) -> float:
        """Which fraction of the size of what was computed may be off."""
        return min(self.ulps * self._grown(step), self.cap)

    def _grown(self, step: int) -> float:
        return self.eps * (self.growth * step**2 if self.growth and step > 1 else 1.0)


# What was measured is the largest difference in the units of the budget, ulps: float32, 2 blocks,
# C 64, T 64, 4 x 64 tokens, 3 steps of 3 micro-batches, GPT-2's and Llama's settings. "torch" is
# how far its own variants differ (attention kernels, 1 or 2 threads, fused AdamW or a loop),
# "truth" how far torch is from itself in float64 on the same inputs.
_SUM = "a sum of terms that are rounded: eps sqrt(terms) times a term"
ISOLATED: dict[str, tuple[float, bool, float, str]] = {  # phase: ulps, summed, ulps of lr, reason
    "start": (4, False, 0, "copied, or drawn by both: float32 randn differs by 3 ulps"),
    "forward": (2, True, 0, f"{_SUM}; measured: torch 0.4, truth 0.5, nplm 0.4"),
    "loss": (2, True, 0, f"{_SUM}; measured: truth 0.1, nplm 0.2"),
    "backward": (2, True, 0, f"{_SUM}; measured: torch 0.3, truth 0.4, nplm 0.4"),
    "gradient": (16, True, 0, f"{_SUM}; measured: torch 5.5, truth 5.6, nplm 5.8: rows in a row"),
    "accumulated": (2, False, 0, "one addition rounds by half an ulp"),
    "norm": (8, False, 0, "a sum of squares; measured: truth 1.1, nplm 1.3"),
    "clipped": (8, False, 0, "the norm's error and a product; measured: truth 0.9, nplm 1.6"),
    "state": (8, False, 0, "some ten operations on equal gradients; measured: truth 0.8, nplm 3"),
    "parameter": (4, False, 32, "an update of some lr and an addition; measured: torch 1, nplm 2"),
    "average": (4, False, 0, "a weighted mean of two numbers"),
    "validation": (8, True, 0, f"{_SUM}, over a whole loader"),
    "stopper": (8, True, 0, "best: a validation loss"),
}
EXACT_PHASES = ("batch", "lr", "scheduler", "random")
_ANY_DTYPE = (*EXACT_PHASES, "loss", "norm", "validation", "stopper", "average")  # noted by loops
# Measured with C 16, 2 blocks, AdamW at lr 1e-2, random tokens; ulps at steps 1, 5, 20 and 60:
# torch's float32 against its float64 5, 1e2, 6e2, 1e6; nplm against torch in float32 3, 2e2, 1e3,
# 1e6; torch's fused AdamW on 2 threads against its loop 1, 6, 3e1, 2e5. Adam's first step divides
# each gradient by itself: from step 1 to step 2 a rounding grew by up to 400, and RMSprop with
# momentum moves ten lr at once: 1e5 at step 5. So float32 judges little after some 20 free steps:
# whole trajectories are claimed in float64, below a cap.
_DRIFT, _GROWTH = 32, 512.0
_DRIFT_REASON = "free run: 32 ulps of a sum's size; from step 2 on 16384 step**2 ulps, since Adam"
_DRIFT_REASON += " divides gradients by their own size; float64 at most 1e-9"
_CAP_64 = 1e-9  # of the size: float64 still proves a run of 200 steps


def budget_for(dtype: str, phase: str, mode: str, optimizer: str = "") -> Budget:
    """The budget of a phase of a run in `dtype` ("float64" ...), mode "isolated" or "free".

    optimizer: Muon's update is computed in bfloat16 whatever the dtype.
    """
    eps, any_dtype = EPS.get(dtype, EPS["float64"]), phase in _ANY_DTYPE
    if phase in EXACT_PHASES:
        return Budget(0, eps, "exact: no sums of tensors, so the same bits", any_dtype=True)
    ulps, summed, lr_ulps, reason = ISOLATED[phase]
    muon = optimizer == "Muon"
    if muon and mode == "free":  # from its first update on
        eps, dtype = max(eps, EPS["float32"]), "float32"
    if mode == "free" and phase != "start":
        reason, cap = _DRIFT_REASON, _CAP_64 if dtype == "float64" else math.inf
        lr_ulps = MUON_BFLOAT16.atol / eps if muon else _DRIFT
        return Budget(_DRIFT, eps, reason, True, lr_ulps, _GROWTH, cap, any_dtype)
    if muon and phase == "parameter":
        update, reason = MUON_RUN.atol, f"Muon: {MUON_RUN.reason}"
        return Budget(ulps, eps, reason, summed, lr_ulps, any_dtype=any_dtype, update=update)
    return Budget(ulps, eps, reason, summed, lr_ulps, any_dtype=any_dtype)


# The noise floor of a gradient in units of its budget at step 1: what never was above it is
# rounding alone. Measured: key biases, whose gradient is 0 but for rounding, reach 0.03.
NOISE_SHARE = 1 / 2


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
