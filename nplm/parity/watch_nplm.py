"""Recording of nplm: wrapped forwards, a node in the graph at every activation, gradients' arrival.

Read recorder.py and autograd/graph.py before. The nodes are made here and not by @op: they are no
operations that a model may use.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import numpy as np

import nplm
from nplm.autograd.graph import Array, Node, flags
from nplm.autograd.op import wrap
from nplm.autograd.tensor import BackwardInto, Tensor
from nplm.errors import ConfigError
from nplm.nn.module import Module, Parameter
from nplm.nn.utils import device_of
from nplm.optim.optimizer import Optimizer
from nplm.parity.recorder import Recorder
from nplm.parity.terms import Seen


class NplmRecorder(Recorder):
    """Sees what an nplm model and optimizer compute."""

    engine = "nplm"

    def check(self) -> None:
        """The optimizer has to be nplm's too."""
        if self.optimizer is not None and not isinstance(self.optimizer, Optimizer):
            raise ConfigError(
                "record: expected an nplm optimizer beside an nplm model, got "
                f"{type(self.optimizer).__module__}.{type(self.optimizer).__qualname__}"
            )

    def describe(self) -> dict[str, Any]:
        """Engine, versions, dtype, device, names of the classes."""
        dtypes = [str(p.dtype) for p in self.model.parameters() if p.is_floating_point()]
        return {
            "engine": "nplm", "nplm": nplm.__version__, "numpy": np.__version__,
            "python": platform.python_version(), "machine": platform.machine(),
            "dtype": dtypes[0] if dtypes else "float32", "device": device_of(self.model),
            "model": type(self.model).__name__,
            "optimizer": type(self.optimizer).__name__ if self.optimizer is not None else None,
        }  # fmt: skip

    def is_tensor(self, value: Any) -> bool:
        """Whether it is an nplm Tensor."""
        return isinstance(value, Tensor)

    def array(self, value: Any) -> np.ndarray:
        """A Tensor, a raw array of either backend, an array or a number."""
        if isinstance(value, Tensor):
            return np.asarray(value.xp.to_numpy(value.array))
        return np.asarray(value)

    def write(self, tensor: Tensor, value: np.ndarray) -> None:
        """Overwrite the memory of a Tensor."""
        tensor.array[...] = _as_array(tensor, value)

    def records_graph(self) -> bool:
        """Whether this thread records."""
        return flags.recording

    def random_state(self) -> np.ndarray:
        """The default generator's, as torch.get_rng_state() would give it."""
        return nplm.random.default_generator.to_torch_state()

    # ---- looking ---------------------------------------------------------------------------------
    def attach(self) -> None:
        """Wrap `forward` of every module, `step` of the optimizer, Parameter.accumulate."""
        self._forwards = [
            WatchedForward(self, path, module)
            for path, module in self.model.named_modules()
            if hasattr(module, "forward")  # a ModuleList has none
        ]
        for watched in self._forwards:
            watched.module.__dict__["forward"] = watched
        self.model.__dict__["row_independent"] = False  # all rows at once, through every forward
        self._previous = Parameter.__dict__.get("accumulate")
        self._accumulate = _accumulate(self, Parameter.accumulate)
        Parameter.accumulate = self._accumulate  # type: ignore[method-assign]
        if self.optimizer is not None:
            self._own_step = self.optimizer.__dict__.get("step")
            self._step = _watched_step(self, self.optimizer.step)
            self.optimizer.step = self._step

    def detach(self) -> None:
        """Unwrap; where somebody else has wrapped ours since, ours stays and does nothing."""
        for watched in self._forwards:
            own = watched.module.__dict__
            if own.get("forward") is watched:
                _restore(own, "forward", watched.own)
        self.model.__dict__.pop("row_independent", None)
        if Parameter.__dict__.get("accumulate") is self._accumulate:
            if self._previous is None:
                del Parameter.accumulate
            else:
                Parameter.accumulate = self._previous  # type: ignore[method-assign]
        if self.optimizer is not None and self.optimizer.__dict__.get("step") is self._step:
            _restore(self.optimizer.__dict__, "step", self._own_step)

    def watch(
        self, tensor: Tensor, name: str, terms: int, layer: Any = None, given: Seen | None = None,
        apart: bool = False,
    ) -> Tensor:  # fmt: skip
        """A node behind the tensor whose backward keeps the gradient that arrives."""
        array = self.array(tensor)
        seen, reference = self.see_activation(name, array, terms, layer, given)
        value = tensor.array if reference is None else _as_array(tensor, reference)

        def backward(dy: Array) -> tuple[Array]:
            expected = self.see_gradient(seen, self.array(Tensor(dy))) if self.attached else None
            return (dy if expected is None else _as_array(Tensor(dy), expected),)

        node = None
        if flags.recording and tensor.node is not None:
            node = Node("watch", ((tensor.node, tensor.output),), backward)
        result: Tensor = wrap(value, node)
        self.remember(result, seen)
        return result


class WatchedForward:
    """Stands in `module.forward` while it is recorded."""

    def __init__(self, recorder: NplmRecorder, path: str, module: Module) -> None:
        self.recorder, self.path, self.module = recorder, path, module
        self.own = module.__dict__.get("forward")  # what somebody else has put there
        self.inner = module.forward
        self.is_layer = not any(True for _ in module.children())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward that stood here, and look at what goes in and comes out."""
        recorder, module = self.recorder, self.module
        if not recorder.begins(module):
            try:
                return self.inner(*args, **kwargs)
            finally:
                recorder.ends(module)
        try:
            if self.is_layer:
                args, kwargs = recorder.inputs(self.path, module, args, kwargs)
            result = self.inner(*args, **kwargs)
            return recorder.outputs(self.path, module, self.is_layer, (args, kwargs), result)
        finally:
            recorder.ends(module)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the model (an average of weights) runs its own forward, unwatched."""
        copied = memo[id(self.module)]
        return type(copied).forward.__get__(copied)


def _accumulate(recorder: NplmRecorder, inner: Callable[..., None]) -> Callable[..., None]:
    def accumulate(parameter: Parameter, gradient: Array, into: BackwardInto | None = None) -> None:
        name, known = recorder.parameters.get(id(parameter), ("", None))
        if known is not parameter or not (recorder.attached and recorder.micro_batches):
            return inner(parameter, gradient, into)
        arrived = Tensor(gradient)
        reference = recorder.see_parameter_gradient(name, recorder.array(arrived))
        if reference is not None:
            gradient = _as_array(arrived, reference)
        inner(parameter, gradient, into)
        if into is None and parameter.grad is not None:
            reference = recorder.see_accumulated(name, recorder.array(parameter.grad))
            if reference is not None:
                recorder.write(parameter.grad, reference)
        return None

    return accumulate


def _watched_step(recorder: NplmRecorder, inner: Callable[..., Any]) -> Callable[..., Any]:
    def step(*args: Any, **kwargs: Any) -> Any:
        if not recorder.attached:
            return inner(*args, **kwargs)
        recorder.before_step()
        result = inner(*args, **kwargs)
        recorder.after_step()
        return result

    mark = "_wrapped_by_lr_sched"  # schedulers look for it
    if hasattr(inner, mark):
        setattr(step, mark, getattr(inner, mark))
    return step


def _as_array(like: Tensor, value: np.ndarray) -> Array:
    """A NumPy array in the dtype and on the device of a Tensor."""
    return nplm.tensor(value, like.dtype, like.device).array


def _restore(attributes: dict[str, Any], name: str, before: Any) -> None:
    if before is None:
        del attributes[name]
    else:
        attributes[name] = before
