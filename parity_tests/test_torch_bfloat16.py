"""bfloat16 under autocast: within the envelope of torch.autocast's own; what stays float32; copies.

The judge is float64 on the same numbers: nplm may be at most twice as far from it as torch under
torch.autocast, plus one unit in bfloat16's last place of the largest element.
"""

import gc

import numpy as np
import pytest
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from op_cases import CASES, Call
from op_inputs import silent
from test_ops_parity import as_float32, as_torch, outputs, random_like

import nplm
from nplm import nn
from nplm.autograd.op import OPS, OVERRIDES, choose
from nplm.backend import namespace_for
from nplm.models import Decoder, preset
from nplm.nn import functional as F
from nplm.parity.tolerances import EPS, RATIO
from nplm.train import accumulate

torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")

from nplm.backend.torch_kernels import head  # noqa: E402
from nplm.backend.torch_kernels.precision import copies  # noqa: E402

pytestmark = pytest.mark.op

DEVICE = "torch:cpu"
XP = namespace_for(DEVICE)
LOW = torch.bfloat16
WEIGHTS = {  # op -> the inputs that are parameters: float32, and so are their gradients
    "cross_entropy": (2,), "embedding": (1,), "layer_norm": (1, 2), "linear": (1, 2),
    "linear_cross_entropy": (1,), "nll_loss": (2,), "rms_norm": (1,), "rope": (1, 2),
}  # fmt: skip
# What comes out in float32: torch.autocast's list, and losses.
WIDE = {
    "cross_entropy", "cumsum", "exp", "linear_cross_entropy", "log", "log_softmax", "logsumexp",
    "mean", "mse_loss", "nll_loss", "norm", "pow", "rsqrt", "softmax", "sqrt", "sum", "var",
}  # fmt: skip
NAMES = sorted({name for name, backend in OVERRIDES if backend == "torch" and name in OPS})


def lowered_inputs(name, call):
    """The inputs in the dtypes that they have under autocast: activations bfloat16."""
    weights = WEIGHTS.get(name, ())
    inputs = []
    for i, x in enumerate(call.inputs):
        x = as_torch(as_float32(x)) if isinstance(x, np.ndarray) else x
        floating = isinstance(x, torch.Tensor) and x.is_floating_point()
        inputs.append(x.to(LOW) if floating and i not in weights else x)
    return inputs


def twin_run(twin, inputs, wants, options, dy, autocast):
    leaves = [
        x.detach().clone().requires_grad_(want) if isinstance(x, torch.Tensor) else x
        for x, want in zip(inputs, wants)
    ]
    with torch.autocast("cpu", LOW, enabled=autocast):
        values = outputs(silent(twin)(*leaves, **options))  # mixed dtypes are slow, it warns
    wanted = [x for x, want in zip(leaves, wants) if want]
    plain = [v.detach() for v in values]
    pairs = [(v, g.to(v.dtype)) for v, g in zip(values, dy) if v.requires_grad]
    if not pairs:
        return plain, [None] * len(leaves)
    found = torch.autograd.grad(
        [v for v, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True
    )
    grads = iter(found)
    return plain, [next(grads) if want else None for want in wants]


def error(x, truth):
    return float((x.double() - truth).abs().max()) if truth.numel() else 0.0


def assert_within_envelope(ours, theirs, truth, what, reach=0.0):
    """`reach`: the largest number on the way, where what ends near 0 keeps the rounding of that."""
    largest = max(float(truth.abs().max()) if truth.numel() else 0.0, reach)
    allowed = RATIO * error(theirs, truth) + EPS["bfloat16"] * largest
    assert error(ours, truth) <= allowed, f"{what}: {error(ours, truth)} is above {allowed}"


def terms_of_attention(dy, q, k, v, scale, n):
    """How large the terms are that cancel in attention's gradients: dq = scale p (dp - mean dp) k.

    dp = dy v^T is bounded by the lengths of its rows, and dk is alike.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    dp = float(dy.norm(dim=-1).max() * v.norm(dim=-1).max()) * abs(scale)
    largest = float(dy.abs().max())
    terms = [dp * float(k.abs().max()), dp * float(q.abs().max()), 0.0]
    return [max(largest, x) for x in terms] + [largest] * (n - 3)


def test_every_torch_kernel_is_compared_in_bfloat16():
    assert set(NAMES) <= set(CASES)
    assert set(WIDE) | set(WEIGHTS) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@examples(40)
@given(data=st.data())
def test_values_and_gradients_lie_within_torch_autocasts_envelope(name, data):
    call = data.draw(CASES[name].calls(True))
    assume(all(0 not in getattr(x, "shape", ()) for x in call.inputs))
    assume(name != "pow" or hasattr(call.inputs[0], "dtype"))
    inputs, wants = lowered_inputs(name, call), CASES[name].takes_gradient(call)
    with nplm.autocast(DEVICE):
        kernel = choose(name, XP, tuple(inputs), call.options)
    assume(kernel is not None)
    op = OPS[name]
    with nplm.autocast(DEVICE):
        value, backward = kernel(XP, *inputs, **call.options)
    values = tuple(v.clone() for v in outputs(value))
    dy = [as_torch(g) for g in random_like([v.double() for v in values], 1)]
    dys = tuple(g.to(v.dtype) for g, v in zip(dy, values))
    more = ((True,) * len(inputs),) if op.wants_needs else ()
    grads = backward(dys if isinstance(value, tuple) else dys[0], *more)

    twin = CASES[name].twin
    exact = [g.double() for g in dys]  # as what flowed back was rounded
    wide = [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
            for x in inputs]  # fmt: skip
    truth, true_grads = twin_run(twin, wide, wants, call.options, exact, False)
    theirs, their_grads = twin_run(twin, inputs, wants, call.options, exact, True)
    reaches = [0.0] * len(inputs)
    if name == "matmul":  # a gradient that is summed over what was broadcast: of absolute terms
        _, sums = twin_run(
            twin, [x.abs() for x in wide], wants, {}, [g.abs() for g in exact], False
        )
        reaches = [float(g.max()) for g in sums]
    elif name == "attention":
        reaches = terms_of_attention(exact[0], *wide[:3], call.options["scale"], len(inputs))
    elif name in ("layer_norm", "rms_norm"):  # dy less its own mean
        reaches = [float(exact[0].abs().max())] * len(inputs)
    for a, b, c in zip(values, theirs, truth, strict=True):
        assert a.dtype == (torch.float32 if name in WIDE else LOW)
        assert_within_envelope(a, b, c, name)
    for i, (want, x, c) in enumerate(zip(wants, inputs, true_grads)):
        if want and c is not None:
            assert grads[i].dtype == x.dtype, f"gradient {i} of {name}"
            assert_within_envelope(
                grads[i], their_grads[i], c, f"gradient {i} of {name}", reaches[i]
            )
    for x in (*values, *grads):
        assert x is None or (x.grad_fn is None and not x.requires_grad)


def test_products_under_autocast_lower_float32_and_give_float32_gradients_back():
    x, w = nplm.randn(4, 3).to(DEVICE), nplm.randn(5, 3).to(DEVICE)
    x.requires_grad_(), w.requires_grad_()
    with nplm.autocast(DEVICE):
        products = {
            "linear": F.linear(x, w),
            "matmul": x @ w.transpose(0, 1),
            "attention": F.scaled_dot_product_attention(*(x.reshape(1, 1, 4, 3),) * 3),
        }
        loss = F.linear_cross_entropy(x, w, nplm.zeros(4, dtype=nplm.int64, device=DEVICE))
    for name, y in products.items():
        assert y.dtype is nplm.bfloat16, name
        x.grad = w.grad = None
        y.sum().backward()
        assert x.grad.dtype == nplm.float32
    assert loss.dtype == nplm.float32
    loss.backward()
    assert x.grad.dtype == w.grad.dtype == nplm.float32


def test_float64_is_not_lowered():
    x = nplm.ones(2, 2, dtype=nplm.float64, device=DEVICE)
    with nplm.autocast(DEVICE):
        assert F.linear(x, x).dtype == nplm.float64
        assert F.linear_cross_entropy(x, x, x[0].long()).dtype == nplm.float64


def test_autocast_is_switched_off_inside_of_itself_and_ends_with_its_block():
    x = nplm.ones(2, 2, device=DEVICE)
    seen = []
    with nplm.autocast(DEVICE):
        with nplm.autocast(DEVICE, enabled=False):
            seen.append(F.linear(x, x).dtype)
        seen.append(F.linear(x, x).dtype)
    assert [*seen, F.linear(x, x).dtype] == [nplm.float32, nplm.bfloat16, nplm.float32]


def test_logits_in_any_layout_have_their_own_loss():
    logits = torch.randn(7, 4).to(LOW).T  # not contiguous
    targets = torch.tensor([0, 3, 6, 2])
    kernel = choose("cross_entropy", XP, (logits, targets), {})
    loss, backward = kernel(XP, logits, targets)
    exact = logits.double().requires_grad_(True)
    twin = torch.nn.functional.cross_entropy(exact, targets)
    twin.backward()
    assert abs(float(loss) - twin.item()) < 1e-5  # float32 within: only dlogits is rounded
    (dlogits, *_) = backward(torch.ones(()))
    assert_within_envelope(dlogits, exact.grad.to(LOW), exact.grad, "dlogits")


def test_sums_over_two_thousand_rows_are_made_in_float32():
    """aten adds bfloat16 rows to bfloat16 sums on CPUs: 3 % off after a thousand."""
    x, dy = torch.randn(2000, 6).to(LOW), (torch.randn(2000, 6) + 1).to(LOW)
    weight, bias = torch.randn(6), torch.randn(6)
    exact = [v.double().requires_grad_(True) for v in (weight, bias)]
    torch.nn.functional.layer_norm(x.double(), (6,), *exact).backward(dy.double())
    found = choose("layer_norm", XP, (x, weight, bias), {})(XP, x, weight, bias)[1](dy)[1:]
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype == torch.float32
        assert error(ours, theirs.grad) < 1e-5 * float(theirs.grad.abs().max())


def test_a_heads_chunks_of_rows_in_bfloat16_are_added_up_in_float32(monkeypatch):
    """No further from the exact gradient than one array's, whose products round once."""
    x, w, targets = torch.randn(256, 8), torch.randn(50, 8), torch.randint(0, 50, (256,))
    exact = [v.to(LOW).double().requires_grad_(True) for v in (x, w)]
    twin = torch.nn.functional.cross_entropy(exact[0] @ exact[1].T, targets)
    twin.backward()
    runs = []
    for budget in (1 << 28, 4 * 50 * 8):  # all rows at once, and 8 by 8
        monkeypatch.setitem(head.BUDGET, "cpu", budget)
        with nplm.autocast(DEVICE):
            kernel = choose("linear_cross_entropy", XP, (x, w, targets), {})
            loss, backward = kernel(XP, x, w, targets)
            runs.append((loss, *backward(torch.ones(()), (True, True, False))[:2]))
    truth = (twin.detach(), *(v.grad for v in exact))
    for whole, chunks, c in zip(*runs, truth, strict=True):
        assert chunks.dtype == torch.float32
        assert_within_envelope(chunks, whole, c, "in chunks")


# ---- copies of weights ---------------------------------------------------------------------------
def test_a_copy_is_made_once_and_again_only_after_an_update():
    layer = nn.Linear(3, 2, device=DEVICE)
    optimizer = nplm.optim.AdamW(layer.parameters(), lr=0.1)
    x = nplm.ones(4, 3, device=DEVICE)
    with nplm.autocast(DEVICE):
        layer(x)
        copy = copies.of(layer.weight.array)
        written = copy._version
        layer(x).float().sum().backward()
        assert copies.of(layer.weight.array) is copy
        assert copy._version == written
        optimizer.step()
        assert not torch.equal(copy, layer.weight.array.to(LOW))
        layer(x)
    assert copies.of(layer.weight.array) is copy  # in its place: a CUDA graph reads it there
    assert torch.equal(copy, layer.weight.array.to(LOW))


@pytest.mark.parametrize(
    "make",
    [
        lambda ps: nplm.optim.SGD(ps, lr=0.1),
        lambda ps: nplm.optim.SGD(ps, lr=0.1, momentum=0.9),
        lambda ps: nplm.optim.Adam(ps, lr=0.1),
        lambda ps: nplm.optim.RMSprop(ps, lr=0.1),
    ],
)
def test_no_optimizer_leaves_a_copy_stale(make):
    layer = nn.Linear(3, 2, device=DEVICE)
    optimizer = make(layer.parameters())
    x = nplm.ones(4, 3, device=DEVICE)
    for _ in range(2):
        with nplm.autocast(DEVICE):
            layer(x).float().sum().backward()
        optimizer.step()
        for p in layer.parameters():
            assert torch.equal(copies.of(p.array), p.array.to(LOW))


def test_only_weights_have_copies(monkeypatch):
    layer, asked, of = nn.Linear(3, 3, device=DEVICE), [], copies.of
    monkeypatch.setattr(copies, "of", lambda x: asked.append(x) or of(x))
    x = nplm.ones(4, 3, device=DEVICE)
    with nplm.autocast(DEVICE):
        layer(x) @ F.linear(x, layer.weight).transpose(0, 1)
    assert {id(x) for x in asked} == {id(p.array) for p in layer.parameters()}


def test_activations_and_dead_weights_are_not_remembered():
    gc.collect()
    before = len(copies.known)
    layer = nn.Linear(3, 3, device=DEVICE)
    with nplm.autocast(DEVICE):
        y = layer(layer(nplm.ones(4, 3, device=DEVICE)))
        y @ nplm.ones(3, 3, device=DEVICE)
        nplm.ones(3, 3, device=DEVICE) @ nplm.ones(3, 3, device=DEVICE)
    assert len(copies.known) == before + 2  # the weight and the bias
    del layer, y
    gc.collect()
    assert len(copies.known) == before


# ---- a whole model -------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["gpt2", "tiny-llama"])
def test_a_decoder_has_bfloat16_activations_and_float32_gradients(name):
    config = preset(name, n_layer=2, n_head=4, n_embd=32, context=16, vocab_size=50, dropout=0.0)
    model = Decoder(config).to(DEVICE)
    rng = np.random.default_rng(0)
    ids, targets = (rng.integers(0, 50, (3, 16)) for _ in range(2))
    exact = float(accumulate([(ids, targets)], model).loss)
    gradients = {n: p.grad.numpy().copy() for n, p in model.named_parameters()}
    model.zero_grad()
    with nplm.autocast(DEVICE):
        assert model.features(nplm.tensor(ids, device=DEVICE)).dtype is nplm.bfloat16
        loss = accumulate([(ids, targets)], model).loss
    assert loss.dtype == nplm.float32
    assert abs(float(loss) - exact) < EPS["bfloat16"] * exact
    for n, p in model.named_parameters():
        assert p.grad.dtype == nplm.float32
        largest = np.abs(gradients[n]).max()
        # Some ten roundings in a row, each of half an ulp: within 4 ulps of the largest element.
        assert np.abs(p.grad.numpy() - gradients[n]).max() < 4 * EPS["bfloat16"] * largest, n
    assert isinstance(Call(()), Call)
