"""The graph of one backward pass: nodes, edges, and the walk from a loss to its leaves.

Nothing here knows Tensors: a node holds edges and a closure, never an array, so the memory of a
forward pass is held by the closures alone and is freed while the walk drops them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from nplm.errors import GraphError

Array = Any  # np.ndarray or torch.Tensor
Edge = tuple["Node", int]  # (the node that made an input, which of its outputs it was)


class Flags(threading.local):
    """What this thread does: record?  Only reference ops?  bfloat16?  Where do gradients go?"""

    recording, reference, autocast = True, False, False
    sinks: Any = None  # {Leaf: Sink}, see sinks.py


flags = Flags()


class Node:
    """One recorded operation: where its inputs came from and how to send gradients there.

    `backward(dy)` (a tuple of dy when the op has several outputs) returns one gradient per edge,
    or None. `rank` is 1 + the largest rank among the inputs, so falling rank visits every consumer
    of a node before the node itself.
    """

    __slots__ = ("backward", "edges", "hooks", "n_outputs", "name", "rank")

    def __init__(
        self,
        name: str,
        edges: tuple[Edge | None, ...],
        backward: Callable[[Any], tuple[Array | None, ...]] | None,
        n_outputs: int = 1,
    ) -> None:
        self.name, self.edges, self.backward = name, edges, backward
        self.n_outputs = n_outputs
        self.hooks: tuple[tuple[int, Callable[[Array], None]], ...] = ()
        rank = -1
        for edge in edges:
            if edge is not None and edge[0].rank > rank:
                rank = edge[0].rank
        self.rank: int = rank + 1

    def __repr__(self) -> str:
        return f"<{self.name}, rank {self.rank}>"


class Leaf(Node):
    """Where a walk ends: `owner()` gives the tensor that wants the gradient (None once it died)."""

    __slots__ = ("owner",)

    def __init__(self, owner: Callable[[], Any]) -> None:
        super().__init__("Leaf", (), None)
        self.owner = owner


def reachable(root: Node) -> dict[Node, int]:
    """Every node below `root` with the number of edges that point at it.  No recursion."""
    edges_into = {root: 1}
    stack = [root]
    while stack:
        node = stack.pop()
        if node.backward is None and not isinstance(node, Leaf):
            raise GraphError(
                f"backward: the graph through '{node.name}' was walked before and its saved values "
                "are freed; expected one backward per forward, so run the forward pass again"
            )
        for parent, _ in filter(None, node.edges):
            if parent not in edges_into:
                stack.append(parent)
            edges_into[parent] = edges_into.get(parent, 0) + 1
    return edges_into


def run_backward(
    root: Node, output: int, gradient: Array, deposit: Callable[[Leaf, Array], None]
) -> None:
    """Send `gradient` from output `output` of `root` down to the leaves.

    `deposit(leaf, gradient)` fires once per leaf, as soon as its last gradient has arrived (a tied
    weight has several). An arriving gradient is borrowed: the first is kept by reference, the
    second is added out of place, and only that sum, which we own, is updated in place.
    """
    edges_left = reachable(root)
    arrived: dict[Edge, Array] = {(root, output): gradient}
    owned: set[Edge] = set()

    if isinstance(root, Leaf):
        return deposit(root, gradient)
    for node in sorted(edges_left, key=lambda node: node.rank, reverse=True):
        if isinstance(node, Leaf):
            break  # leaves alone have rank 0, and they were served on arrival
        backward, node.backward = node.backward, None  # dropped: its saved arrays can be freed
        dys = [arrived.pop((node, i), None) for i in range(node.n_outputs)]
        for i, hook in node.hooks:
            if dys[i] is not None:
                hook(dys[i])
        dxs: tuple[Array | None, ...] = (None,) * len(node.edges)
        if backward is not None and (dys[0] is not None or any([dy is not None for dy in dys])):
            dxs = backward(dys[0] if node.n_outputs == 1 else tuple(dys))
        for i, edge in enumerate(node.edges):
            if edge is None:
                continue
            if (gradient := dxs[i]) is None:
                pass  # this input wants none, or a sink has it
            elif edge not in arrived:
                arrived[edge] = gradient
            elif edge in owned:
                arrived[edge] += gradient
            else:
                arrived[edge] = arrived[edge] + gradient
                owned.add(edge)
            edges_left[edge[0]] -= 1
            if edges_left[edge[0]] == 0 and isinstance(edge[0], Leaf) and edge in arrived:
                deposit(edge[0], arrived.pop(edge))
