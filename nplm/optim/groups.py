"""Parameter groups by rule: every trained parameter in exactly one, a tied weight once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nplm.errors import ConfigError

if TYPE_CHECKING:
    from nplm.autograd.tensor import Tensor
    from nplm.nn.module import Module

Groups = list[dict[str, Any]]


def decay_groups(model: Module, weight_decay: float) -> Groups:
    """Two groups: matrices (two axes or more) decay, vectors (biases, norms) do not."""
    return _by_axes([p for p in model.parameters() if p.requires_grad], weight_decay)


def layer_groups(
    model: Module, lr: float, decay: float, weight_decay: float = 0.0, blocks: str = "blocks"
) -> Groups:
    """Learning rates that fall with the depth: `lr * decay**(n + 1 - layer)` for n blocks.

    What is registered before the blocks (embeddings) is layer 0, block i is layer i + 1, and what
    comes after them (the last norm, a head of its own) is layer n + 1, with `lr` itself. A head
    that is tied to the embedding is the embedding. Matrices get `weight_decay`, vectors none. The
    groups go from the top down, so the first one has the highest rate.

    blocks: the dotted name of the list of blocks, e.g. "transformer.h". Frozen parameters are in no
    group. Raises ConfigError for a name without blocks, lr <= 0 or decay outside (0, 1].
    (Howard and Ruder, 2018, arXiv 1801.06146; Clark et al., 2020, arXiv 2003.10555)
    """
    if not 0 < lr < float("inf"):
        raise ConfigError(f"layer_groups: expected a positive finite lr, got {lr}")
    if not 0 < decay <= 1:
        raise ConfigError(f"layer_groups: expected 0 < decay <= 1, got {decay}")
    depths = list(_depths(model, blocks))
    if not any(index is not None for index, _ in depths):
        raise ConfigError(
            f"layer_groups: the model has no parameters in {blocks}.0, {blocks}.1 ..."
        )
    top = max(index for index, _ in depths if index is not None) + 2
    layers: list[list[Tensor]] = [[] for _ in range(top + 1)]
    below = 0
    for index, parameter in depths:
        below = below if index is None else top
        if parameter.requires_grad:
            layers[below if index is None else index + 1].append(parameter)
    return [
        {**group, "lr": lr * decay ** (top - layer)}
        for layer in range(top, -1, -1)
        for group in _by_axes(layers[layer], weight_decay)
    ]


def _depths(model: Module, blocks: str) -> Iterator[tuple[int | None, Tensor]]:
    """(index of its block or None, parameter), in the order of registration."""
    pattern = re.compile(rf"{re.escape(blocks)}\.(\d+)\.")
    for name, parameter in model.named_parameters():
        found = pattern.match(name)
        yield (int(found[1]) if found else None), parameter


def _by_axes(parameters: Sequence[Tensor], weight_decay: float) -> Groups:
    groups: Groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
