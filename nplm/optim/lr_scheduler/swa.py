"""SWALR: the rate of stochastic weight averaging, Izmailov et al., 2018, arXiv 1803.05407."""

from __future__ import annotations

import math
from typing import Any, Literal

from nplm.optim.lr_scheduler.base import LRScheduler, one_per_group


class SWALR(LRScheduler):
    """From the lr that it finds to swa_lr in anneal_epochs steps, and constant from there on.

    lr = swa_lr a(t) + start (1 - a(t)), t = step / anneal_epochs, where a(t) is t for "linear" and
    (1 - cos(pi t)) / 2 for "cos"; the start is worked out of the current lr, so that another
    scheduler may have moved it. Twin: torch.optim.swa_utils.SWALR.
    """

    def __init__(
        self,
        optimizer: Any,
        swa_lr: float | list[float],
        anneal_epochs: int = 10,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        last_epoch: int = -1,
    ) -> None:
        swa_lrs = one_per_group("swa_lr", optimizer, swa_lr)
        for group, lr in zip(optimizer.param_groups, swa_lrs, strict=True):
            group["swa_lr"] = lr
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(
                f"anneal_strategy must be one of 'cos' or 'linear', instead got {anneal_strategy}"
            )
        self._anneal_strategy = anneal_strategy
        if not isinstance(anneal_epochs, int) or anneal_epochs < 0:
            raise ValueError(f"anneal_epochs must be equal or greater than 0, got {anneal_epochs}")
        self.anneal_epochs = anneal_epochs
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Back from the current lr to the start, and from the start to the next lr."""
        lrs = self._lrs()
        step = self._step_count - 1
        if self.anneal_epochs == 0:
            step = max(1, step)
        before, now = self._share(step - 1), self._share(step)
        next_lrs = []
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            swa_lr = group["swa_lr"]
            start = swa_lr if before == 1 else (lr - before * swa_lr) / (1 - before)
            next_lrs.append(swa_lr * now + start * (1 - now))
        return next_lrs

    def _share(self, step: int) -> float:
        """a(t): how much of the way is done after `step` steps."""
        t = max(0, min(1, step / max(1, self.anneal_epochs)))
        return (1 - math.cos(math.pi * t)) / 2 if self._anneal_strategy == "cos" else t
