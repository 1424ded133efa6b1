"""Generation: the cache gives the scores of the whole window, draw by draw, and any model works."""

import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

import nplm
from nplm import nn
from nplm.errors import ConfigError, DataError, NonFiniteError
from nplm.generation import generate, next_token
from nplm.models import Decoder, DecoderConfig
from nplm.models.cached import CachedDecoder, cached
from nplm.parity.tolerances import KERNEL_32, THEOREM_64, assert_close
from nplm.random import Generator

pytestmark = pytest.mark.model

GPT2 = DecoderConfig(
    vocab_size=19, context=9, n_layer=2, n_head=3, n_embd=12, activation="gelu_tanh", dropout=0.3
)
LLAMA = DecoderConfig(
    vocab_size=19, context=9, n_layer=3, n_head=4, n_kv_head=2, n_embd=16, n_hidden=20,
    norm="rms", positions="rope", activation="swiglu", bias=False, tied=False,
)  # fmt: skip
FAMILIES = {
    "gpt2": GPT2,
    "gpt2-exact-gelu-without-bias": replace(GPT2, activation="gelu", bias=False, tied=False),
    "llama": LLAMA,
    "llama-one-kv-head-bias": replace(LLAMA, n_kv_head=1, bias=True, tied=True),
    "layer-norm-rope": replace(LLAMA, norm="layer", n_kv_head=None),
    "rms-norm-learned": replace(GPT2, norm="rms", n_kv_head=1),
}
each_family = pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)


def decoder(config, seed=0, dtype=nplm.float64):
    """Weights large enough to matter, biases and norms among them."""
    model = Decoder(config).to(dtype=dtype)
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():
        parameter.array[...] += 0.3 * rng.standard_normal(parameter.shape)
    return model


class Whole:
    """No nn.Module: what `generate` asks of a model, and the judge, for it has no cache."""

    def __init__(self, model):
        self.model, self.config = model, SimpleNamespace(context=model.config.context)
        self.training, self.modes, self.windows = model.training, [], []

    def __call__(self, ids):
        self.modes.append(self.training)
        self.windows.append(ids.tolist()[0])
        return self.model(ids)

    def parameters(self):
        return self.model.parameters()

    def train(self, mode=True):
        self.training = mode
        self.model.train(mode)

    def eval(self):
        self.train(False)


def written(model, prompt, n, seed=0, **options):
    generator = Generator().manual_seed(seed)
    tokens = list(generate(model, prompt, n, generator=generator, **options))
    return tokens, generator.get_state()


def scores_of(model, tokens):
    with nplm.no_grad():
        return model(nplm.tensor([tokens[-model.config.context :]])).numpy()[0, -1]


# ---- the cache gives what the whole window gives -------------------------------------------------
@examples(30)
@given(
    family=st.sampled_from(list(FAMILIES)), seed=st.integers(0, 2**31),
    context=st.integers(1, 12), n_prompt=st.integers(1, 15), n=st.integers(0, 12),
    temperature=st.sampled_from([0, 0.5, 1.0, 3]), top_k=st.sampled_from([None, 1, 4, 19, 99]),
)  # fmt: skip
def test_any_text_and_its_draws_are_those_of_the_uncached_model(
    family, seed, context, n_prompt, n, temperature, top_k
):
    model = decoder(replace(FAMILIES[family], context=context), seed)
    prompt = np.random.default_rng(seed).integers(0, 19, n_prompt)
    ours, theirs = (
        written(m, prompt, n, seed, temperature=temperature, top_k=top_k)
        for m in (model, Whole(model))
    )
    assert ours == theirs
    assert len(ours[0]) == n


@examples(30)
@given(
    family=st.sampled_from(list(FAMILIES)), seed=st.integers(0, 2**31),
    keep=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 4)), min_size=1, max_size=6),
)  # fmt: skip
def test_scores_are_right_after_any_tokens_in_any_order_of_calls(family, seed, keep):
    model = decoder(FAMILIES[family], seed).eval()
    kept, rng, tokens = CachedDecoder(model), np.random.default_rng(seed), []
    for n_kept, n_new in keep:  # cut back, then go on: by one token or by several
        tokens = tokens[:n_kept] + rng.integers(0, 19, n_new).tolist()
        assert_close(kept(tokens), scores_of(model, tokens), THEOREM_64, f"{tokens}")


@each_family
def test_float32_text_is_that_of_the_uncached_model_for_many_seeds(config):
    config = replace(config, context=16)
    for seed in range(3):
        model = decoder(config, seed, nplm.float32).eval()
        for options in ({"temperature": 0}, {"temperature": 0.8}, {"temperature": 1, "top_k": 5}):
            ours = written(model, [1, 2], 18, seed, **options)
            assert ours == written(Whole(model), [1, 2], 18, seed, **options)
        kept = CachedDecoder(model)
        for n in range(1, 17):
            scores = kept(ours[0][:n])
            assert scores.dtype == np.float32
            assert_close(scores, scores_of(model, ours[0][:n]), KERNEL_32, f"{n} tokens")


@each_family
def test_a_token_costs_one_row_within_the_context_and_a_window_past_it(config):
    kept = CachedDecoder(decoder(config))
    rows, (norm1, *others) = [], kept.blocks[0]
    kept.blocks[0] = (lambda x: rows.append(len(x)) or norm1(x), *others)
    for n in range(3, 12):
        kept(list(range(n)))
    assert rows == [3, 1, 1, 1, 1, 1, 1, 9, 9]


def test_memory_does_not_grow_with_the_tokens():
    model = decoder(replace(LLAMA, context=120), dtype=nplm.float32)
    text = generate(model, [1], 110, generator=Generator().manual_seed(1))
    tracemalloc.start()
    try:
        for _ in range(20):
            next(text)
        before = tracemalloc.get_traced_memory()[0]
        list(text)
        assert tracemalloc.get_traced_memory()[0] - before < 4096
    finally:
        tracemalloc.stop()


# ---- who is disturbed ----------------------------------------------------------------------------
@pytest.mark.parametrize("wrap", [lambda model: model, Whole], ids=["cached", "uncached"])
@pytest.mark.parametrize("training", [True, False])
def test_two_texts_at_once_are_those_of_one_after_the_other(wrap, training):
    model = wrap(decoder(GPT2))  # dropout would show a mode that is put back too early
    model.train(training)
    options = ({"n": 5, "seed": 1}, {"n": 14, "seed": 2})
    alone = [written(model, [3, 4], **each)[0] for each in options]
    texts = [
        generate(model, [3, 4], each["n"], generator=Generator().manual_seed(each["seed"]))
        for each in options
    ]
    together = [[], []]
    for _ in range(15):
        for text, tokens in zip(texts, together):
            tokens.extend([token] if (token := next(text, None)) is not None else [])
            assert model.training is training
    assert together == alone


def test_it_records_nothing_and_draws_from_its_own_generator_alone():
    model = decoder(GPT2).train()
    before = nplm.random.default_generator.get_state()
    written(model, [1], 5)
    assert nplm.random.default_generator.get_state() == before
    with nplm.no_grad():
        assert written(model, [1], 5) == written(model, [1], 5)
    assert all(p.grad is None for p in model.parameters())
    list(generate(model, [1], 1))
    assert nplm.random.default_generator.get_state() != before


# ---- other models --------------------------------------------------------------------------------
def test_any_model_sees_the_last_tokens_in_eval_mode_and_gets_its_own_back():
    model = Whole(decoder(GPT2))
    text = written(model, [5] * 7, 5)[0]
    full = [5] * 7 + text
    assert model.windows == [full[max(0, n - 9) : n] for n in range(7, 12)]
    assert model.modes == [False] * 5
    assert model.training
    with pytest.raises(DataError):  # while it is called
        written(model, [99], 1)
    assert model.training


@each_family
def test_a_model_on_torch_writes_the_same_text(config):
    pytest.importorskip("torch", reason="the second namespace is PyTorch: pip install torch")
    model = decoder(config)
    ours = written(model, [1, 2, 3], 10)
    assert written(model.to("torch:cpu"), [1, 2, 3], 10) == ours
    assert cached(model) is None


class Louder(nn.Linear):
    def forward(self, input):
        return super().forward(input) * 2


class Loud(Decoder):
    def forward(self, ids):
        return super().forward(ids) * 2


def change_layer(model):
    louder = Louder(12, 12)
    louder.double().load_state_dict(model.blocks[1].attn.proj.state_dict())
    model.blocks[1].attn.proj = louder
    return model


def change_class(model):
    loud = Loud(model.config).double()
    loud.load_state_dict(model.state_dict())
    return loud


def change_forward(model):
    plain = model.norm.forward
    model.norm.forward = lambda x: plain(x) * 2
    return model


@pytest.mark.parametrize("change", [change_layer, change_class, change_forward])
def test_a_changed_model_is_called_as_a_whole_and_the_change_counts(change):
    assert cached(decoder(GPT2)) is not None
    plain = written(decoder(GPT2), [1], 9)
    changed = change(decoder(GPT2))
    assert cached(changed) is None
    assert written(changed, [1], 9) == written(Whole(changed), [1], 9) != plain


def test_only_reference_ops_are_used_where_they_are_asked_for(monkeypatch):
    model = decoder(LLAMA)
    with nplm.reference():
        assert cached(model) is None
    monkeypatch.setattr("nplm.autograd.overrides._always_reference", True)
    assert cached(model) is None


def test_weights_of_two_dtypes_raise_as_the_model_does():
    model = decoder(GPT2)
    model.norm.to(dtype=nplm.float32)
    model.blocks[0].attn.qkv.to(dtype=nplm.float32)
    with pytest.raises(RuntimeError, match="one dtype"):
        written(model, [1], 1)


# ---- drawing -------------------------------------------------------------------------------------
@pytest.mark.parametrize("V", [2, 65, 5000])
@pytest.mark.parametrize("top_k", [None, 1, 20])
def test_draws_are_those_of_torch(V, top_k):
    torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")
    theirs, ours = torch.Generator().manual_seed(5), Generator().manual_seed(5)
    for seed in range(20):
        scores = 3 * np.random.default_rng(seed).standard_normal(V).astype(np.float32)
        logits = torch.tensor(scores) / 0.7
        if top_k is not None and top_k < V:
            logits[logits < torch.topk(logits, top_k)[0][-1]] = -torch.inf
        drawn = torch.multinomial(torch.softmax(logits, -1), 1, generator=theirs)
        assert next_token(scores, 0.7, top_k, ours) == int(drawn)
    assert bytes(ours.to_torch_state()) == theirs.get_state().numpy().tobytes()


def test_equal_scores_of_the_kth_are_all_kept():
    generator = Generator().manual_seed(0)
    scores = np.array([1.0, 5.0, 5.0, 5.0, 0.0], np.float32)
    assert {next_token(scores, 1.0, 2, generator) for _ in range(50)} == {1, 2, 3}


# ---- errors --------------------------------------------------------------------------------------
@pytest.mark.parametrize("wrap", [lambda model: model, Whole], ids=["cached", "uncached"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_weights_raise_and_the_mode_is_put_back(wrap, value):
    model = decoder(GPT2)
    model.norm.weight.array[3] = value
    model = wrap(model)
    with pytest.raises(NonFiniteError, match="take an earlier checkpoint"):
        written(model, [1, 2], 3)
    assert model.training


@pytest.mark.parametrize("wrap", [lambda model: model, Whole], ids=["cached", "uncached"])
@pytest.mark.parametrize("token", [19, -1])
def test_a_prompt_outside_the_vocabulary_raises(wrap, token):
    with pytest.raises(DataError, match=rf"in \[0, 19\), got {token} at \(0, 1\)"):
        written(wrap(decoder(GPT2)), [1, token], 3)


@pytest.mark.parametrize(
    ("error", "arguments", "hint"),
    [
        (DataError, {"prompt": []}, "at least one token"),
        (ConfigError, {"temperature": -1}, "temperature >= 0, got -1"),
        (ConfigError, {"top_k": 0}, "top_k >= 1, got 0"),
    ],
)
def test_bad_arguments_are_answered_with_one_sentence(error, arguments, hint):
    with pytest.raises(error, match=hint):
        list(generate(decoder(GPT2), **({"prompt": [1], "max_tokens": 3} | arguments)))
