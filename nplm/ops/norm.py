"""Normalisation of rows: layer_norm and rms_norm.  Read autograd/op.py and ops/linear.py before."""

from nplm.autograd.op import op


def _check(name, x, weight, bias=None):
    for what, v in (("weight", weight), ("bias", bias)):
        if v is not None and (
            v.ndim > x.ndim or tuple(v.shape) != tuple(x.shape[x.ndim - v.ndim :])
        ):
            raise RuntimeError(
                f"{name}: expected a {what} of shape {tuple(x.shape[-1:])} for inputs "
                f"{tuple(x.shape)}, got {tuple(v.shape)}"
            )


@op
def layer_norm(xp, x, weight=None, bias=None, n_axes: int = 1, eps: float = 1e-5):
    """Rows (the last `n_axes` axes) to mean 0 and variance 1.   x (..., C), weight, bias (C,)

    y = (x - mean) / sqrt(var + eps) * weight + bias   var over C, not C - 1
    dx = (dn - mean(dn) - n mean(dn n)) / sqrt(var + eps) with n the normalised row, dn = dy weight
    (Ba, Kiros and Hinton, 2016)   Twin: torch.nn.functional.layer_norm
    """
    _check("layer_norm", x, weight, bias)
    row, rows = tuple(range(x.ndim - n_axes, x.ndim)), tuple(range(x.ndim - n_axes))
    centred = x - xp.mean(x, axis=row, keepdims=True)
    inv = 1 / xp.sqrt(xp.mean(centred * centred, axis=row, keepdims=True) + eps)  # (..., 1)
    n = centred * inv
    y = n if weight is None else n * weight
    y = y if bias is None else y + bias

    def backward(dy):
        dn = dy if weight is None else dy * weight
        mean_dn = xp.mean(dn, axis=row, keepdims=True)
        dx = inv * (dn - mean_dn - n * xp.mean(dn * n, axis=row, keepdims=True))
        dweight = None if weight is None else xp.sum(dy * n, axis=rows)
        dbias = None if bias is None else xp.sum(dy, axis=rows)
        return dx, dweight, dbias

    return y, backward


@op
def rms_norm(xp, x, weight=None, n_axes: int = 1, eps: float = 1e-6):
    """Rows (the last `n_axes` axes) to root mean square 1.   x (..., C), weight (C,) -> (..., C)

    y = x / sqrt(mean(x**2) + eps) * weight
    dx = (dn - n mean(dn n)) / sqrt(mean(x**2) + eps) with n the normalised row, dn = dy weight
    (Zhang and Sennrich, 2019)   Twin: torch.nn.functional.rms_norm
    """
    _check("rms_norm", x, weight)
    row, rows = tuple(range(x.ndim - n_axes, x.ndim)), tuple(range(x.ndim - n_axes))
    inv = 1 / xp.sqrt(xp.mean(x * x, axis=row, keepdims=True) + eps)  # (..., 1)
    n = x * inv

    def backward(dy):
        dn = dy if weight is None else dy * weight
        dx = inv * (dn - n * xp.mean(dn * n, axis=row, keepdims=True))
        dweight = None if weight is None else xp.sum(dy * n, axis=rows)
        return dx, dweight

    return n if weight is None else n * weight, backward
