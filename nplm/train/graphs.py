"""A micro-batch's forward and backward as one CUDA graph, and Adam's update as another.

Read torch_steps.py before.  A graph replays kernels on fixed addresses: batch, share of the loss,
gradients and loss lie in memory that stays, and a window copies its batches there in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nplm.autograd.factory import tensor
from nplm.autograd.graph import Array, flags
from nplm.autograd.sinks import SinkStore
from nplm.autograd.tensor import Tensor
from nplm.backend.dtypes import float32
from nplm.data.loader import Batch
from nplm.errors import BackendError
from nplm.optim.adam import Adam, adam_update
from nplm.optim.optimizer import Group, chosen

Record = Callable[..., Callable[[], None]]  # backend.capture.record


class MicroBatch:
    """One recorded micro-batch of a model: for one shape of batch and one set of parameters."""

    def __init__(
        self, loss_of: Callable[[Tensor, Tensor], Tensor], batch: Batch, every: Sequence[Any],
        record: Record,
    ) -> None:  # fmt: skip
        from nplm.backend.torch_kernels.sinks import TorchSink

        self.loss_of, self.parameters = loss_of, [p for p in every if p.requires_grad]
        self.held = [p.array for p in every]  # a graph reads them and their copies: never freed
        first = self.parameters[0]
        device, dtype = first.device, first.dtype
        self.inputs = tensor(batch.inputs, device=device)
        self.targets = tensor(batch.targets, device=device)
        self.share = tensor(0.0, dtype, device)  # what the summed loss is multiplied by
        self.total = tensor(0.0, dtype, device)  # of the window so far
        self.gradients = [Tensor(p.xp.zeros(p.shape, p.array)) for p in self.parameters]
        self.sinks: dict[Any, Any] = {
            p: TorchSink(p.array, g.array) for p, g in zip(self.parameters, self.gradients)
        }
        for sink in self.sinks.values():
            sink.array = sink.kept  # everything is added, the first gradient too
        place = self.inputs.array.device
        self.empty = record(self._empty, place)
        self.run = record(self._run, place)

    def _empty(self) -> None:
        for x in (self.total, *self.gradients):
            x.array.zero_()

    def _run(self) -> None:
        before, flags.sinks = flags.sinks, {p.node: sink for p, sink in self.sinks.items()}
        try:
            loss = self.loss_of(self.inputs, self.targets)
            loss.backward(self.share, into=SinkStore(self.sinks))
        finally:
            flags.sinks = before
        self.total.array += loss.array * self.share.array

    def feed(self, batch: Batch, share: float) -> None:
        """The next micro-batch, and what its loss counts."""
        self.inputs.array.copy_(tensor(batch.inputs, device="torch:cpu").array, non_blocking=True)
        self.targets.array.copy_(tensor(batch.targets, device="torch:cpu").array, non_blocking=True)
        self.share.array.fill_(share)


class Graphs:
    """The recorded micro-batches of one model, by the shape of the batch."""

    def __init__(self, loss_of: Callable[[Tensor, Tensor], Tensor], record: Record) -> None:
        self.loss_of, self.record = loss_of, record
        self.known: dict[Any, MicroBatch] = {}

    def accumulate(
        self, window: Sequence[Batch], shares: Sequence[float], every: Sequence[Any],
        structure: str = "",
    ) -> Tensor:  # fmt: skip
        """The window's gradient in the `.grad` of every parameter that trains, and its loss, ().

        every       all parameters of the model: a graph reads the frozen ones too
        structure   the model's settings in words: after a change it is recorded anew
        """
        first = window[0]
        # Kernels know addresses: a graph is right as long as everything is where it was.
        key = (first.inputs.shape, flags.autocast, structure,
               tuple((p.array.data_ptr(), p.requires_grad) for p in every))  # fmt: skip
        step = self.known.get(key)
        if step is None:
            self.known.clear()  # another shape or another dtype: the old buffers go first
            step = self.known[key] = MicroBatch(self.loss_of, first, every, self.record)
        refresh(every)
        step.empty()
        for batch, share in zip(window, shares):
            step.feed(batch, share)
            step.run()
        for p, gradient in zip(step.parameters, step.gradients):
            p.grad = gradient
        return Tensor(step.total.xp.copy(step.total.array))

    def takes(self, window: Sequence[Batch], parameters: Sequence[Any]) -> bool:
        """Whether every micro-batch has one shape and no gradient is there or watched."""
        alike = {batch.inputs.shape for batch in window}
        return len(alike) == 1 and all(p.grad is None and not p.hooks for p in parameters)


def written(arrays: Sequence[Array]) -> None:
    """Count a write that a graph made: copies in bfloat16 go by the count."""
    from nplm.backend.torch_kernels import updates

    updates.written(arrays)


def refresh(parameters: Sequence[Any]) -> None:
    """Under autocast: the bfloat16 copies that a graph reads, brought up to date in their place."""
    if flags.autocast:
        from nplm.backend.torch_kernels.precision import copies

        arrays: list[Array] = [p.array for p in parameters]
        copies.refresh(arrays)


class RecordedAdam:
    """`Adam.update_group` as a CUDA graph: rate and counts of steps are numbers on the card.

    So a new learning rate is written there, and nothing is recorded anew. Another weight decay, eps
    or betas, and parameters, gradients or moments at other addresses are recorded again, once they
    are met a second time in a row: gradients that are elsewhere at every step never are.
    """

    def __init__(self, optimizer: Adam, record: Record, tell: Callable[[str], None]) -> None:
        self.optimizer, self.record, self.tell = optimizer, record, tell
        self.met: dict[int, Any] = {}  # the key of a group's last step, by its first parameter
        # (replay, rate, counts, what it reads and writes, which must not be freed)
        self.known: dict[Any, tuple[Callable[[], None], Array, Array, Any]] = {}

    def __call__(self, group: Group, params: list[Tensor]) -> None:
        """One step of every parameter of a group."""
        names = self.optimizer.moments if group["amsgrad"] else self.optimizer.moments[:2]
        *lists, steps = self.optimizer.lists(params, **dict.fromkeys(names, 0.0))
        lists += [] if group["amsgrad"] else [[]]  # no v_max
        fixed = chosen(
            group, "eps", "weight_decay", "decoupled_weight_decay", "amsgrad", "maximize"
        )
        fixed |= {"beta1": group["betas"][0], "beta2": group["betas"][1]}
        arrays = [[t.array for t in tensors] for tensors in lists]
        key = (tuple(x.data_ptr() for each in arrays for x in each), tuple(fixed.values()))
        before, self.met[key[0][0]] = self.met.get(key[0][0]), key
        unknown = key not in self.known and (key != before or params[0].dtype != float32)
        if unknown or flags.reference:
            adam_update(*lists, steps, lr=group["lr"], **fixed)
            return
        try:
            if key not in self.known:
                self._forget(arrays[0])
                self.known[key] = (*self._recorded(lists, arrays[0][0], fixed), arrays)
        except BackendError as error:
            self.tell(f"the update is not recorded: {error}")
            vars(self.optimizer).pop("update_group", None)
            adam_update(*lists, steps, lr=group["lr"], **fixed)
            return
        replay, lr, counts, _ = self.known[key]
        lr.fill_(group["lr"])
        counts.copy_(tensor(steps, dtype=float32, device="torch:cpu").array, non_blocking=True)
        replay()
        written(arrays[0])

    def _recorded(
        self, lists: list[list[Tensor]], like: Array, fixed: Group
    ) -> tuple[Callable[[], None], Array, Array]:
        device = lists[0][0].device
        lr = tensor(0.0, dtype=float32, device=device).array
        counts = tensor([0.0] * len(lists[0]), dtype=float32, device=device).array
        steps = [counts[i] for i in range(len(lists[0]))]  # views, 0-d
        # Not tried before it is recorded: an update cannot be taken back.
        replay = self.record(
            lambda: adam_update(*lists, steps, lr=lr, **fixed), like.device, warm_ups=0
        )
        return replay, lr, counts

    def _forget(self, params: list[Array]) -> None:
        """Drop what was recorded for these parameters: its buffers are gone or will not be used."""
        own = {p.data_ptr() for p in params}
        self.known = {k: v for k, v in self.known.items() if own.isdisjoint(k[0][: len(params)])}
