"""Fault: one thing that is broken on purpose, how it is planted, and where it has to be found.

The library's files stay as they are: a fault is a few words of one function, replaced in a compiled
copy. Ops and updates get the copy as an override (autograd/overrides.py), other functions as their
`__code__`, for whoever imported them.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from importlib import import_module
from types import CodeType, FunctionType
from typing import Any

import numpy as np

from nplm.autograd import overrides
from nplm.autograd.graph import flags
from nplm.autograd.op import OPS, Op, Update
from nplm.errors import ConfigError
from nplm.parity.lockstep import Scenario
from nplm.parity.trace import MICRO_PHASES, PHASES, Place

MODES = ("isolated", "free")
BACKENDS = ("numpy", "torch")
_PLANTED = "<a planted fault>"  # the file name of an altered copy, in tracebacks
Swaps = tuple[tuple[str, str], ...]  # (old text, new text), each old text once in the function


@dataclass(frozen=True)
class Fault:
    """One fault.

    name      in kebab-case
    group     what it is a fault of: "norms", "clipping" ...
    sentence  what is wrong
    target    the function that is changed, "nplm.ops.norm.layer_norm"
    swaps     what is replaced in its text
    place     where the first divergence has to be; its name is a pattern, as "*.exp_avg"
    needs     the settings of Scenario without which it does nothing; "model" has DecoderConfig's
    modes     those that find it; `unseen` says why another one does not
    numpy_only  why there is nothing wrong with it on torch tensors; empty: it is wrong there too

    Raises ConfigError for a place that names nothing, for a mode that there is not, and for a mode
    that is left out without a reason.
    """

    name: str
    group: str
    sentence: str
    target: str
    swaps: Swaps
    place: Place
    needs: Mapping[str, Any] = field(default_factory=dict)
    modes: tuple[str, ...] = MODES
    unseen: str = ""
    numpy_only: str = ""

    def __post_init__(self) -> None:
        p, where = self.place, f"Fault {self.name!r}"
        of_micro = p.micro > 0 if p.phase in MICRO_PHASES else p.micro == 0
        of_micro |= p.phase == "loss"  # of a micro-batch, or of the window
        if p.phase not in PHASES or p.step < (p.phase != "start") or not of_micro:
            raise ConfigError(f"{where}: expected a place that a run has, got {p}")
        if not p.name.strip("*?.#"):
            raise ConfigError(f"{where}: expected the name of a tensor, got the pattern {p.name!r}")
        if not self.modes or not set(self.modes) <= set(MODES):
            raise ConfigError(f"{where}: expected modes out of {MODES}, got {self.modes!r}")
        if (set(self.modes) == set(MODES)) == bool(self.unseen):
            raise ConfigError(f"{where}: expected a reason for just the modes that cannot see it")
        if not (self.name and self.sentence and self.swaps):
            raise ConfigError(f"{where}: expected a name, a sentence and something to replace")

    def scenario(self, base: Scenario) -> Scenario:
        """The run in which it shows: `base` with what it needs."""
        needs = dict(self.needs)
        model = replace(base.model, **needs.pop("model", {}))
        return replace(base, model=model, **needs)

    def expects(self, place: Place) -> bool:
        """Whether that is where the first divergence has to be."""
        p = self.place
        at = (p.step, p.micro, p.phase) == (place.step, place.micro, place.phase)
        return at and fnmatchcase(place.name, p.name)


@contextmanager
def planted(fault: Fault) -> Iterator[None]:
    """Plant a fault, and put everything back at the end.

    Raises ConfigError where the function does not have the text, or where overrides are off.
    """
    target = resolve(fault.target)
    if isinstance(target, Op | Update):
        with _overridden(target, altered(target.raw, fault.swaps)):
            yield
        return
    before = target.__code__
    with ExitStack() as stack:
        if not (flags.reference or overrides._always_reference):
            for op in OPS.values():  # kernels do not call what the ops of its file share
                if op.raw.__module__ == target.__module__:
                    stack.enter_context(_overridden(op, op.raw))
        target.__code__ = altered(target, fault.swaps).__code__
        stack.callback(setattr, target, "__code__", before)
        yield


def resolve(dotted: str) -> Any:
    """The function, Op or Update of that name: "nplm.train.loop.fit".  Raises ConfigError."""
    parts = dotted.split(".")
    for n in range(len(parts) - 1, 0, -1):
        try:
            found: Any = import_module(".".join(parts[:n]))
            for name in parts[n:]:
                found = inspect.getattr_static(found, name)
        except (ModuleNotFoundError, AttributeError):
            continue
        return found
    raise ConfigError(f"faults: there is no {dotted}")


@contextmanager
def _overridden(op: Op | Update, body: Callable[..., Any]) -> Iterator[None]:
    """`body` instead of the op's own and of every backend's kernel."""
    if flags.reference or overrides._always_reference:
        raise ConfigError(
            "faults: expected overrides to be on, since a fault is planted as one; unset "
            "NPLM_REFERENCE"
        )
    for backend in BACKENDS:  # load its kernels now: loaded later, they would be asked first
        overrides.choose("", import_module(f"nplm.backend.{backend}"), (), {})
    entry = (None, body)
    tables = [overrides.OVERRIDES.setdefault((op.name, backend), []) for backend in BACKENDS]
    for table in tables:
        table.insert(0, entry)
    try:
        yield
    finally:
        for backend, table in zip(BACKENDS, tables):
            table.remove(entry)
            if not table:
                del overrides.OVERRIDES[op.name, backend]


def altered(function: Callable[..., Any], swaps: Swaps) -> FunctionType:
    """A copy of a Python function with some of its text replaced.

    The copy also knows `np`, and `memory`, a dict of its own that outlives a call.
    Raises ConfigError unless every old text stands there exactly once.
    """
    original: Any = function
    code: CodeType = original.__code__
    if code.co_filename == _PLANTED:
        raise ConfigError(f"faults: {original.__qualname__} has a fault already; plant one at once")
    source = textwrap.dedent(inspect.getsource(original))
    for old, new in swaps:
        if source.count(old) != 1:
            raise ConfigError(
                f"faults: expected {old!r} once in {original.__qualname__}, found it "
                f"{source.count(old)} times: the function was rewritten, so the fault has to be"
            )
        source = source.replace(old, new)
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.FunctionDef)
    node.decorator_list = []
    # The names that the function has from around it (`__class__`, for super) stay such names.
    outer = ast.parse(f"def around({', '.join(code.co_freevars)}): pass").body[0]
    assert isinstance(outer, ast.FunctionDef)
    outer.body = [node]
    future = code.co_flags & annotations.compiler_flag
    module = ast.Module([outer], [])
    compiled = compile(
        ast.fix_missing_locations(module), _PLANTED, "exec", future, dont_inherit=True
    )
    copy = FunctionType(
        _inner(_inner(compiled, "around"), original.__name__),
        {"np": np, "memory": {}, **original.__globals__}, original.__name__, original.__defaults__,
        original.__closure__,
    )  # fmt: skip
    copy.__kwdefaults__ = original.__kwdefaults__
    return copy


def _inner(code: CodeType, name: str) -> CodeType:
    """The code of the function `name` that is defined directly in `code`."""
    return next(c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == name)
