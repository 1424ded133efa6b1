"""Hundreds of random graphs, drawn from every differentiable op, against torch's autograd.

One step is written once and run on both libraries. All tensors of a graph have the shape (4, 6),
so that any of them can meet: leaves are tied, results have many consumers, views alias.
"""

import collections
import functools

import numpy as np
import pytest
from op_cases import CASES
from op_inputs import TF, silent

import nplm
from nplm.autograd.graph import reachable
from nplm.autograd.op import OPS
from nplm.nn import functional as NF
from nplm.parity.tolerances import FORMULA_64, assert_close

torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")

pytestmark = pytest.mark.op

SHAPE = (4, 6)
GRAPHS = 250  # on each namespace
STEPS = 22


def F(L):
    return NF if L is nplm else TF


def constant(L, x, array):
    if L is nplm:
        return nplm.tensor(np.asarray(array), device=x.device)
    return torch.tensor(np.asarray(array))


def positive(x):
    return x * x + 0.5


def heads(x):
    """(4, 6) -> (H 2, T 4, D 3)"""
    return x.reshape(4, 2, 3).transpose(0, 1)


def attend(L, x, y, z, rng):
    share = bool(rng.integers(2))
    k, v = (heads(y)[:1], heads(z)[:1]) if share else (heads(y), heads(z))
    m = constant(L, x, rng.random((4, 4)) < 0.7)
    options = {"enable_gqa": True} if share else {}
    y = F(L).scaled_dot_product_attention(heads(x), k, v, m, **options)
    return y.transpose(0, 1).reshape(SHAPE)


def rotate(L, x, rng):
    angle = rng.random((4, 3))
    cos, sin = constant(L, x, np.cos(angle)), constant(L, x, np.sin(angle))
    if L is nplm:
        return NF.rope(x, cos, sin)
    x1, x2 = x.chunk(2, -1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), -1)


def drop(L, x, rng):
    L.manual_seed(int(rng.integers(2**31)))
    return F(L).dropout(x.contiguous(), 0.3)  # torch draws its mask in the order of memory


def lookup(L, x, rng):
    return F(L).embedding(constant(L, x, rng.integers(0, 4, (4,))), x)


def moved(L, x):
    """To the other namespace and back; torch copies."""
    there = "cpu" if L is torch or x.device != "cpu" else "torch:cpu"
    return x.clone() if L is torch else x.to(there).to(x.device) * 1.0


def class_loss(L, x, y, rng, name):
    t = constant(L, x, np.where(rng.random(4) < 0.8, rng.integers(0, 6, 4), -100))
    w = constant(L, x, rng.random(6) + 0.1)
    return getattr(F(L), name)(x, t, w, reduction="sum") * 0.1 + y


def head_loss(L, x, y, z, rng):
    t = constant(L, x, np.where(rng.random(4) < 0.8, rng.integers(0, 4, 4), -100))
    if L is nplm:
        return NF.linear_cross_entropy(x.tanh(), y, t, reduction="sum") * 0.1 + z
    return TF.cross_entropy(TF.linear(x.tanh(), y), t, reduction="sum") * 0.1 + z


# (L, x, y, z, rng) -> a tensor of SHAPE with numbers near 1
RECIPES = {
    "add": lambda L, x, y, z, r: x + y + z[0],
    "sub": lambda L, x, y, z, r: x - y[:, :1] - 0.5 * (1 - z),
    "mul": lambda L, x, y, z, r: x * y.tanh(),
    "div": lambda L, x, y, z, r: x / positive(y) + 1 / positive(z),
    "neg": lambda L, x, y, z, r: -x,
    "pow": lambda L, x, y, z, r: positive(x).tanh() ** y.tanh() + x.tanh() ** 3 + 2 ** z.tanh(),
    "maximum": lambda L, x, y, z, r: L.maximum(x, y),
    "minimum": lambda L, x, y, z, r: L.minimum(x, y[0]),
    "clamp": lambda L, x, y, z, r: x.clamp(-0.8, 0.9),
    "exp": lambda L, x, y, z, r: x.tanh().exp(),
    "log": lambda L, x, y, z, r: positive(x).log(),
    "sqrt": lambda L, x, y, z, r: positive(x).sqrt(),
    "rsqrt": lambda L, x, y, z, r: positive(x).rsqrt(),
    "sigmoid": lambda L, x, y, z, r: L.sigmoid(x),
    "sin and cos": lambda L, x, y, z, r: x.sin() * y.cos(),
    "erf": lambda L, x, y, z, r: L.erf(x),
    "abs": lambda L, x, y, z, r: abs(x),
    "sign": lambda L, x, y, z, r: x.sign() * y,
    "cast": lambda L, x, y, z, r: x.float().double() * 0 + y,
    "where": lambda L, x, y, z, r: L.where(x > y, x, z) + L.where(z > 0, 0.5, y),
    "activations": lambda L, x, y, z, r: F(L).relu(x) + F(L).silu(y) + F(L).gelu(z),
    "gelu": lambda L, x, y, z, r: F(L).gelu(x, approximate="tanh"),
    "swiglu": lambda L, x, y, z, r: NF.swiglu(x, y.tanh()) if L is nplm else TF.silu(x) * y.tanh(),
    "softmax": lambda L, x, y, z, r: x.softmax(-1) + y.log_softmax(0) * 0.1,
    "sum": lambda L, x, y, z, r: x.sum(0) * 0.1 + y.sum() * 0.01 + z.sum(1, True) * 0.1,
    "mean": lambda L, x, y, z, r: x.mean(1, keepdim=True) * y,
    "extremes": lambda L, x, y, z, r: x.amax(0) + y.amin((0, 1)) + z.max(),
    "max_along": lambda L, x, y, z, r: x.max(0).values + y.min(dim=1, keepdim=True)[0],
    "var": lambda L, x, y, z, r: x.var(0) + y.std(dim=1, correction=0, keepdim=True),
    "logsumexp": lambda L, x, y, z, r: x.logsumexp(1, keepdim=True) + y * 0.5,
    "norm": lambda L, x, y, z, r: x / (1 + x.norm(dim=-1, keepdim=True)),
    "cumsum": lambda L, x, y, z, r: x.tanh().cumsum(1) * 0.3,
    "reshape": lambda L, x, y, z, r: x.reshape(6, 4).permute(1, 0) + y.reshape(2, 12).reshape(4, 6),
    "expand": lambda L, x, y, z, r: x[0].unsqueeze(0).expand(4, -1) + y[:, 2].unsqueeze(1),
    "flip": lambda L, x, y, z, r: x.flip(0) - y.flip(0, 1),
    "triangles": lambda L, x, y, z, r: x.tril() + y.triu(1),
    "slices": lambda L, x, y, z, r: x[:, 1:4].mean() + y[r.integers(4)] + z[..., ::2][:, :1],
    "arrays": lambda L, x, y, z, r: x[constant(L, x, r.integers(0, 4, 4))] + y[0][y[0] > 0].sum(),
    "gather": lambda L, x, y, z, r: x.gather(0, constant(L, x, r.integers(0, 4, SHAPE))),
    "concat": lambda L, x, y, z, r: L.cat([x[:1], y[1:2], z[2:], x[:1]][: 4 - r.integers(1)])[:4],
    "stack": lambda L, x, y, z, r: L.stack([x, y, x], dim=1).mean(1),
    "split": lambda L, x, y, z, r: L.cat(x.split([2, 1, 3], dim=1)[::-1], dim=1),
    "one of split": lambda L, x, y, z, r: x.chunk(2, 0)[1].mean(0) + y,
    "matmul": lambda L, x, y, z, r: (x @ y.T @ z).tanh() + (x[0] @ y.T)[0] * 0.1,
    "linear": lambda L, x, y, z, r: F(L).linear(x, y[:, :6], z[0, :4]).tanh().mean(1, True) + y,
    "embedding": lambda L, x, y, z, r: lookup(L, x, r),
    "layer_norm": lambda L, x, y, z, r: F(L).layer_norm(x, (6,), y[0], z[0]),
    "rms_norm": lambda L, x, y, z, r: F(L).rms_norm(x, (6,), y[0], 1e-3),
    "attention": lambda L, x, y, z, r: attend(L, x, y, z, r),
    "rope": lambda L, x, y, z, r: rotate(L, x, r),
    "dropout": lambda L, x, y, z, r: drop(L, x, r),
    "cross_entropy": lambda L, x, y, z, r: class_loss(L, x, y, r, "cross_entropy"),
    "head loss": lambda L, x, y, z, r: head_loss(L, x, y, z, r),
    "nll_loss": lambda L, x, y, z, r: class_loss(L, x.tanh(), y, r, "nll_loss"),
    "mse_loss": lambda L, x, y, z, r: F(L).mse_loss(x.tanh(), y.tanh()) + z,
    "transfer": lambda L, x, y, z, r: moved(L, x),
    "clone": lambda L, x, y, z, r: x.clone(),
    "detach": lambda L, x, y, z, r: x.detach() * y.tanh(),
    "shared three times": lambda L, x, y, z, r: (x * x.tanh() + x).tanh() - x.mean(),
}  # fmt: skip


def build(L, leaves, seed):
    """The loss of a random graph over `leaves`: the same for both libraries and one seed."""
    rng = np.random.default_rng(seed)
    pool = [*leaves, leaves[0]]  # the first leaf is tied
    names = sorted(RECIPES)
    for _ in range(STEPS):
        name = names[rng.integers(len(names))]
        x, y, z = (pool[i] for i in rng.integers(0, len(pool), 3))
        result = RECIPES[name](L, x, y, z, np.random.default_rng(int(rng.integers(2**31))))
        if rng.random() < 0.5:  # keeps numbers near 1
            result = L.tanh(result)
        pool.append((result * 0.8).expand(SHAPE) if tuple(result.shape) != SHAPE else result * 0.8)
    total = sum(p.mean() for p in pool[-6:])
    return total + sum((leaf * leaf).mean() for leaf in leaves[:2])


@functools.cache
def run(device):
    """Names of all ops that were drawn, and how often a node had three consumers or more."""
    drawn, consumers, sizes = collections.Counter(), 0, []
    with torch.random.fork_rng(devices=[]):
        for seed in range(GRAPHS):
            seed += 10**6 * (device != "cpu")
            arrays = [np.random.default_rng([seed, i]).standard_normal(SHAPE) for i in range(4)]
            ours = [nplm.tensor(a, device=device, requires_grad=True) for a in arrays]
            theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
            loss, expected = build(nplm, ours, seed), silent(build)(torch, theirs, seed)
            assert_close(loss, expected, FORMULA_64, f"loss of graph {seed}")
            nodes = reachable(loss.node)
            drawn.update(node.name for node in nodes)
            consumers += any(n >= 3 for n in nodes.values())
            sizes.append(len(nodes))
            loss.backward()
            expected.backward()
            for i, (a, b) in enumerate(zip(ours, theirs)):
                assert (a.grad is None) == (b.grad is None)
                if a.grad is not None:
                    assert_close(a.grad, b.grad, FORMULA_64, f"gradient {i} of graph {seed}")
    return drawn, consumers, sizes


def test_gradients_of_random_graphs_equal_torch_s(device):
    _, consumers, sizes = run(device)
    assert len(sizes) == GRAPHS
    assert min(sizes) >= 20
    assert consumers > GRAPHS // 2


def test_every_differentiable_op_was_in_a_graph(device):
    differentiable = {name for name in OPS if CASES[name].differentiable}
    assert sorted(differentiable - set(run(device)[0])) == []
