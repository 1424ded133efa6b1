"""Dropout, with the mask handed in: who draws it decides about randomness, not the op."""

from nplm.autograd.op import op


def dropout_scale(xp, keep, x, p):
    """keep / (1 - p) in the dtype of `x`; zeros for p = 1."""
    return xp.astype(keep, x.dtype) / (1 - p) if p < 1 else xp.zeros(x.shape, x)


@op
def dropout(xp, x, keep, p: float):
    """y = x keep / (1 - p)   keep: booleans of the shape of x   Twin: torch.nn.functional.dropout

    (Srivastava et al., 2014) The division comes first, on the mask, as in torch's CPU code.
    """
    scale = dropout_scale(xp, keep, x, p)
    return x * scale, lambda dy: (dy * scale, None)
