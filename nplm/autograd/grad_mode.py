"""Whether a thread records a graph: no_grad, enable_grad, set_grad_enabled.  Twins: torch's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from nplm.autograd.graph import flags


class _Mode:
    """A `with` block or a decorator that switches recording and puts it back."""

    def __init__(self, mode: bool) -> None:
        self.mode = mode
        self.before: list[bool] = []  # one entry per block that is open

    def __enter__(self) -> None:
        self.before.append(flags.recording)
        flags.recording = self.mode

    def __exit__(self, *error: object) -> None:
        flags.recording = self.before.pop()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, run in this mode; each call has a block of its own."""

        @functools.wraps(function)
        def switched(*args: Any, **kwargs: Any) -> Any:
            with _Mode(self.mode):
                return function(*args, **kwargs)

        return switched


class set_grad_enabled(_Mode):  # a class in torch too
    """Record, or not, from now on; as a `with` block or decorator only inside."""

    def __init__(self, mode: bool) -> None:
        super().__init__(mode)
        self.started_from = flags.recording
        flags.recording = mode

    def __enter__(self) -> None:
        self.before.append(self.started_from)
        flags.recording = self.mode

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, run in this mode; outside of it nothing has changed."""
        flags.recording = self.started_from
        return super().__call__(function)


def no_grad(function: Callable[..., Any] | None = None) -> Any:
    """Record nothing: `with no_grad():`, `@no_grad()` or `@no_grad`."""
    return _Mode(False) if function is None else _Mode(False)(function)


def enable_grad(function: Callable[..., Any] | None = None) -> Any:
    """Record again inside a `no_grad` block."""
    return _Mode(True) if function is None else _Mode(True)(function)


def is_grad_enabled() -> bool:
    """Whether this thread records a graph."""
    return flags.recording
