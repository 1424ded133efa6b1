"""`agree(f, x, y, ...)`: `f(nplm, ...)` and `f(torch, ...)` give the same values and gradients.

Written once, run on both libraries: that this is possible is itself the claim about the interface.
"""

import numpy as np
from op_inputs import torch

import nplm
import nplm.nn.functional
from nplm.parity.tolerances import FORMULA_64, assert_close, to_numpy


def leaves_of(arrays, device):
    """The arrays as tensors of both libraries; floating ones require a gradient."""
    wants = [isinstance(a, np.ndarray) and a.dtype.kind == "f" for a in arrays]
    ours = [
        nplm.tensor(a, device=device, requires_grad=w) if isinstance(a, np.ndarray) else a
        for a, w in zip(arrays, wants)
    ]
    theirs = [
        torch.tensor(a, requires_grad=w) if isinstance(a, np.ndarray) else a
        for a, w in zip(arrays, wants)
    ]
    return ours, theirs


def flat(value):
    return (
        [v for part in value for v in flat(part)] if isinstance(value, (tuple, list)) else [value]
    )


def weighted_sum(values):
    """A number that every output moves, each element by another amount."""
    total = 0.0
    for i, value in enumerate(values):
        if getattr(value, "requires_grad", False):
            n = int(np.prod(tuple(value.shape)))
            weights = np.cos(np.arange(n) + i).reshape(tuple(value.shape))
            if isinstance(value, nplm.Tensor):
                weights = nplm.tensor(weights, dtype=value.dtype, device=value.device)
            else:
                weights = torch.tensor(weights, dtype=value.dtype)
            total = total + (value * weights).sum()
    return total


def agree(f, *arrays, device="cpu", tolerance=FORMULA_64):
    """Values (with dtypes and shapes), whether they require gradients, and all gradients."""
    ours, theirs = leaves_of(arrays, device)
    results, expected = flat(f(nplm, *ours)), flat(f(torch, *theirs))
    assert len(results) == len(expected)
    for result, twin in zip(results, expected):
        if not isinstance(twin, torch.Tensor):
            assert result == twin
            continue
        assert_close(result, twin, tolerance)
        assert result.device == device
        assert result.requires_grad == twin.requires_grad
    total, twin_total = weighted_sum(results), weighted_sum(expected)
    if isinstance(total, nplm.Tensor):
        total.backward()
        twin_total.backward()
        for i, (leaf, twin) in enumerate(zip(ours, theirs)):
            if isinstance(twin, torch.Tensor) and twin.grad is not None:
                assert leaf.grad is not None, f"input {i} has no gradient"
                assert_close(leaf.grad, twin.grad, tolerance, f"gradient of input {i}")
            elif isinstance(twin, torch.Tensor) and leaf.grad is not None:
                assert not to_numpy(leaf.grad).any()
    return results


def normal(*shape, seed=0):
    """Standard normal float64."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape))
