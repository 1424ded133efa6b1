"""Box and Muller's transform with torch's own roundings: fractions become normal numbers."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from nplm.random.rounding import F32, F64, fused_multiply_add

Array = npt.NDArray[Any]


def box_muller(block: Array, mean: float, std: float) -> Array:
    """Fractions (16 k,) -> normals (16 k,): of every 16, 8 give a radius and the other 8 an angle.

    float64 takes log, cos, sin from the C library.  float32 takes Cephes' polynomials, repeated
    here with every rounding (ATen/native/cpu/avx_mathfun.h, on 8 lanes): NumPy's own float32
    functions would differ from torch in one normal of seven, by up to 4 units in the last place.
    """
    pairs = block.reshape(-1, 2, 8)
    u, angle = 1 - pairs[:, 0], pairs[:, 1] * block.dtype.type(2.0 * math.pi)  # u in (0, 1]
    if block.dtype == F32:
        radius, (cos, sin) = np.sqrt(-2 * _log32(u)), _cos_sin32(angle)
    else:
        radius = np.sqrt(-2 * libm(math.log, u))
        cos, sin = libm(math.cos, angle), libm(math.sin, angle)
    return fused_multiply_add(np.stack([radius * cos, radius * sin], axis=1).reshape(-1), std, mean)


def libm(function: Callable[[float], float], x: Array) -> Array:
    """The C library's function, one number at a time: NumPy's can differ in the last bit."""
    return np.fromiter(map(function, x.reshape(-1).tolist()), F64, x.size).reshape(x.shape)


LOG = np.array(
    [7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
     -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1], F32
)  # fmt: skip
SQRT_HALF, LN2_HIGH, LN2_LOW = np.array([0.707106781186547524, 0.693359375, -2.12194440e-4], F32)
COS = np.array([2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2], F32)
SIN = np.array([-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1], F32)
EIGHTHS = np.float32(1.27323954473516)  # 4 / pi, and -pi / 4 in three parts of few bits:
PI_4 = np.array([-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8], F32)


def _log32(x: Array) -> Array:
    """log(x) for positive float32: x = 2**e (1 + m) with small m, then a polynomial in m."""
    m, e = np.frexp(x)
    low = m < SQRT_HALF
    m, e = np.where(low, m + m, m) - 1, (e - low).astype(F32)
    y = LOG[0]
    for coefficient in LOG[1:]:
        y = _fma32(y, m, coefficient)
    y = _fma32(y * m, m * m, e * LN2_LOW)
    return _fma32(e, LN2_HIGH, m + _fma32(m * m, -0.5, y))


def _cos_sin32(x: Array) -> tuple[Array, Array]:
    """cos(x), sin(x) for float32 in [0, 2 pi]: polynomials around the nearest k pi / 4, k even."""
    k = ((x * EIGHTHS).astype(np.int32) + 1) & ~1
    for part in PI_4:
        x = _fma32(k, part, x)
    z = x * x
    cos = _fma32(_fma32(COS[0], z, COS[1]), z, COS[2])
    sin = _fma32(_fma32(SIN[0], z, SIN[1]), z, SIN[2])
    cos, sin = _fma32(cos * z, z, z * -0.5) + 1, _fma32(sin * z, x, x)
    swap = (k & 2) != 0  # an odd number of quarter turns away
    cos, sin = np.where(swap, sin, cos), np.where(swap, cos, sin)
    return np.where((k + 2) & 4, -cos, cos), np.where(k & 4, -sin, sin)


def _fma32(x: Array, a: Array | float, b: Array | float) -> Array:
    """x * a + b in float32, by way of float64: two roundings, which almost always equal one."""
    return (np.multiply(x, a, dtype=F64) + b).astype(F32)


def pairs_of_normals(v: Array, u: Array) -> Array:
    """Fractions (n,), (n,) in float64 -> standard normals (2 n,), pair after pair."""
    radius, angle = np.sqrt(-2.0 * libm(math.log1p, -u)), 2.0 * math.pi * v
    pairs = radius * libm(math.cos, angle), radius * libm(math.sin, angle)
    return np.stack(pairs, axis=1).reshape(-1)
