"""Parameter groups by rule: every trained parameter in exactly one, with its layer's rate."""

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

import nplm
from nplm import nn
from nplm.errors import ConfigError
from nplm.models import Decoder, DecoderConfig
from nplm.optim import AdamW
from nplm.optim.groups import decay_groups, layer_groups
from nplm.parity.tolerances import ROUNDING_32, assert_close

pytestmark = pytest.mark.step

RULES = {
    "decay": lambda model: decay_groups(model, 0.1),
    "layers": lambda model: layer_groups(model, 0.01, 0.8, 0.1),
}


def decoder(n_layer=2, **changes):
    sizes = {"vocab_size": 5, "context": 4, "n_head": 2, "n_embd": 4}
    return Decoder(DecoderConfig(n_layer=n_layer, **sizes, **changes))


@examples(40)
@given(
    rule=st.sampled_from(sorted(RULES)),
    n_layer=st.integers(1, 12),
    tied=st.booleans(),
    bias=st.booleans(),
    positions=st.sampled_from(["learned", "rope"]),
    frozen=st.sets(st.integers(0, 200)),
)
def test_every_trained_parameter_is_in_exactly_one_group(
    rule, n_layer, tied, bias, positions, frozen
):
    model = decoder(n_layer, tied=tied, bias=bias, positions=positions)
    for i, p in enumerate(model.parameters()):
        p.requires_grad_(i not in frozen)
    groups = RULES[rule](model)
    grouped = [id(p) for group in groups for p in group["params"]]
    trained = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(trained)
    assert all(group["params"] for group in groups)
    for group in groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] == 0.1}
        assert group["weight_decay"] in (0.1, 0.0)


def rates(model, **options):
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: group["lr"]
        for group in layer_groups(model, 1.0, 0.5, **options)
        for p in group["params"]
    }


def test_the_rate_halves_with_every_layer_below():
    found = rates(decoder(n_layer=2, tied=False))
    assert found["head.weight"] == found["norm.weight"] == 1.0
    assert found["blocks.1.attn.proj.weight"] == found["blocks.1.norm1.weight"] == 0.5
    assert found["blocks.0.mlp.fc.weight"] == 0.25
    assert found["wte.weight"] == found["wpe.weight"] == 0.125
    assert sorted(set(found.values())) == [0.125, 0.25, 0.5, 1.0]


def test_a_tied_head_has_the_rate_of_the_embedding():
    model = decoder(tied=True)
    assert rates(model)["wte.weight"] == 0.125
    assert "head.weight" not in rates(model)
    assert min(rates(model).values()) == rates(model)["wte.weight"]


def test_the_eleventh_block_is_above_the_third():
    found = rates(decoder(n_layer=12))
    by_block = [found[f"blocks.{i}.norm1.weight"] for i in range(12)]
    assert by_block == [0.5 ** (12 - i) for i in range(12)]


def test_frozen_blocks_count_and_are_in_no_group():
    model = decoder(n_layer=3)
    model.blocks[2].requires_grad_(False)
    found = rates(model)
    assert not any(name.startswith("blocks.2.") for name in found)
    assert found["blocks.1.norm1.weight"] == 0.25


def test_the_first_group_has_the_highest_rate_and_the_optimizer_takes_them():
    optimizer = AdamW(layer_groups(decoder(), 0.01, 0.8, 0.1), lr=7.0)
    lrs = [group["lr"] for group in optimizer.param_groups]
    assert lrs == sorted(lrs, reverse=True)
    assert (lrs[0], lrs[-1]) == (0.01, 0.01 * 0.8**3)


def test_decay_one_is_one_rate():
    assert set(rates(decoder()).values()) == {1.0, 0.5, 0.25, 0.125}
    groups = layer_groups(decoder(), 0.3, 1.0)
    assert {group["lr"] for group in groups} == {0.3}


def test_blocks_may_lie_deeper_and_have_another_name():
    model = nn.Module()
    model.transformer = nn.Module()
    model.transformer.wte = nn.Embedding(3, 2)
    model.transformer.h = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
    model.head = nn.Linear(2, 3)
    found = rates(model, blocks="transformer.h")
    assert found["transformer.wte.weight"] == 0.125
    assert found["transformer.h.1.bias"] == 0.5
    assert found["head.weight"] == 1.0


@pytest.mark.parametrize(("options", "says"), [
    ({"blocks": "layers"}, r"no parameters in layers\.0"), ({"blocks": "bl.cks"}, "no parameters"),
    ({"lr": 0.0}, "positive finite lr, got 0.0"), ({"lr": float("nan")}, "got nan"),
    ({"decay": 0.0}, "0 < decay <= 1, got 0.0"), ({"decay": 1.1}, "got 1.1"),
])  # fmt: skip
def test_odd_rules_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        layer_groups(decoder(), **{"lr": 0.1, "decay": 0.5, **options})


def test_groups_of_layers_are_trained_by_their_own_rates():
    nplm.manual_seed(0)
    model = decoder(n_layer=1, tied=False)
    optimizer = AdamW(layer_groups(model, 0.1, 0.5), lr=1.0, eps=1e-30)
    before = {name: p.numpy().copy() for name, p in model.state_dict().items()}
    for p in model.parameters():
        p.grad = nplm.ones_like(p)
    optimizer.step()
    for name, rate in (
        ("head.weight", 0.1),
        ("blocks.0.norm1.weight", 0.05),
        ("wte.weight", 0.025),
    ):
        moved = before[name] - model.state_dict()[name].numpy()
        expected = np.full_like(moved, rate)  # Adam's first step is the rate itself
        assert_close(moved, expected, ROUNDING_32, name)
