"""Every layer of nplm.nn against its torch twin: output, gradients of inputs and of parameters.

Both get the same weights; dropout draws the same masks from both streams. Read three_way.py before.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

import nplm
from nplm import nn
from nplm.parity.op_inputs import B, C, T, V, chosen, normal
from nplm.parity.ops import map_floats
from nplm.parity.three_way import Gathered, Reason, Results, Row, Rows, fixed, gather, versions
from nplm.parity.tolerances import to_numpy
from nplm.parity.twin import TorchAttention, TorchMLP

REPEATS = 2

Draw = Callable[[np.random.Generator], tuple[Any, ...]]  # the arrays that forward takes


@dataclass(frozen=True)
class Setting:
    """One way to make a layer: `make(library)` with library nplm or torch, and its inputs."""

    make: Callable[[Any], Any]
    draw: Draw


SETTINGS: dict[str, list[Setting]] = {}

_PRODUCTS = "a product of B * T terms, as ops says of linear's weight"
REASONS: dict[str, Reason] = {
    "Linear: gradient of weight": Reason(3, _PRODUCTS, everywhere=False),
    "ModuleList: gradient of layers.0.weight": Reason(3, _PRODUCTS, everywhere=False),
    "Tanh": Reason(3, "NumPy's tanh, as ops says"),
}


def _rows(*shape: int, scale: float = 1.0) -> Draw:
    return lambda rng: (normal(rng, *shape, scale=scale),)


def _same(name: str, draw: Draw, *all_options: dict[str, Any], args: tuple[Any, ...] = ()) -> None:
    """Settings of a layer that torch.nn has under the same name with the same options."""
    SETTINGS[name] = [
        Setting(partial(_made, name, args, options), draw) for options in all_options or ({},)
    ]


def _made(name: str, args: tuple[Any, ...], options: dict[str, Any], library: Any) -> Any:
    return getattr(library.nn, name)(*args, **options)


# ---- layers with weights -------------------------------------------------------------------------
_same("Linear", _rows(B, T, C), {}, {"bias": False}, args=(C, C))
_same("LayerNorm", _rows(B, T, C, scale=2.0), {}, {"bias": False}, {"eps": 1e-2},
      {"elementwise_affine": False}, args=(C,))  # fmt: skip
_same("RMSNorm", _rows(B, T, C, scale=2.0), {}, {"eps": 1e-5}, {"elementwise_affine": False},
      args=(C,))  # fmt: skip


def _tokens(rng: np.random.Generator) -> tuple[Any, ...]:
    ids = rng.integers(0, V, (8, 256))
    ids[:, 0] = 3  # the padding token occurs in every draw
    return (ids,)


_same("Embedding", _tokens, {}, {"padding_idx": 3},
      args=(V, 64))  # fmt: skip


def _mlp(activation: str, bias: bool, dropout: float) -> Setting:
    def make(library: Any) -> Any:
        kind = nn.MLP if library is nplm else TorchMLP
        return kind(128, 512, activation, bias, dropout)

    return Setting(make, _rows(B, T, 128))


SETTINGS["MLP"] = [_mlp("gelu", True, 0.0), _mlp("gelu_tanh", True, 0.1), _mlp("swiglu", False, 0)]


def _attention(*args: Any) -> Setting:
    def make(library: Any) -> Any:
        return (nn.CausalSelfAttention if library is nplm else TorchAttention)(*args)

    return Setting(make, _rows(2, 128, 192))


SETTINGS["CausalSelfAttention"] = [
    _attention(192, 6),
    _attention(192, 6, 2, False, 0.0, 10000.0),
    _attention(192, 6, None, True, 0.1),
]

# ---- layers without ------------------------------------------------------------------------------
for _name in ("Identity", "Flatten", "ReLU", "SiLU", "Tanh", "Sigmoid"):
    _same(_name, _rows(B, T, C, scale=2.0))
_same("GELU", _rows(B, T, C, scale=2.0), {}, {"approximate": "tanh"})
_same("Softmax", _rows(B, T, C, scale=2.0), {"dim": -1}, {"dim": 1})
_same("LogSoftmax", _rows(B, T, C, scale=2.0), {"dim": -1}, {"dim": 1})
_same("Dropout", _rows(B, T, C), {"p": 0.1}, {"p": 0.5}, {"p": 1.0})


# ---- containers ----------------------------------------------------------------------------------
def _sequential(library: Any) -> Any:
    n = library.nn
    return n.Sequential(n.Linear(C, 128), n.GELU(), n.Dropout(0.1), n.LayerNorm(128),
                        n.Linear(128, C))  # fmt: skip


def _module_list(library: Any) -> Any:
    """A ModuleList has no forward: its user calls its modules, here one after another."""
    n = library.nn

    class Stack(n.Module):  # type: ignore[name-defined]
        """Two layers in a list."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = n.ModuleList([n.Linear(C, C), n.SiLU(), n.RMSNorm(C)])

        def forward(self, x: Any) -> Any:
            """(..., C) -> (..., C)"""
            for layer in self.layers:
                x = layer(x)
            return x

    return Stack()


SETTINGS["Sequential"] = [Setting(_sequential, _rows(B, T, C))]
SETTINGS["ModuleList"] = [Setting(_module_list, _rows(B, T, C))]


# ---- losses --------------------------------------------------------------------------------------
def _classes(scale: float, n: int = 256, v: int = V) -> Draw:
    def draw(rng: np.random.Generator) -> tuple[Any, ...]:
        targets = np.where(chosen(rng, n, p=0.9), rng.integers(0, v, n), -100)
        return normal(rng, n, v, scale=scale), targets

    return draw


def _log_probabilities(rng: np.random.Generator) -> tuple[Any, ...]:
    x, targets = _classes(1.0)(rng)
    return -np.abs(x) - 1, targets  # no sum near 0: it would have no scale of its own


_same("CrossEntropyLoss", _classes(3.0), {}, {"reduction": "sum"}, {"reduction": "none"},
      {"label_smoothing": 0.1})  # fmt: skip
SETTINGS["CrossEntropyLoss"].append(
    Setting(
        lambda library: library.nn.CrossEntropyLoss(),
        lambda rng: (normal(rng, 256, 65), rng.dirichlet(np.ones(65), 256)),
    )
)
_same("NLLLoss", _log_probabilities, {}, {"reduction": "sum"}, {"reduction": "none"})
_same("MSELoss", lambda rng: (normal(rng, B, T, C), normal(rng, B, T, C)), {},
      {"reduction": "sum"}, {"reduction": "none"})  # fmt: skip


# ---- running -------------------------------------------------------------------------------------
def run_layers(
    names: Iterable[str] | None = None, seed: int = 0, repeats: int = REPEATS, device: str = "cpu"
) -> Rows:
    """The rows of all layers (or of `names`): each from `repeats` draws of every setting.

    `device` is nplm's; torch runs on the CPU, one thread. Raises a KeyError for an unknown name.
    """
    wanted = sorted(SETTINGS) if names is None else list(names)
    unknown = [name for name in wanted if name not in SETTINGS]
    if unknown:
        raise KeyError(f"run_layers: expected some of {sorted(SETTINGS)}, got {unknown}")
    if repeats < 1:
        raise ValueError(f"run_layers: expected repeats >= 1, got {repeats}")
    rows: list[Row] = []
    with fixed():
        for name in wanted:
            found: dict[str, Gathered] = {}
            for repeat in range(repeats):
                for place, setting in enumerate(SETTINGS[name]):
                    draw_seed = [seed, zlib.crc32(name.encode()), repeat, place]
                    gather(found, _runner(setting, draw_seed, device), f" in setting {place}")
            rows += [found[quantity].row(name, quantity) for quantity in found]
    meta = versions() | {"seed": seed, "repeats": repeats, "device": device}
    return Rows("layers", rows, REASONS, meta)


def _runner(setting: Setting, seed: list[int], device: str) -> Callable[[str, str], Results]:
    """`run(engine, dtype)` of one draw: inputs and weights are float32 numbers in every run."""
    rng = np.random.default_rng(seed)
    drawn = map_floats(setting.draw(rng), np.float32)
    masks = int(rng.integers(2**31))  # the seed of both random streams
    weights = {
        name: (value.numpy() + 0.1 * rng.standard_normal(tuple(value.shape))).astype(np.float32)
        for name, value in setting.make(torch).state_dict().items()
    }
    dys: list[np.ndarray] = []

    def run(engine: str, dtype: str) -> Results:
        kind = "float32" if dtype == "float32" else "float64"
        inputs = map_floats(drawn, kind)
        library = nplm if engine == "nplm" else torch
        layer = setting.make(library)
        layer = layer.double() if kind == "float64" else layer
        state = {k: v.astype(kind) for k, v in weights.items()}
        if engine == "nplm":
            layer = layer.to(device)
            layer.load_state_dict({k: nplm.tensor(v) for k, v in state.items()})
            leaves: list[Any] = [
                nplm.tensor(x, device=device, requires_grad=_floats(x)) for x in inputs
            ]
        else:
            layer.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
            leaves = [torch.tensor(x, requires_grad=_floats(x)) for x in inputs]
        library.manual_seed(masks)
        return _results(layer, leaves, dys, rng, library, kind, device)

    return run


def _floats(x: Any) -> bool:
    return bool(x.dtype.kind == "f")


def _results(layer: Any, leaves: list[Any], dys: list[np.ndarray], rng: np.random.Generator,
             library: Any, kind: str, device: str) -> Results:  # fmt: skip
    """Output, gradients of the floating inputs and of the parameters, by name."""
    y = layer(*leaves)
    if not dys:
        dys.append(rng.standard_normal(tuple(y.shape)).astype(np.float32))
    found: Results = {"output": y}
    if tuple(y.shape) != dys[0].shape:
        return found  # what is missing is told
    dy = dys[0].astype(kind)
    y.backward(nplm.tensor(dy, device=device) if library is nplm else torch.from_numpy(dy))
    inputs = [(f"gradient of input {i}", x) for i, x in enumerate(leaves) if x.requires_grad]
    weights = [(f"gradient of {name}", p) for name, p in layer.named_parameters()]
    for quantity, leaf in inputs + weights:
        if leaf.grad is not None:
            grad = leaf.grad.cpu() if library is nplm else leaf.grad
            found[quantity] = to_numpy(grad).copy()
    if library is nplm:
        found["output"] = y.detach().cpu()
    return found


__all__ = ["REASONS", "SETTINGS", "Setting", "run_layers"]
