"""Runs in bfloat16: no further from float32 than torch's own bfloat16 is."""

import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="bfloat16 is torch's: pip install torch")

from test_shards import LLAMA, model_of, window_of  # noqa: E402

import nplm  # noqa: E402
from nplm.bench.torch_trainer import Attention  # noqa: E402
from nplm.optim import AdamW  # noqa: E402
from nplm.parity.twin import TorchDecoder  # noqa: E402
from nplm.train import accumulate, capturing, train_step  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype")  # the twin's own

FAMILIES = {"gpt2": {"bias": True, "activation": "gelu_tanh"}, "llama": LLAMA}
UPDATES, V = 60, 17
SETTINGS = {"lr": 3e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}
# Two ways of rounding to 8 bits are as far from float32 as each other up to chance: over 60 losses,
# or the thousands of numbers of a gradient, a factor of 2 was never seen; a missing refresh of the
# weights' copies, statistics of norms or a loss in bfloat16 are factors of 5 and more.
AS_FAR_AS_TORCH = 2.0
needs_compiler = pytest.mark.skipif(
    not shutil.which("g++"), reason="Inductor compiles C++ on the CPU: install g++"
)


def twin_of(ours, low=False):
    """torch's twin; with `low` what its blocks add up is bfloat16 as here, not float32.

    torch.autocast alone leaves that sum in float32, at twice the memory; it is usual to lower the
    embeddings (nanochat does), and everything after them follows.
    """
    theirs = TorchDecoder(ours.config)
    for block in theirs.blocks:
        block.attn = Attention(ours.config)  # the one that is timed: the other turns no bfloat16
    theirs.load_state_dict({k: torch.tensor(v.numpy()) for k, v in ours.state_dict().items()})
    if low:
        theirs.dropout.register_forward_hook(lambda module, given, x: x.bfloat16())
    return theirs


def their_loss(theirs, window, low):
    total = 0.0
    for batch in window:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            logits = theirs(torch.tensor(batch.inputs)).flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(
                logits, torch.tensor(batch.targets).flatten(), reduction="sum"
            )
        (loss / window.n_targets).backward()
        total += loss.item() / window.n_targets
    return total


def their_run(ours, low):
    theirs = twin_of(ours, low)
    optimizer = torch.optim.AdamW(theirs.parameters(), **SETTINGS)
    losses = []
    for step in range(UPDATES):
        optimizer.zero_grad()
        losses.append(their_loss(theirs, window_of([4, 3], vocab_size=V, seed=step), low))
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
    return np.array(losses)


def start(family):
    return model_of(dtype="float32", vocab_size=V, **FAMILIES[family])


@pytest.mark.parametrize(
    ("family", "level"),
    [
        ("gpt2", "off"),
        ("llama", "off"),
        pytest.param("gpt2", "region", marks=needs_compiler),
        pytest.param("llama", "region", marks=[needs_compiler, pytest.mark.slow]),
    ],
)
def test_a_run_in_bfloat16_stays_as_near_to_float32_as_torchs_own(family, level):
    exact, low = (their_run(start(family), low) for low in (False, True))
    ours = start(family).to("torch:cpu")
    capturing.capture(ours, level)
    optimizer, losses = AdamW(ours.parameters(), **SETTINGS), []
    with nplm.autocast("torch:cpu"):
        for step in range(UPDATES):
            window = window_of([4, 3], vocab_size=V, seed=step)
            losses.append(float(train_step(ours, optimizer, window, clip_norm=1.0).loss))
    apart = [float(np.sqrt(np.mean((x - exact) ** 2))) for x in (np.array(losses), low)]
    assert apart[0] <= AS_FAR_AS_TORCH * apart[1]
    assert apart[0] > 0  # it did run in bfloat16
    for p in ours.parameters():
        assert p.array.dtype == p.grad.array.dtype == torch.float32
        assert all(x.array.dtype == torch.float32 for x in optimizer.state[p].values()
                   if isinstance(x.array, torch.Tensor))  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_in_bfloat16_are_as_near_to_float32_as_torchs_own(family):
    window = window_of([4, 3], vocab_size=V, seed=0)
    found = {}
    for low in (False, True):
        theirs = twin_of(start(family), low)
        their_loss(theirs, window, low)
        found[low] = {n: p.grad for n, p in theirs.named_parameters()}
    ours = start(family).to("torch:cpu")
    with nplm.autocast("torch:cpu"):
        accumulate(window, ours)
    off = {"ours": 0.0, "theirs": 0.0}
    for name, p in ours.named_parameters():
        exact = found[False][name]
        for who, gradient in (("ours", p.grad.array), ("theirs", found[True][name])):
            off[who] += float((gradient - exact).norm() / exact.norm()) ** 2
    assert off["ours"] <= AS_FAR_AS_TORCH**2 * off["theirs"]
    assert off["ours"] > 0
