"""Capture levels of a model on torch: off, region (blocks compiled in pairs), graph (CUDA graphs).

Read backend/capture.py before.  A level that this torch, device or model cannot have falls back to
a lower one, with one warning that says why.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from nplm.autograd.grad_mode import enable_grad, no_grad
from nplm.autograd.graph import Array, Node, flags, run_backward
from nplm.autograd.op import wrap
from nplm.autograd.sinks import sinks_of
from nplm.autograd.tensor import Tensor
from nplm.data.loader import Batch
from nplm.errors import BackendError, ConfigError, unknown
from nplm.nn.layers import Dropout
from nplm.nn.module import Module
from nplm.ops import masks
from nplm.ops.draws import keep_mask
from nplm.optim.adam import Adam, AdamW
from nplm.optim.optimizer import Optimizer
from nplm.train.graphs import Graphs, RecordedAdam

LEVELS = ("off", "region", "graph")


class _State:
    """What a model was asked for, and what it got."""

    def __init__(self, level: str) -> None:
        self.level = level
        self.pairs: dict[Any, Any] = {}  # compiled, by structure and inputs
        self.graphs: Any = None
        self.optimizer: Any = None  # whose update is recorded
        self.told = False

    def tell(self, note: str) -> None:
        """One warning for a pair that is not what it could be."""
        if note and not self.told:
            warnings.warn(f"capture: region by torch.compile, which recomputes: {note}",
                          stacklevel=4)  # fmt: skip
            self.told = True

    def fall_back(self, to: str, why: str) -> None:
        """A lower level from now on, and one warning."""
        if LEVELS.index(to) < LEVELS.index(self.level):
            warnings.warn(f"capture: {self.level} falls back to {to}: {why}", stacklevel=3)
            self.level = to
            self.drop_graphs()

    def drop_graphs(self) -> None:
        """Free what was recorded; updates are made by hand."""
        self.graphs = None
        if self.optimizer is not None:
            vars(self.optimizer).pop("update_group", None)


_states: weakref.WeakKeyDictionary[Module, _State] = weakref.WeakKeyDictionary()


def capture(model: Any, level: str, optimizer: Optimizer | None = None) -> None:
    """Run a Decoder on a torch device at a capture level from now on.

    "region"    every block, and the head with its loss, are traced and compiled once (seconds) and
                reused by all layers, micro-batches and updates; other shapes are compiled anew
    "graph"     region, and on CUDA each micro-batch as one CUDA graph, and the update of an Adam
                or AdamW that is given as `optimizer` as another: little is launched by hand; a
                model that trains with dropout has regions
    "off"       op by op, the default

    Raises ConfigError for another name or a model on "cpu" (NumPy), which only knows "off".
    """
    if level not in LEVELS:
        raise ConfigError(unknown("capture level", level, LEVELS))
    device = next((p.device for p in model.parameters()), "cpu")
    if level != "off" and device == "cpu":
        raise ConfigError(
            f"capture: level '{level}' needs a torch device, the model is on 'cpu' (NumPy); move "
            "it with .to('torch:cpu') or .to('cuda'), or use 'off'"
        )
    release(model)
    if level == "off":
        return
    state = _states[model] = _State(level)
    for block in model.blocks:
        block.forward = _Captured(block, "forward", state)
    model.loss = _Captured(model, "loss", state)
    if level == "graph" and isinstance(optimizer, Adam) and type(optimizer) in (Adam, AdamW):
        from nplm.backend import capture as compiler

        state.optimizer = optimizer
        optimizer.update_group = RecordedAdam(  # type: ignore[method-assign]
            optimizer, compiler.record, lambda why: warnings.warn(f"capture: {why}", stacklevel=5)
        )


def release(model: Any) -> None:
    """Op by op again."""
    state = _states.pop(model, None)
    if state is not None:
        state.drop_graphs()
        for module, name in [*((block, "forward") for block in model.blocks), (model, "loss")]:
            vars(module).pop(name, None)


def level(model: Module) -> str:
    """The level in force: what was asked for, or what it fell back to."""
    state = _states.get(model)
    return "off" if state is None else state.level


class _Captured:
    """A method of a module that runs as a compiled pair where it can, and as it was elsewhere.

    The pair belongs to the method's structure and to the shapes of what it reads, not to one
    module: all blocks of a decoder share theirs, and so do all micro-batches and updates.
    """

    def __init__(self, module: Any, name: str, state: _State) -> None:
        self.module, self.name, self.state = module, name, state

    def __call__(self, *inputs: Tensor, **options: Any) -> Any:
        found = None if options else self.compiled(inputs, recompute=False)
        if found is None:
            return getattr(type(self.module), self.name).__get__(self.module)(*inputs, **options)
        return found

    def compiled(self, inputs: Sequence[Tensor], recompute: bool) -> Any:
        """The method's result by its pair, which with `recompute` keeps the inputs alone; None
        where there is no pair."""
        if not self._usable():
            return None
        plain = getattr(type(self.module), self.name).__get__(self.module)
        leaves = self._leaves()
        tensors = [*inputs, *leaves]
        needs = tuple(t.requires_grad for t in tensors)
        arrays = [t.array for t in tensors]
        copies = _copies([p.array for p in leaves])
        found = self._pair(plain, leaves, needs, inputs, [*arrays, *copies], recompute)
        if found is None:
            return None
        pair, asked = found
        drawn = [keep_mask(inputs[0], *mask).array for mask in asked]  # as op by op, in that order
        value, saved = pair.forward([*arrays, *copies, *drawn])
        if True not in needs:
            return wrap(value, None)
        edges = tuple((t.node, t.output) if t.node is not None else None for t in tensors)
        wanted = sinks_of(edges, needs)

        def backward(dy: Array) -> tuple[Array | None, ...]:
            gradients = pair.backward(saved, dy)[: len(tensors)]
            for i, (gradient, want) in enumerate(zip(gradients, wanted)):
                if gradient is not None and not isinstance(want, bool):
                    want.take(gradient)  # fresh memory: nobody else holds it
                    gradients[i] = None
            return tuple(gradients)

        return wrap(value, Node(f"region {self.name}", edges, backward))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Of a copied model: its own method, op by op (an average of weights is not trained)."""
        module = memo.get(id(self.module))
        return getattr(type(self.module), self.name).__get__(module or self.module)

    def _usable(self) -> bool:
        """Whether a pair may run now; a reason that stays is told once."""
        if self.state.level == "off" or not flags.recording or flags.reference:
            return False
        if why := _spoiler(self.module):
            self.state.fall_back("off", why)
        return not why

    def _leaves(self) -> list[Tensor]:
        """The parameters that the method reads."""
        if self.name == "loss":
            return [self.module.head.weight]
        return list(self.module.parameters())

    def _pair(
        self, plain: Callable[..., Tensor], leaves: list[Tensor], needs: tuple[bool, ...],
        inputs: Sequence[Tensor], arrays: list[Array], recompute: bool,
    ) -> Any:  # fmt: skip
        """(the compiled pair for these inputs, the masks that it asks for), compiled now if need
        be; None if it cannot be."""
        rates = dropout_rates(self.module)
        # Asked anew: a setting (an activation, an eps) may have changed since the last call.
        structure = self.name if self.name == "loss" else repr(self.module)
        key = (structure, recompute, self.module.training, rates, needs, flags.autocast,
               tuple((tuple(x.shape), x.stride(), x.dtype, x.device) for x in arrays))  # fmt: skip
        found = self.state.pairs.get(key)
        if found is None and self.state.level != "off":
            from nplm.backend import capture as compiler  # torch's private parts: not before

            try:
                asked = _asked(plain, inputs) if any(rates) else []
                stand_in = [mask.keeping_all(inputs[0]) for mask in asked]
                body = _body(plain, leaves, needs, len(asked))
                pair = compiler.compile_pair(body, [*arrays, *stand_in], recompute)
            except BackendError as error:
                self.state.fall_back("off", str(error))
            else:
                found = self.state.pairs[key] = pair, asked
                self.state.tell(pair.note)
        return found


def dropout_rates(module: Any) -> tuple[float, ...]:
    """With what probabilities a module drops elements now."""
    return tuple(m.p for m in module.modules() if isinstance(m, Dropout) and m.training)


def _asked(plain: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[masks.Asked]:
    """The masks that a method asks for, in its order.  Nothing is drawn."""
    noted = masks.HandedIn()
    with masks.hand_in(noted), no_grad():
        plain(*inputs)
    return noted.asked


def _spoiler(module: Any) -> str:
    """Why what a module does now must not be captured; empty where it may be."""
    if next(iter(module.buffers()), None) is not None:
        return "it would hold the values that the module's buffers have now"
    return ""


def _body(
    plain: Callable[..., Tensor], leaves: list[Tensor], needs: tuple[bool, ...], n_masks: int
) -> Any:
    """`plain` as the body of an op: (inputs, the leaves' arrays, their copies, dropout's masks)
    -> (y, backward)."""

    def body(*arrays: Array) -> tuple[Array, Callable[[Array], list[Array | None]]]:
        given, rest = arrays[: len(needs) - len(leaves)], arrays[len(needs) - len(leaves) :]
        own, copies = rest[: len(leaves)], rest[len(leaves) : len(rest) - n_masks]
        drops = masks.HandedIn(rest[len(rest) - n_masks :])
        inputs = [Tensor(x, requires_grad=need) for x, need in zip(given, needs)]
        before, sinks, flags.sinks = [p.array for p in leaves], flags.sinks, None
        try:
            for p, array in zip(leaves, own):
                p.array = array
            _give_copies(own, copies)
            with enable_grad(), masks.hand_in(drops):
                y = plain(*inputs)
        finally:
            flags.sinks = sinks
            for p, array in zip(leaves, before):
                p.array = array

        def backward(dy: Array) -> list[Array | None]:
            found: dict[Node | None, Array] = {}
            assert y.node is not None
            run_backward(y.node, y.output, dy, found.__setitem__)
            return [
                *(
                    found.get(t.node) if need else None
                    for t, need in zip([*inputs, *leaves], needs)
                ),
                *(None for _ in rest[len(leaves) :]),
            ]

        return y.array, backward

    return body


def _copies(arrays: Sequence[Array]) -> list[Array]:
    """Under autocast the bfloat16 copies of matrices, which a pair reads as further inputs."""
    if not flags.autocast:
        return []
    from nplm.backend.torch_kernels.precision import lowered

    return [lowered(x) for x in arrays if x.ndim > 1]


def _give_copies(arrays: Sequence[Array], copies: Sequence[Array]) -> None:
    """While a body is traced, its inputs stand for the copies that kernels ask for."""
    if copies:
        from nplm.backend.torch_kernels import precision

        for x, copy in zip((x for x in arrays if x.ndim > 1), copies):
            precision.copies.give(x, copy)


# ---- graphs --------------------------------------------------------------------------------------
def accumulate_in_graphs(
    model: Any, window: Sequence[Batch], shares: Sequence[float], parameters: Sequence[Any]
) -> Tensor | None:
    """What `accumulate_on_torch` does, by replaying CUDA graphs; None at other levels."""
    state = _states.get(model)
    if state is None or state.level != "graph" or flags.reference:
        return None
    if why := _spoiler(model):
        state.fall_back("off", why)
        return None
    if any(dropout_rates(model)):
        state.fall_back("region", "a graph would drop the same elements again at every replay")
        return None
    if state.graphs is None:
        from nplm.backend import capture as compiler

        here = weakref.ref(model)  # else its own graphs would keep it alive

        def loss_of(ids: Tensor, targets: Tensor) -> Tensor:
            owner: Any = here()
            loss: Tensor = owner.loss(owner.features(ids), targets)
            return loss

        state.graphs = Graphs(loss_of, compiler.record)
    if not state.graphs.takes(window, parameters):
        return None
    try:
        found: Tensor = state.graphs.accumulate(
            window, shares, list(model.parameters()), repr(model)
        )
    except BackendError as error:  # before the first window is done: nothing has been added
        state.fall_back("region", str(error))
        state.drop_graphs()
        return None
    return found
