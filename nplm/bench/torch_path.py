"""The torch path as an engine to measure, beside the same model by torch: eager and compiled.

Both take an update on tensors of one device.  Read torch_trainer.py before; who takes turns in one
process is in torch_turns.py.
"""

from __future__ import annotations

import json
import os
import types
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import nplm
from nplm.bench.settings import BETAS, CLIP_NORM, LR, SEED, WEIGHT_DECAY, Setting
from nplm.bench.torch_trainer import rotary_tables
from nplm.data.loader import Window
from nplm.models.config import DecoderConfig
from nplm.models.decoder import Decoder
from nplm.nn import init
from nplm.optim.adam import AdamW
from nplm.optim.groups import decay_groups
from nplm.parity.twin import TorchAttention, TorchDecoder
from nplm.train.accumulation import accumulate
from nplm.train.capturing import capture, level
from nplm.train.step import train_step

Tensors = dict[str, torch.Tensor]
HOW = "NPLM_BENCH_HOW"  # the variable that tells a worker's engine what it is
ENGINES, DEVICES, DTYPES = ("nplm", "torch", "torch.compile"), ("cpu", "cuda"), (
    "float32", "bfloat16",
)  # fmt: skip
KERNELS = {  # "best": whatever each of them chooses
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


@dataclass(frozen=True)
class How:
    """Which engine, and how it shall work."""

    engine: str  # of ENGINES
    device: str  # of DEVICES
    dtype: str  # of DTYPES: what products are computed in; parameters are float32
    capture: str = "off"  # of train.capturing.LEVELS; nplm's
    attention: str = "best"  # "best", or the one of KERNELS that is allowed

    @property
    def name(self) -> str:
        """What tables and JSON say: "nplm region", "torch.compile flash"."""
        words = [self.engine, self.capture if self.engine == "nplm" else "", self.attention]
        return " ".join(word for word in words if word not in ("", "best"))

    @property
    def place(self) -> str:
        """The device as nplm names it."""
        return "torch:cpu" if self.device == "cpu" else self.device

    def environment(self) -> tuple[tuple[str, str], ...]:
        """What a worker's process needs to know."""
        return ((HOW, json.dumps(asdict(self))),)


class Path:
    """One engine.  `feed` gives it batches; then `gradients` and `step` work on them."""

    def __init__(self, config: DecoderConfig, how: How) -> None:
        self.how, self.told = how, ""
        torch.manual_seed(SEED)  # the weights are the twin's in every engine
        self.twin: Any = TimedDecoder(config)

    def parameters(self) -> Tensors:
        """Every parameter by name; they may be written to."""
        raise NotImplementedError

    def feed(self, setting: Setting) -> None:
        """Take a setting's batches for all updates to come."""
        raise NotImplementedError

    def gradients(self) -> tuple[torch.Tensor, Tensors]:
        """The mean loss and its gradients by name, without an update."""
        raise NotImplementedError

    def step(self) -> torch.Tensor:
        """One update; the mean loss before it, which is not waited for."""
        raise NotImplementedError

    def level(self) -> str:
        """The level of capture that is in force."""
        return self.how.capture

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep warnings out of the way; `told` is the last one that a capture gave."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        said = [str(w.message) for w in caught if "capture" in str(w.message)]
        self.told = said[-1] if said else self.told


class Ours(Path):
    """nplm: its Decoder on torch tensors, its AdamW, its train_step."""

    def __init__(self, config: DecoderConfig, how: How) -> None:
        super().__init__(config, how)
        with undrawn():
            self.model = Decoder(config)
        for (_, p), (_, theirs) in zip(self.model.named_parameters(), self.twin.named_parameters()):
            p.array[...] = theirs.detach().numpy()
        self.twin = None
        self.model.to(how.place)
        groups = decay_groups(self.model, WEIGHT_DECAY)
        self.optimizer = AdamW(groups, lr=LR, betas=BETAS)
        self.optimizer.flatten()
        capture(self.model, how.capture, self.optimizer)

    def parameters(self) -> Tensors:
        """Path's."""
        return {name: p.array for name, p in self.model.named_parameters()}

    def feed(self, setting: Setting) -> None:
        """Path's."""
        self.window = Window(setting.batches())

    @contextmanager
    def working(self) -> Iterator[None]:
        """The precision and the kernels of this engine."""
        # Not before: with our kernels comes our setting of malloc (backend/memory.py), and the
        # twin's process shall have the one that a user of torch has.
        from nplm.backend.torch_kernels.attention_choice import prefer_attention

        bfloat16 = self.how.dtype == "bfloat16"
        prefer_attention(None if self.how.attention == "best" else self.how.attention)
        try:
            with nplm.autocast(self.how.place) if bfloat16 else nullcontext():
                yield
        finally:
            prefer_attention(None)

    def gradients(self) -> tuple[torch.Tensor, Tensors]:
        """Path's."""
        self.optimizer.zero_grad()
        with self.working():
            loss = accumulate(self.window, self.model).loss.array
        named = self.model.named_parameters()
        return loss, {name: p.grad.array for name, p in named if p.grad is not None}

    def step(self) -> torch.Tensor:
        """Path's."""
        with self.working():
            record = train_step(self.model, self.optimizer, self.window, clip_norm=CLIP_NORM)
        loss: torch.Tensor = record.loss.array
        return loss

    def level(self) -> str:
        """Path's."""
        return level(self.model)


class Theirs(Path):
    """torch: the twin, autocast, fused AdamW, clip_grad_norm_; eager or by torch.compile."""

    def __init__(self, config: DecoderConfig, how: How) -> None:
        super().__init__(config, how)
        self.twin.to(how.device)
        parameters = list(self.twin.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)
        self.forward: Any = self.twin.loss
        if how.engine == "torch.compile":
            # What is compiled is kept by code object, without regard to the kernels that are
            # allowed: so every engine has a code object of its own.
            loss = TimedDecoder.loss
            own = types.FunctionType(loss.__code__.replace(), loss.__globals__)
            self.forward = torch.compile(types.MethodType(own, self.twin), dynamic=False)

    def parameters(self) -> Tensors:
        """Path's."""
        return {name: p.detach() for name, p in self.twin.named_parameters()}

    def feed(self, setting: Setting) -> None:
        """Path's.  On CUDA they wait in pinned memory and travel beside the work."""
        self.batches = [
            tuple(torch.from_numpy(np.ascontiguousarray(x)) for x in (b.inputs, b.targets))
            for b in setting.batches()
        ]
        if self.how.device == "cuda":
            self.batches = [tuple(x.pin_memory() for x in b) for b in self.batches]

    def attention_kernel(self) -> AbstractContextManager[Any]:
        """The kernels of attention that are allowed."""
        name = self.how.attention
        return nullcontext() if name == "best" else sdpa_kernel([KERNELS[name]])

    def precision(self) -> AbstractContextManager[Any]:
        """torch's autocast, or nothing."""
        if self.how.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.how.device, dtype=torch.bfloat16)

    def backward(self) -> torch.Tensor:
        """Forward and backward of the window; the mean loss."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for batch in self.batches:
            inputs, targets = (x.to(self.how.device, non_blocking=True) for x in batch)
            with self.attention_kernel():
                with self.precision():
                    loss = self.forward(inputs, targets) / len(self.batches)
                loss.backward()
            losses.append(loss.detach())
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def gradients(self) -> tuple[torch.Tensor, Tensors]:
        """Path's."""
        loss = self.backward()
        return loss, {name: p.grad for name, p in self.twin.named_parameters()}

    def truth(self, setting: Setting, rows: int) -> tuple[torch.Tensor, Tensors]:
        """`gradients` in float32 and eager, of so many rows at a time: less memory, same sum."""
        before = self.how, self.forward, self.batches
        self.how = replace(self.how, dtype="float32", attention="best")
        self.forward = self.twin.loss
        n = setting.batch_size // (rows := min(rows, setting.batch_size))
        cut = (replace(b, inputs=b.inputs[rows * i : rows * (i + 1)],
                       targets=b.targets[rows * i : rows * (i + 1)])
               for b in setting.batches() for i in range(n))  # fmt: skip
        self.batches = [tuple(torch.from_numpy(x.copy()) for x in (b.inputs, b.targets))
                        for b in cut]  # fmt: skip
        try:
            loss, found = self.gradients()
            return loss, {name: g.clone() for name, g in found.items()}
        finally:
            self.how, self.forward, self.batches = before
            self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> torch.Tensor:
        """Path's."""
        loss = self.backward()
        torch.nn.utils.clip_grad_norm_(self.twin.parameters(), CLIP_NORM)
        self.optimizer.step()
        return loss


def build(config: DecoderConfig, how: How) -> Path:
    """The engine that `how` asks for."""
    return (Ours if how.engine == "nplm" else Theirs)(config, how)


@contextmanager
def undrawn() -> Iterator[None]:
    """Leave new parameters as they are allocated: 124 million normals take half a minute."""

    def leave(tensor: Any, *args: Any, **options: Any) -> Any:
        return tensor

    with patch.multiple(init, normal_=leave, uniform_=leave, kaiming_uniform_=leave):
        yield


# ---- the timed twin ------------------------------------------------------------------------------
class TimedAttention(TorchAttention):
    """By scaled_dot_product_attention; rotary angles made once, kept where the weights are."""

    def __init__(self, config: DecoderConfig) -> None:
        theta = config.rope_theta if config.positions == "rope" else None
        super().__init__(
            config.n_embd, config.n_head, config.n_kv_head, config.bias, config.dropout, theta
        )
        if theta is not None:
            tables = rotary_tables(config.context, self.D, theta)
            for name, values in zip(("cos", "sin"), tables):
                self.register_buffer(name, values, persistent=False)

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        """Rotary positions, in the dtype of x (B, H, T, D)."""
        a, b = x.chunk(2, -1)
        tables: Any = (self.cos, self.sin)
        cos, sin = (table[: x.shape[2]].to(x.dtype) for table in tables)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)"""
        B, T, _ = x.shape
        H, G, D = self.H, self.G, self.D
        q, k, v = self.qkv(x).split((H * D, G * D, G * D), 2)
        q = q.view(B, T, H, D).transpose(1, 2)
        k, v = (y.view(B, T, G, D).transpose(1, 2) for y in (k, v))
        if self.rope_theta is not None:
            q, k = self.turned(q), self.turned(k)
        grouped = G != H and x.is_cuda
        if G != H and not grouped:  # on CPUs torch fuses no grouped heads
            k, v = k.repeat_interleave(H // G, 1), v.repeat_interleave(H // G, 1)
        y = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        projected: torch.Tensor = self.proj(y.transpose(1, 2).reshape(B, T, H * D))
        return projected


class TimedDecoder(TorchDecoder):
    """nplm.parity.twin's decoder in the calls that are fast in torch; on any device."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        for block in self.blocks:
            timed = TimedAttention(config)
            timed.load_state_dict(block.attn.state_dict())
            block.attn = timed

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(B, T) int -> (B, T, V)"""
        x = self.wte(ids)
        if hasattr(self, "wpe"):
            x = x + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean over the tokens."""
        return cross_entropy(self(inputs).flatten(0, 1), targets.flatten())


# ---- in a process of its own ---------------------------------------------------------------------
class InWorker:
    """What worker.py asks of an engine; which one it is stands in the variable NPLM_BENCH_HOW."""

    def __init__(self, setting: Setting, threads: int) -> None:
        torch.set_num_threads(threads)
        nplm.set_num_threads(threads)
        self.path = build(setting.model, How(**json.loads(os.environ[HOW])))
        self.path.feed(setting)

    def versions(self) -> dict[str, str]:
        """What does the arithmetic, and how."""
        return about(self.path)

    def weights(self) -> list[tuple[str, np.ndarray]]:
        """Every parameter by name, as an array on the same memory."""
        return [(name, p.numpy()) for name, p in self.path.parameters().items()]

    def gradients(self) -> tuple[float, list[tuple[str, np.ndarray]]]:
        """The loss and its gradients by name, without an update."""
        with self.path.listening():
            loss, found = self.path.gradients()
        return float(loss), [(name, g.numpy()) for name, g in found.items()]

    def step(self) -> float:
        """One update; the mean loss before it."""
        return float(self.path.step())


def about(path: Path) -> dict[str, str]:
    """Versions, the level of capture in force, what it said, and the kernel that attention runs."""
    with path.listening():
        kernel = kernel_of(path)
    return versions() | {"level": path.level(), "attention": kernel, "told": path.told}


def kernel_of(path: Path) -> str:
    """The kernel of attention that runs now, as torch names it; "" inside a CUDA graph."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        path.gradients()
    prefix = "aten::_scaled_dot_product_"
    names = {e.key.removeprefix(prefix) for e in seen.key_averages() if e.key.startswith(prefix)}
    return " ".join(sorted(n for n in names if "backward" not in n))


def versions() -> dict[str, str]:
    """torch, what it multiplies with, and on how many threads."""
    found = {"torch": torch.__version__, "threads": str(torch.get_num_threads())}
    found["blas"] = "MKL" if torch.backends.mkl.is_available() else "no MKL"
    if torch.cuda.is_available():
        cudnn = torch.backends.cudnn.version()
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(cudnn)}
    return found
