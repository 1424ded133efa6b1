"""What the tests of files and checkpoints share: arrays to draw, exact comparison, stand-ins."""

import dataclasses
import datetime
import math
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nplm.data import CharTokenizer
from nplm.train.checkpoint import (
    save_checkpoint,
)
from nplm.train.run import RunFolder

DTYPES = st.sampled_from(["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"])
ARRAYS = DTYPES.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
)


def same(a, b):
    """Equal to the bit, NaN and -0.0 included, in native byte order."""
    assert a.shape == b.shape
    assert a.dtype == b.dtype.newbyteorder("=")
    assert a.tobytes() == b.astype(b.dtype.newbyteorder("=")).tobytes()


def alike(a, b):
    assert type(a) is type(b)
    if isinstance(a, np.ndarray):
        same(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            alike(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            alike(x, y)
    elif isinstance(a, float):
        assert repr(a) == repr(b)  # NaN and -0.0 too
    else:
        assert a == b


DAY = datetime.datetime(2025, 11, 24, 9, 30, tzinfo=datetime.UTC)


@dataclasses.dataclass(frozen=True)
class Config:
    n_layer: int = 2
    betas: tuple[float, float] = (0.9, 0.95)
    tied: bool = True


def new_run(base, **kwargs):
    return RunFolder.create(base, "tiny", {"model": Config(), "out": Path("x")}, date=DAY, **kwargs)


class FakeTensor:
    def __init__(self, array):
        self.array = array

    def numpy(self):
        return self.array


class Holder:
    """A model, optimizer or scheduler that is nothing but its state dict."""

    def __init__(self, state, **attributes):
        self.state = state
        self.__dict__.update(attributes)

    def state_dict(self):
        return self.state

    def get_state(self):
        return self.state


def example():
    rng = np.random.default_rng(0)
    wte = FakeTensor(rng.normal(size=(5, 4)).astype(np.float32))
    w = FakeTensor(rng.normal(size=(4, 4)).astype(np.float32).T)  # not contiguous
    model = Holder({"wte.weight": wte, "h.0.w": w, "head.weight": wte}, config=Config())
    optimizer = Holder({
        "state": {
            0: {"step": FakeTensor(np.float32(3)), "exp_avg": FakeTensor(wte.array * 2)},
            3: {"step": 3.0, "exp_avg": FakeTensor(w.array * 3), "max": None},
        },
        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95), "amsgrad": False, "params": [0, 3]}],
    })  # fmt: skip
    scheduler = Holder({"last_epoch": 3, "lr_lambdas": [None], "best": math.inf, "marks": {30: 1}})
    generators = {"train": Holder({"key": [2**32 - 1], "normal": -0.0}),
                  "bytes": Holder(np.arange(6, dtype=np.uint8))}  # fmt: skip
    return model, optimizer, scheduler, generators


def save_example(run, step=500):
    model, optimizer, scheduler, generators = example()
    return save_checkpoint(
        run, step, model=model, optimizer=optimizer, scheduler=scheduler, generators=generators,
        tokenizer=CharTokenizer("abc"), metrics={"val_loss": math.inf},
    )  # fmt: skip
