"""What `Module.load_state_dict` checks before it copies anything, in torch's words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from nplm.autograd.factory import as_tensor
from nplm.autograd.tensor import Tensor

if TYPE_CHECKING:
    from nplm.nn.module import Module


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` returns: the names that had no partner."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return f"IncompatibleKeys(missing_keys={self[0]}, unexpected_keys={self[1]})"


def match(
    module: Module, own: Mapping[str, Tensor], given: Mapping[str, Any], strict: bool
) -> tuple[IncompatibleKeys, dict[str, Tensor]]:
    """(names without a partner, the given values that can be copied), or torch's RuntimeError."""
    if not isinstance(given, Mapping):
        raise TypeError(f"Expected state_dict to be dict-like, got {type(given)}.")
    missing = [name for name in own if name not in given]
    unexpected = _in_tree_order(module, (name for name in given if name not in own))
    problems = []
    if strict and missing:
        problems.append(f"Missing key(s) in state_dict: {_quoted(missing)}. ")
    if strict and unexpected:
        problems.append(f"Unexpected key(s) in state_dict: {_quoted(unexpected)}. ")
    values = {}
    for name in own:
        if name in given:
            value = _value(name, own[name].shape, given[name])
            if isinstance(value, Tensor):
                values[name] = value
            else:
                problems.append(value)
    if problems:
        title = f"Error(s) in loading state_dict for {type(module).__name__}:"
        raise RuntimeError("\n\t".join([title, *problems]))
    return IncompatibleKeys(missing, unexpected), values


def _value(name: str, shape: tuple[int, ...], given: Any) -> Tensor | str:
    """`given` as a Tensor, or the sentence that says why it cannot be copied."""
    if not hasattr(given, "shape") or not hasattr(given, "dtype"):
        return (
            f'While copying the parameter named "{name}", expected torch.Tensor or Tensor-like '
            f"object from checkpoint but received {type(given)}"
        )
    there = tuple(given.shape)
    if there == (1,) and shape == ():  # how torch 0.3 saved scalars
        given, there = given[0], ()
    if there != shape:
        return (
            f"size mismatch for {name}: copying a param with shape {there} from checkpoint, the "
            f"shape in current model is {shape}."
        )
    try:
        return as_tensor(given.detach() if hasattr(given, "detach") else given)
    except TypeError as error:  # a dtype that nplm does not have
        return (
            f'While copying the parameter named "{name}", whose dimensions in the model are '
            f"{shape} and whose dimensions in the checkpoint are {there}, an exception occurred : "
            f"{error.args}."
        )


def _in_tree_order(module: Module, names: Iterable[str]) -> list[str]:
    """Names in the order of the modules in which they are unknown, as torch lists them."""
    places = {path: i for i, (path, _) in enumerate(module.named_modules(remove_duplicate=False))}

    def place(name: str) -> int:
        return max(i for path, i in places.items() if not path or name.startswith(path + "."))

    return sorted(names, key=place)


def _quoted(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
