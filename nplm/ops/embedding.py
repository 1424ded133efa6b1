"""Embedding: rows of a table, picked by token."""

import math

from nplm.autograd.op import op


@op(needs=True)
def embedding(xp, ids, weight, padding_idx: int | None = None):
    """ids (...) integers in [0, V), weight (V, C) -> (..., C)

    y = weight[ids]   dweight[v] = sum of dy over the places where ids is v; the row of
    `padding_idx` gets none.   Twin: torch.nn.functional.embedding
    """
    if xp.is_floating(ids):
        raise TypeError(f"embedding: expected integer ids, got {ids.dtype}; use ids.long()")
    V, C = weight.shape

    def backward(dy, needs):
        if not needs[1]:
            return None, None
        dweight = xp.sum_rows(dy.reshape((math.prod(ids.shape), C)), ids.reshape((-1,)), V)
        if padding_idx is not None:
            dweight[padding_idx] = 0.0
        return None, dweight

    return xp.take_rows(weight, ids), backward
