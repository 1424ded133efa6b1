"""Faults of the optimizers and their groups.  Read planting.py before."""

from nplm.parity.faults.planting import Fault
from nplm.parity.trace import Place

_ADAM = "nplm.optim.adam.adam_update"
_SGD = "nplm.optim.sgd.sgd_update"
_MOVED = Place(1, 0, "parameter", "wte.weight")
_MEAN = Place(1, 0, "state", "wte.weight.exp_avg")


def _with(optimizer: str, **options: object) -> dict[str, object]:
    """Without a decay that is added to the gradient: where the two cancel, what is divided by its
    own size is rounding, and each engine has its own."""
    return {"optimizer": optimizer, "options": options, "weight_decay": 0.0}


_MOMENTUM = _with("SGD", momentum=0.9, dampening=0.5)

ADAM = [
    Fault(
        "adam-mean-not-corrected", "optimizers", "The mean is not divided by 1 - beta1^t.",
        _ADAM, (("1 - beta1 ** steps[i]", "1.0"),), _MOVED,
    ),
    Fault(
        "adam-square-not-corrected", "optimizers", "The mean square is not divided by 1 - beta2^t.",
        _ADAM, (("1 - beta2 ** steps[i]", "1.0"),), _MOVED,
    ),
    Fault(
        "adam-corrects-a-step-ahead", "optimizers", "The corrections count one step too many.",
        _ADAM, (("1 - beta1 ** steps[i]", "1 - beta1 ** (steps[i] + 1)"),
                ("1 - beta2 ** steps[i]", "1 - beta2 ** (steps[i] + 1)")),
        _MOVED,
    ),
    Fault(
        "adam-step-counted-twice", "optimizers", "The count of updates rises by two a step.",
        "nplm.optim.optimizer.Optimizer.lists", (('["step"].array += 1', '["step"].array += 2'),),
        Place(1, 0, "state", "wte.weight.step"),
    ),
    Fault(
        "adam-eps-inside-root", "optimizers", "eps is added to the mean square, not to its root.",
        _ADAM, (("(xp.sqrt(v) / bias2**0.5 + eps)", "xp.sqrt(v / bias2 + eps)"),), _MOVED,
    ),
    Fault(
        "adam-eps-before-correction", "optimizers",
        "eps is added before the correction, which makes it larger: TensorFlow's \"epsilon hat\".",
        _ADAM, (("(xp.sqrt(v) / bias2**0.5 + eps)", "((xp.sqrt(v) + eps) / bias2**0.5)"),), _MOVED,
    ),
    Fault(
        "adam-betas-exchanged", "optimizers", "The mean is taken with beta2.",
        _ADAM, (("lerp(xp, m, g, 1 - beta1)", "lerp(xp, m, g, 1 - beta2)"),), _MEAN,
    ),
    Fault(
        "adam-square-of-mean", "optimizers", "The mean square is that of the means.",
        _ADAM, (("(1 - beta2) * g * g", "(1 - beta2) * m * m"),),
        Place(1, 0, "state", "wte.weight.exp_avg_sq"),
    ),
    Fault(
        "amsgrad-forgets-the-largest", "optimizers",
        "AMSGrad divides by the present mean square, not by the largest so far.",
        _ADAM, (("xp.maximum(v_max, v)", "v"),),
        Place(2, 0, "state", "wte.weight.max_exp_avg_sq"),
        _with("AdamW", amsgrad=True, betas=(0.9, 0.1)),
    ),
    Fault(
        "decay-coupled", "optimizers", "AdamW adds the decay to the gradient, as Adam does.",
        _ADAM, (("if weight_decay != 0 and decoupled_weight_decay:", "if False:"),), _MEAN,
    ),
    Fault(
        "decay-decoupled", "optimizers", "Adam takes the decay from the parameter, as AdamW does.",
        _ADAM, (("weight_decay != 0 and decoupled_weight_decay", "weight_decay != 0"),),
        _MEAN, {"optimizer": "Adam"},
    ),
    Fault(
        "decay-after-the-update", "optimizers", "The parameter shrinks after it was moved.",
        _ADAM,
        (("p *= 1 - lr * weight_decay", "pass"),
         ("/ bias2**0.5 + eps)", "/ bias2**0.5 + eps)\n        p *= 1 - lr * weight_decay")),
        _MOVED,
    ),
    Fault(
        "decay-without-lr", "optimizers", "The decay is not multiplied by the learning rate.",
        _ADAM, (("p *= 1 - lr * weight_decay", "p *= 1 - weight_decay"),), _MOVED,
    ),
    Fault(
        "decay-on-vectors", "optimizers", "Biases and norms decay too.",
        "nplm.optim.groups._by_axes", (('"weight_decay": 0.0', '"weight_decay": weight_decay'),),
        Place(1, 0, "parameter", "blocks.0.norm1.weight"),
    ),
    Fault(
        "adam-state-in-float64", "optimizers", "A float32 run keeps its means in float64.",
        "nplm.optim.flat.entries_like",
        (("value, p.array)", 'value, p.array, "float64")'),),
        _MEAN, {"dtype": "float32"},
    ),
    Fault(
        "layer-rates-upside-down", "optimizers", "The lowest layer has the highest rate.",
        "nplm.optim.groups.layer_groups", (("lr * decay ** (top - layer)", "lr * decay**layer"),),
        Place(1, 0, "lr", "lr.0"), {"groups": "layers"},
    ),
]  # fmt: skip

OTHERS = [
    Fault(
        "sgd-first-gradient-damped", "optimizers", "Dampening is applied to the first gradient.",
        _SGD, (("b[...] = g", "b[...] = (1 - dampening) * g"),),
        Place(1, 0, "state", "wte.weight.momentum_buffer"), _MOMENTUM,
    ),
    Fault(
        "sgd-without-dampening", "optimizers", "Dampening is ignored.",
        _SGD, (("b += (1 - dampening) * g", "b += g"),),
        Place(2, 0, "state", "wte.weight.momentum_buffer"), _MOMENTUM,
    ),
    Fault(
        "sgd-nesterov-ignored", "optimizers", "Nesterov momentum is plain momentum.",
        _SGD, (("g + momentum * b if nesterov else b", "b"),),
        _MOVED, _with("SGD", momentum=0.9, nesterov=True),
    ),
    Fault(
        "state-is-the-gradient", "memory",
        "The momentum shares memory with the gradient, which the next backward overwrites.",
        "nplm.optim.sgd.SGD.update_group",
        (('["momentum_buffer"] = entry', '["momentum_buffer"] = Tensor(p.grad.array)'),),
        Place(2, 0, "state", "wte.weight.momentum_buffer"), _with("SGD", momentum=0.9),
    ),
    Fault(
        "rmsprop-eps-inside-root", "optimizers", "eps is added to the variance, not to its root.",
        "nplm.optim.rmsprop.rmsprop_update",
        (("xp.sqrt(variance) + eps", "xp.sqrt(variance + eps)"),),
        _MOVED, _with("RMSprop", alpha=0.9),
    ),
    Fault(
        "rmsprop-not-centred", "optimizers", "The square of the mean is not subtracted.",
        "nplm.optim.rmsprop.rmsprop_update",
        (("v - grad_avgs[i] * grad_avgs[i]", "v"),),
        _MOVED, _with("RMSprop", centered=True, alpha=0.9),
    ),
    Fault(
        "adagrad-start-lost", "optimizers",
        "The sums of squares begin with 0, not with what was asked for.",
        "nplm.optim.adagrad.Adagrad.__init__",
        (("p.xp.full(p.shape, initial_accumulator_value,", "p.xp.full(p.shape, 0.0,"),),
        Place(0, 0, "start", "wte.weight.sum"),
        _with("Adagrad", initial_accumulator_value=0.1),
    ),
    Fault(
        "adagrad-rate-a-step-ahead", "optimizers", "lr_decay counts the present step.",
        "nplm.optim.adagrad.adagrad_update", (("(t - 1) * lr_decay", "t * lr_decay"),),
        _MOVED, _with("Adagrad", lr_decay=0.1),
    ),
    Fault(
        "adadelta-eps-outside", "optimizers", "eps is added to both roots, not inside of them.",
        "nplm.optim.adadelta.adadelta_update",
        (("xp.sqrt(a + eps) / xp.sqrt(v + eps)", "(xp.sqrt(a) + eps) / (xp.sqrt(v) + eps)"),),
        Place(1, 0, "state", "wte.weight.acc_delta"), _with("Adadelta"),
    ),
    Fault(
        "adamax-not-corrected", "optimizers", "The mean is not divided by 1 - beta1^t.",
        "nplm.optim.adamax.adamax_update", (("(lr / (1 - beta1**t))", "lr"),),
        _MOVED, _with("Adamax"),
    ),
    Fault(
        "nadam-without-next-momentum", "optimizers",
        "The mean is moved along with this step's momentum, not with the next one's.",
        "nplm.optim.nadam.nadam_update",
        (("-lr * next_mus[i] / (1.0 - mu_products[i] * next_mus[i])",
          "-lr * mus[i] / (1.0 - mu_products[i])"),),
        _MOVED, _with("NAdam"),
    ),
    Fault(
        "radam-rectified-too-early", "optimizers",
        "The rectified update begins at r > 4, a step before it should.",
        "nplm.optim.radam.radam_update", (("if r > 5.0:", "if r > 4.0:"),),
        Place(5, 0, "parameter", "wte.weight"), {**_with("RAdam"), "steps": 5},
    ),
    Fault(
        "rprop-keeps-a-turned-gradient", "optimizers",
        "A gradient whose sign turned is remembered, so the next step shrinks again.",
        "nplm.optim.rprop.rprop_update",
        (("g = xp.where(product < 0, 0.0, g)", "pass"),),
        Place(2, 0, "state", "wte.weight.prev"), _with("Rprop"),
    ),
    Fault(
        "asgd-decay-left-out", "optimizers", "lambd does not shrink the parameters.",
        "nplm.optim.asgd.asgd_update", (("p *= 1 - lambd * eta", "pass"),),
        Place(1, 0, "state", "wte.weight.ax"), _with("ASGD", lambd=0.1),
    ),
    Fault(
        "adafactor-not-relative", "optimizers",
        "The step is not scaled by the size of the parameter.",
        "nplm.optim.adafactor.adafactor_update",
        (("xp.maximum(rms(p), eps2) * min", "min"),),
        _MOVED, _with("Adafactor"),
    ),
    Fault(
        "muon-without-shape", "optimizers",
        "The update of a tall matrix lacks the root of rows / columns.",
        "nplm.optim.muon.muon_update",
        (("math.sqrt(max(1, rows / columns)) if columns else 1.0", "1.0"),),
        Place(1, 0, "parameter", "blocks.0.attn.qkv.weight"), _with("Muon"),
    ),
]  # fmt: skip
