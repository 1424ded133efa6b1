"""torch as an engine to measure: the twin of nplm's decoder in the calls that are fast in torch.

The model is nplm.parity.twin's, written only from torch.nn, but for its attention: what proves may
be slow, what is measured against may not.  The optimizer is AdamW, fused.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from nplm.bench.settings import BETAS, CLIP_NORM, LR, SEED, WEIGHT_DECAY, Setting
from nplm.parity.twin import TorchAttention, TorchBlock, TorchDecoder

Arrays = list[tuple[str, np.ndarray]]


def rotary_tables(context: int, D: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin (context, D/2) of position * theta**(-2i/D), made in float64, kept in float32."""
    speed = theta ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    angle = torch.arange(context, dtype=torch.float64)[:, None] * speed
    return angle.cos().float(), angle.sin().float()


class Attention(TorchAttention):
    """scaled_dot_product_attention by its fused kernel; rotary angles made once, in float32.

    On CPUs torch fuses no grouped heads, so keys and values are repeated for their group.
    """

    past: Any = None  # keys and values so far, while `generate` runs

    def __init__(self, config: Any) -> None:
        theta = config.rope_theta if config.positions == "rope" else None
        super().__init__(
            config.n_embd, config.n_head, config.n_kv_head, config.bias, config.dropout, theta
        )
        if theta is not None:
            self.cos, self.sin = rotary_tables(config.context, self.D, theta)

    def turned(self, x: Any, start: int) -> Any:
        """Rotary positions from `start` on.   x (B, H, T, D)"""
        a, b = x.chunk(2, -1)
        end = start + x.shape[2]
        cos, sin = self.cos[start:end], self.sin[start:end]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def forward(self, x: Any) -> Any:
        """(B, T, C) -> (B, T, C)"""
        B, T, C = x.shape
        H, G, D = self.H, self.G, self.D
        q, k, v = self.qkv(x).split((H * D, G * D, G * D), 2)
        q = q.view(B, T, H, D).transpose(1, 2)
        k, v = (y.view(B, T, G, D).transpose(1, 2) for y in (k, v))
        start = 0 if self.past is None else self.past[2]
        if self.rope_theta is not None:
            q, k = self.turned(q, start), self.turned(k, start)
        if self.past is not None:
            keys, values, _ = self.past
            keys[:, :, start : start + T], values[:, :, start : start + T] = k, v
            k, v = keys[:, :, : start + T], values[:, :, : start + T]
            self.past = (keys, values, start + T)
        if G != H:
            k, v = k.repeat_interleave(H // G, 1), v.repeat_interleave(H // G, 1)
        p = self.dropout.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=start == 0)
        return self.dropout(self.proj(y.transpose(1, 2).reshape(B, T, C)))


class TorchTrainer:
    """torch eager.  What each method does: nplm.bench.trainer.Trainer's docstrings."""

    compiled = False

    def __init__(self, setting: Setting, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(SEED)
        self.setting = setting
        self.model: Any = TorchDecoder(setting.model)
        for block in self.model.blocks:
            block.attn = Attention(setting.model)
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": WEIGHT_DECAY},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)
        self.batches = [
            (torch.from_numpy(b.inputs), torch.from_numpy(b.targets)) for b in setting.batches()
        ]
        self.forward: Any = torch.compile(self.loss) if self.compiled else self.loss

    def versions(self) -> dict[str, str]:
        """What does the arithmetic."""
        mkl = "MKL" if torch.backends.mkl.is_available() else "no MKL"
        return {"torch": torch.__version__, "blas": mkl, "threads": str(torch.get_num_threads())}

    def weights(self) -> Arrays:
        """Every parameter by name, as an array on the same memory."""
        return [(name, p.detach().numpy()) for name, p in self.model.named_parameters()]

    def gradients(self) -> tuple[float, Arrays]:
        """The loss and its gradients by name, without dropout and without an update."""
        training = self.setting.model.dropout > 0  # a compiled model is compiled for one mode
        self.model.train(not training)
        loss = self.backward()
        self.model.train()
        return loss, [(name, p.grad.numpy()) for name, p in self.model.named_parameters()]

    def loss(self, inputs: Any, targets: Any) -> Any:
        """The mean over the tokens."""
        return F.cross_entropy(self.model(inputs).flatten(0, 1), targets.flatten())

    def backward(self) -> float:
        """Forward and backward of the window; the mean loss."""
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for inputs, targets in self.batches:
            loss = self.forward(inputs, targets) / len(self.batches)
            loss.backward()
            total += loss.item()
        return total

    def step(self) -> float:
        """One update; the mean loss before it."""
        loss = self.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        return loss

    @torch.no_grad()
    def generate(self, n: int) -> tuple[list[int], list[float]]:
        """n tokens after one, greedily, from a cache: the tokens, and each one's seconds."""
        config, model = self.setting.model, self.model.eval()
        shape = (1, config.kv_heads, config.context, config.n_embd // config.n_head)
        for block in model.blocks:
            block.attn.past = (torch.zeros(shape), torch.zeros(shape), 0)
        token, tokens, seconds = torch.zeros((1, 1), dtype=torch.long), [], []
        for position in range(n):
            began = time.perf_counter()
            x = model.wte(token)
            if config.positions == "learned":
                x = x + model.wpe.weight[position]
            for block in model.blocks:
                x = block(x)
            token = model.head(model.norm(x))[:, -1].argmax(-1, keepdim=True)
            tokens.append(int(token))
            seconds.append(time.perf_counter() - began)
        for block in model.blocks:
            block.attn.past = None
        model.train()
        return tokens, seconds


class CompiledTrainer(TorchTrainer):
    """torch.compile: the whole forward pass and its backward, compiled at the first call."""

    compiled = True


class TorchBlockTrainer(TorchTrainer):
    """One block, forward and backward, of the sum of its outputs over the number of tokens."""

    def __init__(self, setting: Setting, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(SEED)
        self.setting = setting
        self.model = TorchBlock(setting.model)
        self.model.attn = Attention(setting.model)
        self.x = torch.from_numpy(setting.block_input())
        whole: Any = self.block_loss
        self.forward = torch.compile(whole) if self.compiled else whole

    def block_loss(self) -> Any:
        """The sum of the outputs over the number of tokens."""
        return self.model(self.x).sum() / self.setting.tokens

    def backward(self) -> float:
        """Forward and backward."""
        self.model.zero_grad(set_to_none=True)
        loss = self.forward()
        loss.backward()
        return float(loss.item())

    def step(self) -> float:
        """The same: a block has no update here."""
        return self.backward()


class CompiledBlockTrainer(TorchBlockTrainer):
    """The block by torch.compile."""

    compiled = True
