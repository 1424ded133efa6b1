"""The ops of a model one by one, by the torch functions that the parity tests hold them to."""

from __future__ import annotations

import time
from typing import Any

import torch

from nplm.bench.ops import made
from nplm.bench.settings import Setting
from nplm.parity.op_twins import TWINS


class TorchOps:
    """An engine that runs one op at a time: nplm.bench.ops.Ops."""

    def __init__(self, setting: Setting, threads: int) -> None:
        torch.set_num_threads(threads)

    def op(self, call: dict[str, Any], n: int) -> list[float]:
        """The seconds of n runs, forward and backward; none without a twin."""
        if call["name"] not in TWINS:
            return []
        inputs = [torch.from_numpy(x) if hasattr(x, "shape") else x
                  for x in map(made, call["inputs"])]  # fmt: skip
        wanted = [x.requires_grad_() for x in inputs
                  if isinstance(x, torch.Tensor) and x.is_floating_point()]  # fmt: skip
        seconds = []
        for _ in range(n):
            began = time.perf_counter()
            value = TWINS[call["name"]].function(*inputs, **call["options"])
            middle = time.perf_counter()
            if not (isinstance(value, torch.Tensor) and value.requires_grad):
                return []  # several values, or no gradient: nplm's side is not timed either
            dy = torch.ones_like(value)
            again = time.perf_counter()
            torch.autograd.grad(value, wanted, dy)
            seconds.append(time.perf_counter() - again + middle - began)
        return seconds
