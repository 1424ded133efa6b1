"""`accumulate` on torch devices: gradients go to sinks, and the model's loss makes no logits.

Read accumulation.py before.  What may be captured instead of run: capturing.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nplm.autograd.factory import tensor
from nplm.autograd.graph import flags
from nplm.autograd.sinks import SinkStore
from nplm.autograd.tensor import Tensor
from nplm.data.loader import Batch, Window
from nplm.nn.utils import device_of
from nplm.train import capturing

if TYPE_CHECKING:
    from nplm.train.accumulation import LossFunction


def takes(model: Any, parameters: Sequence[Any], window: Window[Batch], worthwhile: int) -> bool:
    """Whether to: all of the model is torch's, and it is captured, or has so many parameters times
    tokens that the memory of logits and of first gradients counts."""
    if window.n_targets == 0 or not all([p.xp.name == "torch" for p in parameters]):
        return False
    size = sum([p.numel() for p in parameters])
    large = all(size * batch.inputs.size >= worthwhile for batch in window)
    return large or capturing.level(model) != "off"


def accumulate_on_torch(
    window: Sequence[Batch], model: Any, shares: Sequence[float], loss_fn: LossFunction | None
) -> Tensor:
    """Add the window's gradient to every parameter's `.grad`; its loss, ().

    window      the micro-batches that have targets; shares: what each one's summed loss is times
    loss_fn     None: `model.loss(model.features(ids), targets)`
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if loss_fn is None:
        captured = capturing.accumulate_in_graphs(model, window, shares, parameters)
        if captured is not None:
            return captured
    # Whoever has a gradient already, or is watched, gets the next one by `Tensor.accumulate`.
    plain = [p for p in parameters if p.grad is None and not p.hooks]
    sinks = {p: new_sink(p) for p in plain}
    store, device = SinkStore(sinks), device_of(model)
    before, flags.sinks = flags.sinks, {p.node: sink for p, sink in sinks.items()}
    try:
        total: Any = None
        for batch, share in zip(window, shares):
            loss = run(model, tensor(batch.inputs, device=device),
                       tensor(batch.targets, device=device), loss_fn)  # fmt: skip
            loss.backward(share, into=store)
            part = loss.detach() * share
            total = part if total is None else total + part
    finally:
        flags.sinks = before
    hand_over(sinks, store)
    result: Tensor = total
    return result


def run(model: Any, inputs: Tensor, targets: Tensor, loss_fn: LossFunction | None) -> Tensor:
    """The summed loss of one micro-batch."""
    if loss_fn is not None:
        return loss_fn(model(inputs), targets)
    loss: Tensor = model.loss(model.features(inputs), targets)
    return loss


def new_sink(p: Tensor) -> Any:
    """A sink for the gradient of `p`."""
    from nplm.backend.torch_kernels.sinks import TorchSink  # not before torch is used

    return TorchSink(p.array)


def hand_over(sinks: dict[Any, Any], store: SinkStore) -> None:
    """Every leaf that got a gradient has it in `.grad`."""
    for p, sink in sinks.items():
        if sink.filled:
            p.grad = Tensor(sink.array)
    for leaf, gradient in store.items():  # leaves that have no sink
        leaf.accumulate(gradient)
