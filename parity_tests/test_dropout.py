"""Dropout's masks on a card: drawn there, from streams that the host's stream seeds."""

import pytest

torch = pytest.importorskip("torch", reason="a card is torch's: pip install torch")

import nplm  # noqa: E402
from nplm.nn import functional as F  # noqa: E402
from nplm.ops import draws  # noqa: E402

P = 0.25


@pytest.fixture
def card(monkeypatch):
    """torch:cpu stands for the card."""
    monkeypatch.setattr(draws, "on_card", lambda device: device == "torch:cpu")


def ones(*shape):
    return nplm.ones(shape).to("torch:cpu")


def test_the_masks_of_a_card_follow_the_seed_and_the_saved_state_of_the_host(card):
    x = ones(64, 64)
    nplm.manual_seed(3)
    first, state = F.dropout(x, P), nplm.random.default_generator.get_state()
    second = F.dropout(x, P)
    nplm.manual_seed(3)
    assert torch.equal(F.dropout(x, P).array, first.array)
    nplm.random.default_generator.set_state(state)
    assert torch.equal(F.dropout(x, P).array, second.array)
    assert not torch.equal(first.array, second.array)


def test_the_masks_of_a_card_keep_the_share_that_was_asked_for(card):
    nplm.manual_seed(0)
    y = F.dropout(ones(400, 500), P).array
    kept = float((y != 0).double().mean())
    assert abs(kept - (1 - P)) < 5 * (P * (1 - P) / y.numel()) ** 0.5  # five deviations
    assert torch.allclose(y[y != 0], torch.tensor(1 / (1 - P)))


def test_what_a_card_dropped_gets_no_gradient_and_what_it_kept_the_same_factor(card):
    x = nplm.ones((30, 40), requires_grad=True)
    moved = x.to("torch:cpu")
    y = F.dropout(moved, P)
    y.sum().backward()
    assert torch.equal(torch.from_numpy(x.grad.numpy()), y.array)


def test_attention_on_a_card_drops_weights_of_the_softmax(card):
    q = nplm.randn(2, 3, 5, 8).to("torch:cpu")
    v = nplm.eye(5).to("torch:cpu").reshape(1, 1, 5, 5) + nplm.zeros((2, 3, 5, 5)).to("torch:cpu")
    weights = F.scaled_dot_product_attention(q, q, v, is_causal=True)  # the rows of v are the axes
    nplm.manual_seed(1)
    dropped = F.scaled_dot_product_attention(q, q, v, is_causal=True, dropout_p=P)
    there = dropped.array != 0
    assert 0 < int(there.sum()) < int((weights.array != 0).sum())
    scaled = weights.array / (1 - P)
    assert torch.allclose(dropped.array[there], scaled[there])


def test_the_host_draws_for_torch_on_the_cpu_and_for_numpy_alike():
    nplm.manual_seed(5)
    there = F.dropout(ones(20, 30), P).array.numpy()
    nplm.manual_seed(5)
    here = F.dropout(nplm.ones((20, 30)), P).numpy()
    assert (there == here).all()
