"""Every differentiable op once, forward and backward side by side; here they become methods.

`x + y`, `x.exp()` and `x[...]` on a Tensor call the ops of this folder.
"""

from typing import Any

from nplm.autograd.tensor import Tensor
from nplm.ops import (
    activation,
    api,
    creation,
    draws,
    elementwise,
    extras,
    head,
    inplace,
    linear,
    reduce,
    shape,
)


def _reflected(op: Any) -> Any:
    """`2 - x` arrives as `x.__rsub__(2)`: the operands change places back."""
    return lambda self, other: op(other, self)


def _bitwise(name: str) -> Any:
    return lambda self, *others: api.bitwise(name, self, *others)


def _unless_other_kind(op: Any) -> Any:
    """`x == None` and `x == "text"` are False, as in torch, and not an elementwise question."""

    def compare(self: Tensor, other: Any) -> Any:
        return NotImplemented if other is None or isinstance(other, str) else op(self, other)

    return compare


def _bind() -> None:
    e = elementwise
    operators = {
        "add": e.add, "sub": e.sub, "mul": e.mul, "truediv": e.div, "pow": e.pow,
        "matmul": linear.matmul,
    }  # fmt: skip
    for name, op in operators.items():
        setattr(Tensor, f"__{name}__", op)
        setattr(Tensor, f"__r{name}__", _reflected(op))
    for name in ("lt", "le", "gt", "ge"):
        setattr(Tensor, f"__{name}__", getattr(e, name))
    setattr(Tensor, "__eq__", _unless_other_kind(e.eq))
    setattr(Tensor, "__ne__", _unless_other_kind(e.ne))
    for name, op, change in (
        ("add", e.add, inplace.add_), ("sub", e.sub, inplace.sub_), ("mul", e.mul, inplace.mul_),
        ("truediv", e.div, inplace.div_),
    ):  # fmt: skip
        setattr(Tensor, f"__i{name}__", inplace.augmented(op, change))
    special = {
        "__neg__": e.neg, "__abs__": e.abs,
        "__getitem__": api.getitem, "__setitem__": inplace.setitem,
        "view": api.reshape, "bool": api.to_bool, "float": api.to_float32, "double": api.to_float64,
        "long": api.to_int64, "max": api.max_of, "min": api.min_of, "matmul": linear.matmul,
        "type": api.to, "swapaxes": shape.transpose, "int": api.to_int32, "clip": e.clamp,
    }  # fmt: skip
    for name in ("and", "or"):
        setattr(Tensor, f"__{name}__", _bitwise(name))
        setattr(Tensor, f"__r{name}__", _bitwise(name))
    setattr(Tensor, "__invert__", _bitwise("not"))
    for name, method in special.items():
        setattr(Tensor, name, method)
    methods = {
        e: """add sub mul div neg pow maximum minimum clamp exp log sqrt rsqrt tanh sigmoid sin cos
            erf abs sign eq ne lt le gt ge logical_and logical_or logical_not isnan isfinite
            isinf""",
        reduce: "sum mean amax amin var logsumexp cumsum argmax argmin any all",
        activation: "relu softmax log_softmax",
        shape: "transpose tril triu",
        api: """reshape permute expand flip t squeeze unsqueeze flatten split chunk unbind
            masked_fill gather index_select std norm allclose to type_as cpu contiguous clone""",
        creation: "new_tensor new_full new_zeros new_ones",
        extras: """sort argsort topk mm bmm dot outer square expand_as view_as repeat ndimension
            nelement equal isclose multinomial masked_fill_""",
        draws: "bernoulli normal_ uniform_ bernoulli_ exponential_ random_",
        inplace: "add_ sub_ mul_ div_ fill_ zero_ copy_ clamp_",
    }
    for module, names in methods.items():
        for name in names.split():
            setattr(Tensor, name, getattr(module, name))
    setattr(Tensor, "T", property(lambda x: shape.permute(x, tuple(range(x.ndim))[::-1])))
    setattr(Tensor, "mT", property(lambda x: shape.transpose(x, -2, -1)))


_bind()
