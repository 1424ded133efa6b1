"""Faults of the loss, of accumulation, gradients' memory and clipping.  Read planting.py before."""

from nplm.parity.faults.of_models import LLAMA
from nplm.parity.faults.planting import Fault
from nplm.parity.trace import Place

_CROSS = "nplm.ops.loss.cross_entropy"
_ACCUMULATE = "nplm.train.accumulation.accumulate"
_CLIP, _CLIPS = "nplm.nn.utils.clip_grad_norm_", "nplm.nn.utils.clip_grads_with_norm_"
_TRAIN_STEP = "nplm.train.step.train_step"
_SUM, _DLOGITS = Place(1, 1, "loss", "sum"), Place(1, 1, "backward", "output")
_NORM, _CLIPPED = Place(1, 0, "norm", "total"), Place(1, 0, "clipped", "wte.weight")
_HARD = {"clip_norm": 0.01}  # far below the norm

LOSS = [
    Fault(
        "loss-mean-for-sum", "loss", "The loss is the mean over the targets where a sum is due.",
        "nplm.train.accumulation.summed_cross_entropy",
        (('reduction="sum"', 'reduction="mean"'),), _SUM,
    ),
    Fault(
        "ignored-targets-counted", "loss", "Ignored targets count, as class 0.",
        _CROSS,
        (("    N, V = logits.shape",
          "    N, V = logits.shape\n    counted, w = counted == counted, xp.ones((N,), logits)"),),
        _SUM, {"ignored": 0.4},
    ),
    Fault(
        "ignored-targets-in-backward", "loss",
        "The loss skips ignored targets, the gradient takes them for class 0.",
        _CROSS,
        (("hit = (d * w * (1 - label_smoothing)).reshape((N, 1))",
          "hit = (dy + xp.zeros((N,), logits)).reshape((N, 1))"),),
        _DLOGITS, {"ignored": 0.4},
    ),
    Fault(
        "labels-shifted", "loss", "Each row's loss is that of the class after its target.",
        _CROSS,
        (("    N, V = logits.shape",
          "    N, V = logits.shape\n    safe = (safe + 1) * (safe < V - 1)"),),
        _SUM,
    ),
    Fault(
        "loss-not-shifted", "loss",
        "The largest logit is not subtracted before exp, which overflows.",
        _CROSS, (("z = logits - xp.amax(logits, axis=1, keepdims=True)", "z = logits * 1.0"),),
        Place(2, 1, "loss", "sum"), {"lr": 3000.0, "optimizer": "SGD", "weight_decay": 0.0},
    ),
    Fault(
        "loss-gradient-without-target", "loss", "The gradient of the logits is p, not p - onehot.",
        _CROSS, (("p * hit + xp.scatter_add((N, V), safe, -hit, 1)", "p * hit"),), _DLOGITS,
    ),
    Fault(
        "loss-reported-of-last-micro-batch", "loss",
        "The loss of an update that is reported is that of its last micro-batch.",
        _ACCUMULATE, (("loss = loss + summed", "loss = summed"),), Place(1, 0, "loss", "window"),
    ),
    Fault(
        "float64-leak-in-loss", "loss", "A NumPy number makes a float32 run's gradient float64.",
        _CROSS, (("(1 - label_smoothing)).reshape((N, 1))",
                  "np.float64(1 - label_smoothing)).reshape((N, 1))"),),
        _DLOGITS, {"dtype": "float32"},
        numpy_only="A NumPy number does not make torch's float32 tensors grow.",
    ),
]  # fmt: skip

ACCUMULATION = [
    Fault(
        "accumulation-not-divided", "accumulation",
        "The gradients are sums: nothing divides them by the number of targets.",
        _ACCUMULATE, (("summed.backward(share", "summed.backward(1.0"),), _DLOGITS,
    ),
    Fault(
        "accumulation-divided-twice", "accumulation",
        "The gradients are divided by the targets of the window, and by its micro-batches.",
        _ACCUMULATE, (("summed.backward(share", "summed.backward(share / len(window)"),), _DLOGITS,
    ),
    Fault(
        "accumulation-divided-by-k", "accumulation",
        "The mean losses are divided by K, though the micro-batches have unequal targets.",
        _ACCUMULATE, (('1 / total if normalise == "token" else', ""),),
        _DLOGITS, {"rows": 3},
    ),
    Fault(
        "accumulation-by-token", "accumulation",
        "A run that asked for the mean of means divides by all targets.",
        _ACCUMULATE, ((' if normalise == "token" else 1 / (count * len(window))', ""),),
        _DLOGITS, {"rows": 3, "normalise": "microbatch"},
    ),
    Fault(
        "last-micro-batch-dropped", "accumulation",
        "The last micro-batch of a window adds no gradient.",
        _ACCUMULATE, (("zip(window, window.counts)", "zip(window[:-1], window.counts)"),),
        Place(1, 2, "forward", "wte.input"),
    ),
    Fault(
        "gradient-overwritten", "accumulation",
        "A micro-batch's gradient replaces the sum so far.",
        "nplm.autograd.tensor.Tensor.accumulate",
        (("self.grad.array += gradient", "self.grad.array[...] = gradient"),),
        Place(1, 2, "accumulated", "norm.weight"),
    ),
    Fault(
        "gradient-leaks-into-next-step", "accumulation", "zero_grad does nothing.",
        "nplm.optim.optimizer.Optimizer.zero_grad", (("if set_to_none:", "continue\n            if"
                                                      " set_to_none:"),),
        Place(2, 1, "accumulated", "norm.weight"),
    ),
    Fault(
        "stale-gradient-buffer", "accumulation",
        "A new gradient is not written where it is 0, so rows of absent tokens keep the old one.",
        "nplm.nn.module.Parameter._own_copy",
        (("self._buffer[...] = gradient",
          "self._buffer[...] = self.xp.where(gradient == 0, self._buffer, gradient)"),),
        Place(2, 1, "accumulated", "wte.weight"), LLAMA,
    ),
]  # fmt: skip

CLIPPING = [
    Fault(
        "clip-without-eps", "clipping", "The factor lacks torch's 1e-6 in its denominator.",
        _CLIPS, (("1.0 / (total_norm + 1e-6)", "1.0 / total_norm"),), _CLIPPED, _HARD,
    ),
    Fault(
        "clip-each-parameter", "clipping", "Each gradient is clipped by its own norm.",
        _CLIPS, (("scale_(here, [factor.to(device)])",
                  "[g.mul_((1.0 / (g.norm() + 1e-6) * max_norm).clamp(max=1.0)) for g in here]"),),
        _CLIPPED, _HARD,
    ),
    Fault(
        "clip-after-the-step", "clipping", "The optimizer steps first, then gradients are clipped.",
        _TRAIN_STEP,
        (("clip_grad_norm_(trained, math.inf if clip_norm is None else clip_norm)",
          "clip_grad_norm_(trained, math.inf)"),
         ("optimizer.step()", "optimizer.step()\n        clip_grad_norm_(trained, clip_norm)")),
        _CLIPPED, _HARD,
    ),
    Fault(
        "clip-when-below", "clipping", "Gradients below the limit are scaled up to it.",
        _CLIPS, ((".clamp(max=1.0)", ""),), _CLIPPED, {"clip_norm": 100.0},
    ),
    Fault(
        "clip-forgets-a-group", "clipping",
        "Only the first parameter group takes part in the norm.",
        _TRAIN_STEP, (("in optimizer.param_groups for p", "in optimizer.param_groups[:1] for p"),),
        _NORM, _HARD,
    ),
    Fault(
        "norm-of-order-1", "clipping", "The norm is the sum of the absolute values.",
        _CLIP, (("_gradients(given), norm_type,", "_gradients(given), 1.0,"),), _NORM,
    ),
    Fault(
        "norms-added", "clipping", "The parameters' norms are added, not their squares.",
        "nplm.nn.utils.total_norm_",
        (("_norm(xp, xp.concat(norms, 0), order)", "_norm(xp, xp.concat(norms, 0), 1.0)"),), _NORM,
    ),
    Fault(
        "norm-after-clipping", "clipping", "The norm that is reported is that of what was clipped.",
        _CLIP, (("return total", "return get_total_norm(_gradients(given), norm_type)"),),
        _NORM, _HARD,
    ),
]  # fmt: skip
