"""Small recorded trainings on both libraries: what the tests of the parity harness share."""

import numpy as np
import torch

import nplm
from nplm import optim
from nplm.models import Decoder, DecoderConfig
from nplm.nn import functional as F
from nplm.nn.utils import clip_grad_norm_
from nplm.parity import record
from nplm.parity.trace import Place
from nplm.parity.twin import TorchDecoder

SMALL = {"vocab_size": 19, "context": 8, "n_layer": 2, "n_head": 2, "n_embd": 16}
LLAMA = {
    "n_head": 4, "n_kv_head": 2, "n_hidden": 24, "norm": "rms", "positions": "rope",
    "activation": "swiglu", "bias": False, "tied": False,
}  # fmt: skip
FAMILIES = {
    "gpt2": SMALL | {"dropout": 0.1},
    "gpt2 untied": SMALL | {"tied": False, "activation": "gelu_tanh"},
    "llama": SMALL | LLAMA | {"dropout": 0.1},
    "llama tied": SMALL | LLAMA | {"tied": True, "bias": True},
}
ADAMW = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}
CLIP = 0.5


def batches(config, steps=2, micros=3, rows=3, seed=0):
    """Windows of (inputs, targets), each (rows, context)."""
    rng, shape = np.random.default_rng(seed), (rows, config.context)
    draw = lambda: rng.integers(0, config.vocab_size, shape)  # noqa: E731
    return [[(draw(), draw()) for _ in range(micros)] for _ in range(steps)]


def decoders(settings, dtype="float64"):
    """(config, nplm's decoder, its twin with the same weights)."""
    config = DecoderConfig(**settings)
    nplm.manual_seed(3)
    ours = Decoder(config).to(dtype=getattr(nplm, dtype))
    theirs = TorchDecoder(config).to(getattr(torch, dtype))
    theirs.load_state_dict({k: torch.tensor(v.numpy()) for k, v in ours.state_dict().items()})
    return config, ours, theirs


def train_nplm(model, windows, recorder=None, optimizer=None):
    """The loop of a user; with a recorder it is noted what only the loop knows."""
    note = recorder.note if recorder else lambda *args, **kwargs: None
    optimizer = optimizer or optim.AdamW(model.parameters(), **ADAMW)
    for window in windows:
        optimizer.zero_grad()
        n, total = sum(targets.size for _, targets in window), 0.0
        for inputs, targets in window:
            note("batch", "inputs", inputs)
            note("batch", "targets", targets)
            logits = model(nplm.tensor(inputs))
            flat = logits.reshape(-1, logits.shape[-1])
            loss = F.cross_entropy(flat, nplm.tensor(targets).reshape(-1), reduction="sum")
            note("loss", "loss", loss, targets.size)
            loss.backward(1 / n)
            total += float(loss) / n
        note("loss", "loss", total, n, micro=0)
        note("norm", "total", clip_grad_norm_(list(model.parameters()), CLIP))
        optimizer.step()
        if recorder:
            recorder.random()


def train_torch(model, windows, recorder=None, optimizer=None):
    """The same with torch."""
    note = recorder.note if recorder else lambda *args, **kwargs: None
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), foreach=False, **ADAMW)
    for window in windows:
        optimizer.zero_grad()
        n, total = sum(targets.size for _, targets in window), 0.0
        for inputs, targets in window:
            note("batch", "inputs", inputs)
            note("batch", "targets", targets)
            flat = model(torch.from_numpy(inputs)).flatten(0, 1)
            wanted = torch.from_numpy(targets).flatten()
            loss = torch.nn.functional.cross_entropy(flat, wanted, reduction="sum")
            note("loss", "loss", loss, targets.size)
            (loss / n).backward()
            total += loss.item() / n
        note("loss", "loss", total, n, micro=0)
        note("norm", "total", torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP))
        optimizer.step()
        if recorder:
            recorder.random()


def trace_of_nplm(model, windows, like=None, **adamw):
    """The trace of `train_nplm` from a fresh AdamW and seed 7."""
    optimizer = optim.AdamW(model.parameters(), **(ADAMW | adamw))
    nplm.manual_seed(7)
    with record(model, optimizer, like=like) as recorder:
        recorder.random()
        train_nplm(model, windows, recorder, optimizer)
    return recorder.trace


def trace_of_torch(model, windows, like=None, **adamw):
    """The trace of `train_torch` from a fresh AdamW and seed 7."""
    options = {"foreach": False} | ADAMW | adamw
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    torch.manual_seed(7)
    with record(model, optimizer, like=like) as recorder:
        recorder.random()
        train_torch(model, windows, recorder, optimizer)
    return recorder.trace


def names(trace, phase, step=1):
    """The names of a phase of a step, in the order in which they were recorded."""
    return [e.place.name for e in trace.of_step(step) if e.place.phase == phase]


def value(trace, phase, name, step=1, micro=0):
    """What was recorded at a place."""
    return trace.get(Place(step, micro, phase, name)).value
