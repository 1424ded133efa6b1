"""Every torch kernel against the reference op, on the device: value and gradients.

The reference runs in float64 on the same numbers. How far a kernel may be off stands in LIMITS.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

import nplm
import nplm.nn.functional
from benchmarks.gpu.units import Ask, CheckError, unit
from nplm.autograd.op import OPS, OVERRIDES
from nplm.backend import require_device, torch_kernels
from nplm.backend import torch as xp
from nplm.backend.torch_kernels import attention_choice, report
from nplm.bench import rates
from nplm.bench.torch_path import versions
from nplm.parity import op_twins  # noqa: F401  it fills TWINS
from nplm.parity.op_inputs import TWINS, Call, normal
from nplm.parity.tolerances import Tolerance

LIMITS = {
    "float32": Tolerance(
        0.0, 2e-5, "float32, rms of the error over the rms of the truth: sums of some thousand "
        "terms; a wrong term is 1e-3 or more",
    ),
    "bfloat16": Tolerance(
        0.0, 2e-2, "bfloat16, as float32: two roundings of 2**-8, in the operands of a product and "
        "in what is saved; a wrong term is 0.1 or more",
    ),
}  # fmt: skip
WEIGHTS = ("weight", "bias", "table")  # inputs that autocast leaves in float32


@unit("machine", "checks", 60)
def machine(ask: Ask) -> dict[str, Any]:
    """What is there, which kernels are chosen, and what large products reach."""
    require_device(ask.place)
    found: dict[str, Any] = {"versions": versions(), "device": ask.device}
    found["tf32"] = torch.backends.cuda.matmul.allow_tf32
    if found["tf32"]:
        raise CheckError("TF32 is on: expected off, as parity is claimed in float32")
    for dtype in ("float32", "bfloat16"):
        found[f"kernels {dtype}"] = report.chosen(ask.place, dtype)
    found["matrix rate"] = rates.matrix_rate(ask.device, "bfloat16", torch.get_num_threads())
    rate = found["matrix rate"]["flops_per_second"]
    name = torch.cuda.get_device_name() if ask.device == "cuda" else "the CPU"
    found["says"] = f"{name}, torch {torch.__version__}, bfloat16 {rate / 1e12:.2f} TFLOP/s"
    return found


# ---- kernels -------------------------------------------------------------------------------------
def model_calls(name: str, rng: np.random.Generator, small: bool) -> list[Call]:
    """Calls of the size that GPT-2 has, beside those of the twins; or tiny ones."""
    B, H, T, D, C, V = (2, 12, 32, 16, 48, 65) if small else (2, 12, 1024, 64, 768, 50304)
    more = {
        "attention": [
            Call(tuple(normal(rng, B, H, T, D) for _ in range(3)), {"causal": True}),
            Call((normal(rng, B, H, T, D), *(normal(rng, B, 4, T, D) for _ in range(2))),
                 {"causal": True}),
            Call(tuple(normal(rng, B, H, T, 2 * D) for _ in range(3)), {"causal": True}),
        ],
        "linear": [Call((normal(rng, B, T, C), normal(rng, 4 * C, C, scale=0.02),
                         normal(rng, 4 * C)))],
        "layer_norm": [Call((normal(rng, B, T, C), normal(rng, C), normal(rng, C)),
                            {"n_axes": 1, "eps": 1e-5})],
        "rms_norm": [Call((normal(rng, B, T, C), normal(rng, C)), {"n_axes": 1, "eps": 1e-5})],
        "linear_cross_entropy": [
            Call((normal(rng, B * T, C), normal(rng, V, C, scale=0.02),
                  rng.integers(0, V, B * T))),
        ],
    }  # fmt: skip
    return more.get(name, [])


def kernel_names() -> list[str]:
    """The ops that have a kernel on torch."""
    assert torch_kernels  # loaded, so the table is filled
    return [name for name, backend in sorted(OVERRIDES) if backend == "torch" and name in TWINS]


def check_kernels(ask: Ask, dtype: str) -> dict[str, Any]:
    """Every kernel that accepts a call in `dtype`; raises CheckError for all that are off."""
    worst: dict[str, float] = {}
    faults, calls = [], 0
    for name in kernel_names():
        rng = np.random.default_rng(0)
        for call in [*model_calls(name, rng, ask.small), *TWINS[name].calls(rng)]:
            for label, kernel in kernels_for(name, call, dtype, ask):
                if ask.left() < 0:
                    raise CheckError(f"no time for all kernels; the last one was {label}")
                off = worst_error(name, call, dtype, ask, kernel)
                calls += 1
                worst[label] = max(worst.get(label, 0.0), off)
                if not off <= LIMITS[dtype].atol:
                    shapes = [getattr(x, "shape", x) for x in call.inputs]
                    faults.append(f"{label} {shapes} {call.options}: off by {off:.1e}")
    if faults:
        raise CheckError(f"{len(faults)} of {calls} calls: " + "; ".join(faults[:8]))
    refused = {" ".join(map(str, key)): why for key, why in attention_choice.refusals.items()}
    says = f"{len(worst)} kernels, {calls} calls, worst {max(worst.values()):.1e}"
    return {"says": says, "worst": worst, "refused": refused}


def kernels_for(name: str, call: Call, dtype: str, ask: Ask) -> Iterator[tuple[str, Any]]:
    """(what to call it, kernel) for every kernel that accepts the call; attention's by name."""
    arrays, options = inputs_of(name, call, dtype, ask), options_of(call, ask)
    for when, kernel in OVERRIDES[name, "torch"]:
        with precision(dtype, ask):
            accepted = when is None or when(*arrays, **options)
        if not accepted:
            continue
        label = f"{name} by {getattr(kernel, '__module__', '').rpartition('.')[2]}"
        if name != "attention" or ask.device == "cpu":
            yield label, kernel
            continue
        for one in ("cudnn", "flash", "efficient"):
            attention_choice.prefer_attention(one)
            try:
                yield f"{label} {one}", kernel
            finally:
                attention_choice.prefer_attention(None)


def precision(dtype: str, ask: Ask) -> Any:
    """autocast, for bfloat16."""
    return nplm.autocast(ask.place) if dtype == "bfloat16" else nullcontext()


def inputs_of(name: str, call: Call, dtype: str, ask: Ask) -> list[Any]:
    """The inputs on the device: activations in `dtype`, weights in float32, as in training."""
    names = OPS[name].array_names
    found = []
    for i, x in enumerate(call.inputs):
        if isinstance(x, np.ndarray):
            x = torch.from_numpy(x).to(ask.device)
            if x.is_floating_point():
                weight = i < len(names) and names[i] in WEIGHTS
                x = x.to(torch.float32 if weight else getattr(torch, dtype))
        found.append(x)
    return found


def options_of(call: Call, ask: Ask) -> dict[str, Any]:
    """The options, their arrays on the device."""
    return {k: torch.from_numpy(v).to(ask.device) if isinstance(v, np.ndarray) else v
            for k, v in call.options.items()}  # fmt: skip


def worst_error(name: str, call: Call, dtype: str, ask: Ask, kernel: Any) -> float:
    """The largest error of value and gradients, rms over rms; NaN where one is not finite."""
    arrays, options = inputs_of(name, call, dtype, ask), options_of(call, ask)
    exact = [x.double() if is_floating(x) else x for x in arrays]
    takes = TWINS[name].takes_gradient(call)
    value, backward = OPS[name].raw(xp, *exact, **options)
    truth, dys = as_list(value), []
    generator = torch.Generator(ask.device).manual_seed(1)
    for v in truth:
        dy = torch.randn(v.shape, generator=generator, device=ask.device, dtype=torch.float32)
        dys.append(dy.bfloat16().double() if is_floating(v) else None)
    if backward is not None:
        truth = [*truth, *gradients(name, backward, value, dys, len(arrays))]
    with precision(dtype, ask):
        got, backward_ = kernel(xp, *arrays, **options)
        kept = [v.clone() for v in as_list(got)]  # a closure may overwrite its own
        if backward_ is not None:
            own = [dy.to(v.dtype) if dy is not None else None for dy, v in zip(dys, kept)]
            kept = [*kept, *gradients(name, backward_, got, own, len(arrays))]
    judged = [True] * len(as_list(value)) + list(takes)
    errors = [error(a, b) for a, b, want in zip(kept, truth, judged) if want and b is not None]
    return max(errors, key=lambda e: (e != e, e), default=0.0)


def gradients(name: str, backward: Any, value: Any, dys: list[Any], n: int) -> list[Any]:
    """What a backward gives for every input."""
    arrived = tuple(dys) if isinstance(value, tuple) else dys[0]
    needs = ((True,) * n,) if OPS[name].wants_needs else ()
    return list(backward(arrived, *needs))


def error(x: Any, truth: torch.Tensor) -> float:
    """rms of the error over the rms of the truth."""
    if x is None:
        return float("nan")
    off, size = (x.double() - truth.double()).norm(), truth.double().norm()
    return float(off / size) if size > 0 else float(off)


def is_floating(x: Any) -> bool:
    """Whether it is an array of floating numbers."""
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def as_list(value: Any) -> list[Any]:
    """The outputs of an op."""
    return list(value) if isinstance(value, tuple) else [value]


@unit("kernels float32", "checks", 70)
def kernels_float32(ask: Ask) -> dict[str, Any]:
    """Every kernel against its reference in float32."""
    return check_kernels(ask, "float32")


@unit("kernels bfloat16", "checks", 70)
def kernels_bfloat16(ask: Ask) -> dict[str, Any]:
    """Every kernel under autocast."""
    return check_kernels(ask, "bfloat16")
