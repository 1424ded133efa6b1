"""Module and Parameter: a tree of named tensors.  Twin: torch.nn.Module.  Read tensor.py before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from nplm.autograd.grad_mode import no_grad
from nplm.autograd.graph import Array
from nplm.autograd.tensor import Tensor
from nplm.backend.dtypes import float32, float64
from nplm.nn.loading import IncompatibleKeys, match
from nplm.nn.moving import floating_destination, move
from nplm.nn.registry import Registry


class Parameter(Tensor):
    """A leaf that wants a gradient and that a Module registers.  Twin: torch.nn.Parameter.

    It owns one gradient buffer: after `zero_grad()` the next first gradient is written there, so a
    `.grad` that you kept is valid until the next backward.
    """

    __slots__ = ("_buffer",)

    def __init__(self, data: Tensor | Array, requires_grad: bool = True) -> None:
        super().__init__(data.array if isinstance(data, Tensor) else data, requires_grad)
        self._buffer: Array | None = None

    def _own_copy(self, gradient: Array) -> Array:
        if self._buffer is None:
            self._buffer = self.xp.copy(gradient)
        else:
            self._buffer[...] = gradient
        return self._buffer

    def forget_buffer(self) -> None:
        """The array has another dtype or device now: the old buffer does not fit."""
        self._buffer = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo[id(self)] = copy = type(self)(self.xp.copy(self.array), self.requires_grad)
        return copy  # without the gradient, as in torch

    def __repr__(self) -> str:
        return "Parameter containing:\n" + super().__repr__()


class Module(Registry):
    """Base of layers and models: assign Parameters and Modules to attributes, define `forward`."""

    training: bool

    def __init__(self) -> None:
        super().__init__()  # the tables _parameters, _buffers and _modules
        self.training = True

    forward: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run `forward`."""
        return self.forward(*args, **kwargs)

    # ---- registration (assignment is in registry.py) -------------------------
    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Add a parameter, or a name that holds none (a missing bias)."""
        self._register("_parameters", name, param)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add a tensor that moves with the module but is not trained."""
        self._register("_buffers", name, tensor)
        (self._transient.discard if persistent else self._transient.add)(name)

    def register_module(self, name: str, module: Module | None) -> None:
        """Add a child under a name that need not be a Python identifier."""
        self._register("_modules", name, module)

    add_module = register_module

    # ---- the tree ------------------------------------------------------------
    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) of the direct children, each module once."""
        seen: set[Module | None] = {None}
        for name, module in self._modules.items():
            if module not in seen:
                seen.add(module)
                yield name, module

    def children(self) -> Iterator[Module]:
        """The direct children."""
        return (module for _, module in self.named_children())

    def named_modules(
        self, memo: set[Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """(dotted name, module) of this module and everything below, except those in `memo`."""
        memo = set() if memo is None else memo
        waiting: list[tuple[str, Module]] = [(prefix, self)]
        while waiting:  # no recursion: a value would go up through a generator of every level
            path, module = waiting.pop()
            if module in memo:
                continue
            if remove_duplicate:
                memo.add(module)
            yield path, module
            for name, child in reversed(module._modules.items()):
                if child is not None:
                    waiting.append((_dotted(path, name), child))

    def modules(self) -> Iterator[Module]:
        """This module and everything below."""
        return (module for _, module in self.named_modules())

    def _named(
        self, table: str, prefix: str, recurse: bool, once: bool
    ) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        modules = self.named_modules(None, prefix, once) if recurse else [(prefix, self)]
        for path, module in modules:
            for name, value in module.__dict__[table].items():
                if value is not None and id(value) not in seen:
                    if once:
                        seen.add(id(value))
                    yield _dotted(path, name), value

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """(dotted name, parameter); a tied weight comes once, under its first name."""
        return self._named("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """The parameters, each once."""
        return (parameter for _, parameter in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """(dotted name, buffer)."""
        return self._named("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """The buffers, each once."""
        return (buffer for _, buffer in self.named_buffers(recurse=recurse))

    # ---- state ---------------------------------------------------------------
    def _state(self) -> Iterator[tuple[str, Tensor]]:
        for path, module in self.named_modules(remove_duplicate=False):
            for name, value in (module._parameters | module._buffers).items():
                if value is not None and name not in module._transient:
                    yield _dotted(path, name), value

    def state_dict(self, prefix: str = "") -> OrderedDict[str, Tensor]:
        """Every parameter and persistent buffer by dotted name, sharing memory, detached."""
        return OrderedDict((prefix + name, value.detach()) for name, value in self._state())

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True
    ) -> IncompatibleKeys:
        """Copy values in by name: Tensors, arrays or torch tensors.  Nothing is copied on an error.

        Raises RuntimeError with torch's text for missing and unexpected names (if strict) and for
        shapes that differ.
        """
        own = dict(self._state())
        keys, values = match(self, own, state_dict, strict)
        with no_grad():
            for name, value in values.items():
                own[name].copy_(value)
        return keys

    # ---- for all below -------------------------------------------------------
    def apply(self, fn: Callable[[Module], None]) -> Self:
        """Call `fn` on every module below, children first, and on this one."""
        for module in self.children():
            module.apply(fn)
        fn(self)
        return self

    def train(self, mode: bool = True) -> Self:
        """Training mode (dropout is on), for this module and all below."""
        if not isinstance(mode, bool):
            raise ValueError(f"train: expected True or False, got {mode!r}")
        self.training = mode
        for module in self.children():
            module.train(mode)
        return self

    def eval(self) -> Self:
        """Evaluation mode (dropout is off)."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Train (or freeze) every parameter below."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget every gradient: None, or zeros."""
        for parameter in self.parameters():
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    def to(self, *args: Any, device: str | None = None, dtype: Any = None) -> Self:
        """Move or convert in place: `to("torch:cpu")`, `to(nplm.float64)`, `to(other_tensor)`.

        Parameters stay the same objects, so ties and optimizers hold; gradients move along.
        """
        device, dtype = floating_destination(args, device, dtype)
        for tensor in [*self.parameters(), *self.buffers()]:
            move(tensor, device, dtype)
        return self

    def float(self) -> Self:
        """To float32."""
        return self.to(dtype=float32)

    def double(self) -> Self:
        """To float64."""
        return self.to(dtype=float64)

    # ---- how it prints -------------------------------------------------------
    def extra_repr(self) -> str:
        """The settings that `repr` shows in parentheses."""
        return ""

    def _child_reprs(self) -> list[str]:
        return [f"({name}): {module!r}" for name, module in self._modules.items()]

    def __repr__(self) -> str:
        head, extra, children = type(self).__name__, self.extra_repr(), self._child_reprs()
        if not children and "\n" not in extra:
            return f"{head}({extra})"
        lines = "\n".join([extra, *children] if extra else children)
        return f"{head}(\n  " + lines.replace("\n", "\n  ") + "\n)"


Module._kinds = {
    "_parameters": (Parameter, "parameter"),
    "_modules": (Module, "module"),
    "_buffers": (Tensor, "buffer"),
}


def _dotted(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
