"""The decoder against its twin of torch.nn: weights, logits, loss and every gradient."""

from dataclasses import replace

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

import nplm
from nplm.errors import ConfigError
from nplm.models import PRESETS, Decoder, DecoderConfig, preset
from nplm.nn import functional as F
from nplm.nn import init
from nplm.parity.tolerances import EXACT, FORMULA_64, assert_close, to_numpy

torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")
from side_by_side import assert_same_place_in_the_stream, seed_both  # noqa: E402

from nplm.parity.twin import TorchDecoder  # noqa: E402  (it needs torch)

pytestmark = pytest.mark.model

GPT2 = DecoderConfig(
    vocab_size=23, context=7, n_layer=2, n_head=3, n_embd=12, activation="gelu_tanh"
)
LLAMA = DecoderConfig(
    vocab_size=23, context=7, n_layer=2, n_head=4, n_kv_head=2, n_embd=16, n_hidden=20,
    norm="rms", norm_eps=1e-6, positions="rope", activation="swiglu", bias=False, tied=False,
)  # fmt: skip
CONFIGS = {
    "gpt2": GPT2,
    "gpt2-untied": replace(GPT2, tied=False),
    "gpt2-no-bias": replace(GPT2, bias=False),
    "gpt2-dropout": replace(GPT2, dropout=0.1),
    "llama": LLAMA,
    "llama-one-kv-head": replace(LLAMA, n_kv_head=1),
    "llama-tied-bias-dropout": replace(LLAMA, tied=True, bias=True, dropout=0.25),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@st.composite
def configs(draw):
    positions = draw(st.sampled_from(["learned", "rope"]))
    n_kv_head = draw(st.integers(1, 3))
    n_head = n_kv_head * draw(st.integers(1, 3))
    head_size = draw(st.sampled_from([2, 4] if positions == "rope" else [1, 2, 3]))
    return DecoderConfig(
        vocab_size=draw(st.integers(2, 17)),
        context=draw(st.integers(1, 6)),
        n_layer=draw(st.integers(1, 3)),
        n_head=n_head,
        n_kv_head=draw(st.just(n_kv_head) if n_kv_head < n_head else st.sampled_from([None])),
        n_embd=n_head * head_size,
        n_hidden=draw(st.none() | st.integers(1, 9)),
        norm=draw(st.sampled_from(["layer", "rms"])),
        norm_eps=draw(st.sampled_from([1e-6, 1e-3])),
        positions=positions,
        rope_theta=draw(st.sampled_from([10.0, 10000.0])),
        activation=draw(st.sampled_from(["gelu", "gelu_tanh", "swiglu"])),
        bias=draw(st.booleans()),
        tied=draw(st.booleans()),
        dropout=draw(st.sampled_from([0.0, 0.0, 0.3])),
    )


def pair(config, seed=0):
    """The decoder and its twin, built from the same seed."""
    seed_both(seed)
    return Decoder(config), TorchDecoder(config)


def assert_same_state(ours, theirs):
    theirs = theirs.state_dict()
    assert list(ours.state_dict()) == list(theirs)
    for name, value in ours.state_dict().items():
        assert_close(value, theirs[name], EXACT, name)


def assert_equal_training(config, device, seed, B, T):
    """Same logits, loss and gradients, in float64, from weights large enough to matter."""
    ours, theirs = pair(config, seed)
    with torch.no_grad():
        for parameter in theirs.double().parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.4)
    ours.double().to(device).load_state_dict(theirs.state_dict())
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, config.vocab_size, (B, T))
    targets = rng.integers(0, config.vocab_size, B * T)
    targets[1::5] = -100

    seed_both(seed)
    logits = ours(nplm.tensor(ids, device=device))
    loss = F.cross_entropy(logits.view(B * T, -1), nplm.tensor(targets, device=device))
    loss.backward()
    their_logits = theirs(torch.tensor(ids))
    their_loss = torch.nn.functional.cross_entropy(
        their_logits.flatten(0, 1), torch.tensor(targets)
    )
    their_loss.backward()

    assert_same_place_in_the_stream()  # the same dropout masks were drawn
    assert_close(logits, their_logits, FORMULA_64, "logits")
    assert_close(loss, their_loss, FORMULA_64, "loss")
    judge = dict(theirs.named_parameters())
    assert list(judge) == [name for name, _ in ours.named_parameters()]
    for name, parameter in ours.named_parameters():
        assert parameter.grad.device == device
        assert_close(parameter.grad, judge[name].grad, FORMULA_64, f"gradient of {name}")


# ---- against the twin ----------------------------------------------------------------------------
@each_config
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_initial_weights_are_the_bits_of_the_twin(config, dtype):
    nplm.set_default_dtype(getattr(nplm, dtype))
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        ours, theirs = pair(config, seed=11)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_state(ours, theirs)
    assert_same_place_in_the_stream()


@each_config
def test_logits_loss_and_every_gradient_equal_the_twin(config, device):
    assert_equal_training(config, device, seed=3, B=2, T=config.context)


@examples(40)
@given(config=configs(), seed=st.integers(0, 2**31), B=st.integers(1, 3), data=st.data())
def test_any_small_decoder_equals_its_twin(device, config, seed, B, data):
    assert_same_state(*pair(config, seed))
    assert_equal_training(config, device, seed, B, data.draw(st.integers(1, config.context)))


def test_evaluation_mode_draws_nothing_and_equals_the_twin(device):
    ours, theirs = pair(replace(GPT2, dropout=0.5))
    ours.double().to(device).eval()
    theirs.double().eval()
    ids = np.arange(12).reshape(2, 6)
    assert_close(
        ours(nplm.tensor(ids, device=device)), theirs(torch.tensor(ids)), FORMULA_64, "logits"
    )
    assert_same_place_in_the_stream()


def test_a_position_sees_nothing_behind_it(device):
    for config in (GPT2, LLAMA):
        model = Decoder(config).double().to(device)
        ids = np.array([[1, 2, 3, 4, 5]])
        before = to_numpy(model(nplm.tensor(ids, device=device)))
        ids[0, 3] = 9
        after = to_numpy(model(nplm.tensor(ids, device=device)))
        assert_close(after[:, :3], before[:, :3], EXACT, "logits before the changed token")
        assert (after[:, 3:] != before[:, 3:]).any(axis=-1).all()


def test_the_weights_travel_both_ways():
    ours, theirs = pair(LLAMA)
    other = Decoder(LLAMA)
    other.load_state_dict(theirs.state_dict())
    assert_same_state(other, theirs)
    theirs = TorchDecoder(LLAMA)
    theirs.load_state_dict({k: torch.tensor(to_numpy(v)) for k, v in ours.state_dict().items()})
    assert_same_state(ours, theirs)


# ---- settings ------------------------------------------------------------------------------------
def test_the_presets_exist_and_small_ones_run():
    assert {"char", "tiny-llama", "gpt2"} <= set(PRESETS)
    for name in ("char", "tiny-llama"):
        config = preset(name, n_layer=1)
        assert Decoder(config)(nplm.tensor([[1, 2]])).shape == (1, 2, config.vocab_size)


@pytest.fixture
def no_memory(monkeypatch):
    """Parameters that take no memory and no draws, to count large models."""
    for name in ("uniform_", "normal_", "ones_", "zeros_"):
        monkeypatch.setattr(init, name, lambda tensor, *_, **__: tensor)
    monkeypatch.setattr(
        nplm.nn.layers, "empty", lambda *size, **_: np.broadcast_to(np.float32(0), size)
    )


@pytest.mark.usefixtures("no_memory")
def test_the_gpt2_preset_has_124439808_parameters():
    assert Decoder(preset("gpt2")).num_parameters() == 124_439_808
    untied = Decoder(preset("gpt2", tied=False)).num_parameters()
    assert untied == 124_439_808 + 50257 * 768


@each_config
def test_num_parameters_is_that_of_the_twin(config):
    ours, theirs = pair(config)
    assert ours.num_parameters() == sum(p.numel() for p in theirs.parameters())


def test_a_preset_takes_changes_and_stays_as_it_is():
    assert preset("gpt2", n_layer=3).n_layer == 3
    assert preset("gpt2").n_layer == 12


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda: preset("gpt3"), "unknown preset 'gpt3'.*did you mean 'gpt2'"),
        (lambda: preset("tiny_lama"), "did you mean 'tiny-llama'"),
        (lambda: preset("zzz"), "unknown preset 'zzz': expected one of char, tiny-llama, gpt2$"),
        (lambda: preset("gpt2", n_heads=4), "unknown setting .*'n_heads'.*did you mean 'n_head'"),
        (lambda: preset("char", vocab=4), "did you mean 'vocab_size'"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(call, hint):
    with pytest.raises(ConfigError, match=hint):
        call()


WRONG = [
    *[(name, v) for name in ("vocab_size", "context", "n_layer", "n_head", "n_embd")
      for v in (0, -1, 2.0, "4", True, None)],
    *[(name, v) for name in ("n_kv_head", "n_hidden") for v in (0, -2, 1.5, False)],
    ("n_embd", 13), ("n_head", 5), ("n_kv_head", 2),
    ("norm", "batch"), ("positions", "alibi"), ("activation", "relu"), ("activation", None),
    *[("dropout", v) for v in (1, 1.0, -0.1, float("nan"), "0.1", None, True)],
    *[(name, v) for name in ("norm_eps", "rope_theta")
      for v in (0, -1e-5, float("nan"), float("inf"), "1e-5", None)],
    *[(name, v) for name in ("bias", "tied") for v in (1, 0, None, "yes")],
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda v: repr(v))
def test_a_wrong_setting_is_answered_with_one_sentence(name, value):
    with pytest.raises(ConfigError) as raised:
        replace(GPT2, **{name: value})
    message = str(raised.value)
    field = "n_embd" if name == "n_head" and value == 5 else name
    assert message.startswith(f"DecoderConfig: {field}: ")
    assert "\n" not in message
    assert "expected" in message
    assert "got" in message


def test_rope_needs_an_even_head_size():
    with pytest.raises(ConfigError, match="even head size, got 3"):
        replace(GPT2, positions="rope", n_head=4)


def test_several_wrong_settings_are_named_together():
    with pytest.raises(ConfigError, match=r"n_embd: .*; norm: .*; dropout: "):
        replace(GPT2, n_embd=13, norm="x", dropout=2.0)


@pytest.mark.parametrize("shape", [(1, 8), (5,), (), (1, 2, 3)], ids=str)
def test_tokens_of_a_wrong_shape_raise(shape, device):
    model = Decoder(GPT2).to(device)
    with pytest.raises(ValueError, match=r"\(B, T\) with T at most 7 \(context\), got"):
        model(nplm.zeros(shape, dtype=nplm.int64, device=device))


def test_a_token_outside_the_vocabulary_raises():
    with pytest.raises(ValueError, match=r"in \[0, 23\), got 23 at \(0, 1\)"):
        Decoder(GPT2)(nplm.tensor([[0, 23]]))
