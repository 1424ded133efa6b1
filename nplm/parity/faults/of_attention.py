"""Faults of attention and rotary positions.  Read planting.py before."""

from nplm.parity.faults.of_models import LLAMA
from nplm.parity.faults.planting import Fault
from nplm.parity.trace import Place

_ATTENTION, _ROPE = "nplm.ops.attention.attention", "nplm.ops.attention.rope"
_MASK = "nplm.ops.attention._scores_mask"
_FORWARD = "nplm.nn.attention.CausalSelfAttention.forward"
_ANGLES = "nplm.nn.attention.rope_angles"
_MIXED = Place(1, 1, "forward", "blocks.0.attn.proj.input")  # the heads' outputs, side by side
_INTO_QKV = Place(1, 1, "backward", "blocks.0.attn.qkv")
_DROPOUT = {"model": {"dropout": 0.2}}
_DS = "ds = p * (dp - xp.sum(dp * p, axis=-1, keepdims=True))"

ATTENTION = [
    Fault(
        "attention-scale-1-over-d", "attention", "The scores are divided by D, not by its root.",
        _ATTENTION, (("1 / math.sqrt(D)", "1 / D"),), _MIXED,
    ),
    Fault(
        "attention-without-scale", "attention", "The scores are not scaled.",
        _ATTENTION, (("1 / math.sqrt(D)", "1.0"),), _MIXED,
    ),
    Fault(
        "mask-lets-the-next-token-in", "attention",
        "The mask begins one position late: a token sees the next one.",
        _MASK, (("scores), 1)", "scores), 2)"),), _MIXED,
    ),
    Fault(
        "mask-hides-the-token-itself", "attention",
        "The mask begins one position early: a token does not see itself.",
        _MASK, (("scores), 1)", "scores), 0)"),), _MIXED,
    ),
    Fault(
        "mask-left-out", "attention", "Every token sees the whole row.",
        _MASK, (("if causal:", "if False:"),), _MIXED,
    ),
    Fault(
        "future-seen-in-backward", "attention",
        "The backward pass computes the weights anew and forgets the mask.",
        _ATTENTION,
        ((_DS, "w = xp.exp(xp.matmul(grouped, xp.swapaxes(k, -1, -2)).reshape(p.shape) * scale)\n"
               "        w = w / xp.sum(w, axis=-1, keepdims=True)\n"
               "        ds = w * (dp - xp.sum(dp * w, axis=-1, keepdims=True))"),),
        _INTO_QKV,
    ),
    Fault(
        "softmax-gradient-without-sum", "attention",
        "The gradient of the softmax lacks the sum over the row.",
        _ATTENTION, ((_DS, "ds = p * dp"),), _INTO_QKV,
    ),
    Fault(
        "scale-missing-for-keys", "attention", "The gradient of the keys is not scaled.",
        _ATTENTION,
        (("dk = xp.matmul(xp.swapaxes(rows(ds), -1, -2), grouped) * scale",
          "dk = xp.matmul(xp.swapaxes(rows(ds), -1, -2), grouped)"),),
        _INTO_QKV,
    ),
    Fault(
        "grouped-heads-not-summed", "attention",
        "A key head gets the gradient of the first query head of its group alone.",
        _ATTENTION,
        (("xp.swapaxes(rows(ds), -1, -2), grouped)",
          "xp.swapaxes(rows(ds)[..., :T, :], -1, -2), grouped[..., :T, :])"),),
        _INTO_QKV, LLAMA,
    ),
    Fault(
        "grouped-heads-in-wrong-order", "attention",
        "Query head h reads key head h % G, not h // (H / G).",
        _FORWARD,
        (("y = F.scaled_dot_product_attention(",
          "k, v = (x[:, [h % G for h in range(H)]] for x in (k, v))\n"
          "    y = F.scaled_dot_product_attention("),),
        _MIXED, LLAMA,
    ),
    Fault(
        "heads-not-transposed-back", "attention",
        "The heads' outputs are joined without turning heads and positions back.",
        _FORWARD, (("y.transpose(1, 2).reshape(B, T, C)", "y.reshape(B, T, C)"),), _MIXED,
    ),
    Fault(
        "workspace-used-by-all-layers", "attention",
        "All layers keep their attention weights in one buffer, so the last one's remain.",
        _ATTENTION,
        (("keep_scale = None",
          "kept = memory.setdefault(p.shape, p)\n"
          "    kept[...] = p\n"
          "    p = kept\n"
          "    keep_scale = None"),),
        Place(1, 1, "backward", "blocks.0.attn.qkv"), {"model": {"n_layer": 2}},
    ),
    Fault(
        "attention-dropout-not-scaled", "attention",
        "Attention weights that dropout keeps are not divided by 1 - p.",
        _ATTENTION, (("p if keep is None else p * keep_scale",
                      "p if keep is None else p * xp.astype(keep, p.dtype)"),),
        _MIXED, _DROPOUT,
    ),
    Fault(
        "attention-dropout-not-in-backward", "attention",
        "The gradient of the attention weights passes where dropout had cut.",
        _ATTENTION, (("dp if keep is None else dp * keep_scale", "dp"),), _INTO_QKV, _DROPOUT,
    ),
]  # fmt: skip

ROPE = [
    Fault(
        "rope-turns-backwards", "rope", "Rotary positions turn by minus the angle.",
        _ROPE, (("return rotate(x, sin), lambda dy: (rotate(dy, -sin)",
                 "return rotate(x, -sin), lambda dy: (rotate(dy, sin)"),),
        _MIXED, LLAMA,
    ),
    Fault(
        "rope-pairs-neighbours", "rope", "Pairs are (2 i, 2 i + 1), not (i, i + D/2).",
        "nplm.nn.functional.rope",
        (("y: Tensor = _attention.rope(input, cos, sin)",
          "half = [*range(0, input.shape[-1], 2), *range(1, input.shape[-1], 2)]\n"
          "    back = sorted(range(len(half)), key=half.__getitem__)\n"
          "    y = _attention.rope(input[..., half], cos, sin)[..., back]"),),
        _MIXED, LLAMA,
    ),
    Fault(
        "rope-theta", "rope", "The base of the frequencies is 500,000, as in later Llamas.",
        _ANGLES, (("theta ** (", "(50 * theta) ** ("),), _MIXED, LLAMA,
    ),
    Fault(
        "rope-keys-not-turned", "rope", "Only the queries are turned.",
        _FORWARD, (("F.rope(q, *angles), F.rope(k, *angles)", "F.rope(q, *angles), k"),),
        _MIXED, LLAMA,
    ),
    Fault(
        "rope-gradient-not-turned-back", "rope", "The gradient is turned forwards once more.",
        _ROPE, (("rotate(dy, -sin)", "rotate(dy, sin)"),), _INTO_QKV, LLAMA,
    ),
    Fault(
        "rope-angles-in-float32", "rope", "The angles of a float64 run are rounded to float32.",
        _ANGLES, (("cos(angles).to", "cos(angles.float()).to"),
                  ("sin(angles).to", "sin(angles.float()).to")),
        _MIXED, LLAMA,
    ),
]  # fmt: skip
