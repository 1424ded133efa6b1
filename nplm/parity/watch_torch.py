"""Recording of torch: hooks on modules, tensors, parameters and the optimizer.  See recorder.py."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch

from nplm.errors import ConfigError
from nplm.parity.recorder import Recorder
from nplm.parity.terms import Seen


class TorchRecorder(Recorder):
    """Sees what a torch model and optimizer compute."""

    engine = "torch"

    def check(self) -> None:
        """No compiled or scripted module: their insides run without hooks."""
        if self.optimizer is not None and not isinstance(self.optimizer, torch.optim.Optimizer):
            raise ConfigError(
                "record: expected a torch optimizer beside a torch model, got "
                f"{type(self.optimizer).__module__}.{type(self.optimizer).__qualname__}"
            )
        for name, module in self.model.named_modules():
            compiled = type(module).__name__ == "OptimizedModule"
            compiled = compiled or getattr(module, "_compiled_call_impl", None) is not None
            if compiled or isinstance(module, torch.jit.ScriptModule | torch.jit.ScriptFunction):
                raise ConfigError(
                    f"record: {name or 'the model'} is {'compiled' if compiled else 'scripted'}, "
                    "and its insides run without hooks: record the model as it was before "
                    "torch.compile or torch.jit"
                )

    def describe(self) -> dict[str, Any]:
        """Engine, versions, dtype, device, threads, names of the classes."""
        floating = [p for p in self.model.parameters() if p.is_floating_point()]
        return {
            "engine": "torch", "torch": torch.__version__, "numpy": np.__version__,
            "python": platform.python_version(), "machine": platform.machine(),
            "dtype": str(floating[0].dtype).removeprefix("torch.") if floating else "float32",
            "device": str(floating[0].device) if floating else "cpu",
            "threads": torch.get_num_threads(), "model": type(self.model).__name__,
            "optimizer": type(self.optimizer).__name__ if self.optimizer is not None else None,
        }  # fmt: skip

    def is_tensor(self, value: Any) -> bool:
        """Whether it is a torch tensor."""
        return isinstance(value, torch.Tensor)

    def array(self, value: Any) -> np.ndarray:
        """A tensor of any device and layout, an array or a number; bfloat16 is widened."""
        if not isinstance(value, torch.Tensor):
            return np.asarray(value)
        value = value.detach()
        if value.layout != torch.strided:
            value = value.to_dense()
        if value.dtype == torch.bfloat16:
            value = value.float()
        return np.asarray(value.cpu().resolve_conj().resolve_neg().numpy())

    def write(self, tensor: torch.Tensor, value: np.ndarray) -> None:
        """Overwrite a tensor in place; a sparse one is left alone."""
        if tensor.layout == torch.strided:
            with torch.no_grad():
                tensor.copy_(torch.from_numpy(value))

    def version(self, tensor: torch.Tensor) -> int:
        """torch counts writes in place."""
        return 0 if tensor.is_inference() else tensor._version

    def records_graph(self) -> bool:
        """Whether gradients are on; what a checkpointed part computes again is not looked at."""
        return torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1

    def random_state(self) -> np.ndarray:
        """torch.get_rng_state()"""
        return torch.get_rng_state().numpy()

    # ---- looking ---------------------------------------------------------------------------------
    def attach(self) -> None:
        """Register the hooks."""
        self._handles: list[Any] = []
        keep = self._handles.append
        for path, module in self.model.named_modules():
            self._watch_module(path, module, keep)
        for name, parameter in self.parameters.values():
            if parameter.requires_grad and parameter.is_leaf and self.micro_batches:
                self._watch_parameter(name, parameter, keep)
        if self.optimizer is not None:
            keep(self.optimizer.register_step_pre_hook(self._before))
            keep(self.optimizer.register_step_post_hook(self._after))

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if optimizer is self.optimizer:
            self.before_step()

    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if optimizer is self.optimizer:
            self.after_step()

    def _watch_module(self, path: str, module: Any, keep: Any) -> None:
        is_layer = not any(True for _ in module.children())

        def before(called: Any, args: Any, kwargs: Any) -> Any:
            if called is not module or not self.begins(module) or not is_layer:
                return None  # a copy of the model has copies of its hooks
            return self.inputs(path, module, args, kwargs)

        def after(called: Any, args: Any, kwargs: Any, result: Any) -> Any:
            if called is not module:
                return None
            try:
                if self.outermost is None or not self.micro_batches or not self.records_graph():
                    return None
                new = self.outputs(path, module, is_layer, (args, kwargs), result)
                return None if new is result else new
            finally:
                self.ends(module)

        keep(module.register_forward_pre_hook(before, with_kwargs=True))
        keep(module.register_forward_hook(after, with_kwargs=True, always_call=True))

    def _watch_parameter(self, name: str, parameter: Any, keep: Any) -> None:
        def arrives(gradient: Any) -> Any:
            reference = self.see_parameter_gradient(name, self.array(gradient))
            return _forced(gradient, reference)

        def accumulated(parameter: Any) -> None:
            reference = self.see_accumulated(name, self.array(parameter.grad))
            if reference is not None:
                self.write(parameter.grad, reference)

        keep(parameter.register_hook(arrives))
        keep(parameter.register_post_accumulate_grad_hook(accumulated))

    def watch(
        self, tensor: torch.Tensor, name: str, terms: int, layer: Any = None,
        given: Seen | None = None, apart: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        """A hook on the tensor; in isolated mode a function that puts the reference's value there.

        A tensor that has a name already, or goes to others too, gets a view of its own, so that
        each name has the gradient of those who use it under that name.
        """
        array = self.array(tensor)
        seen, reference = self.see_activation(name, array, terms, layer, given)
        if reference is not None:
            tensor = _Force.apply(tensor, _like(tensor, reference), self, seen)
        elif tensor.requires_grad:
            if apart or self.seen(tensor) is not None or tensor.is_leaf:
                tensor = tensor.view_as(tensor)
            tensor.register_hook(lambda gradient: _arrived(self, seen, gradient))
        self.remember(tensor, seen)
        return tensor


def _arrived(recorder: TorchRecorder, seen: Any, gradient: torch.Tensor) -> torch.Tensor:
    reference = None
    if recorder.attached:
        reference = recorder.see_gradient(seen, recorder.array(gradient))
    return _forced(gradient, reference)


def _forced(tensor: torch.Tensor, reference: np.ndarray | None) -> torch.Tensor:
    if reference is None or tensor.layout != torch.strided:
        return tensor
    return _like(tensor, reference)


def _like(tensor: torch.Tensor, value: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(value).to(tensor.device, tensor.dtype)


class _Force(torch.autograd.Function):
    """The reference's value forward, and the reference's gradient backward."""

    @staticmethod
    def forward(ctx: Any, tensor: Any, reference: Any, recorder: Any, seen: Any) -> Any:
        ctx.recorder, ctx.seen = recorder, seen
        return reference.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return _arrived(ctx.recorder, ctx.seen, gradient), None, None, None
