"""Module and Parameter: a tree of named tensors.  Twin: torch.nn.Module.  Read tensor.py before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from nplm.autograd.graph import Array, no_grad
from nplm.autograd.tensor import Tensor, as_tensor
from nplm.backend import namespace_for
from nplm.backend.dtypes import FLOATING, float32, float64


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

    def __repr__(self) -> str:
        return "Parameter containing:\n" + super().__repr__()


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` returns: the names that had no partner."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """Base of layers and models: assign Parameters and Modules to attributes, define `forward`."""

    training: bool

    def __init__(self) -> None:
        for table in ("_parameters", "_buffers", "_modules"):
            object.__setattr__(self, table, {})
        object.__setattr__(self, "_transient", set())  # buffers that state_dict leaves out
        object.__setattr__(self, "training", True)

    forward: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run `forward`."""
        return self.forward(*args, **kwargs)

    # ---- registration --------------------------------------------------------
    def __setattr__(self, name: str, value: Any) -> None:
        tables = self.__dict__
        if "_parameters" not in tables:
            raise AttributeError(f"{name}: call super().__init__() before assigning to a Module")
        table = None
        if isinstance(value, Parameter):
            table = "_parameters"
        elif isinstance(value, Module):
            table = "_modules"
        elif name in self._buffers and (value is None or isinstance(value, Tensor)):
            table = "_buffers"
        elif name in self._parameters and value is not None:
            raise TypeError(
                f"cannot assign '{type(value).__name__}' as parameter '{name}' "
                "(nplm.nn.Parameter or None expected)"
            )
        elif name in self._parameters:
            table = "_parameters"
        for other in ("_parameters", "_buffers", "_modules"):
            if other != table:
                tables[other].pop(name, None)
        if table is None:
            object.__setattr__(self, name, value)
        else:
            tables.pop(name, None)
            tables[table][name] = value

    def __getattr__(self, name: str) -> Any:
        for table in ("_parameters", "_buffers", "_modules"):
            if name in self.__dict__.get(table, ()):
                return self.__dict__[table][name]
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def __delattr__(self, name: str) -> None:
        for table in (self._parameters, self._buffers, self._modules):
            if name in table:
                del table[name]
                return
        object.__delattr__(self, name)

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Add a parameter, or a name that holds none (a missing bias)."""
        self._parameters[name] = None
        setattr(self, name, param)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add a tensor that moves with the module but is not trained."""
        self._buffers[name] = tensor
        (self._transient.discard if persistent else self._transient.add)(name)

    def register_module(self, name: str, module: Module | None) -> None:
        """Add a child under a name that need not be a Python identifier."""
        self._modules[name] = module

    # ---- the tree ------------------------------------------------------------
    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) of the direct children, each module once."""
        seen: set[int] = set()
        for name, module in self._modules.items():
            if module is not None and id(module) not in seen:
                seen.add(id(module))
                yield name, module

    def children(self) -> Iterator[Module]:
        """The direct children."""
        return (module for _, module in self.named_children())

    def named_modules(
        self, prefix: str = "", remove_duplicate: bool = True, _seen: set[int] | None = None
    ) -> Iterator[tuple[str, Module]]:
        """(dotted name, module) of this module and everything below."""
        seen = set() if _seen is None else _seen
        if id(self) in seen:
            return
        if remove_duplicate:
            seen.add(id(self))
        yield prefix, self
        for name, module in self._modules.items():
            if module is not None:
                dotted = f"{prefix}.{name}" if prefix else name
                yield from module.named_modules(dotted, remove_duplicate, seen)

    def modules(self) -> Iterator[Module]:
        """This module and everything below."""
        return (module for _, module in self.named_modules())

    def _named(
        self, table: str, prefix: str, recurse: bool, once: bool
    ) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        modules = self.named_modules(prefix, once) if recurse else [(prefix, self)]
        for dotted, module in modules:
            for name, value in module.__dict__[table].items():
                if value is not None and id(value) not in seen:
                    if once:
                        seen.add(id(value))
                    yield (f"{dotted}.{name}" if dotted else name), value

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
        for prefix, module in self.named_modules(remove_duplicate=False):
            for table in (module._parameters, module._buffers):
                for name, value in table.items():
                    if value is not None and name not in module._transient:
                        yield (f"{prefix}.{name}" if prefix else name), value

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
        missing = [name for name in own if name not in state_dict]
        unexpected = [name for name in state_dict if name not in own]
        problems = []
        if strict and missing:
            problems.append(f"Missing key(s) in state_dict: {_quoted(missing)}. ")
        if strict and unexpected:
            problems.append(f"Unexpected key(s) in state_dict: {_quoted(unexpected)}. ")
        for name, value in own.items():
            if name in state_dict and tuple(state_dict[name].shape) != value.shape:
                problems.append(
                    f"size mismatch for {name}: copying a param with shape "
                    f"{tuple(state_dict[name].shape)} from checkpoint, the shape in current model "
                    f"is {value.shape}."
                )
        if problems:
            title = f"Error(s) in loading state_dict for {type(self).__name__}:"
            raise RuntimeError("\n\t".join([title, *problems]))
        with no_grad():
            for name, value in own.items():
                if name in state_dict:
                    new = state_dict[name]
                    value.copy_(new if isinstance(new, Tensor) else as_tensor(np.asarray(new)))
        return IncompatibleKeys(missing, unexpected)

    # ---- for all below -------------------------------------------------------
    def apply(self, fn: Callable[[Module], None]) -> Self:
        """Call `fn` on every module below, children first, and on this one."""
        for module in self.children():
            module.apply(fn)
        fn(self)
        return self

    def train(self, mode: bool = True) -> Self:
        """Training mode (dropout is on), for this module and all below."""
        for module in self.modules():
            module.training = mode
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
        """Move or convert in place: `to("torch:cpu")`, `to(nplm.float64)`, `to(device, dtype)`.

        Parameters stay the same objects, so ties and optimizers hold; gradients move along.
        """
        for arg in args:
            if isinstance(arg, str) and arg not in np.sctypeDict:
                device = arg
            else:
                dtype = arg
        if dtype is not None and np.dtype(dtype) not in FLOATING:
            raise TypeError(f"Module.to: expected a floating dtype, got {dtype}")
        for tensor in [*self.parameters(), *self.buffers()]:
            _move(tensor, device, dtype)
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

    def __repr__(self) -> str:
        lines = [
            f"({name}): " + repr(module).replace("\n", "\n  ")
            for name, module in self._modules.items()
        ]
        head, extra = type(self).__name__, self.extra_repr()
        if not lines:
            return f"{head}({extra})"
        return "\n  ".join([f"{head}(", *([extra] if extra else []), *lines]) + "\n)"


def _quoted(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _move(tensor: Tensor, device: str | None, dtype: Any) -> None:
    device, before = device or tensor.device, tensor.xp
    dtype = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    xp = namespace_for(device)
    values = tensor.array if xp is before else before.to_numpy(tensor.array)
    array = xp.asarray(values, dtype, device)
    tensor.array, tensor.xp = (xp.copy(array) if xp is not before else array), xp
    if isinstance(tensor, Parameter):
        tensor._buffer = None
    if tensor.grad is not None:
        _move(tensor.grad, device, dtype)
