"""Other autograd libraries on NumPy: one GPT-2 block, forward and backward (extra `bench`).

HIPS autograd traces numpy's functions; MyGrad has tensors of its own. Both run the same lines, as
their users would write them. Engines for nplm/bench/worker.py.
"""

import math
from typing import Any

import numpy as np

from nplm.bench.settings import SEED, Setting


def block(m: Any, x: Any, p: dict[str, Any], heads: int) -> Any:
    """m: the library's numpy.   x (B, T, C) -> the mean over the tokens of the sum of outputs"""
    B, T, C = x.shape
    D = C // heads

    def norm(x: Any, name: str) -> Any:
        centred = x - m.mean(x, axis=-1, keepdims=True)
        deviation = m.sqrt(m.mean(centred * centred, axis=-1, keepdims=True) + 1e-5)
        return centred / deviation * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(x: Any, name: str) -> Any:
        return m.matmul(x, m.transpose(p[f"{name}.weight"])) + p[f"{name}.bias"]

    def split(x: Any) -> Any:
        return m.transpose(m.reshape(x, (B, T, heads, D)), (0, 2, 1, 3))  # (B, H, T, D)

    h = linear(norm(x, "norm1"), "attn.qkv")
    q, k, v = split(h[:, :, :C]), split(h[:, :, C : 2 * C]), split(h[:, :, 2 * C :])
    future = np.triu(np.full((T, T), -1e9, np.float32), 1)
    scores = m.matmul(q, m.transpose(k, (0, 1, 3, 2))) * (1 / math.sqrt(D)) + future
    e = m.exp(scores - m.max(scores, axis=-1, keepdims=True))
    looks = e / m.sum(e, axis=-1, keepdims=True)
    y = m.reshape(m.transpose(m.matmul(looks, v), (0, 2, 1, 3)), (B, T, C))
    x = x + linear(y, "attn.proj")
    u = linear(norm(x, "norm2"), "mlp.fc")
    u = 0.5 * u * (1 + m.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u * u * u)))
    return m.sum(x + linear(u, "mlp.proj")) * (1 / (B * T))


class AutogradBlock:
    """HIPS autograd."""

    def __init__(self, setting: Setting, threads: int) -> None:
        import autograd
        import autograd.numpy as m

        self.name, self.x = autograd.__name__, setting.block_input()
        self.parameters = _parameters(setting.model.n_embd)
        heads = setting.model.n_head
        self.differentiate = autograd.value_and_grad(lambda p: block(m, self.x, p, heads))

    def versions(self) -> dict[str, str]:
        from importlib.metadata import version

        return {self.name: version(self.name), "numpy": np.__version__}

    def weights(self) -> list[tuple[str, np.ndarray]]:
        return list(self.parameters.items())

    def gradients(self) -> tuple[float, list[tuple[str, np.ndarray]]]:
        loss, gradients = self.differentiate(self.parameters)
        return float(loss), [(n, np.asarray(g, np.float32)) for n, g in gradients.items()]

    def step(self) -> float:
        return float(self.differentiate(self.parameters)[0])


class MyGradBlock(AutogradBlock):
    """MyGrad, without its checks for writes into arrays of a graph: the faster way."""

    def __init__(self, setting: Setting, threads: int) -> None:
        import mygrad

        mygrad.turn_memory_guarding_off()
        self.name, self.x, heads = "mygrad", setting.block_input(), setting.model.n_head
        self.parameters = _parameters(setting.model.n_embd)

        def differentiate(parameters: dict[str, np.ndarray]) -> tuple[Any, dict[str, Any]]:
            tensors = {name: mygrad.tensor(p, copy=False) for name, p in parameters.items()}
            loss = block(mygrad, mygrad.tensor(self.x, constant=True), tensors, heads)
            loss.backward()
            return loss.data, {name: t.grad for name, t in tensors.items()}

        self.differentiate = differentiate


def _parameters(C: int) -> dict[str, np.ndarray]:
    """A block's weights by nplm's names, in its order; another engine's values come by `load`."""
    rng = np.random.default_rng(SEED)
    shapes = {
        "norm1.weight": (C,), "norm1.bias": (C,), "attn.qkv.weight": (3 * C, C),
        "attn.qkv.bias": (3 * C,), "attn.proj.weight": (C, C), "attn.proj.bias": (C,),
        "norm2.weight": (C,), "norm2.bias": (C,), "mlp.fc.weight": (4 * C, C),
        "mlp.fc.bias": (4 * C,), "mlp.proj.weight": (C, 4 * C), "mlp.proj.bias": (C,),
    }  # fmt: skip
    return {name: rng.standard_normal(s, dtype=np.float32) for name, s in shapes.items()}
