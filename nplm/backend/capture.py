"""Capture: an op's body, forward and our backward, traced once and compiled as a pair by Inductor.

The only file that touches torch's private interfaces. `train/capturing.py` decides what is captured
and what happens where this torch cannot: everything here raises CaptureError then.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from nplm.errors import BackendError

# f(*arrays) -> (value, backward), and backward(dy) -> one gradient (or None) for each array
Body = Callable[..., tuple[torch.Tensor, Callable[[torch.Tensor], Sequence[torch.Tensor | None]]]]


class CaptureError(BackendError):
    """This torch cannot capture this function: the message says at which stage, and why."""


class Pair:
    """A compiled forward and its compiled backward, for inputs of fixed shapes, dtypes and strides.

    `forward(arrays)` gives (value, saved): what the backward needs, chosen by the partitioner as
    the smallest cut between the two halves. `backward(saved, dy)` gives the gradients.
    """

    def __init__(
        self, forward: Any, backward: Any, constants: list[torch.Tensor], grads: list[bool],
        note: str = "",
    ) -> None:  # fmt: skip
        self._forward, self._backward = forward, backward
        self._constants, self._grads = constants, grads
        self.note = note  # why it is not the pair that it could be; empty where it is

    def forward(self, arrays: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[Any]]:
        """The value, and what `backward` takes back."""
        value, *saved = self._forward(*arrays, *self._constants)
        return value, saved

    def backward(self, saved: list[Any], dy: torch.Tensor) -> list[torch.Tensor | None]:
        """One gradient for each array of the forward; empties `saved`: it is free then."""
        arguments = [*saved, dy.contiguous()]
        saved.clear()
        found = iter(self._backward(arguments))
        return [next(found) if there else None for there in self._grads]


class _Here(threading.local):
    tracing = False


_here = _Here()


def is_tracing() -> bool:
    """Whether what runs on this thread is being traced: then a kernel shall write for a compiler,
    which fuses whole expressions and copies an array for every part that is written in place."""
    return _here.tracing


def compile_pair(body: Body, arrays: Sequence[torch.Tensor], recompute: bool = False) -> Pair:
    """Trace `body` at inputs like `arrays`, split the trace in two, and compile both halves.

    recompute: save the inputs only and run the forward again in the backward. Slow: seconds, the
    first time in a process. A torch without the private partitioner or Inductor's entry gets a
    pair by torch.compile, which always recomputes; `note` says so then. Raises CaptureError with
    the stage that failed.
    """
    stage = "tracing"
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch's compiler says about torch
            graph, constants, grads = _trace(body, arrays)
            inputs = [*arrays, *constants]
            note, stage = "", "compiling"
            try:
                halves = _private_halves(graph, inputs, recompute)
            except ImportError as error:
                note = f"torch {torch.__version__} has other private parts ({error})"
                halves = _public_halves(graph, inputs)
    except Exception as error:  # whatever a private interface may raise
        reason = (str(error).strip().splitlines() or [""])[0]
        raise CaptureError(f"capture: {stage} failed: {type(error).__name__}: {reason}") from error
    return Pair(*halves, constants, grads, note)


def _trace(
    body: Body, arrays: Sequence[torch.Tensor]
) -> tuple[torch.fx.GraphModule, list[torch.Tensor], list[bool]]:
    """The graph of (arrays, dy) -> (value, gradients), what it reads besides, and which gradients
    there are."""
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    grads: list[bool] = []

    def joint(primals: list[torch.Tensor], tangents: list[torch.Tensor]) -> list[Any]:
        value, backward = body(*primals)
        found = backward(tangents[0])
        grads[:] = [g is not None for g in found]
        return [value, *(g for g in found if g is not None)]

    # Once for real, there and back: what the body keeps for its next call must not be made of
    # traces, and a kernel that refuses these shapes must be known before it is compiled in.
    value, backward = body(*arrays)
    backward(torch.zeros_like(value))
    tangent = torch.empty_like(value)
    del value, backward
    # Functional: a write in place inside of a backward may cross the cut between the halves, and
    # gradients would be NaN beside a right loss.
    _here.tracing = True
    try:
        graph = make_fx(
            torch.func.functionalize(joint), select_decomp_table(), tracing_mode="fake",
            _allow_non_fake_inputs=True,
        )(list(arrays), [tangent])  # fmt: skip
    finally:
        _here.tracing = False
    return graph, _lift_constants(graph), grads


def _private_halves(
    graph: torch.fx.GraphModule, inputs: list[torch.Tensor], recompute: bool
) -> tuple[Any, Any]:
    """The two halves by torch's partitioner (the smallest cut between them) and Inductor.

    The second takes a list and empties it as it goes.
    """
    import torch._functorch.config as functorch_config
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.compile_fx import compile_fx

    tangents = [n.meta["val"] for n in _placeholders(graph) if "tangents" in n.name]
    with functorch_config.patch(activation_memory_budget=0.0 if recompute else 1.0):
        halves = min_cut_rematerialization_partition(graph, (inputs, tangents), num_fwd_outputs=1)
    forward, backward = (
        compile_fx(half, [node.meta["val"] for node in _placeholders(half)]) for half in halves
    )
    return forward, _emptying(backward)


def _emptying(compiled: Any) -> Any:
    """A compiled function that takes a list and drops each argument once it has been read.

    What `compile_fx` returns does so too, but inside of a wrapper that holds all arguments to the
    end: for a head, logits beside their gradient. Where there is no such wrapper, or another (of
    another torch), all are held.
    """
    inner = getattr(compiled, "__wrapped__", None)
    code, cells = getattr(inner, "__code__", None), getattr(inner, "__closure__", None)
    held = dict(zip(code.co_freevars, cells)) if code is not None and cells is not None else {}
    if held.keys() == {"compiled_fn", "params_buffers_flat"}:
        boxed = held["compiled_fn"].cell_contents
        if not held["params_buffers_flat"].cell_contents and getattr(boxed, "_boxed_call", False):
            return boxed
    return lambda arguments: compiled(*arguments)


def _public_halves(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> tuple[Any, Any]:
    """The two halves by torch.compile alone: what is saved is the inputs."""
    forward, backward = copy.deepcopy(graph), copy.deepcopy(graph)
    for half, is_forward in ((forward, True), (backward, False)):
        output = next(n for n in half.graph.nodes if n.op == "output")
        value, *gradients = output.args[0]
        places = _placeholders(half)
        saved = [n for n in places if "tangents" not in n.name]
        output.args = ((value, *saved) if is_forward else tuple(gradients),)
        half.graph.eliminate_dead_code()
        for node in [n for n in places if is_forward and "tangents" in n.name]:
            half.graph.erase_node(node)
        half.graph.set_codegen(torch.fx.graph.CodeGen())  # arguments in a row, not in two lists
        half.recompile()
    compiled = torch.compile(forward, fullgraph=True), torch.compile(backward, fullgraph=True)
    value, *saved = compiled[0](*inputs)  # compiled by the first call: now, so that errors are here
    compiled[1](*saved, torch.zeros_like(value))
    return compiled[0], lambda arguments: compiled[1](*arguments)


def _placeholders(graph: torch.fx.GraphModule) -> list[Any]:
    return [node for node in graph.graph.nodes if node.op == "placeholder"]


def _lift_constants(graph: torch.fx.GraphModule) -> list[torch.Tensor]:
    """Turn the arrays that the body read besides its inputs (rotary angles) into inputs.

    Left inside, a compiled half that torch finds in its cache reads memory that is gone.
    """
    primals = [n for n in _placeholders(graph) if "primals" in n.name]
    last, mode = primals[-1], primals[0].meta["val"].fake_mode
    constants: list[torch.Tensor] = []
    for node in [n for n in graph.graph.nodes if n.op == "get_attr"]:
        value = getattr(graph, node.target)
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(f"primals_constant_{len(constants)}")
        last.meta["val"] = mode.from_tensor(value)
        node.replace_all_uses_with(last)
        graph.graph.erase_node(node)
        constants.append(value)
    graph.recompile()
    return constants


# ---- CUDA graphs ---------------------------------------------------------------------------------
WARM_UPS = 2  # runs before a recording: libraries make their plans and workspaces, kernels compile


def record(
    function: Callable[[], None], device: torch.device, warm_ups: int = WARM_UPS
) -> Callable[[], None]:
    """`function` as one CUDA graph: what is returned launches all its kernels at once.

    It takes no arguments: it reads and writes memory that stays where it is. It is run `warm_ups`
    times first, so what it adds to must be put back by the caller. Raises CaptureError for a device
    that has no graphs, and for a function that cannot be recorded (it waits for the GPU, say).
    """
    if device.type != "cuda":
        raise CaptureError(f"capture: CUDA graphs need a CUDA device, got '{device}'")
    try:
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(warm_ups):
                function()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device), torch.cuda.graph(graph, stream=side):
            function()
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise CaptureError(
            f"capture: recording failed: {type(error).__name__}: {reason}"
        ) from error
    replay: Callable[[], None] = graph.replay
    return replay
