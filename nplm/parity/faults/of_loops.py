"""Faults of schedules, averages, validation, early stopping, dropout, random streams, resuming.

Read planting.py before.
"""

from nplm.parity.faults.planting import Fault
from nplm.parity.trace import Place

_FIT, _EVALUATE = "nplm.train.loop.fit", "nplm.train.loop.evaluate"
_BASE = "nplm.optim.lr_scheduler.base.LRScheduler."
_FACTORS = "nplm.optim.lr_scheduler.factors."
_SWA = "nplm.optim.swa_utils."
_STOPPING = "nplm.train.early_stopping.EarlyStopping."
_DROPOUT, _F_DROPOUT = "nplm.ops.dropout.dropout", "nplm.nn.functional.dropout"
_OPTIMIZER = "nplm.optim.optimizer.Optimizer."
_LR = "lr.0"


def _steps(step_size: int, **more: object) -> dict[str, object]:
    return {
        "schedule": "StepLR",
        "schedule_options": {"step_size": step_size, "gamma": 0.5},
        **more,
    }


_WARM_UP = {"schedule": "LinearLR", "schedule_options": {"start_factor": 0.25, "total_iters": 2}}
_COSINE = {"schedule": "CosineAnnealingLR", "schedule_options": {"T_max": 4}}
_ONE_CYCLE = {"schedule": "OneCycleLR", "schedule_options": {"max_lr": 0.01, "total_steps": 8}}
_PLATEAU = {  # on which no loss improves
    "schedule": "ReduceLROnPlateau", "eval_every": 1, "schedule_options": {
        "patience": 1, "factor": 0.5, "threshold": 100.0, "threshold_mode": "abs"},
}  # fmt: skip
_BY_EPOCH = _steps(1, schedule_unit="epoch", rows=8, steps=3)  # two updates an epoch
# Every step and every validation sees all the text, so the loss falls from one to the next.
_FALLS = {"lr": 0.003, "eval_every": 1, "steps": 2, "patience": 5, "accumulate": 5, "ignored": 0.0}
# Nothing moves, so every validation after the first is a tie.
_STILL = {"lr": 0.0, "eval_every": 1, "steps": 3, "patience": 2}
# Two validations of weights that hardly moved, then learning begins.
_LATE = {
    "lr": 1e-30, "schedule": "StepLR", "schedule_options": {"step_size": 2, "gamma": 3e27},
    "eval_every": 1, "steps": 3, "patience": 3, "accumulate": 5, "ignored": 0.0,
}  # fmt: skip
_DROPS = {"model": {"dropout": 0.2}}
_VALIDATED = {"eval_every": 1, "patience": 3}
_FIRST_DROP = Place(1, 1, "forward", "dropout")
_SCHEDULED = Place(1, 0, "scheduler", _LR)

SCHEDULES = [
    Fault(
        "scheduler-before-optimizer", "schedules",
        "The scheduler steps before the optimizer, so the first rate is never used.",
        _FIT,
        (("record = train_step(", "scheduler.step()\n            record = train_step("),
         ("if scheduler is not None and moves:", "if False:")),
        Place(1, 0, "lr", _LR), _steps(1),
    ),
    Fault(
        "scheduler-a-step-late", "schedules", "The scheduler does not move at the first update.",
        _FIT, (("is not None and moves:", "is not None and moves and step > 1:"),),
        _SCHEDULED, _steps(1),
    ),
    Fault(
        "scheduler-by-update-for-epoch", "schedules",
        "A schedule of epochs moves at every update.",
        _FIT, (('moves = ended if scheduler_unit == "epoch" else', "moves ="),),
        _SCHEDULED, _BY_EPOCH,
    ),
    Fault(
        "scheduler-counts-epoch-twice", "schedules", "A schedule of epochs moves twice at the end.",
        _FIT, (("scheduler.step()", "scheduler.step()\n                scheduler.step()"),),
        Place(2, 0, "scheduler", _LR), _BY_EPOCH,
    ),
    Fault(
        "scheduler-moves-one-group", "schedules", "Only the first group gets its new rate.",
        f"{_BASE}_write_lrs", (("self.optimizer.param_groups, lrs, strict=True",
                                "self.optimizer.param_groups[:1], lrs"),),
        Place(1, 0, "scheduler", "lr.1"), _steps(1),
    ),
    Fault(
        "step-size-off-by-one", "schedules", "The rate falls one step too early.",
        f"{_FACTORS}StepLR.get_lr",
        (("self.last_epoch % self.step_size", "(self.last_epoch + 1) % self.step_size"),),
        _SCHEDULED, _steps(2),
    ),
    Fault(
        "warm-up-off-by-one", "schedules", "The warm-up ends one step before its rate is reached.",
        f"{_FACTORS}LinearLR.get_lr",
        (("self.last_epoch > self.total_iters", "self.last_epoch >= self.total_iters"),),
        Place(2, 0, "scheduler", _LR), _WARM_UP,
    ),
    Fault(
        "cosine-over-one-step-more", "schedules", "Half the cosine takes T_max + 1 steps.",
        "nplm.optim.lr_scheduler.cosine.CosineAnnealingLR._one_plus_cos",
        (("epoch / self.T_max", "epoch / (self.T_max + 1)"),), _SCHEDULED, _COSINE,
    ),
    Fault(
        "momentum-not-cycled", "schedules", "One cycle moves the rate and leaves the momentum.",
        "nplm.optim.lr_scheduler.cycles.OneCycleLR.get_lr",
        (("if self.cycle_momentum:", "if self.cycle_momentum and step == 0:"),),
        Place(2, 0, "lr", "betas.0"), _ONE_CYCLE,
    ),
    Fault(
        "plateau-patience-off-by-one", "schedules", "The rate falls one bad validation too early.",
        "nplm.optim.lr_scheduler.plateau.ReduceLROnPlateau.step",
        (("> self.patience", ">= self.patience"),), Place(2, 0, "scheduler", _LR), _PLATEAU,
    ),
]  # fmt: skip

AVERAGES = [
    Fault(
        "ema-decay-exchanged", "averages", "The average keeps 1 - decay of itself.",
        f"{_SWA}get_ema_multi_avg_fn", (("(old, new, 1 - decay)", "(old, new, decay)"),),
        Place(2, 0, "average", "wte.weight"), {"average": "ema"},
    ),
    Fault(
        "swa-count-off-by-one", "averages", "The mean divides by one model too many.",
        f"{_SWA}get_swa_avg_fn", (("(n_averaged + 1)", "(n_averaged + 2)"),),
        Place(2, 0, "average", "wte.weight"), {"average": "swa"},
    ),
    Fault(
        "average-begins-with-old-weights", "averages",
        "The first update is averaged with the initial weights, where it should be copied.",
        f"{_SWA}AveragedModel._update", (("if int(self.n_averaged) == 0:", "if False:"),),
        Place(1, 0, "average", "wte.weight"), {"average": "ema"},
    ),
    Fault(
        "average-is-the-model", "memory",
        "The average shares memory with the model, so it is never older.",
        f"{_SWA}AveragedModel.__init__", (("deepcopy(model)", "model"),),
        Place(2, 0, "average", "wte.weight"), {"average": "ema"},
    ),
]  # fmt: skip

VALIDATION = [
    Fault(
        "validation-in-train-mode", "validation", "The validation runs with dropout.",
        _EVALUATE, (("    model.eval()\n", ""),),
        Place(1, 0, "validation", "loss"), {**_VALIDATED, **_DROPS},
    ),
    Fault(
        "validation-parts-left-in-eval", "validation",
        "After a validation only the model itself is in training mode, its parts are not.",
        _EVALUATE, (("model.train(training)", "model.training = training"),),
        Place(2, 1, "forward", "dropout"), {**_VALIDATED, **_DROPS},
    ),
    Fault(
        "validation-mean-of-means", "validation",
        "The validation loss is the mean of the batches' means, which have unequal targets.",
        _EVALUATE,
        ((".sum(dtype=np.float64))", ".sum(dtype=np.float64)) / batch.n_targets()"),
         ("n_targets += batch.n_targets()", "n_targets += 1")),
        Place(1, 0, "validation", "loss"), _VALIDATED,
    ),
    Fault(
        "validation-draws", "validation",
        "Dropout draws its mask in evaluation too, and does not use it.",
        _F_DROPOUT,
        (("if not training or p == 0:", "if not training:\n        dropout_mask(input, p)\n"
                                        "    if not training or p == 0:"),),
        Place(1, 0, "random", "random"), {**_VALIDATED, **_DROPS},
    ),
]  # fmt: skip

STOPPING = [
    Fault(
        "stopper-tie-improves", "early stopping", "A loss equal to the best is an improvement.",
        f"{_STOPPING}_judge", (("loss < self.best_val_loss", "loss <= self.best_val_loss"),),
        Place(2, 0, "stopper", "counter"), _STILL,
    ),
    Fault(
        "stopper-delta-sign", "early stopping", "A loss may be worse by delta and still improve.",
        f"{_STOPPING}_judge", (("- self.delta", "+ self.delta"),),
        Place(2, 0, "stopper", "counter"), {**_STILL, "delta": 0.1},
    ),
    Fault(
        "stopper-delta-ignored", "early stopping", "Any smaller loss is an improvement.",
        f"{_STOPPING}_judge", ((" - self.delta", ""),),
        Place(2, 0, "stopper", "counter"), {**_FALLS, "delta": 10.0},
    ),
    Fault(
        "stopper-patience-off-by-one", "early stopping", "It stops one validation late.",
        f"{_STOPPING}_judge", (("counter >= self.patience", "counter > self.patience"),),
        Place(3, 0, "stopper", "stop"), _STILL,
    ),
    Fault(
        "stopper-counter-not-reset", "early stopping", "An improvement does not reset the counter.",
        f"{_STOPPING}_judge", (("Verdict(loss, 0, keep=True)",
                                "Verdict(loss, self.counter, keep=True)"),),
        Place(3, 0, "stopper", "counter"), _LATE,
    ),
    Fault(
        "stopper-compares-with-the-last", "early stopping",
        "A loss is compared with the one before it, not with the best.",
        f"{_STOPPING}_judge", (("return Verdict(self.best_val_loss, counter, stop",
                                "return Verdict(loss, counter, stop"),),
        Place(2, 0, "stopper", "best"), {**_FALLS, "delta": 10.0},
    ),
]  # fmt: skip

RANDOM = [
    Fault(
        "dropout-not-scaled", "dropout", "What dropout keeps is not divided by 1 - p.",
        _DROPOUT, (("dropout_scale(xp, keep, x, p)", "xp.astype(keep, x.dtype)"),),
        _FIRST_DROP, _DROPS,
    ),
    Fault(
        "dropout-mask-inverted", "dropout", "Dropout keeps what it should drop.",
        _DROPOUT, (("dropout_scale(xp, keep,", "dropout_scale(xp, keep == 0,"),),
        _FIRST_DROP, _DROPS,
    ),
    Fault(
        "dropout-forgotten-in-backward", "dropout", "The gradient passes where dropout had cut.",
        _DROPOUT, (("(dy * scale, None)", "(dy, None)"),),
        Place(1, 1, "backward", "blocks.0.mlp.proj"), _DROPS,
    ),
    Fault(
        "dropout-mask-drawn-twice", "dropout", "The mask is the second one that is drawn.",
        _F_DROPOUT, (("y: Tensor =", "dropout_mask(input, p, generator)\n    y: Tensor ="),),
        _FIRST_DROP, _DROPS,
    ),
    Fault(
        "dropout-draws-float32", "dropout",
        "The mask is drawn from float32 numbers, half as many words as torch draws.",
        "nplm.random.generator.Generator.dropout_mask",
        (("return self.bernoulli(size, 1.0 - p)", "return self.rand(size) < 1.0 - p"),),
        _FIRST_DROP, _DROPS,
    ),
    Fault(
        "dropout-masks-in-another-order", "dropout",
        "The mask of the attention weights is drawn after another one, not in its turn.",
        "nplm.nn.functional.scaled_dot_product_attention",
        (("        keep = k", "        keep_mask(query, (1,), dropout_p)\n        keep = k"),),
        Place(1, 1, "forward", "blocks.0.attn.proj.input"), _DROPS,
    ),
]  # fmt: skip

RESUMING = [
    Fault(
        "resume-without-optimizer-state", "resuming", "The optimizer's means are lost.",
        f"{_OPTIMIZER}load_state_dict",
        (("self.state, self.param_groups = state, merged", "self.param_groups = merged"),),
        Place(2, 0, "state", "wte.weight.step"), {"resume_at": 1},
    ),
    Fault(
        "resume-counts-from-zero", "resuming", "The optimizer's count of updates starts anew.",
        f"{_OPTIMIZER}_adopt", (("name: tensor(value)", "name: tensor(value) * 0"),),
        Place(2, 0, "state", "wte.weight.step"), {"resume_at": 1},
    ),
    Fault(
        "resume-with-first-rate", "resuming", "The optimizer keeps its initial learning rate.",
        f"{_OPTIMIZER}load_state_dict",
        (("merged.append(plain_options(new))",
          "merged.append(plain_options({**new, 'lr': ours['lr']}))"),),
        Place(3, 0, "lr", _LR), {**_BY_EPOCH, "resume_at": 2},
    ),
    Fault(
        "resume-schedule-from-start", "resuming", "The schedule's last_epoch starts anew.",
        f"{_BASE}load_state_dict", (("state = dict(state_dict)",
                                     "state = {**state_dict, 'last_epoch': 0}"),),
        Place(2, 0, "scheduler", _LR), _steps(2, resume_at=1),
    ),
    Fault(
        "resume-weights-rounded", "resuming", "The weights come back rounded to float32.",
        "nplm.nn.module.Module.load_state_dict",
        (("own[name].copy_(value)",
          "own[name].copy_(value)\n"
          "            if own[name].dtype == float64:\n"
          "                own[name].copy_(own[name].detach().float())"),),
        Place(2, 1, "forward", "wte"), {"resume_at": 1},
    ),
    Fault(
        "resume-weights-in-bfloat16", "resuming",
        "The weights of a float32 run come back with the 8 bits of bfloat16.",
        "nplm.nn.module.Module.load_state_dict",
        (("own[name].copy_(value)",
          "own[name].copy_(value)\n"
          "            if own[name].dtype == float32:\n"
          "                w = own[name].detach()\n"
          "                own[name].copy_(w * 65537 - (w * 65537 - w))"),),
        Place(2, 1, "forward", "wte"), {"resume_at": 1, "dtype": "float32"}, ("isolated",),
        "from its second step on a free float32 run may be off by 16384 step^2 ulps, since Adam "
        "divides gradients by their own size: more than the 2^-9 that bfloat16 rounds away",
    ),
    Fault(
        "resume-begins-the-epoch-again", "resuming", "The place in the epoch is lost.",
        "nplm.data.dataloader.DataLoader.load_state_dict",
        (('if state["epoch"] is not None:', "if False:"),),
        Place(2, 1, "batch", "inputs"), {"resume_at": 1},
    ),
    Fault(
        "resume-without-loader-stream", "resuming", "The loader's generator is not put back.",
        "nplm.data.dataloader.DataLoader.load_state_dict",
        (("streams.set_own(state", "(state"),),
        Place(2, 0, "random", "loader"), {"resume_at": 1},
    ),
    Fault(
        "resume-forgets-patience", "resuming", "The stopper's counter starts anew.",
        f"{_STOPPING}load_state_dict", (("(state_dict))", "(state_dict), counter=0)"),),
        Place(3, 0, "stopper", "counter"), {**_STILL, "patience": 3, "resume_at": 2},
    ),
    Fault(
        "resume-forgets-averaged-count", "resuming",
        "The count of averaged models is not saved, so the next one replaces the average.",
        f"{_SWA}AveragedModel.__init__", (('device or "cpu"))', 'device or "cpu"), False)'),),
        Place(2, 0, "average", "wte.weight"), {"average": "ema", "resume_at": 1},
    ),
]  # fmt: skip
