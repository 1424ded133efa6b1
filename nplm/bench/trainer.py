"""nplm as an engine to measure: the library's own update on a setting's model and batches.

Runs inside a worker (worker.py).  torch_trainer.py is the same by torch; torch is not loaded here.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from nplm import random
from nplm.autograd.tensor import Tensor
from nplm.backend import threads as backend_threads
from nplm.bench import machine
from nplm.bench.profile import profile
from nplm.bench.settings import BETAS, CLIP_NORM, LR, SEED, WEIGHT_DECAY, Setting
from nplm.data.loader import Batch, Window
from nplm.generation import generate
from nplm.models.decoder import Block, Decoder
from nplm.nn.module import Module
from nplm.optim.adam import AdamW
from nplm.optim.groups import decay_groups
from nplm.train.accumulation import accumulate
from nplm.train.step import train_step

Arrays = list[tuple[str, np.ndarray]]


class Trainer:
    """A Decoder, AdamW and one window of batches that every update sees."""

    def __init__(self, setting: Setting, threads: int) -> None:
        backend_threads.set_num_threads(threads)
        random.manual_seed(SEED)
        self.setting = setting
        self.model: Module = Decoder(setting.model)
        self.optimizer = AdamW(decay_groups(self.model, WEIGHT_DECAY), lr=LR, betas=BETAS)
        self.optimizer.flatten()
        self.window = Window(setting.batches())

    def versions(self) -> dict[str, str]:
        """What does the arithmetic."""
        return {"numpy": np.__version__, "blas": machine.numpy_blas()}

    def weights(self) -> Arrays:
        """Every parameter by name, as an array that may be written to."""
        return [(name, p.array) for name, p in self.model.named_parameters()]

    def gradients(self) -> tuple[float, Arrays]:
        """The loss and its gradients by name, without dropout and without an update."""
        self.model.eval()
        loss = self.backward()
        self.model.train()
        named = self.model.named_parameters()
        return loss, [(name, p.grad.array) for name, p in named if p.grad is not None]

    def backward(self) -> float:
        """Forward and backward of the window; the mean loss."""
        self.model.zero_grad()
        return float(accumulate(self.window, self.model).loss)

    def step(self) -> float:
        """One update; the mean loss before it."""
        record = train_step(self.model, self.optimizer, self.window, clip_norm=CLIP_NORM)
        return float(record.loss)

    def profile(self, steps: int) -> dict[str, Any]:
        """Where the time of `steps` updates goes: `Profile.to_json`, for one update."""
        with profile() as found:
            for _ in range(steps):
                self.step()
        return found.to_json(steps)

    def generate(self, n: int) -> tuple[list[int], list[float]]:
        """n tokens after one, greedily: the tokens, and the seconds that each took."""
        tokens, seconds = [], []
        began = time.perf_counter()
        for token in generate(self.model, [0], n, temperature=0.0):
            now = time.perf_counter()
            tokens.append(token)
            seconds.append(now - began)
            began = time.perf_counter()
        return tokens, seconds


class _Fed(Module):
    """A block whose input is a constant table's rows: token i of a batch is row i.

    So `accumulate` can divide its rows over threads, as it does a model's.
    """

    row_independent = True

    def __init__(self, block: Block, x: np.ndarray) -> None:
        super().__init__()
        self.block, self.x = block, x.reshape(-1, x.shape[-1])

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) int -> (B, T, C)"""
        return self.block(Tensor(self.x[ids.array]))


class BlockTrainer(Trainer):
    """One block, forward and backward, of the sum of its outputs over the number of tokens."""

    def __init__(self, setting: Setting, threads: int) -> None:
        backend_threads.set_num_threads(threads)
        random.manual_seed(SEED)
        self.setting = setting
        block, x = Block(setting.model), setting.block_input()
        self.model = _Fed(block, x)
        rows = np.arange(setting.tokens).reshape(setting.batch_size, setting.model.context)
        self.window = Window([Batch(rows, rows)])

    def backward(self) -> float:
        """Forward and backward; the sum over the number of tokens."""
        self.model.zero_grad()
        return float(accumulate(self.window, self.model, loss_fn=lambda y, ids: y.sum()).loss)

    def step(self) -> float:
        """The same: a block has no update here."""
        return self.backward()

    def weights(self) -> Arrays:
        """Every parameter by its name in the block."""
        return [(name.removeprefix("block."), array) for name, array in super().weights()]

    def gradients(self) -> tuple[float, Arrays]:
        """As `Trainer.gradients`, by names in the block."""
        loss, named = super().gradients()
        return loss, [(name.removeprefix("block."), array) for name, array in named]
