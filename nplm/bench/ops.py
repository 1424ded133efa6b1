"""The ops that a model calls, one by one: recorded from an update, then run alone at their sizes.

torch_ops.py runs the same calls by torch.
"""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import numpy as np

from nplm.autograd import op as ops
from nplm.backend import numpy as xp
from nplm.backend import threads
from nplm.bench.trainer import Trainer

Call = dict[str, Any]  # "name", "inputs" (see `described`), "options", "calls" (in one update)


class Ops(Trainer):
    """An engine that runs one op at a time."""

    def calls(self) -> list[Call]:
        """What the forward pass of an update calls, each distinct call once.

        Ops whose options are no plain data (indexing) are left out: they make views.
        """
        found: dict[str, Call] = {}
        before = threads.get_num_threads()
        choose = ops.choose

        def noted(name: str, xp: Any, arrays: Any, options: Any) -> Any:
            if name in ops.OPS and ops.flags.recording:
                with contextlib.suppress(TypeError):
                    call = {"name": name, "inputs": list(map(described, arrays))}
                    key = json.dumps({**call, "options": options})
                    found.setdefault(key, {**call, "options": options, "calls": 0})["calls"] += 1
            return choose(name, xp, arrays, options)

        setattr(ops, "choose", noted)  # noqa: B010  a name of the module, not ours to bind
        threads.set_num_threads(1)  # whole batches
        try:
            self.backward()
        finally:
            threads.set_num_threads(before)
            setattr(ops, "choose", choose)  # noqa: B010
        return list(found.values())

    def op(self, call: Call, n: int) -> list[float]:
        """The seconds of n runs, forward and backward; none where it has no gradient."""
        arrays = [made(x) for x in call["inputs"]]
        op, options = ops.OPS[call["name"]], call["options"]
        needs = tuple(isinstance(x, np.ndarray) and x.dtype.kind == "f" for x in arrays)
        seconds = []
        for _ in range(n):
            body = ops.choose(op.name, xp, tuple(arrays), options) or op.raw
            began = time.perf_counter()
            with xp.quiet():
                value, backward = body(xp, *arrays, **options)
                middle = time.perf_counter()
                if backward is None or isinstance(value, tuple):
                    return []
                dy = np.ones(value.shape, value.dtype)
                again = time.perf_counter()
                backward(dy, **({"needs": needs} if op.wants_needs else {}))
            seconds.append(time.perf_counter() - again + middle - began)
        return seconds


def described(x: Any) -> Any:
    """An array's shape, dtype, order of axes in memory and range of integers; else `x` itself."""
    if not isinstance(x, np.ndarray):
        return x
    axes = sorted(range(x.ndim), key=lambda i: -x.strides[i])
    high = int(x.max()) + 1 if x.dtype.kind in "iu" and x.size else None
    return {"shape": list(x.shape), "dtype": x.dtype.name, "axes": axes, "high": high}


def made(x: Any) -> Any:
    """Random values as `described`: normal numbers, or integers below `high`."""
    if not isinstance(x, dict):
        return x
    rng, shape = np.random.default_rng(0), [x["shape"][i] for i in x["axes"]]
    values = (
        rng.standard_normal(shape, np.float32)
        if x["high"] is None
        else rng.integers(0, max(x["high"], 1), shape)
    )
    return values.astype(x["dtype"]).transpose(np.argsort(x["axes"]))
