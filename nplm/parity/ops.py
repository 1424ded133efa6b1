"""Every op against its torch twin: the value and every gradient, in float64 and three ways.

The inputs are those of op_twins.py. An op is called as its Op calls it, so overrides are seen.
Read three_way.py before.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

import nplm.nn.functional  # noqa: F401  it loads the fused ops
from nplm.autograd.op import OPS
from nplm.autograd.overrides import choose
from nplm.backend import namespace_for
from nplm.parity.op_inputs import Call
from nplm.parity.op_twins import TWINS
from nplm.parity.three_way import Gathered, Reason, Results, Row, Rows, fixed, gather, versions
from nplm.parity.tolerances import to_numpy

REPEATS = 3

_ROWS = (
    "NumPy adds rows (a sum down the columns) one after another, torch in a cascade of partial "
    "sums; the float32 error then grows with n instead of its logarithm"
)
_OWN_FUNCTIONS = "NumPy's vector function is good to one last place, torch's (SLEEF) to half of one"
_PRODUCTS = (
    "OpenBLAS adds the terms of a long product (B * T of them) in fewer partial sums than torch's "
    "MKL; with equal libraries the errors are equal"
)
# The ratio that a reason allows leaves room for other seeds and CPUs: they move it by a third.
REASONS: dict[str, Reason] = {
    "add: gradient of y": Reason(10, _ROWS),
    "sub: gradient of y": Reason(10, _ROWS),
    "mul: gradient of y": Reason(10, _ROWS),
    "div: gradient of y": Reason(10, _ROWS),
    "maximum: gradient of y": Reason(10, _ROWS),
    "minimum: gradient of y": Reason(10, _ROWS),
    "where: gradient of x": Reason(5, _ROWS),
    "sum: value": Reason(20, _ROWS),
    "mean: value": Reason(20, _ROWS),
    "logsumexp": Reason(6, _ROWS),
    "linear: gradient of bias": Reason(20, _ROWS),
    "rms_norm: gradient of weight": Reason(20, _ROWS),
    "mse_loss: gradient of y": Reason(8, _ROWS),
    "var": Reason(50, f"torch adds in float64 (Welford); {_ROWS}"),
    "cumsum": Reason(60, "torch adds in float64, NumPy in float32, term after term"),
    "erf: value": Reason(
        18, "a polynomial of 12 terms worked out in float32, 4e-7 off at worst; NumPy has no erf"
    ),
    "exp": Reason(3.5, _OWN_FUNCTIONS),
    "tanh": Reason(3, _OWN_FUNCTIONS),
    "sin: value": Reason(3, _OWN_FUNCTIONS),
    "cos: value": Reason(3, _OWN_FUNCTIONS),
    "linear: gradient of weight": Reason(3, _PRODUCTS, everywhere=False),
    "matmul: gradient of y": Reason(3, _PRODUCTS, everywhere=False),
}


def run_ops(
    names: Iterable[str] | None = None, seed: int = 0, repeats: int = REPEATS, device: str = "cpu"
) -> Rows:
    """The rows of all ops (or of `names`): each from `repeats` draws of every shape.

    `device` is nplm's ("cpu", "torch:cpu"); torch runs on the CPU, one thread. Raises a KeyError
    for a name that is no op.
    """
    chosen = sorted(TWINS) if names is None else list(names)
    unknown = [name for name in chosen if name not in TWINS]
    if unknown:
        raise KeyError(f"run_ops: expected names of ops, got {unknown}; see nplm.autograd.op.OPS")
    if repeats < 1:
        raise ValueError(f"run_ops: expected repeats >= 1, got {repeats}")
    rows: list[Row] = []
    with fixed():
        for name in chosen:
            rows += rows_of(name, seed, repeats, device)
    meta = versions() | {"seed": seed, "repeats": repeats, "device": device}
    return Rows("ops", rows, REASONS, meta)


def rows_of(name: str, seed: int, repeats: int, device: str) -> list[Row]:
    """The rows of one op: its outputs, then the gradients in the order of its inputs."""
    found: dict[str, Gathered] = {}
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), repeat])
        for call in TWINS[name].calls(rng):
            gather(found, _runner(name, call, rng, device), f" for inputs {_shapes(call)}")
    order = sorted(found, key=lambda quantity: quantity.startswith("gradient"))
    return [found[quantity].row(name, quantity) for quantity in order]


def _shapes(call: Call) -> str:
    return ", ".join(str(x.shape) for x in call.inputs if isinstance(x, np.ndarray))


def _runner(name: str, call: Call, rng: np.random.Generator, device: str) -> Any:
    """`run(engine, dtype)` of one draw; what flows back is drawn by the first run."""
    dys: list[np.ndarray | None] = []

    def run(engine: str, dtype: str) -> Results:
        here = call if dtype == "float64" else Call(map_floats(call.inputs, np.float32),
                                                    call.options)  # fmt: skip
        if engine == "nplm":
            return _run_nplm(name, here, dys, device)
        if dtype == "truth":
            here = Call(map_floats(here.inputs, np.float64), here.options)
        return _run_torch(name, here, dys, rng)

    return run


def map_floats(inputs: tuple[Any, ...], dtype: Any) -> tuple[Any, ...]:
    """The floating arrays in another dtype; anything else as it is."""
    return tuple(
        x.astype(dtype) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for x in inputs
    )


def _outputs(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _named(name: str, values: tuple[Any, ...], grads: Any, wants: tuple[bool, ...]) -> Results:
    """Values and gradients by name; `grads` None: there is no backward."""
    named = {"value" if len(values) == 1 else f"value {i}": v for i, v in enumerate(values)}
    known = OPS[name].array_names
    for i, want in enumerate(wants):
        if want and grads is not None:
            input_name = f"{known[0]}{i}" if OPS[name].variadic else known[i]
            named[f"gradient of {input_name}"] = grads[i]
    return named


def _run_torch(
    name: str, call: Call, dys: list[np.ndarray | None], rng: np.random.Generator
) -> Results:
    wants = TWINS[name].takes_gradient(call)
    inputs = [_as_torch(x) for x in call.inputs]
    leaves = [x.requires_grad_() for x, want in zip(inputs, wants) if want]
    options = {k: _as_torch(v) for k, v in call.options.items()}
    values = _outputs(TWINS[name].function(*inputs, **options))
    if not dys:  # rounded to float32, so that all runs get the same numbers
        dys += [
            rng.standard_normal(tuple(v.shape)).astype(np.float32).astype(np.float64)
            if v.is_floating_point() else None
            for v in values
        ]  # fmt: skip
    if not leaves:
        return _named(name, values, None, wants)
    pairs = [(v, torch.from_numpy(dy).to(v.dtype)) for v, dy in zip(values, dys) if dy is not None]
    found = iter(torch.autograd.grad(
        [v for v, _ in pairs], leaves, [dy for _, dy in pairs], allow_unused=True
    ))  # fmt: skip
    grads = [
        (torch.zeros_like(x) if (dx := next(found)) is None else dx) if want else None
        for x, want in zip(inputs, wants)
    ]
    return _named(name, values, grads, wants)


def _as_torch(x: Any) -> Any:
    """An array (also inside an index) as a torch tensor of its own."""
    if isinstance(x, np.ndarray):
        return torch.tensor(x)
    return tuple(map(_as_torch, x)) if isinstance(x, tuple) else x


def _native(x: Any, device: str) -> Any:
    """An array (also inside an index) as one of the device; anything else as it is."""
    if isinstance(x, np.ndarray):
        return namespace_for(device).asarray(x.copy(), None, device)
    return tuple(_native(v, device) for v in x) if isinstance(x, tuple) else x


def _run_nplm(name: str, call: Call, dys: list[np.ndarray | None], device: str) -> Results:
    """The op as its Op runs it: the override that accepts the arguments, or the reference."""
    op, xp = OPS[name], namespace_for(device)
    wants = TWINS[name].takes_gradient(call)
    arrays = tuple(_native(x, device) for x in call.inputs)
    options = {k: _native(v, device) for k, v in call.options.items()}
    with xp.quiet():
        value, backward = (choose(name, xp, arrays, options) or op.raw)(xp, *arrays, **options)
        values = _outputs(value)
        kept = tuple(np.array(to_numpy(v)) for v in values)  # a closure may overwrite its own
        fits = [dy is None or v.shape == dy.shape for v, dy in zip(kept, dys)]
        if backward is None or True not in wants or not all(fits):
            return _named(name, kept, None, wants)
        arriving = tuple(
            _native(np.zeros(v.shape) if dy is None else dy.astype(kept[i].dtype), _place(v))
            for i, (v, dy) in enumerate(zip(values, dys))
        )
        needs = (wants,) if op.wants_needs else ()
        grads = backward(arriving if isinstance(value, tuple) else arriving[0], *needs)
    return _named(name, kept, grads, wants)


def _place(x: Any) -> str:
    """The device of an array: `transfer` moves it to another."""
    return str(x.device) if str(getattr(x, "device", "cpu")) != "cpu" else (
        "torch:cpu" if isinstance(x, torch.Tensor) else "cpu"
    )  # fmt: skip
