"""Accumulation by epoch: how many micro-batches an update has, {0: 1, 4: 8} or one number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nplm.data.loader import require_counts
from nplm.errors import ConfigError


@dataclass(frozen=True)
class WindowSchedule:
    """Window sizes by the epoch from which they hold, counted from 0.

    `WindowSchedule.of({0: 1, 4: 8})`: epochs 0 to 3 make an update of every micro-batch, the later
    ones of eight. Twin: Lightning's GradientAccumulationScheduler.
    """

    sizes: tuple[tuple[int, int], ...]  # (first epoch, micro-batches), ascending, from epoch 0 on

    @classmethod
    def of(cls, accumulate: int | Mapping[int, int], who: str = "fit") -> WindowSchedule:
        """From one size, or from a mapping, in which a missing epoch 0 means 1.

        Raises ConfigError for an empty mapping, an epoch below 0 and a size below 1.
        """
        if not isinstance(accumulate, Mapping):
            require_counts(who, accumulate=accumulate)
            return cls(((0, int(accumulate)),))
        if not accumulate:
            raise ConfigError(f"{who}: accumulate must have an epoch, as {{0: 1, 4: 8}}, got {{}}")
        for epoch, size in accumulate.items():
            if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
                raise ConfigError(
                    f"{who}: accumulate must have whole epochs from 0 on as keys, got {epoch!r}"
                )
            require_counts(f"{who}, from epoch {epoch} on", accumulate=size)
        sizes = {0: 1, **{int(epoch): int(size) for epoch, size in accumulate.items()}}
        return cls(tuple(sorted(sizes.items())))

    @classmethod
    def parse(cls, words: Iterable[str], who: str = "accumulate") -> WindowSchedule:
        """From words `EPOCH:SIZE`, as a command line and a file of settings have them."""
        sizes: dict[int, int] = {}
        for word in words:
            epoch, colon, size = word.partition(":")
            good = colon and epoch.isdecimal() and size.isdecimal() and len(word) <= 20
            if not good:
                raise ConfigError(f"{who}: expected EPOCH:SIZE, such as 4:8, got {word[:100]!r}")
            if int(epoch) in sizes:
                raise ConfigError(f"{who}: epoch {int(epoch)} is given twice")
            sizes[int(epoch)] = int(size)
        return cls.of(sizes, who)

    @property
    def changes(self) -> bool:
        """Whether it needs to know the epoch."""
        return len(self.sizes) > 1

    def size(self, epoch: int) -> int:
        """The micro-batches of an update in that epoch."""
        return next(size for first, size in reversed(self.sizes) if first <= epoch)

    def updates(self, batches: int, epochs: int) -> int:
        """How many updates so many epochs of so many batches make; short windows count."""
        ends = [first for first, _ in self.sizes[1:]] + [epochs]
        return sum(
            max(min(end, epochs) - first, 0) * -(-batches // size)
            for (first, size), end in zip(self.sizes, ends)
        )
