"""The same on both sides: one seed, one array, one action for nplm and for torch."""

import os
import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

import nplm

LIBRARIES = (nplm, torch)


def seed_both(seed):
    nplm.manual_seed(seed)
    torch.manual_seed(seed)


def assert_same_place_in_the_stream():
    ours, theirs = nplm.random.default_generator.to_torch_state(), torch.get_rng_state()
    np.testing.assert_array_equal(ours, theirs.numpy())


def both(values, device, grad=True):
    """The same array as an nplm and as a torch tensor; floating ones want a gradient."""
    grad = grad and values.dtype.kind == "f"
    return (
        nplm.tensor(values, device=device, requires_grad=grad),
        torch.tensor(values, requires_grad=grad),
    )


def net(library):
    """A small tree with everything in it: ties, buffers, names that hold nothing."""
    n = library.nn

    class Net(n.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", library.full((2,), 2.0))
            self.register_buffer("scratch", library.zeros(3), persistent=False)
            self.register_buffer("nothing", None)
            self.emb = n.Embedding(5, 4)
            self.blocks = n.ModuleList(
                n.Sequential(
                    OrderedDict(norm=n.LayerNorm(4), fc=n.Linear(4, 4, bias=False), act=n.GELU())
                )
                for _ in range(2)
            )
            self.shared = self.blocks[0]
            self.free = n.Parameter(library.ones(1, 3))
            self.missing = None
            self.register_module("child", None)
            self.head = n.Linear(4, 5)
            self.head.weight = self.emb.weight
            self.steps = 3

        def forward(self, ids):
            x = self.emb(ids)
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    library.manual_seed(2)
    return Net()


def normalised(text):
    """torch's words with shapes as tuples and without the library's name."""
    text = re.sub(r"torch\.Size\(\[(.*?)\]\)", lambda m: str(tuple(eval(f"[{m[1]}]"))), text)
    return text.replace("torch.nn.", "nplm ").replace("torch.Tensor", "nplm Tensor")


def outcome(action, library):
    """What an action returns, or the class and the words of what it raises."""
    try:
        return action(library)
    except Exception as error:
        return type(error), normalised(str(error))


def assert_same(action):
    """The action returns the same on both libraries."""
    ours, theirs = (action(library) for library in LIBRARIES)
    assert ours == theirs
    return ours


def assert_same_outcome(action):
    """It returns the same, or it raises the same class with the same words."""
    ours, theirs = (outcome(action, library) for library in LIBRARIES)
    assert ours == theirs


def run_without_fused_multiply_adds(code):
    """What `code` prints in a process of its own, in which torch rounds every operation."""
    here = Path(__file__).parent
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=here,
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default", "PYTHONPATH": str(here.parent)},
        capture_output=True,
        text=True,
    )
