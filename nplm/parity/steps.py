"""What a recorder sees of an optimizer: gradients as they are used, options, state, parameters.

The second half of recorder.py; the counters and how values are kept are explained there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nplm.parity import nested
from nplm.parity.trace import Place, Trace

_OPTIONS = ("lr", "betas", "momentum")  # what schedules move


class StepRecorder:
    """The part of Recorder that runs around `optimizer.step()`."""

    model: Any
    optimizer: Any
    like: Trace | None
    done: int
    micro: int
    parameters: dict[int, tuple[str, Any]]
    _buffers: dict[str, np.ndarray]
    _summed: dict[str, tuple[int, float, float]]
    array: Callable[[Any], np.ndarray]
    is_tensor: Callable[[Any], bool]
    write: Callable[[Any, np.ndarray], None]
    see: Callable[..., np.ndarray | None]
    put: Callable[..., None]

    def before_step(self) -> None:
        """`.grad` and options, as the optimizer sees them."""
        for name, parameter in self._optimized():
            if parameter.grad is not None:
                terms, size, before = self._summed.get(name, (1, 0.0, 0.0))
                after = float(np.abs(self.array(parameter.grad)).max(initial=0.0))
                size *= min(1.0, after / before) if before else 1.0
                self.put(Place(self.done + 1, 0, "clipped", name), parameter.grad, terms, size)
        self.see_options("lr", self.done + 1, _OPTIONS)

    def after_step(self) -> None:
        """State and parameters; the step is over."""
        self.done += 1
        self.micro = 0
        self._summed.clear()
        self.see_state(self.done, "state")
        held = {id(parameter) for _, parameter in self._optimized()}
        for key, (name, parameter) in self.parameters.items():
            if key in held or parameter.requires_grad:
                self.put(Place(self.done, 0, "parameter", name), parameter)
        for name, buffer in self.model.named_buffers():
            before, now = self._buffers.get(name), self.array(buffer)
            if before is None or not np.array_equal(before, now, equal_nan=now.dtype.kind == "f"):
                self.put(Place(self.done, 0, "parameter", name), buffer)
                self._buffers[name] = self.array(buffer).copy()

    def see_options(self, phase: str, step: int, names: tuple[str, ...]) -> None:
        """Keep "lr.0" ... of every group, and put the reference's numbers there."""
        for i, group in enumerate(self.optimizer.param_groups if self.optimizer else ()):
            for option in names:
                value = group.get(option)
                if value is None:
                    continue
                numbers = nested.numbers(value)
                place = Place(step, 0, phase, f"{option}.{i}")
                reference = self.see(place, np.array(numbers, np.float64))
                if reference is not None and not np.array_equal(reference, numbers):
                    self._put_option(group, option, reference)

    def _put_option(self, group: dict[str, Any], option: str, reference: np.ndarray) -> None:
        value = group[option]
        if self.is_tensor(value):
            self.write(value, reference.reshape(value.shape))
        elif isinstance(value, tuple | list) and not any(map(self.is_tensor, value)):
            group[option] = type(value)(reference.tolist())
        elif not isinstance(value, tuple | list):
            group[option] = reference.item()

    def see_state(self, step: int, phase: str) -> None:
        """Keep what the optimizer remembers: "<parameter>.exp_avg" ..."""
        for name, value, put in self._state():
            place = Place(step, 0, phase, name)
            if self.is_tensor(value):
                self.put(place, value)
                continue
            reference = self.see(place, np.array(value))
            if reference is not None and put is not None:
                put(type(value)(reference.item()))

    def _state(self) -> Iterator[tuple[str, Any, Callable[[Any], None] | None]]:
        """(name, tensor or number, how to replace it) of the optimizer's state."""
        states = getattr(self.optimizer, "state", None) or {}
        names = {id(parameter): name for name, parameter in self._optimized()}
        order = {key: i for i, key in enumerate(names)}
        for key in sorted(states, key=lambda key: order.get(id(key), len(order))):
            name = names.get(id(key), f"state.{key}" if isinstance(key, str | int) else "state")
            yield from nested.state(states[key], name, self.is_tensor)

    def _optimized(self) -> Iterator[tuple[str, Any]]:
        """(name, parameter) of what the optimizer updates, group by group, each once."""
        done: set[int] = set()
        for group in self.optimizer.param_groups if self.optimizer else ():
            for parameter in group["params"]:
                if id(parameter) not in done:
                    done.add(id(parameter))
                    yield self.parameters.setdefault(
                        id(parameter), (f"unnamed.{len(self.parameters)}", parameter)
                    )
