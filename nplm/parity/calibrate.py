"""How far torch's own variants differ from each other: what float32 parity can mean at best.

Attention's kernels, one and two threads, a fused op and the same from single ops.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from nplm.parity.op_inputs import normal
from nplm.parity.three_way import errors, fixed
from nplm.parity.tolerances import HALF_ULP

Runs = dict[str, np.ndarray]  # "value", "gradient of q", ...


@dataclass(frozen=True)
class Variant:
    """How far one variant is from another, and each from float64."""

    name: str  # of the function
    variants: str  # "MATH, FLASH"
    quantity: str
    apart: float  # largest difference / largest element; NaN: torch does not offer this variant
    first: float  # largest error of the first against float64, likewise
    second: float
    note: str = ""


def calibrate(seed: int = 0) -> list[Variant]:
    """Float32, the sizes of a small model: differences between variants of torch 2.x on this CPU.

    A variant that torch does not offer here stands in the list with a note.
    """
    rows: list[Variant] = []
    with fixed():
        for name, (function, shapes, others) in FUNCTIONS.items():
            rng = np.random.default_rng([seed, len(name)])
            inputs = [normal(rng, *shape).astype(np.float32) for shape in shapes.values()]
            dy = _dy(function, inputs, rng)
            run = partial(_run, inputs=inputs, names=list(shapes), dy=dy)
            truth = run(function, dtype=torch.float64)
            first = run(function)
            base = "MATH" if name == "attention" else "1 thread"
            for label, other in others.items():
                try:
                    second = run(other)
                except RuntimeError as error:
                    note = f"not on this CPU: {str(error).splitlines()[0]}"
                    rows.append(Variant(name, f"{base}, {label}", "value",
                                        math.nan, math.nan, math.nan, note))  # fmt: skip
                    continue
                rows += _between(name, f"{base}, {label}", first, second, truth)
            two = run(function, threads=2)
            rows += _between(name, f"{base}, 2 threads", first, two, truth)
    return rows


def _between(name: str, variants: str, first: Runs, second: Runs, truth: Runs) -> list[Variant]:
    return [
        Variant(name, variants, quantity,
                errors(second[quantity], np.asarray(first[quantity], np.float64))[0],
                errors(first[quantity], true)[0], errors(second[quantity], true)[0])
        for quantity, true in truth.items()
    ]  # fmt: skip


def _dy(function: Any, inputs: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    y = function(*map(torch.from_numpy, inputs))
    return rng.standard_normal(tuple(y.shape)).astype(np.float32)


def _run(function: Any, inputs: list[np.ndarray], names: list[str], dy: np.ndarray,
         dtype: torch.dtype = torch.float32, threads: int = 1) -> Runs:  # fmt: skip
    """The value and every gradient, as NumPy arrays."""
    with fixed(threads):
        leaves = [torch.tensor(x, dtype=dtype, requires_grad=True) for x in inputs]
        y = function(*leaves)
        grads = torch.autograd.grad(y, leaves, torch.tensor(dy, dtype=dtype))
    found = {"value": y.detach().numpy()}
    return found | {f"gradient of {name}": g.numpy() for name, g in zip(names, grads)}


# ---- the functions and their variants ------------------------------------------------------------
def _attention(q: Any, k: Any, v: Any, kernel: SDPBackend = SDPBackend.MATH) -> Any:
    with sdpa_kernel(kernel), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns once a kernel that it refuses, then raises
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _layer_norm(x: Any, weight: Any, bias: Any) -> Any:
    return F.layer_norm(x, x.shape[-1:], weight, bias)


def _layer_norm_of_ops(x: Any, weight: Any, bias: Any) -> Any:
    centred = x - x.mean(-1, keepdim=True)
    return centred / ((centred * centred).mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def _softmax_of_ops(x: Any) -> Any:
    e = (x - x.amax(-1, keepdim=True).detach()).exp()
    return e / e.sum(-1, keepdim=True)


def _targets(x: Any) -> Any:
    return torch.arange(x.shape[0]) * 7919 % x.shape[1]


def _cross_entropy(x: Any) -> Any:
    return F.cross_entropy(x * 3, _targets(x))


def _cross_entropy_of_ops(x: Any) -> Any:
    z = x * 3
    return (z.logsumexp(1) - z.gather(1, _targets(x)[:, None])[:, 0]).mean()


def _linear_of_ops(x: Any, weight: Any, bias: Any) -> Any:
    return torch.matmul(x, weight.T) + bias


_Entry = tuple[Callable[..., Any], dict[str, tuple[int, ...]], dict[str, Callable[..., Any]]]
_HEADS = (2, 6, 256, 64)
FUNCTIONS: dict[str, _Entry] = {
    "attention": (
        _attention, {"q": _HEADS, "k": _HEADS, "v": _HEADS},
        {"FLASH": partial(_attention, kernel=SDPBackend.FLASH_ATTENTION),
         "EFFICIENT": partial(_attention, kernel=SDPBackend.EFFICIENT_ATTENTION)},
    ),
    "layer_norm": (_layer_norm, {"x": (1024, 384), "weight": (384,), "bias": (384,)},
                   {"single ops": _layer_norm_of_ops}),
    "softmax": (partial(F.softmax, dim=-1), {"x": (256, 2000)},
                {"single ops": _softmax_of_ops}),
    "cross_entropy": (_cross_entropy, {"x": (512, 2000)}, {"single ops": _cross_entropy_of_ops}),
    "linear": (F.linear, {"x": (1024, 384), "weight": (384, 384), "bias": (384,)},
               {"single ops": _linear_of_ops}),
}  # fmt: skip


# ---- the table -----------------------------------------------------------------------------------
def table(rows: list[Variant]) -> str:
    """80 columns; numbers in units of 2**-24 of the largest element, half a last place of float32.

    `apart`: the two variants from each other; then each from float64.
    """
    title = f"{'function':14} {'variants':22} {'quantity':13} {'apart':>8}"
    lines = [f"{title}{'first':>8}{'second':>8}", "-" * 80]
    for row in rows:
        quantity = row.quantity.replace("gradient of ", "d ")
        numbers = "".join(
            f"{'-' if math.isnan(x) else format(x / HALF_ULP, '.2f'):>8}"
            for x in (row.apart, row.first, row.second)
        )
        lines.append(f"{row.name:14} {row.variants:22} {quantity:13} {numbers}")
        if row.note:
            lines.append(f"    {row.note[:76]}")
    return "\n".join(lines) + "\n"


def to_json(rows: list[Variant]) -> list[dict[str, Any]]:
    """The rows as plain values; a variant that is not there has None."""
    return [
        {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(row).items()}
        for row in rows
    ]
