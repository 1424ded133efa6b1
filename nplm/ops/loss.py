"""Losses: cross entropy over logits, nll_loss over log-probabilities, mse_loss."""

from nplm.autograd.op import op
from nplm.ops.elementwise import unbroadcast


def _reduce(xp, losses, norm, reduction):
    """ "none": as they are; "sum"; "mean": the sum divided by `norm`."""
    if reduction == "none":
        return losses
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction: expected 'none', 'sum' or 'mean', got {reduction!r}")
    total = xp.sum(losses)
    return total if reduction == "sum" else total / norm


def _targets(xp, name, x, targets, weight, ignore_index):
    """(counted (N,) booleans, safe targets (N, 1), class weight of each row (N,), their sum)."""
    if x.ndim != 2 or tuple(targets.shape) != (x.shape[0],) or xp.is_floating(targets):
        raise ValueError(
            f"{name}: expected inputs (N, V) and integer targets (N,), got {tuple(x.shape)} and "
            f"{tuple(targets.shape)} {targets.dtype}"
        )
    if weight is not None and tuple(weight.shape) != (x.shape[1],):
        raise RuntimeError(
            f"{name}: expected a class weight of shape {(x.shape[1],)}, got {tuple(weight.shape)}"
        )
    counted = targets != ignore_index
    safe = xp.where(counted, targets, xp.zeros((), targets))  # an ignored row points at class 0
    w = xp.astype(counted, x.dtype)
    if weight is not None:
        w = w * xp.take_rows(xp.astype(weight, x.dtype), safe)
    return counted, safe.reshape((-1, 1)), w, xp.sum(w)


def _to_rows(xp, dy, counted):
    """The gradient of every row's loss (N,): 0 for ignored rows, even where `dy` is 1 / 0."""
    return xp.where(counted, dy, xp.zeros((), dy))


@op
def cross_entropy(xp, logits, targets, weight=None, ignore_index: int = -100,
                  reduction: str = "mean", label_smoothing: float = 0.0):  # fmt: skip
    """logits (N, V), targets (N,) in [0, V) or ignore_index, weight (V,) or None -> () or (N,)

    loss_i = -w[t] log p[t], p = softmax(logits); "mean" divides by the sum of w[t], not by N.
    Smoothing e: (1 - e) of that plus e/V of the same summed over all classes.
    dlogits_i = w[t] (p - onehot(t)) dy, without smoothing
    Twin: torch.nn.functional.cross_entropy
    """
    counted, safe, w, norm = _targets(xp, "cross_entropy", logits, targets, weight, ignore_index)
    N, V = logits.shape
    z = logits - xp.amax(logits, axis=1, keepdims=True)
    logp = z - xp.log(xp.sum(xp.exp(z), axis=1, keepdims=True))  # (N, V)
    losses = -xp.gather(logp, safe, 1).reshape((N,)) * w
    losses = xp.where(counted, losses, xp.zeros((), losses))  # -inf * 0 would be NaN
    share = label_smoothing / V
    if label_smoothing:
        each = logp if weight is None else logp * weight
        smooth = xp.where(counted, -xp.sum(each, axis=1), xp.zeros((), logp))
        losses = (1 - label_smoothing) * losses + share * smooth

    def backward(dy):
        d = _to_rows(xp, dy / norm if reduction == "mean" else dy, counted)  # (N,)
        hit = (d * w * (1 - label_smoothing)).reshape((N, 1))
        p = xp.exp(logp)
        dlogits = p * hit + xp.scatter_add((N, V), safe, -hit, 1)
        if label_smoothing:
            classes = xp.ones((V,), logp) if weight is None else weight
            d = d.reshape((N, 1)) * share
            dlogits = dlogits + d * (p * xp.sum(classes) - classes)
        return dlogits, None, None

    return _reduce(xp, losses, norm, reduction), backward


@op
def nll_loss(xp, logp, targets, weight=None, ignore_index: int = -100, reduction: str = "mean"):
    """logp (N, V), targets (N,) in [0, V) or ignore_index -> () or (N,)

    loss_i = -w[t] logp[t]; "mean" divides by the sum of w[t].   Twin: torch.nn.functional.nll_loss
    """
    counted, safe, w, norm = _targets(xp, "nll_loss", logp, targets, weight, ignore_index)
    losses = -xp.gather(logp, safe, 1).reshape(w.shape) * w
    losses = xp.where(counted, losses, xp.zeros((), losses))

    def backward(dy):
        d = -w * _to_rows(xp, dy / norm if reduction == "mean" else dy, counted)  # (N,)
        return xp.scatter_add(logp.shape, safe, d.reshape((w.shape[0], 1)), 1), None, None

    return _reduce(xp, losses, norm, reduction), backward


@op
def mse_loss(xp, x, y, reduction: str = "mean"):
    """loss = (x - y)**2; x and y broadcast.   Twin: torch.nn.functional.mse_loss"""
    a, b = xp.promote(x, y)
    diff = a - b
    n = 1
    for size in diff.shape:
        n *= size

    def backward(dy):
        d = 2 * diff * (dy / n if reduction == "mean" else dy)
        return unbroadcast(xp, d, x), unbroadcast(xp, -d, y)

    return _reduce(xp, diff * diff, n, reduction), backward
