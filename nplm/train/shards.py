"""A window of micro-batches over threads: every shard has rows of each batch and a tape of its own.

Read accumulation.py before; the gradient is the same sum, in flat memory (buffers.py), added in an
order that depends on the number of shards alone.  Those of a small model may be processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nplm.autograd.factory import tensor
from nplm.autograd.graph import flags
from nplm.autograd.sinks import LARGE_TABLE, SinkStore
from nplm.autograd.tensor import Tensor
from nplm.backend import numpy as numpy_namespace
from nplm.backend import threads
from nplm.backend.memory import keep_freed_memory
from nplm.data.loader import Batch, Window
from nplm.nn import functional as F
from nplm.nn.layers import Linear
from nplm.nn.module import Module
from nplm.nn.utils import device_of
from nplm.ops import masks
from nplm.train import processes, torch_steps
from nplm.train.buffers import ApartBuffer, Buffer, buffer_of

if TYPE_CHECKING:
    from nplm.train.accumulation import LossFunction

Array = npt.NDArray[Any]

# Parameters times tokens of a micro-batch from which on a second thread pays: below, most of a step
# is Python, which runs on one thread at a time.
WORTHWHILE = 4_000_000
EVEN = (
    0.7  # the least share of the threads' time that may go into rows: 3 rows on 2 threads have 0.75
)


def worthwhile(model: Module, parameters: list[Any], window: Window[Batch]) -> bool:
    """Whether to divide this window: the model says that its rows are independent, is NumPy's and
    large enough, and nobody watches its gradients or has some already."""
    if not getattr(model, "row_independent", False) or not threads.can_hold_blas():
        return False
    if not all([p.grad is None and not p.hooks and p.xp.name == "numpy" for p in parameters]):
        return False
    size = sum([p.array.size for p in parameters])
    return (
        window.n_targets > 0
        and all(size * batch.inputs.size >= WORTHWHILE for batch in window)
        and len({p.array.dtype for p in parameters}) == 1
    )


def number_of_shards(rows: Sequence[int]) -> int:
    """How many parts batches of so many rows are divided into: all threads, or 1.

    With fewer rows than threads, or rows that would leave threads idle, there is one shard, and the
    kernels split their own rows and heads instead.
    """
    n = threads.get_num_threads()
    even = all(n <= B and B / (-(-B // n) * n) >= EVEN for B in rows)
    return n if even else 1


def headless(model: Any) -> bool:
    """Whether its loss is `model.loss(model.features(ids), targets)`, and no logits are needed.

    So whoever has written `features` and `loss` has written `forward` too, and the head is plain.
    """
    owners = {
        next((c for c in type(model).__mro__ if name in vars(c)), None)
        for name in ("forward", "features", "loss")
    }
    head = getattr(model, "head", None)
    plain = type(head) is Linear and head.bias is None and "forward" not in vars(head)
    return len(owners) == 1 and None not in owners and plain and "forward" not in vars(model)


# ---- modes ---------------------------------------------------------------------------------------
Modes = tuple[bool, bool]


def _modes() -> Modes:
    """Whether this thread records, and uses only reference ops."""
    return flags.recording, flags.reference


@contextmanager
def _in_modes(modes: Modes) -> Iterator[None]:
    """Another thread's modes on this one, for a while."""
    before = _modes()
    flags.recording, flags.reference = modes
    try:
        yield
    finally:
        flags.recording, flags.reference = before


# ---- the window ----------------------------------------------------------------------------------
class _Shard:
    """One thread's part of a window: which rows, which masks, where gradients go."""

    def __init__(
        self, model: Any, loss_fn: LossFunction | None, buffer: Buffer,
        shared: masks.SharedMasks, i: int,
    ) -> None:  # fmt: skip
        self.model, self.loss_fn, self.i, self.n = model, loss_fn, i, buffer.n
        sinks = dict(zip(buffer.parameters, buffer.sides[i]))
        self.by_leaf = {p.node: sink for p, sink in sinks.items() if p.node is not None}
        self.store = SinkStore(sinks)
        self.masks = masks.ShardOfMasks(shared)
        self.losses: list[Array] = []  # of each micro-batch
        self.features: Tensor | None = None

    def here(self, modes: Modes, work: Callable[..., None], *args: Any) -> None:
        """Do `work` on the present thread, in the caller's modes and with this shard's sinks."""
        with _in_modes(modes), numpy_namespace.quiet():  # once, and not for every op
            flags.sinks = self.by_leaf
            masks.use(self.masks if self.n > 1 else None)
            try:
                work(*args)
            finally:
                flags.sinks = None
                masks.use(None)

    def part(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """This shard's rows of a batch: inputs and targets."""
        B = len(batch.inputs)
        start, stop = B * self.i // self.n, B * (self.i + 1) // self.n
        self.masks.rows(start, stop, B)
        return tensor(batch.inputs[start:stop]), tensor(batch.targets[start:stop])

    def whole(self, batches: Sequence[Batch], shares: Sequence[float]) -> None:
        """Forward and backward of every micro-batch."""
        for batch, share in zip(batches, shares):
            inputs, targets = self.part(batch)
            if self.loss_fn is None:
                loss = self.model.loss(self.model.features(inputs), targets)
            else:
                loss = self.loss_fn(self.model(inputs), targets)
            self.losses.append(loss.array)
            loss.backward(share, into=self.store)

    def forward(self, batch: Batch) -> None:
        """Up to what the head reads."""
        self.features = self.model.features(self.part(batch)[0])

    def backward(self, gradient: Array) -> None:
        """From the gradient of what the head read, (rows, T, C), down."""
        features, self.features = self.features, None
        if features is not None and features.requires_grad:  # else all below the head is frozen
            features.backward(Tensor(gradient), into=self.store)


def accumulate_in_shards(
    window: Window[Batch], model: Any, normalise: str, loss_fn: LossFunction | None
) -> Tensor | None:
    """What `accumulate` does, over threads: every parameter's `.grad`, and the loss ().

    On torch devices, whose kernels have threads of their own: by torch_steps.py.

    None, and nothing has happened, where it is not worthwhile or not possible. A model with
    `features`, `loss` and `head` never makes logits, unless `loss_fn` is given.
    """
    parameters = list(model.parameters())
    on_torch = torch_steps.takes(model, parameters, window, WORTHWHILE)
    if not on_torch and not worthwhile(model, parameters, window):
        return None
    if loss_fn is None and not headless(model):
        from nplm.train.accumulation import summed_cross_entropy as loss_fn  # it imports this file
    total = window.n_targets
    shares = [
        1 / total if normalise == "token" else 1 / (count * len(window))
        for count in window.counts if count
    ]  # fmt: skip
    batches = [batch for batch, count in zip(window, window.counts) if count]
    if on_torch:
        return torch_steps.accumulate_on_torch(batches, model, shares, loss_fn)
    n = number_of_shards([len(batch.inputs) for batch in batches])
    buffer = buffer_of(model, parameters, n)
    shared, modes, shards = masks.SharedMasks(n), _modes(), list[_Shard]()

    def everywhere(method: str, *args: Any) -> None:
        """Call a method of every shard, with one argument each where lists are given."""
        if n == 1:  # on this thread, where kernels may split their rows
            shards[0].here(modes, getattr(shards[0], method), *(a[0] for a in args))
            return
        threads.run([
            lambda s=s, each=each: s.here(modes, getattr(s, method), *each)  # type: ignore[misc]
            for s, *each in zip(shards, *args)
        ])  # fmt: skip

    keep_freed_memory()
    with threads.one_blas_thread():
        large = loss_fn is None and model.head.weight.shape[0] > LARGE_TABLE
        by_shard = None
        if loss_fn is None and not large and isinstance(buffer, ApartBuffer):
            work = partial(_in_a_process, model, buffer)
            request = modes, batches, shares
            by_shard = processes.team_of(buffer).accumulate(model, buffer, work, request)
        if by_shard is None:
            shards += [_Shard(model, loss_fn, buffer, shared, i) for i in range(n)]
        if large:
            losses = [
                _with_large_head(batch, share, shards, buffer, everywhere)
                for batch, share in zip(batches, shares)
            ]
        else:
            if by_shard is None:
                everywhere("whole", [batches] * n, [shares] * n)
                by_shard = [shard.losses for shard in shards]
            losses = [sum(parts[1:], parts[0]) for parts in zip(*by_shard)]
    buffer.settle()
    buffer.hand_over()
    for shard in shards:  # leaves of the loss function's own
        for leaf, gradient in shard.store.items():
            leaf.accumulate(gradient)
    return tensor(np.asarray(sum(loss * share for loss, share in zip(losses, shares))))


def _in_a_process(
    model: Any, buffer: Buffer, i: int, modes: Modes, batches: Sequence[Batch],
    shares: Sequence[float],
) -> list[Array]:  # fmt: skip
    """Shard i's part of a window where nobody shares its masks: it draws them as all others do."""
    shard = _Shard(model, None, buffer, masks.SharedMasks(1), i)
    shard.here(modes, shard.whole, batches, shares)
    return shard.losses


def _with_large_head(
    batch: Batch, share: float, shards: list[_Shard], buffer: Buffer, everywhere: Any
) -> Array:
    """One micro-batch whose head takes all threads at once: its weight is too large for products
    that wait for their turn, and its tiles of the vocabulary divide better than rows."""
    model = shards[0].model
    everywhere("forward", [batch] * len(shards))
    parts = [shard.features.array for shard in shards if shard.features is not None]
    features = Tensor(np.concatenate(parts), requires_grad=True)
    store, loss = shards[0].store, None

    def head() -> None:
        nonlocal loss
        loss = model.loss(features, tensor(batch.targets))
        loss.backward(share, into=store)

    shards[0].here(_modes(), head)
    gradient = dict.pop(store, features)
    ends = np.cumsum([0] + [len(part) for part in parts]).tolist()
    everywhere("backward", [gradient[a:b] for a, b in zip(ends, ends[1:])])
    buffer.settle()  # the head's next product is the first again: the other shards have none
    assert loss is not None
    summed: Array = loss.array
    return summed


# ---- evaluation ----------------------------------------------------------------------------------
def token_losses(model: Any, batch: Batch) -> list[Array]:
    """The loss of every token, 0 where it is ignored: an array (rows T,) for each part of the rows.

    The parts of a model whose rows are independent are judged at once, each on a thread.
    """
    n, B, modes = 1, len(batch.inputs), _modes()
    divisible = getattr(model, "row_independent", False) and threads.can_hold_blas()
    if divisible and device_of(model) == "cpu":
        n = number_of_shards([B]) if batch.inputs.size * _size(model) >= WORTHWHILE else 1

    def judge(start: int, stop: int) -> Array:
        with _in_modes(modes):
            return _token_losses(model, batch.inputs[start:stop], batch.targets[start:stop])

    if n == 1:
        return [judge(0, B)]
    ends = [B * i // n for i in range(n + 1)]
    with threads.one_blas_thread():
        return threads.run([lambda a=a, b=b: judge(a, b) for a, b in zip(ends, ends[1:])])  # type: ignore[misc]


def _token_losses(model: Any, inputs: Array, targets: Array) -> Array:
    device = device_of(model)
    x, t = tensor(inputs, device=device), tensor(targets, device=device).reshape(-1)
    if getattr(model, "row_independent", False) and headless(model):
        return np.asarray(model.loss(model.features(x), t, reduction="none"))
    logits = model(x)  # (rows, T, V)
    rows = logits.reshape(-1, logits.shape[-1])
    return np.asarray(F.cross_entropy(rows, t, reduction="none"))


def _size(model: Module) -> int:
    return sum(p.numel() for p in model.parameters())
