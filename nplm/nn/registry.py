"""What `module.name = value` does: parameters, children and buffers go into tables of their own."""

from __future__ import annotations

from typing import Any, ClassVar


class Registry:
    """Base of Module: attributes that are kept in tables, by kind.  Twin: torch.nn.Module."""

    # table -> what it holds, and what messages call it; module.py fills it in
    _kinds: ClassVar[dict[str, tuple[type, str]]] = {}

    _parameters: dict[str, Any]
    _modules: dict[str, Any]
    _buffers: dict[str, Any]
    _transient: set[str]  # buffers that state_dict leaves out

    def __init__(self) -> None:
        for table in self._kinds:
            object.__setattr__(self, table, {})
        object.__setattr__(self, "_transient", set())

    def __setattr__(self, name: str, value: Any) -> None:
        for table, (kind, what) in self._kinds.items():
            held = self.__dict__.get(table)
            if isinstance(value, kind) and table != "_buffers":  # buffers are registered by name
                if held is None:
                    raise AttributeError(f"cannot assign {what} before Module.__init__() call")
                if name not in held:
                    self._forget(name)
                held[name] = value
                return
            if held is not None and name in held:
                if value is not None and not isinstance(value, kind):
                    raise TypeError(
                        f"cannot assign '{type(value).__name__}' as {what} '{name}' "
                        f"(nplm {kind.__name__} or None expected)"
                    )
                held[name] = value
                return
        object.__setattr__(self, name, value)

    def _forget(self, name: str) -> None:
        for table in (*(self.__dict__[table] for table in self._kinds), self.__dict__):
            table.pop(name, None)
        self._transient.discard(name)

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__  # asked for at every `self.weight` of a forward pass
        for table in self._kinds:
            if table in own and name in own[table]:
                return own[table][name]
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def __delattr__(self, name: str) -> None:
        if any(name in self.__dict__[table] for table in self._kinds):
            self._forget(name)
        else:
            object.__delattr__(self, name)

    def _register(self, table: str, name: str, value: Any) -> None:
        kind, what = self._kinds[table]
        if table not in self.__dict__:
            raise AttributeError(f"cannot assign {what} before Module.__init__() call")
        if not name or "." in name:
            raise KeyError(f"{what} name can't be empty or contain a dot, got '{name}'")
        if hasattr(self, name) and name not in self.__dict__[table]:
            raise KeyError(f"attribute '{name}' already exists")
        if value is not None and not isinstance(value, kind):
            raise TypeError(
                f"cannot assign '{type(value).__name__}' object to {what} '{name}' "
                f"(nplm {kind.__name__} or None required)"
            )
        self.__dict__[table][name] = value
