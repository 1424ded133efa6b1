"""The NumPy namespace: the functions of `contract.py` on `numpy.ndarray`.

`attention.raw(xp, ...)` with this module as `xp` runs an op without Tensors or a graph.
"""

from __future__ import annotations

import builtins
from contextlib import nullcontext
from contextvars import ContextVar
from typing import Any

import numpy as np

from nplm.backend.dtypes import FLOATING, SUPPORTED, get_default_dtype, result_dtype, supported
from nplm.errors import BackendError

Array = np.ndarray
name = "numpy"


# ---- arrays in and out: for Tensor and for updates, not for ops ----------------------------------
def asarray(value: Any, dtype: Any = None, device: str = "cpu") -> Array:
    """`value` as an array of this namespace; shares memory when it can."""
    if device != "cpu":
        raise BackendError(f"device '{device}' is not NumPy's: expected 'cpu'")
    array = np.asarray(value)
    return array.astype(supported(dtype or array.dtype), copy=False)


def to_numpy(x: Array) -> np.ndarray:
    """`x` itself: the array that a checkpoint or a plot wants."""
    return x


def copy(x: Array) -> Array:
    """A contiguous copy."""
    return np.array(x, order="C")


def dtype_of(x: Array) -> np.dtype[Any]:
    """The dtype, as NumPy names it on every backend."""
    return x.dtype if x.dtype in SUPPORTED else supported(x.dtype)  # which raises


def device_of(x: Array) -> str:
    """`"cpu"`: NumPy has no other."""
    return "cpu"


# Travels with NumPy's own errstate, which is a context variable too: into tasks of threads.run.
_is_quiet: ContextVar[bool] = ContextVar("is_quiet", default=False)
_as_it_is = nullcontext()


class _Quiet(np.errstate):
    """NumPy's silence, and the knowledge of it, so that ops inside need not ask for it again."""

    def __enter__(self) -> None:
        super().__enter__()
        self.token = _is_quiet.set(True)

    def __exit__(self, *error: Any) -> None:
        _is_quiet.reset(self.token)
        super().__exit__(*error)


def quiet() -> Any:
    """Infinities and NaN pass in silence, as in torch; whoever trains checks the loss.

    Inside of itself it costs nothing, and leaves an errstate that somebody has set there alone.
    """
    return _as_it_is if _is_quiet.get() else _Quiet(all="ignore")


# ---- making arrays -------------------------------------------------------------------------------
def zeros(shape, like, dtype=None):
    return np.zeros(shape, dtype or like.dtype)


def ones(shape, like, dtype=None):
    return np.ones(shape, dtype or like.dtype)


def full(shape, value, like, dtype=None):
    return np.full(shape, value, dtype or like.dtype)


# ---- dtypes --------------------------------------------------------------------------------------
def astype(x, dtype):
    return x.astype(dtype, copy=False)


def is_floating(x):
    return x.dtype in FLOATING


def promote(*operands):
    dtypes = [x.dtype for x in operands if hasattr(x, "dtype")]
    alike = len(set(dtypes)) == 1
    if alike and (len(dtypes) == len(operands) or dtypes[0] in FLOATING):
        return operands  # Python numbers beside floats change nothing
    dtype = result_dtype(
        *((x.dtype, x.ndim) if hasattr(x, "dtype") else (type(x), 0) for x in operands)
    )
    return tuple(x.astype(dtype, copy=False) if hasattr(x, "dtype") else x for x in operands)


def to_float(x):
    return x if x.dtype in FLOATING else x.astype(get_default_dtype())


# ---- elementwise ---------------------------------------------------------------------------------
exp, log, sqrt, tanh, sin, cos = np.exp, np.log, np.sqrt, np.tanh, np.sin, np.cos
abs, sign, maximum, minimum, where, isnan = (
    np.abs, np.sign, np.maximum, np.minimum, np.where, np.isnan,
)  # fmt: skip


def sigmoid(x):
    e = np.exp(-np.abs(x))  # in (0, 1]: neither branch overflows
    return np.where(x >= 0, 1, e) / (1 + e)


# exp(z**2) * erfc(z) * (1 + 2z) as a polynomial in (z - 3.75) / (z + 3.75), z >= 0 (the variable of
# Shepherd and Laframboise, 1981): a Chebyshev fit in 50 digits. The error of erf is 4e-16 in
# float64 with 24 terms, and the rounding of float32, 2.4e-7, with 12.
_ERFC_64 = (
    1.2375126308378275, -0.14024059858554697, 0.0035854154854790543, 0.0822767384901452,
    -0.10880393014244463, 0.09230432116037748, -0.058693398576649354, 0.0283622774189564,
    -0.009746579683265262, 0.0017556258528952956, 0.00029371437804495806, -0.0002901540805408412,
    5.164652974177368e-05, 2.238423915508079e-05, -1.1438048033345931e-05, -9.735598967341858e-07,
    1.741982158621271e-06, -5.721823060625309e-08, -2.4857126247922523e-07, 2.3263508711078052e-08,
    3.197926671625482e-08, -3.7442100818861635e-09, -2.623107347055426e-09, 3.11143338264937e-10,
)  # fmt: skip
_ERFC_32 = (
    1.2375126192677, -0.14024065832138644, 0.003586270394024621, 0.0822784199834705,
    -0.10881427014905072, 0.09229076959130376, -0.0586468587355461, 0.02840925236412726,
    -0.009844494859674958, 0.0016759122179811315, 0.0003963076129893627, -0.00022411674674416022,
)  # fmt: skip


_TILE = 1 << 14  # elements worked on at a time: the dozen temporaries stay in the cache


def erf(x):
    y = np.empty(x.shape, x.dtype)
    flat_x, flat_y = x.reshape(-1), y.reshape(-1)
    for start in range(0, flat_x.size, _TILE):
        flat_y[start : start + _TILE] = _erf_of_a_tile(flat_x[start : start + _TILE])
    return y


def _erf_of_a_tile(x):
    coefficients = _ERFC_32 if x.dtype == np.float32 else _ERFC_64
    z = np.minimum(np.abs(x), 30.0)  # erfc(30) is 0 in float64; keeps infinity out of the quotient
    t = (z - 3.75) / (z + 3.75)
    tail = t * coefficients[-1] + coefficients[-2]
    for c in coefficients[-3::-1]:
        tail *= t
        tail += c
    tail *= np.exp(-z * z)
    tail /= 1 + 2 * z
    return np.copysign(1 - tail, x)


# ---- reductions ----------------------------------------------------------------------------------
def _wide(x):
    """Integers and booleans are added up as int64: NumPy alone would make uint64 of uint8."""
    return None if x.dtype in FLOATING else np.int64


def sum(x, axis=None, keepdims=False):
    return np.sum(x, axis=axis, dtype=_wide(x), keepdims=keepdims)


def mean(x, axis=None, keepdims=False):
    total = np.sum(x, axis=axis, keepdims=keepdims)
    return total / (x.size // builtins.max(total.size, 1))  # np.mean warns where 0 / 0 is NaN


def cumsum(x, axis):
    return np.cumsum(x, axis, _wide(x))


any, all = np.any, np.all
amax, amin, argmax, argmin = np.max, np.min, np.argmax, np.argmin


# ---- products and shape --------------------------------------------------------------------------
matmul = np.matmul
transpose, swapaxes, broadcast_to = np.transpose, np.swapaxes, np.broadcast_to
concat, flip, tril, triu = np.concatenate, np.flip, np.tril, np.triu


# ---- indexing ------------------------------------------------------------------------------------
def _basic_and_advanced(x, key):
    """Split an index in two: integers, slices and None first, then arrays, as torch does.

    NumPy treats an integer beside an array as an array too, which moves axes; torch does not.
    """
    key = list(key) if isinstance(key, tuple) else [key]
    key = [np.asarray(k) if isinstance(k, list) else k for k in key]
    key = [
        int(k) if isinstance(k, np.ndarray) and not k.ndim and k.dtype != bool else k for k in key
    ]
    arrays = [isinstance(k, np.ndarray) for k in key]
    if True not in arrays:
        return (*key, Ellipsis) if Ellipsis not in key else tuple(
            key
        ), None  # a view, never a number
    used = [0 if k is None else k.ndim if a and k.dtype == bool else 1 for k, a in zip(key, arrays)]
    if Ellipsis not in [k for k, a in zip(key, arrays) if not a]:
        key, arrays, used = [*key, Ellipsis], [*arrays, False], [*used, 0]
    dots = next(i for i, k in enumerate(key) if k is Ellipsis)
    used[dots] = 0
    missing = x.ndim - np.add.reduce(used)
    key[dots : dots + 1] = [slice(None)] * missing
    arrays[dots : dots + 1] = [False] * missing
    used[dots : dots + 1] = [1] * missing
    basic, advanced = [], []
    for k, is_array, n in zip(key, arrays, used):
        basic += [slice(None)] * n if is_array else [k]
        if is_array:
            advanced.append(k)
        elif not isinstance(k, int | np.integer):
            advanced.append(slice(None))
    return tuple(basic), tuple(advanced)


def getitem(x, key):
    basic, advanced = _basic_and_advanced(x, key)
    return x[basic] if advanced is None else x[basic][advanced]


def assign(x, key, values):
    """x[key] = values, for `Tensor.__setitem__`: not an op's business."""
    basic, advanced = _basic_and_advanced(x, key)
    if advanced is None:
        x[basic] = values
    else:
        x[basic][advanced] = values


def add_at(shape, key, values):
    out = np.zeros(shape, values.dtype)
    basic, advanced = _basic_and_advanced(out, key)
    if advanced is None:
        out[basic] = values
    else:
        np.add.at(out[basic], advanced, values)
    return out


def _along(index, axis):
    """The full index that makes `index` count along `axis` and every other axis count itself."""
    key = list(np.ogrid[tuple(slice(n) for n in index.shape)])
    key[axis] = index
    return tuple(key)


def gather(x, index, axis):
    return x[_along(index, axis)]


def scatter_add(shape, index, values, axis):
    out = np.zeros(shape, values.dtype)
    np.add.at(out, _along(index, axis), values)
    return out


def take_rows(table, ids):
    return table[ids]


def sum_rows(values, ids, n):
    out = np.zeros((n, values.shape[1]), values.dtype)
    add_rows(out, values, ids)
    return out


def add_rows(out, values, ids):
    """out[ids[i]] += values[i], repeats counted: for sums of gradients, not an op's business."""
    order = np.argsort(ids, kind="stable")  # equal ids stand together, in their own order
    ids = ids[order]
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]])[: len(ids)])
    if len(starts):
        out[ids[starts]] += np.add.reduceat(values[order], starts, axis=0)
