"""How many floating-point operations an update needs, counted from its sizes."""

from __future__ import annotations

from nplm.bench.settings import Setting


def forward_flops(setting: Setting) -> dict[str, int]:
    """Operations of the forward pass of one update, by what they are for.

    A product (N, I) @ (I, O) counts 2 N I O: a multiplication and an addition each. Counted are
    the products of the linear layers and of the head, and attention's two, scores q k^T and the
    weighted values: 4 D a head for each pair of a position and one that it may look at, so
    T (T + 1) / 2 pairs a row, whatever a kernel computes of the masked half. Norms, activations,
    the embedding and the loss are not counted: they cost time, but few operations.
    """
    m, tokens = setting.model, setting.tokens
    C, D = m.n_embd, m.n_embd // m.n_head
    into = m.hidden * (2 if m.activation == "swiglu" else 1)  # swiglu: gate and value
    weights = C * (m.n_head + 2 * m.kv_heads) * D + C * C + C * into + m.hidden * C
    pairs = setting.batch_size * setting.accumulate * m.context * (m.context + 1) // 2
    blocks = 1 if setting.part == "block" else m.n_layer
    return {
        "linear": blocks * 2 * tokens * weights,
        "attention": blocks * 4 * C * pairs,
        "head": 0 if setting.part == "block" else 2 * tokens * C * m.vocab_size,
    }


def step_flops(setting: Setting) -> dict[str, int]:
    """Operations of one update, forward and backward.

    The backward pass of a product is two products of its size, one for each factor's gradient, so
    an update counts three times its forward pass. The optimizer is not counted.
    """
    return {name: 3 * n for name, n in forward_flops(setting).items()}


def attention_share(setting: Setting) -> float:
    """The part of an update's operations that attention needs."""
    counted = step_flops(setting)
    return counted["attention"] / sum(counted.values())
