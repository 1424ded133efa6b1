"""Reductions over any axes: `dim` is None (all), an int or a tuple of ints, as in torch."""

from nplm.autograd.op import op

Dim = int | tuple[int, ...] | None


def axes_of(name, dim, ndim):
    """`dim` as a sorted tuple of axes >= 0.  Raises IndexError or RuntimeError as torch does."""
    if dim is None or dim == ():
        return tuple(range(ndim))
    if isinstance(dim, int) and 0 <= dim < ndim:
        return (dim,)
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    bound = max(ndim, 1)  # a 0-d tensor takes the axes 0 and -1, as in torch
    for d in dims:
        if not -bound <= d < bound:
            raise IndexError(
                f"{name}: dimension out of range (expected to be in [{-bound}, {bound - 1}], "
                f"but got {d})"
            )
    axes = tuple(sorted(d % bound for d in dims))
    if len(set(axes)) < len(axes):
        raise RuntimeError(f"{name}: dim {dim} names an axis twice: expected each axis once")
    return axes if ndim else ()


def axis_of(name, dim, ndim):
    """One `dim` as an axis >= 0; 0 for a 0-d tensor, which the caller sees as one row."""
    return (*axes_of(name, int(dim), ndim), 0)[0]


def as_row(x):
    """`x`, or a 0-d `x` with one axis: torch lets it be gathered, cumulated and searched too."""
    return x if x.ndim else x.reshape((1,))


def kept(x, axes):
    """The shape of `x` with the axes reduced to 1: what `keepdim` gives, ready to broadcast."""
    return tuple(1 if i in axes else n for i, n in enumerate(x.shape))


def count(x, axes):
    """How many elements are reduced into one."""
    n = 1
    for axis in axes:
        n *= x.shape[axis]
    return n


def top_of(xp, x, axes):
    """The largest over `axes` (kept), or 0 where there is none: what an exponent is shifted by."""
    if count(x, axes) == 0:
        return xp.zeros(kept(x, axes), x)
    return xp.amax(x, axis=axes, keepdims=True)


@op
def sum(xp, x, dim: Dim = None, keepdim: bool = False):
    """y = sum of x over dim; integers add up as int64   Twin: torch.sum"""
    axes = axes_of("sum", dim, x.ndim)

    def backward(dy):
        return (xp.broadcast_to(dy.reshape(kept(x, axes)), x.shape),)

    return xp.sum(x, axis=axes, keepdims=keepdim), backward


@op
def mean(xp, x, dim: Dim = None, keepdim: bool = False):
    """y = sum of x over dim / n   Twin: torch.mean"""
    if not xp.is_floating(x):
        raise RuntimeError("mean: expected a floating tensor, got integers; use x.float().mean()")
    axes = axes_of("mean", dim, x.ndim)

    def backward(dy):
        return (xp.broadcast_to(dy.reshape(kept(x, axes)) / count(x, axes), x.shape),)

    return xp.mean(x, axis=axes, keepdims=keepdim), backward


@op
def amax(xp, x, dim: Dim = None, keepdim: bool = False):
    """The largest over dim; equal ones share the gradient.   Twin: torch.amax"""
    return _extreme(xp, x, xp.amax, axes_of("amax", dim, x.ndim), keepdim)


@op
def amin(xp, x, dim: Dim = None, keepdim: bool = False):
    """The smallest over dim; equal ones share the gradient.   Twin: torch.amin"""
    return _extreme(xp, x, xp.amin, axes_of("amin", dim, x.ndim), keepdim)


def _extreme(xp, x, best_of, axes, keepdim):
    best = best_of(x, axis=axes, keepdims=True)

    def backward(dy):
        hits = xp.astype(x == best, dy.dtype)
        share = hits / xp.sum(hits, axis=axes, keepdims=True)
        return (share * dy.reshape(kept(x, axes)),)

    return best if keepdim else best.reshape(_dropped(x, axes)), backward


def _dropped(x, axes):
    return tuple(n for i, n in enumerate(x.shape) if i not in axes)


def _extreme_along(xp, x, argbest, name, dim, keepdim):
    """(values, indices) of the first best element along one axis; only it gets the gradient."""
    if not isinstance(dim, int):
        raise TypeError(f"{name}: expected one axis for (values, indices), got {dim}; use a{name}")
    axis, row = axis_of(name, dim, x.ndim), as_row(x)
    indices = argbest(row, axis=axis, keepdims=True)
    values = xp.gather(row, indices, axis)
    shape = kept(x, (axis,)) if keepdim else _dropped(x, (axis,))

    def backward(dys):
        dvalues = dys[0].reshape(indices.shape)
        return (xp.scatter_add(row.shape, indices, dvalues, axis).reshape(x.shape),)

    return (values.reshape(shape), indices.reshape(shape)), backward


@op
def max_along(xp, x, dim: int, keepdim: bool = False):
    """(values, indices) of the largest along dim   Twin: torch.max(x, dim)"""
    return _extreme_along(xp, x, xp.argmax, "max", dim, keepdim)


@op
def min_along(xp, x, dim: int, keepdim: bool = False):
    """(values, indices) of the smallest along dim   Twin: torch.min(x, dim)"""
    return _extreme_along(xp, x, xp.argmin, "min", dim, keepdim)


@op
def var(xp, x, dim: Dim = None, correction: float = 1, keepdim: bool = False):
    """y = sum((x - mean)**2) / (n - correction)   Twin: torch.var"""
    axes = axes_of("var", dim, x.ndim)
    centred = x - xp.mean(x, axis=axes, keepdims=True)
    n = count(x, axes) - correction
    total = xp.sum(centred * centred, axis=axes, keepdims=keepdim)

    def backward(dy):
        return (centred * (dy.reshape(kept(x, axes)) * (2 / n if n else float("inf"))),)

    return total / n if n > 0 else total * float("inf"), backward  # too few: inf or NaN, as torch


@op
def logsumexp(xp, x, dim: Dim, keepdim: bool = False):
    """y = log(sum(exp(x))), without overflow   Twin: torch.logsumexp"""
    axes = axes_of("logsumexp", dim, x.ndim)
    top = xp.amax(x, axis=axes, keepdims=True) if count(x, axes) else xp.zeros(kept(x, axes), x)
    top = xp.where(xp.abs(top) < float("inf"), top, xp.zeros((), top))  # inf - inf is NaN
    y = xp.log(xp.sum(xp.exp(x - top), axis=axes, keepdims=True)) + top

    def backward(dy):
        return (xp.exp(x - y) * dy.reshape(kept(x, axes)),)

    return y if keepdim else y.reshape(_dropped(x, axes)), backward


@op
def norm(xp, x, dim: Dim = None, keepdim: bool = False):
    """y = sqrt(sum(x**2)), gradient 0 where y is 0   Twin: torch.linalg.vector_norm"""
    axes = axes_of("norm", dim, x.ndim)
    y = xp.sqrt(xp.sum(x * x, axis=axes, keepdims=True))

    def backward(dy):
        safe = xp.where(y == 0, xp.ones((), y), y)
        return (x / safe * dy.reshape(kept(x, axes)),)

    return y if keepdim else y.reshape(_dropped(x, axes)), backward


@op
def cumsum(xp, x, dim: int):
    """y[i] = x[0] + ... + x[i] along dim   Twin: torch.cumsum"""
    axis = axis_of("cumsum", dim, x.ndim)

    def backward(dy):  # x[i] is part of every y[j >= i]
        return (xp.flip(xp.cumsum(xp.flip(as_row(dy), axis), axis), axis).reshape(x.shape),)

    return xp.cumsum(as_row(x), axis).reshape(x.shape), backward


# ---- no gradient ---------------------------------------------------------------------------------
@op
def argmax(xp, x, dim: int | None = None, keepdim: bool = False):
    """The index of the largest (of all elements without dim)   Twin: torch.argmax"""
    return xp.argmax(x, axis=dim, keepdims=keepdim), None


@op
def argmin(xp, x, dim: int | None = None, keepdim: bool = False):
    """The index of the smallest (of all elements without dim)   Twin: torch.argmin"""
    return xp.argmin(x, axis=dim, keepdims=keepdim), None


@op
def any(xp, x, dim: Dim = None, keepdim: bool = False):
    """Whether one is nonzero.   Twin: torch.any"""
    return xp.any(x != 0, axis=axes_of("any", dim, x.ndim), keepdims=keepdim), None


@op
def all(xp, x, dim: Dim = None, keepdim: bool = False):
    """Whether none is zero.   Twin: torch.all"""
    return xp.all(x != 0, axis=axes_of("all", dim, x.ndim), keepdims=keepdim), None
