"""Activation checkpointing: a function keeps its inputs alone, and runs again in the backward.

Read autograd/graph.py before.  Twin: torch.utils.checkpoint.
"""

from __future__ import annotations

import math
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import Any

import numpy as np

from nplm.autograd.graph import Array, Edge, Leaf, Node, flags, reachable, run_backward
from nplm.autograd.tensor import Tensor
from nplm.errors import GraphError
from nplm.ops import masks
from nplm.random import default_generator

# What a thread does while it records (autograd/graph.py): the second run does it like the first.
MODES = tuple(name for name in vars(type(flags)) if not name.startswith("_"))
_STRANGER = (
    "expected every tensor with a graph behind it to be an argument, and the function used one "
    "from outside; give it as an argument"
)


def checkpoint(
    function: Callable[..., Any],
    *args: Any,
    use_reentrant: bool = False,
    preserve_rng_state: bool = True,
    **kwargs: Any,
) -> Any:
    """`function(*args, **kwargs)`, which keeps for its backward what it was given and no more.

    In the backward it runs once more and its gradients go on to the arguments and to every leaf
    that it uses, a parameter for example. So it must do the same twice: dropout gets the masks of
    the first run, and other draws start from the first run's place of the default stream, which
    is afterwards where it was before (not with `preserve_rng_state=False`). The gradients have the
    bits of those without it, up to the order in which gradients are added that one tensor gets from
    inside and from beside of the function.

    Tensors with a graph behind them must be arguments, alone or in lists, tuples and dicts. The
    reentrant variant, torch's older one, is not here.
    Twin: torch.utils.checkpoint.checkpoint.
    """
    if use_reentrant:
        raise NotImplementedError("checkpoint: use_reentrant=True is not supported; leave it out")
    if not flags.recording:
        return function(*args, **kwargs)
    compiled = getattr(vars(function).get("forward") if hasattr(function, "__dict__") else None,
                       "compiled", None)  # fmt: skip
    if compiled is not None and not kwargs:  # a captured block (train/capturing.py) does it itself
        found = compiled(args, recompute=True)
        if found is not None:
            return found
    return _Segment(function, args, kwargs, preserve_rng_state).first()


def _each(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """`value` with every Tensor in it, also in lists, tuples and dicts, changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _each(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_each(item, change) for item in value]
        if isinstance(value, list):
            return items
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def _recorded(result: Any) -> list[Tensor]:
    """The Tensors of a function's result through which a gradient can come back."""
    found: list[Tensor] = []
    _each(result, found.append)
    return [tensor for tensor in found if tensor.requires_grad]


class _Segment:
    """One call of a function: what its second run needs, and where its gradients go.

    args, kwargs   as given, but for every tensor with a graph behind it one without stands in
    leaves         they and the leaves that the first run has used, each with its number of uses:
                   so many edges has the node of this call
    closures       the backwards of the first run's graph: they die with it, but for a stranger's
    """

    def __init__(
        self, function: Callable[..., Any], args: Any, kwargs: Any, preserve_rng_state: bool
    ) -> None:
        self.function = function
        self.modes = {name: getattr(flags, name) for name in MODES}
        self.draws = _Draws() if preserve_rng_state else None
        made: dict[int, Tensor] = {}  # one for a tensor, however often it is an argument
        self.stands_for: dict[Node, Edge] = {}

        def stand_in(tensor: Tensor) -> Tensor:
            if tensor.node is None or tensor.is_leaf:
                return tensor
            if id(tensor) not in made:
                made[id(tensor)] = new = tensor.detach()
                new.node = Node("argument", (), lambda _: ())
                new.node.rank = tensor.node.rank  # so the walk inside has the order of any walk
                self.stands_for[new.node] = (tensor.node, tensor.output)
            return made[id(tensor)]

        self.args, self.kwargs = _each(args, stand_in), _each(kwargs, stand_in)
        self.leaves: dict[Node, int] = {}
        self.closures: list[weakref.ref[Any]] = []
        self.shapes: list[tuple[int, ...]] = []  # of the outputs that gradients come back through

    def first(self) -> Any:
        """The first run.  Its graph tells which leaves it uses, and ends with this call."""
        with self.draws.first() if self.draws else nullcontext():
            result = self.function(*self.args, **self.kwargs)
        outputs = _recorded(result)
        if not outputs:
            return result
        self.shapes = [output.shape for output in outputs]
        for node, n_edges in reachable(_gathered(outputs, lambda _: None)).items():
            if isinstance(node, Leaf) or node in self.stands_for:
                self.leaves[node] = n_edges
            elif node.backward is not None:
                self.closures.append(weakref.ref(node.backward))
        edges: list[Edge] = []
        for leaf, n_edges in self.leaves.items():
            edges += [self.stands_for.get(leaf, (leaf, 0))] * n_edges
        node, numbers = Node("checkpoint", tuple(edges), self.backward, len(outputs)), count()

        def outside(tensor: Tensor) -> Tensor:
            if tensor.node is None:
                return tensor
            new = Tensor(tensor.array)
            new.node, new.output = node, next(numbers)
            return new

        return _each(result, outside)

    def backward(self, dys: Any) -> tuple[Array | None, ...]:
        """The second run, and the walk through its graph."""
        dys = dys if isinstance(dys, tuple) else (dys,)  # one output's arrives bare
        strangers = [closure for ref in self.closures if (closure := ref()) is not None]
        with _in_modes(self.modes), self.draws.again() if self.draws else nullcontext():
            outputs = _recorded(self.function(*self.args, **self.kwargs))
        if (shapes := [output.shape for output in outputs]) != self.shapes:
            raise GraphError(
                f"checkpoint: expected outputs of the shapes {self.shapes} from the second run of "
                f"the function, got {shapes}: it must do the same twice"
            )
        root = _gathered(outputs, lambda _: dys)
        self._let_edges_end_alone(root, strangers)
        arrived: dict[Node, list[Array | None]] = defaultdict(list)
        run_backward(root, 0, dys, lambda end, gradient: arrived[end.owner()].append(gradient))
        found: list[Array | None] = []
        for leaf, n_edges in self.leaves.items():
            found += arrived[leaf] + [None] * (n_edges - len(arrived[leaf]))
        return tuple(found)

    def _let_edges_end_alone(self, root: Node, strangers: list[Any]) -> None:
        """Let every edge into a leaf end at a leaf of its own, whose owner is the one that it was.

        So a leaf's gradients arrive one by one, and are added in the order in which they would be
        without this segment. Raises GraphError if the graph leads out of the function, or to other
        leaves than that of the first run.
        """
        try:
            nodes = reachable(root)
        except GraphError as error:  # a stranger's graph, which was walked by then
            raise GraphError(f"checkpoint: {_STRANGER}") from error
        for node, n_edges in nodes.items():
            if any(node.backward is closure for closure in strangers):
                raise GraphError(f"checkpoint: {_STRANGER}: the result of '{node.name}'")
            if (
                isinstance(node, Leaf)
                and n_edges > self.leaves.get(node, 0)
                and node.owner() is not None
            ):
                raise GraphError(
                    "checkpoint: the second run of the function used a leaf that the first did "
                    f"not, of shape {node.owner().shape}: it must do the same twice"
                )
            node.edges = tuple(map(self._ending_alone, node.edges))

    def _ending_alone(self, edge: Edge | None) -> Edge | None:
        """An edge into a leaf or an argument, to a new leaf whose owner is that node."""
        if edge is None or not (isinstance(edge[0], Leaf) or edge[0] in self.stands_for):
            return edge
        return Leaf(lambda: edge[0]), 0


def _gathered(outputs: list[Tensor], backward: Callable[[Any], Any]) -> Node:
    """One node above all outputs, from which a walk can start."""
    edges = tuple((output.node, output.output) for output in outputs if output.node is not None)
    return Node("outputs", edges, backward)


@contextmanager
def _in_modes(modes: dict[str, Any]) -> Iterator[None]:
    """This thread's modes are those of the first run, for a while."""
    before = {name: getattr(flags, name) for name in modes}
    for name, mode in modes.items():
        setattr(flags, name, mode)
    try:
        yield
    finally:
        for name, mode in before.items():
            setattr(flags, name, mode)


class _Draws(masks.ShardOfMasks):
    """What the first run draws, for the second.

    Masks are kept, one bit each: to draw them again would cost more than all else, and shards have
    them in common.  Other draws come again from the default stream, put back to where it was: but
    not in a shard, where others draw from it too.
    """

    def __init__(self) -> None:
        self.source = masks.in_use()  # where this thread's masks come from otherwise
        source = self.source
        self.alone: bool = source is None or (isinstance(source, _Draws) and source.alone)
        self.start = self._place()
        self.kept: list[tuple[np.ndarray, tuple[int, ...], Any]] = []
        self.left: Iterator[Any] | None = None  # masks for the second run; None: this is the first

    def _place(self) -> Any:
        if not self.alone:
            return None
        state = default_generator.get_state()
        return state | {"key": np.array(state["key"], np.uint32)}  # a tenth of the list's memory

    @contextmanager
    def first(self) -> Iterator[None]:
        """Keep what is drawn meanwhile."""
        masks.use(self)
        try:
            yield
        finally:
            masks.use(self.source)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw the same again meanwhile; afterwards the stream is where it was before."""
        before, place = masks.in_use(), self._place()
        self._go_to(self.start)
        self.left = iter(self.kept)
        masks.use(self)
        try:
            yield
        finally:
            masks.use(before)
            self._go_to(place)

    def _go_to(self, place: Any) -> None:
        if place is not None:
            default_generator.set_state(place)

    def mask(self, shape: tuple[int, ...], draw: masks.Draw) -> np.ndarray:
        """A new mask in the first run, and the same in the second."""
        if self.left is None:
            drawn = draw(shape) if self.source is None else self.source.mask(shape, draw)
            self.kept.append((np.packbits(drawn), shape, self._place()))
            return drawn
        packed, kept_shape, place = next(self.left, (None, None, None))
        if packed is None or shape != kept_shape:
            raise GraphError(
                f"checkpoint: expected a mask of shape {kept_shape} in the second run of the "
                f"function, got {shape}: it must do the same twice"
            )
        self._go_to(place)
        return np.unpackbits(packed, count=math.prod(shape)).view(np.bool_).reshape(shape)
