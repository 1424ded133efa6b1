"""Modules that hold modules: ModuleList and Sequential.  Twins: torch.nn's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, Self

from nplm.nn.module import Module


class _Numbered(Module):
    """Children in a row, reached by their number."""

    def append(self, module: Module) -> Self:
        """Add one at the end."""
        self.register_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add several at the end."""
        for module in modules:
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> None:
        """Put one before `index`; those behind it move on by one."""
        modules = list(self)
        modules.insert(index, module)
        self._renumber(modules)

    def _renumber(self, modules: list[Module]) -> None:
        object.__setattr__(self, "_modules", ModuleList(modules)._modules)

    def __getitem__(self, index: int | slice) -> Any:
        names = list(self._modules)
        if isinstance(index, slice):
            return self._of({name: self._modules[name] for name in names[index]})
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range")
        return self._modules[names[index]]

    def _of(self, modules: dict[str, Module]) -> Self:
        raise NotImplementedError

    def __setitem__(self, index: int, module: Module) -> None:
        setattr(self, list(self._modules)[index], module)

    def __delitem__(self, index: int | slice) -> None:
        modules = list(self)
        del modules[index]
        self._renumber(modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._modules.values())


class ModuleList(_Numbered):
    """A list whose modules are registered as "0", "1", ...   It has no forward."""

    def __init__(self, modules: Iterable[Module] | None = None) -> None:
        super().__init__()
        self.extend(modules or ())

    def _of(self, modules: dict[str, Module]) -> Self:
        return type(self)(modules.values())

    def __iadd__(self, modules: Iterable[Module]) -> Self:
        return self.extend(modules)

    def __add__(self, modules: Iterable[Module]) -> ModuleList:
        return ModuleList([*self, *modules])

    def _child_reprs(self) -> list[str]:
        lines, at = [], 0
        for text, equal in groupby(map(repr, self)):
            n = len(list(equal))
            lines.append(f"({at}): {text}" if n == 1 else f"({at}-{at + n - 1}): {n} x {text}")
            at += n
        return lines


class Sequential(_Numbered):
    """Modules called one after the other; an OrderedDict gives them names."""

    def __init__(self, *modules: Any) -> None:
        super().__init__()
        named: Iterable[tuple[Any, Module]] = enumerate(modules)
        if len(modules) == 1 and isinstance(modules[0], OrderedDict):
            named = modules[0].items()
        for name, module in named:
            self.register_module(str(name), module)

    def _of(self, modules: dict[str, Module]) -> Self:
        return type(self)(OrderedDict(modules))

    def forward(self, input: Any) -> Any:
        """What the last module makes of it."""
        for module in self:
            input = module(input)
        return input
