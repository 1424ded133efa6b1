"""What kernels do on a card, where there is none: shapes and dtypes of their CUDA branches.

torch's fake tensors say "cuda" and hold no numbers; the numbers are checked on a card by
`python -m benchmarks.gpu`. The arguments that are passed by place are read from the schemas.
"""

import pytest

import nplm
from nplm.autograd.graph import flags
from nplm.autograd.op import OPS, choose
from nplm.backend import namespace_for

torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")

from torch._subclasses import FakeTensorMode  # noqa: E402

from nplm.backend.torch_kernels import attention, chosen, head, linear, loss, norm, updates  # noqa: E402
from nplm.backend.torch_kernels import attention_choice as choice  # noqa: E402

pytestmark = pytest.mark.op

XP = namespace_for("torch:cpu")
LOW, HIGH = torch.bfloat16, torch.float32
aten = torch.ops.aten

# Every argument that attention.py passes by place, in order.
ORDERS = {
    "_scaled_dot_product_flash_attention":
        "query key value dropout_p is_causal return_debug_mask",
    "_scaled_dot_product_flash_attention_backward":
        "grad_out query key value out logsumexp cum_seq_q cum_seq_k max_q max_k dropout_p "
        "is_causal philox_seed philox_offset",
    "_scaled_dot_product_cudnn_attention":
        "query key value attn_bias compute_log_sumexp dropout_p is_causal return_debug_mask",
    "_scaled_dot_product_cudnn_attention_backward":
        "grad_out query key value out logsumexp philox_seed philox_offset attn_bias cum_seq_q "
        "cum_seq_k max_q max_k dropout_p is_causal",
    "_scaled_dot_product_efficient_attention":
        "query key value attn_bias compute_log_sumexp dropout_p is_causal",
    "_scaled_dot_product_efficient_attention_backward":
        "grad_out_ query key value attn_bias out logsumexp philox_seed philox_offset dropout_p "
        "grad_input_mask is_causal",
    "_scaled_dot_product_flash_attention_for_cpu": "query key value dropout_p is_causal",
    "_scaled_dot_product_flash_attention_for_cpu_backward":
        "grad_out query key value out logsumexp dropout_p is_causal",
    "native_layer_norm_backward":
        "grad_out input normalized_shape mean rstd weight bias output_mask",
    "_fused_rms_norm": "input normalized_shape weight eps",
    "_fused_rms_norm_backward": "grad_out input normalized_shape rstd weight output_mask",
    "nll_loss_backward": "grad_output self target weight reduction ignore_index total_weight",
    "embedding_dense_backward":
        "grad_output indices num_weights padding_idx scale_grad_by_freq",
    "native_dropout_backward": "grad_output mask scale",
}  # fmt: skip
RESULTS = {
    "_scaled_dot_product_flash_attention":
        "output logsumexp cum_seq_q cum_seq_k max_q max_k rng_state unused debug_attn_mask",
    "_scaled_dot_product_cudnn_attention":
        "output logsumexp cum_seq_q cum_seq_k max_q max_k philox_seed philox_offset "
        "debug_attn_mask",
    "_scaled_dot_product_efficient_attention": "output log_sumexp philox_seed philox_offset",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ORDERS))
def test_arguments_are_passed_in_the_order_of_torchs_schema(name):
    schema = getattr(aten, name).default._schema
    names = [a.name for a in schema.arguments if not a.kwarg_only]
    assert names == ORDERS[name].split()
    if name in RESULTS:
        assert [r.name for r in schema.returns] == RESULTS[name].split()


@pytest.fixture
def card(monkeypatch):
    """Tensors of a card that is not there, a Hopper, under autocast."""
    monkeypatch.setattr(linear, "widens", lambda device: device.type == "cuda")
    monkeypatch.setattr(choice, "since_hopper", lambda device: True)
    monkeypatch.setattr(flags, "autocast", True)
    # Writing into a fake tensor of a card asks for the card itself: not in place here.
    for module in (head, loss):
        monkeypatch.setattr(
            module, "log_probabilities",
            lambda x, owned: aten._log_softmax(x.float(), 1, False),
        )  # fmt: skip
    with FakeTensorMode():
        yield lambda *shape, dtype=LOW: torch.empty(shape, dtype=dtype, device="cuda")
    choice.refusals.clear()


def apply(name, inputs, dy_shape, dy_dtype, **options):
    """(value, gradients) of what is chosen for these inputs."""
    kernel = choose(name, XP, inputs, options)
    assert kernel is not None
    assert not getattr(kernel, "bfloat16_only", False) or name in ("dropout", "matmul")
    value, backward = kernel(XP, *inputs, **options)
    assert value.shape == dy_shape
    assert value.dtype == dy_dtype
    dy = torch.empty(dy_shape, dtype=dy_dtype, device="cuda")
    more = ((True,) * len(inputs),) if OPS[name].wants_needs else ()
    grads = backward(dy, *more)
    for x, g in zip(inputs, grads):
        if g is not None:
            assert (g.shape, g.dtype, g.device) == (x.shape, x.dtype, x.device)
    assert not choice.refusals
    return value, grads


@pytest.mark.parametrize("name", ["cudnn", "flash", "efficient"])
@pytest.mark.parametrize("G", [4, 2])
@pytest.mark.parametrize("causal", [True, False])
def test_every_attention_kernel_of_a_card_gives_gradients_of_its_inputs(name, G, causal, card):
    asked = []
    kernel = attention.KERNELS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(attention.KERNELS, name, lambda *a: asked.append(name) or kernel(*a))
        choice.prefer_attention(name)
        try:
            q = card(2, 16, 4, 64).transpose(1, 2)
            k, v = (card(2, 16, G, 64).transpose(1, 2) for _ in "kv")
            y, grads = apply("attention", (q, k, v), q.shape, LOW, causal=causal)
        finally:
            choice.prefer_attention(None)
    assert asked == [name]
    assert y.transpose(1, 2).is_contiguous()  # merging the heads copies nothing
    assert grads[0].transpose(1, 2).is_contiguous()


class Recorded(torch.utils._python_dispatch.TorchDispatchMode):
    """The arguments and results of attention's kernels, by the names in their schemas."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        schema, name = function._schema, function.overloadpacket.__name__
        if "attention" in name:
            arguments = dict(zip((a.name for a in schema.arguments), args))
            self.calls[name] = (arguments, dict(zip((r.name for r in schema.returns), found)))
        return found


@pytest.mark.parametrize("name", ["cudnn", "flash", "efficient"])
def test_an_attention_backward_gets_what_its_forward_gave(name, card):
    q, k, v, dy = (card(2, 16, 4, 64).transpose(1, 2) for _ in range(4))
    with Recorded() as seen:
        _, backward = attention.KERNELS[name](q, k, v, True, None)
        backward(dy)
    (arguments, results), (given, _) = seen.calls.values()
    made = {  # the backward's name for it
        "out": results["output"], "is_causal": True, "dropout_p": 0.0,
        "logsumexp": results.get("logsumexp", results.get("log_sumexp")),
        "philox_seed": results.get("philox_seed", results.get("rng_state")),
        "philox_offset": results.get("philox_offset", results.get("unused")),
    }  # fmt: skip
    made |= {n: arguments[n] for n in ("query", "key", "value")}
    made |= {n: results[n] for n in ("cum_seq_q", "cum_seq_k", "max_q", "max_k") if n in results}
    for n, value in made.items():
        same = given[n] is value if isinstance(value, torch.Tensor) else given[n] == value
        assert same, f"{name}: {n}"
    assert given.get("attn_bias") is None
    assert (given.get("grad_out"), given.get("grad_out_"), given.get("grad_output")).count(
        None
    ) == 2


def test_attention_in_float32_runs_on_a_card(card, monkeypatch):
    monkeypatch.setattr(flags, "autocast", False)
    q = card(2, 4, 16, 64, dtype=HIGH)
    apply("attention", (q, q, q), q.shape, HIGH, causal=True)


@pytest.mark.parametrize("x_dtype", [LOW, HIGH])
def test_linear_on_a_card_takes_float32_gradients_from_bfloat16_products(x_dtype, card):
    x, w, b = card(2, 8, 16, dtype=x_dtype), card(32, 16, dtype=HIGH), card(32, dtype=HIGH)
    wide, mm = [], torch.mm
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "mm", lambda *a, **o: wide.append(o.get("out_dtype")) or mm(*a, **o))
        apply("linear", (x, w, b), (2, 8, 32), LOW)
    assert wide[-1] == HIGH  # dweight, by the product itself
    assert linear.widens(w.device)


@pytest.mark.parametrize("budget", [1 << 31, 4 * 64 * 8])
def test_the_head_on_a_card_has_a_float32_loss_and_weight_gradient(budget, card, monkeypatch):
    monkeypatch.setitem(head.BUDGET, "cuda", budget)
    x, w, t = card(32, 16), card(64, 16, dtype=HIGH), card(32, dtype=torch.int64)
    apply("linear_cross_entropy", (x, w, t), (), HIGH)


def test_the_other_kernels_keep_the_dtypes_of_a_step_on_a_card(card):
    x, weight, bias = card(2, 8, 16), card(16, dtype=HIGH), card(16, dtype=HIGH)
    assert norm._parameter(weight, x).dtype == LOW  # these kernels take one dtype there
    apply("layer_norm", (x, weight, bias), x.shape, LOW)
    apply("layer_norm", (x, weight, None), x.shape, LOW)
    apply("rms_norm", (x, weight), x.shape, LOW)
    apply("gelu", (x,), x.shape, LOW, approximate="tanh")
    apply("silu", (x,), x.shape, LOW)
    apply("relu", (x,), x.shape, LOW)
    apply("matmul", (x, card(16, 3)), (2, 8, 3), LOW)
    apply("dropout", (x, card(2, 8, 16, dtype=torch.bool)), x.shape, LOW, p=0.1)
    q, angle = card(2, 8, 4, 16).transpose(1, 2), card(8, 8, dtype=HIGH)
    apply("rope", (q, angle, angle), q.shape, LOW)
    ids = card(2, 8, dtype=torch.int64)
    apply("embedding", (ids, card(50, 16, dtype=HIGH)), (2, 8, 16), LOW)
    logits, t = card(8, 50), card(8, dtype=torch.int64)
    apply("cross_entropy", (logits, t), (), HIGH)
    apply("nll_loss", (logits.float(), t), (), HIGH)
    apply("softmax", (logits.float(),), logits.shape, HIGH, dim=-1)
    apply("log_softmax", (logits.float(),), logits.shape, HIGH, dim=-1)


def test_clipping_on_a_card_asks_for_no_number(card):
    """A fake tensor has none: `.item()`, or a branch on one, would raise."""
    grads = [card(3, 4, dtype=HIGH), card(5, dtype=HIGH)]
    total = card(dtype=HIGH)
    updates.total_norm_(XP, [total], grads, order=2.0)
    updates.scale_(XP, grads, [total])


# ---- the report ----------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float32", nplm.bfloat16, torch.bfloat16])
def test_the_report_says_what_is_chosen_and_why(dtype):
    rows = chosen("torch:cpu", dtype)
    assert [op for op, _, _ in rows] == [
        "attention", "linear", "layer_norm", "rms_norm", "linear_cross_entropy", "adam_update",
    ]  # fmt: skip
    assert all(kernel and why for _, kernel, why in rows)
    low = "bfloat16" in str(dtype)
    assert ("rounded to bfloat16" in dict((op, why) for op, _, why in rows)["linear"]) is low


def test_the_report_names_the_kernels_of_a_card(monkeypatch):
    from nplm.backend.torch_kernels import report

    monkeypatch.setattr(report, "since_hopper", lambda device: True)
    monkeypatch.setattr(report, "widens", lambda device: True)
    rows = {op: (kernel, why) for op, kernel, why in chosen("cuda", nplm.bfloat16)}
    assert rows["attention"][0] == "aten cudnn"
    assert "then flash, efficient" in rows["attention"][1]
    assert rows["rms_norm"][0] == "aten _fused_rms_norm"
    assert "written by the product" in rows["linear"][1]
