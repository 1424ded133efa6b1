"""Faults of the data: their order, their rows, inputs and targets.  Read planting.py before."""

from nplm.parity.faults.planting import Fault
from nplm.parity.trace import Place

_INPUTS, _TARGETS = Place(1, 1, "batch", "inputs"), Place(1, 1, "batch", "targets")
_SAMPLER, _LOADER = "nplm.data.sampler.", "nplm.data.dataloader.DataLoader."
_ITEM = "nplm.data.loader.TokenWindows.__getitem__"
_SINGLE = {"accumulate": 1}

DATA = [
    Fault(
        "shuffle-from-another-stream", "data",
        "The order of the rows is drawn from the default stream, not from the loader's generator.",
        f"{_SAMPLER}RandomSampler.__iter__",
        (("len(self.data_source), self.generator", "len(self.data_source), None"),), _INPUTS,
    ),
    Fault(
        "shuffle-alike-in-every-epoch", "data",
        "Every epoch reads the rows in the order of the first.",
        f"{_SAMPLER}RandomSampler.__iter__",
        (("range(self.num_samples // n):\n            yield from generator.randperm(n).tolist()",
          "range(self.num_samples // n):\n            yield from self.__dict__.setdefault("
          "'first', generator.randperm(n).tolist())"),),
        Place(2, 1, "batch", "inputs"), {"rows": 16, "batch_size": 8},
    ),
    Fault(
        "worker-seed-not-drawn", "data",
        "A pass does not draw the seed that torch's loader draws before the order.",
        f"{_LOADER}__iter__",
        (("stream_of(self.generator).random_int63()", "pass"),), _INPUTS,
    ),
    Fault(
        "last-batch-dropped", "data",
        "The short batch at the end of an epoch is left out.",
        f"{_SAMPLER}BatchSampler.__iter__",
        ((" or not self.drop_last", ""),),
        Place(3, 1, "batch", "inputs"), {**_SINGLE, "rows": 5, "steps": 3},
    ),
    Fault(
        "batch-repeated", "data", "The second batch of an epoch is the first one again.",
        "nplm.data.cursor.Pass.__next__",
        (("index = next(self.indices)",
          "index = next(self.indices)\n        if self.drawn < 2:\n"
          "            index = self.__dict__.setdefault('first', index)"),),
        Place(2, 1, "batch", "inputs"), _SINGLE,
    ),
    Fault(
        "rows-overlap", "data", "The rows begin context - 1 tokens apart, so they overlap.",
        _ITEM, (("index % n * self.context", "index % n * (self.context - 1)"),), _INPUTS,
    ),
    Fault(
        "targets-are-inputs", "data", "The targets are the inputs, not the tokens after them.",
        _ITEM, (("chunk[1:]", "chunk[:-1]"),), _TARGETS,
    ),
    Fault(
        "targets-two-ahead", "data", "The targets lie two tokens after the inputs.",
        _ITEM, (("chunk[1:]", "np.append(chunk[2:], 0)"),), _TARGETS,
    ),
    Fault(
        "padding-is-a-target", "data", "The padding of the last row counts as token 0.",
        _ITEM, (("np.full(self.context, IGNORE_INDEX,", "np.full(self.context, 0,"),),
        _TARGETS, {**_SINGLE, "rows": 4, "batch_size": 4},
    ),
    Fault(
        "collated-in-reverse", "data", "The rows of a batch are stacked in reverse.",
        "nplm.data.loader.collate_windows",
        (("np.stack(rows)", "np.stack(rows[::-1])"),), _INPUTS,
    ),
    Fault(
        "window-size-an-epoch-late", "data",
        "The accumulation window grows one epoch later than it was told to.",
        "nplm.train.window_schedule.WindowSchedule.size",
        (("if first <= epoch", "if first < max(epoch, 1)"),),
        Place(3, 1, "backward", "output"),
        {"rows": 4, "accumulate": {0: 1, 1: 2}, "steps": 3},
    ),
]  # fmt: skip
