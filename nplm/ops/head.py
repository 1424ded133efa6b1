"""linear_cross_entropy: the last projection and its loss in one op.  Read linear.py and loss.py."""

from nplm.autograd.op import op
from nplm.ops.linear import linear
from nplm.ops.loss import cross_entropy


@op(needs=True)
def linear_cross_entropy(xp, x, weight, targets, ignore_index: int = -100, reduction: str = "mean"):
    """x (N, C), weight (V, C), targets (N,) in [0, V) or ignore_index -> () or (N,)

    cross_entropy(linear(x, weight), targets); as one op, so that a kernel may work through tiles of
    the vocabulary and never hold all logits.   Twins: torch.nn.functional.linear, cross_entropy
    """
    logits, through_linear = linear.raw(xp, x, weight)  # (N, V)
    loss, through_loss = cross_entropy.raw(xp, logits, targets, None, ignore_index, reduction)

    def backward(dy, needs):
        dlogits = through_loss(dy)[0]
        dx, dweight, _ = through_linear(dlogits, (needs[0], needs[1], False))
        return dx, dweight, None

    return loss, backward
