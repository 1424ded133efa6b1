"""Optimizer: parameter groups, state by parameter, and state_dicts that travel to and from torch.

The arithmetic is elsewhere: one `@update` on lists of arrays in adam.py, sgd.py and their like.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any, ClassVar, TypeAlias

from nplm.autograd.factory import tensor
from nplm.autograd.grad_mode import enable_grad
from nplm.autograd.graph import Array
from nplm.autograd.tensor import Tensor
from nplm.errors import ConfigError
from nplm.optim.flat import entries_like, flatten

Arrays: TypeAlias = list[Array]
Group: TypeAlias = dict[str, Any]
Number: TypeAlias = float | Tensor  # a Tensor of one element
Params: TypeAlias = Iterable[Tensor] | Iterable[Group] | Iterable[tuple[str, Tensor]]


class Optimizer:
    """What every optimizer shares.  Twin: torch.optim.Optimizer.

    params          tensors, or (name, tensor) pairs, or dicts {"params": ..., option: value}
    defaults        the options of every group that does not set its own
    param_groups    list of dicts: "params" and the options; "lr" is a Python number. May be written
    state           {parameter: {"exp_avg": Tensor, ...}}, made when a parameter is first updated

    A subclass writes `update_group(group, params)`, or `step` itself, as in torch.
    """

    moments: ClassVar[tuple[str, ...]] = ()  # entries whose shape is checked when they are loaded
    host: ClassVar[tuple[str, ...]] = ("step",)  # 0-d entries, kept on the host as they are saved
    absent: ClassVar[Group] = {}  # options that older state_dicts lack, and their values then
    needs_closure: ClassVar[bool] = False  # whether `step()` has to evaluate the loss again

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        if isinstance(params, Tensor):
            raise TypeError(
                "params argument given to the optimizer should be an iterable of Tensors or dicts, "
                f"but got {_typename(params)}"
            )
        self.defaults = defaults
        self.state: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
        self.param_groups: list[Group] = []
        given: list[Any] = list(params)
        if not given:
            raise ValueError("optimizer got an empty parameter list")
        for group in given if isinstance(given[0], dict) else [{"params": given}]:
            self.add_param_group(group)

    # ---- groups --------------------------------------------------------------
    def add_param_group(self, param_group: Group) -> None:
        """Optimize more parameters: `{"params": ..., option: value}`; other options are defaults.

        The dict is copied (torch keeps and fills the caller's). Raises torch's errors: TypeError
        for sets and for what is not a Tensor, ValueError for non-leaves, for a parameter of
        another group and for names in some groups only.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        group = {**param_group, **_named(param_group["params"])}
        for param in group["params"]:
            if not isinstance(param, Tensor):
                raise TypeError(
                    "optimizer can only optimize Tensors, "
                    f"but one of the params is {_typename(param)}"
                )
            if not param.is_leaf:
                raise ValueError("can't optimize a non-leaf Tensor")
        group = plain_options(
            {**group, **{k: v for k, v in self.defaults.items() if k not in group}}
        )
        if len(set(group["params"])) < len(group["params"]):
            warnings.warn(
                "optimizer contains a parameter group with duplicate parameters: each is updated "
                "several times a step",
                stacklevel=3,
            )
        for other in self.param_groups:
            if ("param_names" in group) != ("param_names" in other):
                which = "with" if "param_names" in group else "without"
                raise ValueError(
                    "all optimizer param groups should be with/without names. "
                    f"cannot add param group {which} names to the optimizer"
                )
            if not set(group["params"]).isdisjoint(other["params"]):
                raise ValueError("some parameters appear in more than one parameter group")
        self.param_groups.append(group)

    # ---- the step ------------------------------------------------------------
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients.  With `set_to_none=False` they become zeros, which still update."""
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none:
                    p.grad = None
                elif p.grad is not None:
                    p.grad.array[...] = 0

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.  `closure()` computes the loss before it.

        Parameters with `.grad is None` are skipped: neither decay nor momentum moves them.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self.update_group(plain_options(group), params)
        return loss

    def update_group(self, group: Group, params: list[Tensor]) -> None:
        """Change `params`, which all have gradients, in place; `group` holds plain numbers."""
        raise NotImplementedError(f"{type(self).__name__}: write update_group or step")

    def lists(self, params: list[Tensor], **fill: float) -> list[list[Any]]:
        """What an update takes: parameters, gradients, one list an entry of `fill`, step counts.

        Counts this step. An entry that a state lacks is made, full of the number given, and flat.
        """
        states = [self.state[p] for p in params]
        for state in states:
            if "step" not in state:
                state["step"] = tensor(0.0)
            state["step"].array += 1
        for name, value in fill.items():
            new = [p for p, state in zip(params, states) if name not in state]
            for p, entry in zip(new, entries_like(new, value)):
                self.state[p][name] = entry
        entries = [[state[name] for state in states] for name in fill]
        steps = [state["step"].item() for state in states]
        return [params, [p.grad for p in params], *entries, steps]

    def flatten(self) -> None:
        """Move the parameters and moments of each group next to each other in memory (NumPy only).

        The same values, in the same objects, and a faster update. What it means for views of
        parameters, and that frozen ones stay where they are: flat.py.
        """
        for group in self.param_groups:
            flatten(p for p in group["params"] if p.requires_grad)
        self._flatten_state()

    def _flatten_state(self) -> None:
        for group in self.param_groups:
            states = [self.state[p] for p in group["params"] if p in self.state]
            for name in self.moments:
                entries = [state.get(name) for state in states]
                flatten(entry for entry in entries if isinstance(entry, Tensor))

    # ---- state in and out ----------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """{"state": {index: {...}}, "param_groups": [{..., "params": [indices]}]}, as in torch.

        Parameters are counted through all groups. The Tensors are the optimizer's own, not copies.
        """
        index: dict[Tensor, int] = {}
        groups, start = [], 0
        for group in self.param_groups:
            for i, p in enumerate(group["params"], start):
                index.setdefault(p, i)
            start += len(group["params"])
            groups.append({**group, "params": [index[p] for p in group["params"]]})
        state = {index[p] if isinstance(p, Tensor) else p: s for p, s in self.state.items()}
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict()` of nplm or of torch: groups, learning rates and moments.

        Values may be nplm Tensors, torch tensors or NumPy arrays; they are copied to the dtype and
        the device of their parameter, all but "step" and what else is `host`. Build schedulers
        before: their constructors write learning rates. Raises ValueError if groups or shapes do
        not fit; then nothing has changed.
        """
        groups, saved = self.param_groups, state_dict["param_groups"]
        if len(groups) != len(saved):
            raise ValueError("loaded state dict has a different number of parameter groups")
        if any(len(ours["params"]) != len(theirs["params"]) for ours, theirs in zip(groups, saved)):
            raise ValueError(
                "loaded state dict contains a parameter group "
                "that doesn't match the size of optimizer's group"
            )
        owner: dict[Any, Tensor] = {}
        merged = []
        for ours, theirs in zip(groups, saved):
            owner.update(zip(theirs["params"], ours["params"]))
            names = {"param_names": ours["param_names"]} if "param_names" in ours else {}
            options = deepcopy({k: v for k, v in theirs.items() if k != "params"})
            new = {**self.absent, **names, **options, "params": ours["params"]}
            merged.append(plain_options(new))
        state: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
        for key, entries in state_dict["state"].items():
            p = owner.get(key)
            state[key if p is None else p] = entries if p is None else self._adopt(p, entries, key)
        self.state, self.param_groups = state, merged
        self._flatten_state()

    def _adopt(self, p: Tensor, entries: dict[str, Any], index: Any) -> dict[str, Any]:
        """The saved state of one parameter, in its dtype and on its device."""
        for name in self.moments:
            expected = self.entry_shape(name, p)
            shape = tuple(getattr(entries.get(name), "shape", expected))
            if shape != expected:
                raise ValueError(
                    f"loaded state dict holds {name} of shape {shape} for parameter {index} of "
                    f"shape {p.shape}: expected the state of the same model"
                )
        dtype = p.dtype if p.is_floating_point() else None
        return {
            name: tensor(value)
            if name in self.host
            else map_arrays(value, lambda array: tensor(array, dtype, p.device))
            for name, value in entries.items()
        }

    def entry_shape(self, name: str, p: Tensor) -> tuple[int, ...]:
        """The shape of the entry `name` of `moments`: that of its parameter."""
        return p.shape

    def __getstate__(self) -> dict[str, Any]:
        """What is copied: not a `step` that a scheduler has wrapped, it is bound to this one."""
        return {k: self.__dict__[k] for k in ("defaults", "state", "param_groups")}

    def __repr__(self) -> str:
        text = f"{type(self).__name__} ("
        for i, group in enumerate(self.param_groups):
            options = [f"    {key}: {group[key]}\n" for key in sorted(group) if key != "params"]
            text += f"\nParameter Group {i}\n" + "".join(options)
        return text + ")"


def convert_state(state_dict: dict[str, Any], convert: Callable[[Any], Any]) -> dict[str, Any]:
    """A `state_dict()` with every array replaced by `convert(numpy_array)`: how torch loads ours.

    `theirs.load_state_dict(convert_state(ours.state_dict(), torch.tensor))`; `numpy.copy` gives a
    snapshot that later steps do not change.
    """
    state = {
        key: map_arrays(entries, lambda x: convert(tensor(x).numpy()))
        for key, entries in state_dict["state"].items()
    }
    return {"state": state, "param_groups": [dict(g) for g in state_dict["param_groups"]]}


def map_arrays(value: Any, convert: Callable[[Any], Any]) -> Any:
    """`convert` of every array in nested dicts, lists and tuples; other values stay."""
    if isinstance(value, dict):
        return {key: map_arrays(v, convert) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_arrays(v, convert) for v in value)
    return convert(value) if hasattr(value, "__array__") else value


# ---- hyperparameters -----------------------------------------------------------------------------
def plain(value: Any) -> Any:
    """0-d tensors and NumPy scalars as Python numbers: np.float64 makes float32 arrays grow."""
    if isinstance(value, tuple | list):
        return type(value)(plain(v) for v in value)
    return value.item() if hasattr(value, "item") else value


def plain_options(group: Group) -> Group:
    """The group with plain numbers.  `differentiable` is refused here, wherever it came from."""
    if group.get("differentiable"):
        raise ConfigError(
            "differentiable=True: expected False, because nplm has first-order gradients only and "
            "cannot differentiate through an optimizer step; use torch for that"
        )
    return {k: v if k == "params" else plain(v) for k, v in group.items()}


def one_number(name: str, value: Any, foreach: bool | None = None) -> Any:
    """A hyperparameter as a Python number; a Tensor must have one element (torch's messages)."""
    if isinstance(value, Tensor):
        if foreach:
            raise ValueError(
                f"{name} as a Tensor is not supported for capturable=False and foreach=True"
            )
        if value.numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element")
    return plain(value)


def refuse_negative(limits: dict[str, Any], words: str = "Invalid {}: {}") -> None:
    """ValueError for the first of `{name: number}` that is below 0 or NaN; `words` are torch's."""
    for name, value in limits.items():
        if not value >= 0.0:
            raise ValueError(words.format(name, value))


def refuse_betas(betas: tuple[float, ...]) -> None:
    """ValueError for the first decay outside [0, 1), in torch's words."""
    for i in (0, 1):
        if not 0.0 <= betas[i] < 1.0:
            raise ValueError(f"Invalid beta parameter at index {i}: {betas[i]}")


def chosen(group: Group, *names: str) -> Group:
    """Some of the options of a group."""
    return {name: group[name] for name in names}


def check_flags(*, foreach: bool | None, fused: bool | None, differentiable: bool) -> None:
    """torch's rules for flags that choose between its implementations (nplm has one)."""
    if fused and differentiable:
        raise RuntimeError("`fused` does not support `differentiable`")
    if fused and foreach:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")


# ---- helpers -------------------------------------------------------------------------------------
def _named(params: Any) -> Group:
    """{"params": list} of one tensor, an iterable of tensors or of (name, tensor) pairs."""
    if isinstance(params, set):
        raise TypeError(
            "optimizer parameters need to be organized in ordered collections, but the ordering of "
            "tensors in sets will change between runs. Please use a list instead."
        )
    given = [params] if isinstance(params, Tensor) else list(params)
    names = [p[0] for p in given if isinstance(p, tuple)]
    if not names:
        return {"params": given}
    if len(names) < len(given):
        raise ValueError(
            "all optimizer params should be with/without names. Some param names are missing"
        )
    return {"params": [p[1] for p in given], "param_names": names}


def _typename(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
