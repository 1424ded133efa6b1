"""@op and @update: one function per operation, run on either backend and recorded.

Read graph.py and tensor.py before. An op is a function `f(xp, x, y, ..., option: type)` on raw
arrays that returns `(value, backward)`: the arrays come first and carry no annotation, options do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

import numpy as np

from nplm.autograd.graph import Node, flags
from nplm.autograd.overrides import KNOWN, OVERRIDES, choose, override, reference
from nplm.autograd.sinks import sinks_of
from nplm.autograd.tensor import Tensor
from nplm.backend import common_namespace

OPS: dict[str, Op] = {}
UPDATES: dict[str, Update] = {}

__all__ = ["OPS", "OVERRIDES", "UPDATES", "Op", "Update", "op", "override", "reference", "update"]


class Op:
    """A callable that takes Tensors, runs the body on their arrays and records it.

    `raw(xp, *arrays, **options)` is the body itself: no Tensors, no graph.
    """

    def __init__(self, body: Callable[..., Any], wants_needs: bool) -> None:
        update_wrapper(self, body)
        self.raw = body
        self.name = body.__name__
        self.wants_needs = wants_needs  # backward(dy, needs): skip what nobody wants
        parameters = list(inspect.signature(body).parameters.values())[1:]
        arrays = [p for p in parameters if p.annotation is p.empty]
        self.variadic = any(p.kind is p.VAR_POSITIONAL for p in arrays)
        self.array_names = [p.name for p in arrays]
        self.option_names = [p.name for p in parameters[len(arrays) :]]
        OPS[self.name] = self
        KNOWN.add(self.name)

    def split(self, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, ...]:
        """The array arguments; positional options move into `options`."""
        n = len(self.array_names)
        if self.variadic or (not options and len(args) <= n):
            return args
        if not options and len(args) <= n + len(self.option_names):
            options.update(zip(self.option_names, args[n:]))
            return args[:n]
        for theirs, ours in zip(("input", "other"), self.array_names):
            if theirs in options:  # torch's names for x and y
                options[ours] = options.pop(theirs)
        if len(args) > n:
            given = dict(zip(self.option_names, args[n:]))
            if len(given) < len(args) - n or not given.keys().isdisjoint(options):
                raise TypeError(f"{self.name}: expected {n} tensors, then {self.option_names}")
            options.update(given)
            args = args[:n]
        elif options:  # arrays given by name
            last = [i for i, name in enumerate(self.array_names) if name in options]
            rest = self.array_names[len(args) : last[-1] + 1] if last else []
            args += tuple(options.pop(name, None) for name in rest)
        return args

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Tensors (or numbers) first, then options, as in torch."""
        inputs = self.split(args, options)
        tensors, edges, values = [], [], []
        for x in inputs:
            if isinstance(x, Tensor):
                tensors.append(x)
                values.append(x.array)
                edges.append(None if x.node is None else (x.node, x.output))
            else:
                values.append(x if x is None else self._plain(x))
                edges.append(None)
        xp, arrays = common_namespace(self.name, tensors), tuple(values)
        body = choose(self.name, xp, arrays, options) or self.raw
        try:
            with xp.quiet():
                value, backward = body(xp, *arrays, **options)
        except Exception as error:
            shapes = ", ".join(str(x.shape) if isinstance(x, Tensor) else repr(x) for x in inputs)
            error.add_note(f"in nplm op '{self.name}' with inputs {shapes} and options {options}")
            raise
        if backward is None or not any(edges) or not flags.recording:
            return wrap(value, None)
        return wrap(value, self._node(xp, value, backward, tuple(edges)))

    def _plain(self, x: Any) -> Any:
        if isinstance(x, bool | int | float) and not isinstance(x, np.generic):
            return x
        if isinstance(x, np.generic):
            return x.item()  # a NumPy scalar would promote float32 to float64
        raise TypeError(
            f"{self.name}: expected a Tensor or a number, got {type(x).__name__}: "
            "wrap it with nplm.tensor(...)"
        )

    def _node(self, xp: Any, value: Any, backward: Any, edges: Any) -> Node:
        if self.wants_needs:
            needs = sinks_of(edges, tuple([edge is not None for edge in edges]))
            backward = partial(backward, needs=needs)
        if not isinstance(value, tuple):
            return Node(self.name, edges, backward)
        like = [(v.shape, v.dtype) for v in value]  # outputs that nobody used send zeros

        def fill(dys: Any) -> Any:
            dys = dys if isinstance(dys, tuple) else (dys,)  # one output arrives bare
            some = next(dy for dy in dys if dy is not None)
            return backward(
                tuple(xp.zeros(s, some, t) if dy is None else dy for dy, (s, t) in zip(dys, like))
            )

        return Node(self.name, edges, fill, len(value))

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """As a class attribute an op is a method: `Tensor.exp = exp`."""
        return self if instance is None else partial(self, instance)

    def __repr__(self) -> str:
        return f"<op {self.name}>"


def wrap(value: Any, node: Node | None, output: int = 0) -> Any:
    """The results of an op as Tensors that know the node which made them."""
    if isinstance(value, tuple):
        return tuple([wrap(v, node, i) for i, v in enumerate(value)])
    result = Tensor(np.asarray(value) if isinstance(value, np.generic) else value)
    if node is not None and result.xp.is_floating(value):  # x.long() sends no gradient back
        result.node, result.output = node, output
    return result


def op(body: Callable[..., Any] | None = None, *, needs: bool = False) -> Any:
    """Make an Op of a function that returns its value and its own backward (None: no gradient)."""
    return Op(body, needs) if body is not None else partial(Op, wants_needs=needs)


class Update:
    """A callable on lists of Tensors that changes them in place: optimizers' arithmetic."""

    raw: Callable[..., None]

    def __init__(self, body: Callable[..., None]) -> None:
        update_wrapper(self, body)
        self.raw = body
        self.name = body.__name__
        UPDATES[self.name] = self
        KNOWN.add(self.name)

    def __call__(self, *lists: list[Tensor], **options: Any) -> None:
        """Lists of Tensors first, then options by name."""
        tensors = [t for group in lists for t in group if isinstance(t, Tensor)]
        if not tensors:
            return
        xp = common_namespace(self.name, tensors)
        arrays = tuple([t.array if isinstance(t, Tensor) else t for t in group] for group in lists)
        with xp.quiet():
            (choose(self.name, xp, arrays, options) or self.raw)(xp, *arrays, **options)


def update(body: Callable[..., None]) -> Update:
    """Make an Update of `f(xp, params, grads, ..., *, lr, ...)`, which writes into its arrays."""
    return Update(body)
