"""Elementwise ops: arithmetic with broadcasting, functions of one number, comparisons, where.

Read autograd/op.py before. `unbroadcast` is the adjoint of broadcasting; every file here uses it.
"""

from nplm.autograd.op import op


def unbroadcast(xp, dx, x):
    """Sum `dx` over the axes along which `x` was broadcast, in the dtype of `x`."""
    if not hasattr(x, "shape") or not xp.is_floating(x):
        return None  # a Python number or an integer array: it has no gradient
    extra = dx.ndim - len(x.shape)
    axes = tuple(range(extra)) + tuple(
        extra + i for i, n in enumerate(x.shape) if n == 1 and dx.shape[extra + i] != 1
    )
    if axes:
        dx = xp.sum(dx, axis=axes, keepdims=True).reshape(tuple(x.shape))
    return xp.astype(dx, x.dtype)


# ---- arithmetic: x, y broadcast to z -------------------------------------------------------------
@op
def add(xp, x, y):
    """z = x + y   Twin: torch.add"""
    a, b = xp.promote(x, y)
    if (
        getattr(x, "shape", 0) == getattr(y, "shape", 1)
        and x.dtype == y.dtype
        and xp.is_floating(x)
    ):
        return a + b, lambda dz: (dz, dz)  # a residual connection: x and y are not kept for it

    def backward(dz):
        return unbroadcast(xp, dz, x), unbroadcast(xp, dz, y)

    return a + b, backward


@op
def sub(xp, x, y):
    """z = x - y   Twin: torch.sub"""
    a, b = xp.promote(x, y)

    def backward(dz):
        return unbroadcast(xp, dz, x), unbroadcast(xp, -dz, y)

    return a - b, backward


@op
def mul(xp, x, y):
    """z = x * y   Twin: torch.mul"""
    a, b = xp.promote(x, y)

    def backward(dz):
        return unbroadcast(xp, dz * b, x), unbroadcast(xp, dz * a, y)

    return a * b, backward


@op
def div(xp, x, y):
    """z = x / y, true division   Twin: torch.div"""
    a, b = (xp.to_float(v) if hasattr(v, "dtype") else v for v in xp.promote(x, y))
    z = a / b

    def backward(dz):
        dx = dz / b
        return unbroadcast(xp, dx, x), unbroadcast(xp, -dx * z, y)

    return z, backward


def _power(xp, x, n):
    """x ** n; small integers by multiplication, as torch (and 200 times faster in NumPy)."""
    if not hasattr(n, "dtype"):
        if n == 2:
            return x * x
        if n == 3:
            return x * x * x
        if n == 0.5:
            return xp.sqrt(x)
    return x**n


@op
def pow(xp, x, y):
    """z = x ** y   dx = y x**(y-1) dz,  dy = z log(x) dz (0 where x is 0)   Twin: torch.pow"""
    a, b = xp.promote(x, y)
    z = _power(xp, a, b)

    def backward(dz):
        dx = dy = None
        if hasattr(x, "dtype"):
            if hasattr(b, "dtype"):
                dx = unbroadcast(xp, xp.where(b == 0, 0.0, dz * b * a ** (b - 1)), x)
            else:
                dx = dz * b * _power(xp, a, b - 1) if b != 0 else xp.zeros(dz.shape, dz)
        if hasattr(y, "dtype"):
            base = a if hasattr(a, "dtype") else xp.full((), a, b)
            zero = (base == 0) & (b >= 0)
            dy = unbroadcast(xp, xp.where(zero, 0.0, dz * z * xp.log(base)), y)
        return dx, dy

    return z, backward


@op
def neg(xp, x):
    """y = -x   Twin: torch.neg"""
    return -x, lambda dy: (-dy,)


@op
def maximum(xp, x, y):
    """The larger of two; equal ones share the gradient.   Twin: torch.maximum"""
    a, b = xp.promote(x, y)
    return xp.maximum(a, b), _chosen(xp, x, y, a > b, a == b)


@op
def minimum(xp, x, y):
    """The smaller of two; equal ones share the gradient.   Twin: torch.minimum"""
    a, b = xp.promote(x, y)
    return xp.minimum(a, b), _chosen(xp, x, y, a < b, a == b)


def _chosen(xp, x, y, first, equal):
    """The backward of a choice: all to x where it came first, half to each where they are equal."""

    def backward(dz):
        dx = dz * (xp.astype(first, dz.dtype) + 0.5 * xp.astype(equal, dz.dtype))
        return unbroadcast(xp, dx, x), unbroadcast(xp, dz - dx, y)

    return backward


@op
def clamp(xp, x, min: float | None = None, max: float | None = None):
    """y = x held in [min, max]; the gradient passes inside, ends included.   Twin: torch.clamp"""
    if min is None and max is None:
        raise ValueError("clamp: expected min or max, got neither; give at least one of them")
    low, x = (None, x) if min is None else xp.promote(min, x)  # integers in [0.5, ..] are floats
    high, x = (None, x) if max is None else xp.promote(max, x)
    y = x if min is None else xp.maximum(x, low)
    y = y if max is None else xp.minimum(y, high)

    def backward(dy):
        inside = xp.ones(x.shape, dy)
        if min is not None:
            inside = inside * xp.astype(x >= min, dy.dtype)
        if max is not None:
            inside = inside * xp.astype(x <= max, dy.dtype)
        return (dy * inside,)

    return y, backward


# ---- functions of one number ---------------------------------------------------------------------
@op
def exp(xp, x):
    """y = e**x   Twin: torch.exp"""
    y = xp.exp(xp.to_float(x))
    return y, lambda dy: (dy * y,)


@op
def log(xp, x):
    """y = ln x   Twin: torch.log"""
    return xp.log(xp.to_float(x)), lambda dy: (dy / x,)


@op
def sqrt(xp, x):
    """y = sqrt(x)   Twin: torch.sqrt"""
    y = xp.sqrt(xp.to_float(x))
    return y, lambda dy: (dy / (2 * y),)


@op
def rsqrt(xp, x):
    """y = 1 / sqrt(x)   Twin: torch.rsqrt"""
    y = 1 / xp.sqrt(xp.to_float(x))
    return y, lambda dy: (dy * (-0.5 * y * y * y),)


@op
def tanh(xp, x):
    """y = tanh x   Twin: torch.tanh"""
    y = xp.tanh(xp.to_float(x))
    return y, lambda dy: (dy * (1 - y * y),)


@op
def sigmoid(xp, x):
    """y = 1 / (1 + e**-x)   Twin: torch.sigmoid"""
    y = xp.sigmoid(xp.to_float(x))
    return y, lambda dy: (dy * y * (1 - y),)


@op
def sin(xp, x):
    """y = sin x   Twin: torch.sin"""
    return xp.sin(xp.to_float(x)), lambda dy: (dy * xp.cos(x),)


@op
def cos(xp, x):
    """y = cos x   Twin: torch.cos"""
    return xp.cos(xp.to_float(x)), lambda dy: (-dy * xp.sin(x),)


@op
def erf(xp, x):
    """y = 2/sqrt(pi) times the integral of e**(-t*t) from 0 to x   Twin: torch.erf"""
    two_over_sqrt_pi = 1.1283791670955126
    return xp.erf(xp.to_float(x)), lambda dy: (dy * (two_over_sqrt_pi * xp.exp(-x * x)),)


@op
def abs(xp, x):
    """y = |x|, gradient 0 at 0   Twin: torch.abs"""
    return xp.abs(x), lambda dy: (dy * xp.sign(x),)


@op
def sign(xp, x):
    """-1, 0 or 1; the gradient is 0 everywhere.   Twin: torch.sign"""
    return xp.sign(x), lambda dy: (xp.zeros(x.shape, dy),)


@op
def cast(xp, x, dtype: object):
    """x in another dtype; the gradient comes back in the dtype of x.   Twin: torch.Tensor.to"""
    return xp.astype(x, dtype), lambda dy: (unbroadcast(xp, dy, x),)


# ---- choosing ------------------------------------------------------------------------------------
@op
def where(xp, condition, x, y):
    """x where the condition holds, else y; all three broadcast.   Twin: torch.where"""
    a, b = xp.promote(x, y)

    def backward(dz):
        zero = xp.zeros((), dz)
        return (
            None,
            unbroadcast(xp, xp.where(condition, dz, zero), x),
            unbroadcast(xp, xp.where(condition, zero, dz), y),
        )

    return xp.where(condition, a, b), backward


# ---- comparisons and logic: no gradient ----------------------------------------------------------
@op
def eq(xp, x, y):
    """x == y   Twin: torch.eq"""
    a, b = xp.promote(x, y)
    return a == b, None


@op
def ne(xp, x, y):
    """x != y   Twin: torch.ne"""
    a, b = xp.promote(x, y)
    return a != b, None


@op
def lt(xp, x, y):
    """x < y   Twin: torch.lt"""
    a, b = xp.promote(x, y)
    return a < b, None


@op
def le(xp, x, y):
    """x <= y   Twin: torch.le"""
    a, b = xp.promote(x, y)
    return a <= b, None


@op
def gt(xp, x, y):
    """x > y   Twin: torch.gt"""
    a, b = xp.promote(x, y)
    return a > b, None


@op
def ge(xp, x, y):
    """x >= y   Twin: torch.ge"""
    a, b = xp.promote(x, y)
    return a >= b, None


@op
def logical_and(xp, x, y):
    """Both are nonzero.   Twin: torch.logical_and"""
    return (x != 0) & (y != 0), None


@op
def logical_or(xp, x, y):
    """At least one is nonzero.   Twin: torch.logical_or"""
    return (x != 0) | (y != 0), None


@op
def logical_not(xp, x):
    """It is zero.   Twin: torch.logical_not"""
    return x == 0, None


@op
def isnan(xp, x):
    """It is not a number.   Twin: torch.isnan"""
    return xp.isnan(x), None


@op
def isfinite(xp, x):
    """It is neither infinite nor NaN.   Twin: torch.isfinite"""
    return xp.abs(x) < float("inf"), None


@op
def isinf(xp, x):
    """It is infinite.   Twin: torch.isinf"""
    return xp.abs(x) == float("inf"), None
