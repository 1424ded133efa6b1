"""What the twin of an op is: its torch function, and inputs of the sizes that training has.

`@twin(name, function)` enters an op into TWINS. Read op_twins.py and op_twins_fused.py after.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Call:
    """One call of an op: its array inputs (or numbers, or None) and its options."""

    inputs: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)


Draw = Callable[[np.random.Generator], list[Call]]


@dataclass(frozen=True)
class Twin:
    """The torch function that an op equals, and what to feed both."""

    function: Callable[..., Any]
    calls: Draw  # float64 inputs of realistic size, one Call a shape or setting
    constant: tuple[int, ...] = ()  # floating inputs that get no gradient by design
    differentiable: bool = True

    def takes_gradient(self, call: Call) -> tuple[bool, ...]:
        """For every input whether a gradient has to come back to it."""
        return tuple(
            self.differentiable
            and i not in self.constant
            and isinstance(x, np.ndarray)
            and x.dtype.kind == "f"
            for i, x in enumerate(call.inputs)
        )


TWINS: dict[str, Twin] = {}


def twin(
    name: str,
    function: Callable[..., Any],
    constant: tuple[int, ...] = (),
    differentiable: bool = True,
) -> Callable[[Draw], Draw]:
    """The decorated `f(rng) -> list[Call]` makes the realistic inputs of op `name`."""

    def register(calls: Draw) -> Draw:
        TWINS[name] = Twin(function, calls, constant, differentiable)
        return calls

    return register


def silent(f: Callable[..., Any]) -> Callable[..., Any]:
    """`f` without torch's warnings, as of variances of too few numbers: the value matters."""

    def call(*args: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return f(*args, **options)

    return call


# ---- realistic sizes: B batch, T time, C channels, V vocabulary ----------------------------------
B, T, C, V = 4, 64, 384, 2000


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Normal numbers of a deviation, float64."""
    return np.asarray(rng.standard_normal(shape) * scale)


def positive(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Numbers from 0.05 to 4."""
    return np.asarray(rng.uniform(0.05, 4.0, shape))


def chosen(rng: np.random.Generator, *shape: int, p: float = 0.5) -> np.ndarray:
    """Booleans that are True with probability `p`."""
    return np.asarray(rng.random(shape) < p)
