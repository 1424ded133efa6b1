"""record: watch a training loop of nplm or of torch, and write down what it computes as a Trace.

Read trace.py before. What both libraries share is here; watch_nplm.py and watch_torch.py look into
modules and gradients. `with record(model, optimizer) as recorder:` goes around the loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Self

import numpy as np

from nplm.errors import ConfigError
from nplm.nn.module import Module
from nplm.parity import nested
from nplm.parity.steps import StepRecorder
from nplm.parity.terms import (
    Seen,
    backward_terms,
    column_size,
    forward_terms,
    gradient_term_size,
    gradient_terms,
    if_larger,
    input_gradient_size,
    of_axes,
    output_size,
)
from nplm.parity.trace import Place, Trace
from nplm.parity.updates import coupled_decays

_AFTER_THE_STEP = ("scheduler", "average", "validation", "stopper", "random")


def record(
    model: Any, optimizer: Any = None, *, like: Trace | None = None, micro_batches: bool = True
) -> Recorder:
    """A context manager that records a loop; `.trace` is what it saw.

    model, optimizer    both nplm's or both torch's; torch is imported only for torch's
    like                isolated mode: every value is recorded as it was computed from the
                        *reference's* inputs, and then replaced by the reference's, so that one
                        wrong phase makes exactly its own entry wrong
    micro_batches       False leaves out activations and single gradients: a long run stays small

    A forward of `model` in training mode begins a micro-batch, `optimizer.step()` ends a step.
    What runs in eval mode or under no_grad is not recorded. Raises ConfigError for what is neither
    library's, and for compiled or scripted modules.
    """
    kind: type[Recorder]
    if isinstance(model, Module):
        from nplm.parity.watch_nplm import NplmRecorder as kind
    elif any(c.__module__.partition(".")[0] == "torch" for c in type(model).__mro__):
        from nplm.parity.watch_torch import TorchRecorder as kind
    else:
        raise ConfigError(
            "record: expected an nplm.nn.Module or a torch.nn.Module, got "
            f"{type(model).__module__}.{type(model).__qualname__}"
        )
    return kind(model, optimizer, like, micro_batches)


class Recorder(StepRecorder):
    """Counts steps and micro-batches, and keeps values; the two libraries' recorders fill it.

    trace   what was seen so far
    done    updates that have ended; the step under way is done + 1
    micro   micro-batches of the step under way that have begun
    """

    engine = ""

    def __init__(self, model: Any, optimizer: Any, like: Trace | None, micro_batches: bool) -> None:
        self.model, self.optimizer = model, optimizer
        self.like, self.micro_batches = like, micro_batches
        self.trace = Trace()
        self.done = self.micro = 0
        self.outermost: Any = None  # the module whose forward is being watched
        self.attached = False
        self.check()
        self.trace.meta.update(self.describe())
        self.parameters: dict[int, tuple[str, Any]] = {}  # by id: name and parameter
        for name, parameter in self._named_parameters():
            self.parameters.setdefault(id(parameter), (name, parameter))
        names = {key: name for key, (name, _) in self.parameters.items()}
        self.trace.meta["decays"] = coupled_decays(self.optimizer, names)
        self._buffers = {name: self.array(b).copy() for name, b in model.named_buffers()}
        self._seen: dict[int, tuple[Any, int, Seen]] = {}  # by id; holds the tensors while it does
        self._terms: dict[str, int] = {}  # of a parameter's gradient, of this micro-batch
        self._term_size: dict[str, float] = {}
        self._summed: dict[str, tuple[int, float, float]] = {}  # of `.grad`: terms, size, largest

    # ---- what each library does its own way ------------------------------------------------------
    def check(self) -> None:
        """Raise ConfigError for a model or an optimizer that cannot be recorded."""

    def describe(self) -> dict[str, Any]:
        """The meta of the trace."""
        raise NotImplementedError

    def is_tensor(self, value: Any) -> bool:
        """Whether `value` is a tensor of the library."""
        raise NotImplementedError

    def array(self, value: Any) -> np.ndarray:
        """A tensor, an array or a number as a NumPy array; it may share memory."""
        raise NotImplementedError

    def write(self, tensor: Any, value: np.ndarray) -> None:
        """Overwrite a tensor in place, in its own dtype."""
        raise NotImplementedError

    def records_graph(self) -> bool:
        """Whether gradients will be wanted of what runs now."""
        raise NotImplementedError

    def version(self, tensor: Any) -> int:
        """Rises when the tensor is written in place."""
        return 0

    def watch(
        self, tensor: Any, name: str, terms: int, layer: Any = None, given: Seen | None = None,
        apart: bool = False,
    ) -> Any:  # fmt: skip
        """Record an activation and its gradient; the tensor that the model goes on with.

        apart: the gradient is that of who gets the returned tensor, not of other users of `tensor`.
        """
        raise NotImplementedError

    def random_state(self) -> np.ndarray:
        """The state of the random stream that the library draws from on the CPU."""
        raise NotImplementedError

    def attach(self) -> None:
        """Begin to look."""
        raise NotImplementedError

    def detach(self) -> None:
        """Put everything back."""
        raise NotImplementedError

    # ---- the context -----------------------------------------------------------------------------
    def __enter__(self) -> Self:
        if self.attached:
            raise ConfigError("record: this recorder is in use; make one for each `with` block")
        for name, parameter in self.parameters.values():
            self.put(Place(0, 0, "start", name), parameter)
        self.see_state(0, "start")
        self.attach()
        self.attached = True
        return self

    def __exit__(self, *error: object) -> None:
        self.attached = False
        self.detach()
        self.outermost = None
        self._seen.clear()

    # ---- what the loop adds ----------------------------------------------------------------------
    def note(
        self, phase: str, name: str, value: Any, terms: int = 1, *, scale: float = 0.0,
        step: int | None = None, micro: int | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Add a value that only the loop knows: batch, loss, norm, validation, stopper ...

        Returns what to go on with: the reference's value in isolated mode, else this one. `batch`
        belongs to the micro-batch that the next forward begins, `loss` to the current one, or with
        micro=0 to the whole step; after `optimizer.step()` a step's values still belong to it.
        """
        if micro is None:
            micro = {"batch": self.micro + 1, "loss": self.micro}.get(phase, 0)
        if step is None:
            over = phase in _AFTER_THE_STEP or (self.micro == 0 and micro == 0)
            step = 0 if phase == "start" else self.done if over else self.done + 1
        array = self.array(value)
        reference = self.see(Place(step, micro, phase, name), array, terms, scale)
        return array.copy() if reference is None else reference

    def scheduled(self) -> None:
        """Note the learning rate of every group after `scheduler.step()`, as phase scheduler."""
        self.see_options("scheduler", self.done, ("lr",))

    def random(self) -> None:
        """Note the state of the library's random stream: after the step, or before the first."""
        phase = "random" if self.done else "start"
        self.note(phase, "random", self.random_state())

    # ---- what is seen ----------------------------------------------------------------------------
    def see(
        self, place: Place, array: np.ndarray, terms: int = 1, scale: float = 0.0
    ) -> np.ndarray | None:
        """Keep a value.  A copy of the reference's in isolated mode, if there is one that fits."""
        return self._reference(self.trace.add(place, array, terms, scale), array.shape)

    def _reference(self, place: Place, shape: tuple[int, ...]) -> np.ndarray | None:
        """A copy of what the reference has at a place, in isolated mode and if it fits."""
        entry = None if self.like is None else self.like.get(place)
        if entry is None or entry.value.shape != shape:
            return None
        return entry.value.copy()

    def put(self, place: Place, tensor: Any, terms: int = 1, scale: float = 0.0) -> None:
        """See a tensor and write the reference's value into it."""
        reference = self.see(place, self.array(tensor), terms, scale)
        if reference is not None:
            self.write(tensor, reference)

    # ---- forward and backward --------------------------------------------------------------------
    def begins(self, module: Any) -> bool:
        """Whether a forward that starts now is to be watched, and as whose; counts micro-batches.

        A part that is called by itself, outside of a forward of the model, is watched too.
        """
        if not (self.attached and self.model.training and self.records_graph()):
            return False
        if self.outermost is None:
            self.outermost = module
            self._seen.clear()
            if module is self.model or self.micro == 0:
                self.micro += 1
                self._terms.clear()
                self._term_size.clear()
        return self.micro_batches

    def ends(self, module: Any) -> None:
        """The forward of `module` is over, or was left by an error."""
        if module is self.outermost:
            self.outermost = None
            self._seen.clear()

    def inputs(self, path: str, layer: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Record what goes into a module without children, unless it was just recorded."""
        name = f"{path}.input" if path else "input"
        alone = sum(1 for _ in nested.leaves((args, kwargs), self.is_tensor)) == 1

        def look(tensor: Any, where: str) -> Any:
            seen = self.seen(tensor)
            if seen is None:
                title = name if alone else f"{name}{where}"
                apart = not getattr(layer, "inplace", False)
                tensor = self.watch(tensor, title, of_axes(tuple(tensor.shape)), apart=apart)
                seen = self.seen(tensor)
                if seen is not None and apart:  # nobody else sends a gradient there
                    seen.backward_terms = 1
            if seen is not None:
                terms = backward_terms(layer, tuple(tensor.shape))
                seen.backward_terms = max(seen.backward_terms, terms)
            return tensor

        args = nested.replaced(args, look, self.is_tensor)
        return args, nested.replaced(kwargs, look, self.is_tensor)

    def outputs(self, path: str, module: Any, is_layer: bool, args: Any, result: Any) -> Any:
        """Record what a module returns; what the caller is to get."""
        given = [t for _, t in nested.leaves(args, self.is_tensor)] if is_layer else []
        known = [seen for t in given if (seen := self.seen(t))]
        n_inputs = sum(int(np.prod(t.shape)) for t in given)
        made = [t for _, t in nested.leaves(result, self.is_tensor)]
        if is_layer and made:
            n_outputs = sum(int(np.prod(t.shape)) for t in made)
            for parameter in module.parameters(recurse=False):
                if entry := self.parameters.get(id(parameter)):
                    terms = gradient_terms(module, parameter, n_inputs, n_outputs)
                    self._terms[entry[0]] = self._terms.get(entry[0], 0) + terms

        def look(tensor: Any, where: str) -> Any:
            shape = tuple(tensor.shape)
            terms = forward_terms(module, shape) if is_layer else of_axes(shape)
            title = f"{path}{where}" if path else f"output{where}"
            return self.watch(
                tensor, title, terms, module if is_layer else None, known[0] if known else None
            )

        return nested.replaced(result, look, self.is_tensor)

    def seen(self, tensor: Any) -> Seen | None:
        """What is known of an activation of this forward that was not written to since."""
        held, version, seen = self._seen.get(id(tensor), (None, -1, None))
        return seen if held is tensor and version == self.version(tensor) else None

    def see_activation(
        self, name: str, array: np.ndarray, terms: int, layer: Any, given: Seen | None
    ) -> tuple[Seen, np.ndarray | None]:
        """Keep an activation; what is known of it, and the reference's value."""
        place = Place(self.done + 1, self.micro, "forward", name)
        inputs = self.trace.get(given.place) if given is not None else None
        size = output_size(layer, self._weight(layer), inputs.value) if inputs else 0.0
        place = self.trace.add(place, array, terms, if_larger(size, array))
        seen = Seen(place, of_axes(array.shape), column_size(array), layer, given)
        return seen, self._reference(place, array.shape)

    def remember(self, tensor: Any, seen: Seen) -> None:
        """The model goes on with `tensor`, which is recorded."""
        self._seen[id(tensor)] = (tensor, self.version(tensor), seen)

    def see_gradient(self, seen: Seen, array: np.ndarray) -> np.ndarray | None:
        """Keep the gradient of an activation; the reference's value."""
        if seen.layer is not None:
            self._size_of_input_gradient(seen, array)
            for name, parameter in seen.layer.named_parameters(recurse=False):
                if entry := self.parameters.get(id(parameter)):
                    size = gradient_term_size(seen.layer, name, array, seen.given)
                    self._term_size[entry[0]] = max(self._term_size.get(entry[0], 0.0), size)
        place = replace(seen.place, phase="backward")
        return self.see(place, array, seen.backward_terms, if_larger(seen.gradient_size, array))

    def _size_of_input_gradient(self, seen: Seen, dy: np.ndarray) -> None:
        """The gradient of an output tells how large the terms of the input's gradient are."""
        given = seen.given
        entry = self.trace.get(given.place) if given is not None else None
        if given is not None and entry is not None:
            size = input_gradient_size(seen.layer, self._weight(seen.layer), entry.value, dy)
            given.gradient_size = max(given.gradient_size, size)

    def _weight(self, layer: Any) -> np.ndarray | None:
        weight = getattr(layer, "weight", None)
        return None if weight is None else self.array(weight)

    def see_parameter_gradient(self, name: str, array: np.ndarray) -> np.ndarray | None:
        """Keep what one backward sends to a parameter; the reference's value."""
        place = Place(self.done + 1, self.micro, "gradient", name)
        terms, size = self._terms.get(name, self._total_terms()), self._term_size.get(name, 0.0)
        return self.see(place, array, terms, size)

    def see_accumulated(self, name: str, array: np.ndarray) -> np.ndarray | None:
        """Keep `.grad` of a parameter after that; the reference's value."""
        place = Place(self.done + 1, self.micro, "accumulated", name)
        terms, size, _ = self._summed.get(name, (0, 0.0, 0.0))
        terms += self._terms.get(name, self._total_terms())
        size = max(size, self._term_size.get(name, 0.0))
        self._summed[name] = (terms, size, float(np.abs(array).max(initial=0.0)))
        return self.see(place, array, terms, size)

    def _total_terms(self) -> int:
        return max(self._terms.values(), default=1)  # of a parameter that no known layer holds

    def _named_parameters(self) -> Iterator[tuple[str, Any]]:
        yield from self.model.named_parameters()
        for i, group in enumerate(self.optimizer.param_groups if self.optimizer else ()):
            for j, parameter in enumerate(group["params"]):
                yield f"param_groups.{i}.{j}", parameter
