"""Faults of a model's layers: embedding, norms, linear layers, activations.

Read planting.py before; attention has of_attention.py.
"""

from nplm.parity.faults.planting import Fault
from nplm.parity.trace import Place

LLAMA = {"model": {
    "norm": "rms", "positions": "rope", "activation": "swiglu", "n_head": 4, "n_kv_head": 2,
    "n_hidden": 24, "bias": False, "tied": False,
}}  # fmt: skip
_LAYER, _RMS = "nplm.ops.norm.layer_norm", "nplm.ops.norm.rms_norm"
_GELU, _SWIGLU = "nplm.ops.activation.gelu", "nplm.ops.activation.swiglu"
_LINEAR, _EMBEDDING = "nplm.ops.linear.linear", "nplm.ops.embedding.embedding"
_BLOCK = "nplm.models.decoder.Block.forward"
_FIRST_NORM = Place(1, 1, "forward", "blocks.0.norm1")
_INTO_LAST_NORM = Place(1, 1, "backward", "blocks.0")  # the gradient of what the last norm reads
_HIDDEN = Place(1, 1, "forward", "blocks.0.mlp.proj.input")
_INTO_HIDDEN = Place(1, 1, "backward", "blocks.0.mlp.fc")

EMBEDDINGS = [
    Fault(
        "embedding-scatter-without-add", "embedding",
        "A token that occurs several times gets the gradient of its last place alone.",
        _EMBEDDING,
        (("xp.sum_rows(dy.reshape((math.prod(ids.shape), C)), ids.reshape((-1,)), V)",
          "xp.zeros((V, C), dy)\n"
          "        dweight[ids.reshape((-1,))] = dy.reshape((math.prod(ids.shape), C))"),),
        Place(1, 1, "gradient", "wte.weight"),
    ),
    Fault(
        "embedding-first-row-is-padding", "embedding",
        "Row 0 gets no gradient, although no padding index was given.",
        _EMBEDDING,
        (("if padding_idx is not None:\n            dweight[padding_idx] = 0.0",
          "dweight[0] = 0.0"),),
        Place(1, 1, "gradient", "wpe.weight"),
    ),
    Fault(
        "positions-start-at-one", "embedding", "The first token gets the second position.",
        "nplm.models.decoder.Decoder.features",
        (("arange(ids.shape[1], device=ids.device)",
          "(arange(ids.shape[1], device=ids.device) + 1).clamp(max=ids.shape[1] - 1)"),),
        Place(1, 1, "forward", "wpe.input"),
    ),
    Fault(
        "tied-weight-counted-once", "embedding",
        "Of a weight with two uses only the gradient that arrives last is kept.",
        "nplm.autograd.graph.run_backward",
        (("arrived[edge] = arrived[edge] + gradient",
          "arrived[edge] = gradient + (0 if isinstance(edge[0], Leaf) else arrived[edge])"),),
        Place(1, 1, "gradient", "wte.weight"),
    ),
]  # fmt: skip

NORMS = [
    Fault(
        "layer-norm-variance-over-n-1", "norms", "The variance is divided by C - 1.", _LAYER,
        (("xp.mean(centred * centred, axis=row, keepdims=True)",
          "xp.sum(centred * centred, axis=row, keepdims=True) / (x.shape[-1] - 1)"),),
        _FIRST_NORM,
    ),
    Fault(
        "layer-norm-eps-outside", "norms", "eps is added to the root, not to the variance.", _LAYER,
        (("xp.sqrt(xp.mean(centred * centred, axis=row, keepdims=True) + eps)",
          "(xp.sqrt(xp.mean(centred * centred, axis=row, keepdims=True)) + eps)"),),
        _FIRST_NORM,
    ),
    Fault(
        "layer-norm-mean-kept", "norms", "The mean is not subtracted.", _LAYER,
        (("centred = x - xp.mean(x, axis=row, keepdims=True)", "centred = x * 1.0"),), _FIRST_NORM,
    ),
    Fault(
        "layer-norm-dx-without-mean", "norms", "The gradient lacks the term of the mean.", _LAYER,
        (("dn - mean_dn - n", "dn - n"),), _INTO_LAST_NORM,
    ),
    Fault(
        "layer-norm-dx-without-variance", "norms", "The gradient lacks the term of the variance.",
        _LAYER, ((" - n * xp.mean(dn * n, axis=row, keepdims=True)", ""),), _INTO_LAST_NORM,
    ),
    Fault(
        "layer-norm-dx-without-weight", "norms",
        "The gradient does not pass through the weight, which is 1 until the first update.",
        _LAYER, (("dn = dy if weight is None else dy * weight", "dn = dy * 1.0"),),
        Place(2, 1, "backward", "blocks.0"),
    ),
    Fault(
        "layer-norm-dweight-of-inputs", "norms",
        "The weight's gradient is a sum over the inputs, not over the normalised rows.",
        _LAYER, (("xp.sum(dy * n, axis=rows)", "xp.sum(dy * x, axis=rows)"),),
        Place(1, 1, "gradient", "norm.weight"),
    ),
    Fault(
        "layer-norm-dbias-over-one-axis", "norms",
        "The bias's gradient is summed over the batch alone, at the last position.",
        _LAYER, (("xp.sum(dy, axis=rows)", "xp.sum(dy, axis=0)[-1]"),),
        Place(1, 1, "gradient", "norm.bias"),
    ),
    Fault(
        "rms-norm-eps-outside", "norms", "eps is added to the root, not to the mean square.", _RMS,
        (("xp.sqrt(xp.mean(x * x, axis=row, keepdims=True) + eps)",
          "(xp.sqrt(xp.mean(x * x, axis=row, keepdims=True)) + eps)"),),
        _FIRST_NORM, LLAMA,
    ),
    Fault(
        "rms-norm-subtracts-the-mean", "norms", "The mean is subtracted, as a LayerNorm would.",
        _RMS, (("n = x * inv", "n = (x - xp.mean(x, axis=row, keepdims=True)) * inv"),),
        _FIRST_NORM, LLAMA,
    ),
    Fault(
        "rms-norm-dx-without-square", "norms", "The gradient lacks the term of the mean square.",
        _RMS, ((" - n * xp.mean(dn * n, axis=row, keepdims=True)", ""),), _INTO_LAST_NORM, LLAMA,
    ),
    Fault(
        "rms-norm-dweight-of-inputs", "norms",
        "The weight's gradient is a sum over the inputs, not over the normalised rows.",
        _RMS, (("xp.sum(dy * n, axis=rows)", "xp.sum(dy * x, axis=rows)"),),
        Place(1, 1, "gradient", "norm.weight"), LLAMA,
    ),
    Fault(
        "norm-after-the-branch", "norms", "The second branch is added to the normalised row.",
        _BLOCK, (("return x + self.mlp(self.norm2(x))",
                  "x = self.norm2(x)\n    return x + self.mlp(x)"),),
        Place(1, 1, "forward", "blocks.0"),
    ),
    Fault(
        "residual-left-out", "norms", "The attention's output replaces the row it was added to.",
        _BLOCK, (("x = x + self.attn(self.norm1(x))", "x = self.attn(self.norm1(x))"),),
        Place(1, 1, "forward", "blocks.0.norm2.input"),
    ),
    Fault(
        "branch-gradient-replaced", "norms",
        "Where two branches meet, the gradient that arrives last replaces the first.",
        "nplm.autograd.graph.run_backward",
        (("arrived[edge] = arrived[edge] + gradient",
          "arrived[edge] = gradient + (arrived[edge] if isinstance(edge[0], Leaf) else 0)"),),
        Place(1, 1, "backward", "blocks.0.attn"),
    ),
]  # fmt: skip

ACTIVATIONS = [
    Fault(
        "gelu-tanh-for-exact", "activations", "GELU is computed by its tanh approximation.", _GELU,
        (('if approximate == "tanh"', 'if approximate in ("tanh", "none")'),), _HIDDEN,
    ),
    Fault(
        "gelu-exact-for-tanh", "activations", "GPT-2's GELU is computed by the error function.",
        _GELU, (('if approximate == "tanh"', "if False"),
                ('elif approximate == "none"', "elif approximate")),
        _HIDDEN, {"model": {"activation": "gelu_tanh"}},
    ),
    Fault(
        "gelu-coefficient", "activations", "The coefficient 0.044715 is written 0.44715.", _GELU,
        (("x + 0.044715 * (x * x * x)", "x + 0.44715 * (x * x * x)"),),
        _HIDDEN, {"model": {"activation": "gelu_tanh"}},
    ),
    Fault(
        "gelu-slope-left-out", "activations", "The gradient is that of x times a constant.", _GELU,
        (("dy * (phi + x * slope())", "dy * phi"),), _INTO_HIDDEN,
    ),
    Fault(
        "silu-without-its-gate", "activations",
        "The gradient of silu takes the sigmoid for a constant.", _SWIGLU,
        (("(s * (1 + gate * (1 - s)))", "s"),), _INTO_HIDDEN, LLAMA,
    ),
    Fault(
        "gate-and-up-exchanged", "activations", "The second half of the channels is the gate.",
        "nplm.nn.layers.MLP.forward", (("h.chunk(2, -1)", "h.chunk(2, -1)[::-1]"),), _HIDDEN, LLAMA,
    ),
]  # fmt: skip

LINEARS = [
    Fault(
        "linear-dx-lacks-a-term", "linear", "The gradient of the input lacks the first output.",
        _LINEAR, (("xp.matmul(dy, weight)", "xp.matmul(dy[:, 1:], weight[1:])"),),
        Place(1, 1, "backward", "norm"),
    ),
    Fault(
        "linear-dweight-transposed", "linear",
        "A square weight gets its gradient transposed; no shape tells.", _LINEAR,
        (("xp.matmul(xp.swapaxes(dy, 0, 1), rows) if",
          "xp.matmul(*((xp.swapaxes(rows, 0, 1), dy) if I == O else "
          "(xp.swapaxes(dy, 0, 1), rows))) if"),),
        Place(1, 1, "gradient", "blocks.0.attn.proj.weight"),
    ),
    Fault(
        "linear-dbias-without-first-row", "linear",
        "The bias's gradient leaves out the first row.", _LINEAR,
        (("xp.sum(dy, axis=0)", "xp.sum(dy[1:], axis=0)"),),
        Place(1, 1, "gradient", "blocks.0.mlp.proj.bias"),
    ),
    Fault(
        "linear-bias-not-added", "linear",
        "The bias is not added: it is 0 until the first update.", _LINEAR,
        (("if bias is not None:\n        y += bias", "pass"),),
        Place(2, 1, "forward", "blocks.0.attn.qkv"),
    ),
    Fault(
        "linear-writes-into-its-input", "memory",
        "A square layer changes its input in place, which the weight's gradient reads.", _LINEAR,
        (("y += bias", "y += bias\n        x += 1e-3 * (I == O)"),),
        Place(1, 1, "gradient", "blocks.0.attn.proj.weight"),
    ),
]  # fmt: skip
