"""Overrides: who is asked, who declines, how they are switched off; none without a comparison.

Every override in the table is held against its reference here, on the cases of op_cases.py: value
and every gradient, odd sizes, non-contiguous inputs. An op that is added needs a case, no more.
"""

import os
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from op_cases import CASES, Call
from test_ops_parity import as_float32, native, outputs, place_of, random_like

import nplm
from nplm.autograd.op import OPS, OVERRIDES, UPDATES, override, update
from nplm.backend import namespace_for
from nplm.parity.tolerances import FORMULA_64, KERNEL_32, assert_close, to_numpy

pytestmark = pytest.mark.op

# Overrides of updates have their comparison beside the optimizer's tests: (name, backend) -> where.
COMPARED_UPDATES: dict[tuple[str, str], str] = {
    (name, backend): where
    for backend, where in (("numpy", "test_flat_buffers.py"), ("torch", "test_torch_updates.py"))
    for name in ("adam_update", "sgd_update", "scale_", "total_norm_")
}

# Overrides that take bfloat16 alone, on torch: every one has a case in that file.
COMPARED_IN_BFLOAT16 = "test_torch_bfloat16.py"

for _backend in ("numpy", "torch"):
    if find_spec(f"nplm.backend.{_backend}_kernels"):
        import_module(f"nplm.backend.{_backend}_kernels")

TABLE = [
    (name, backend, place)
    for (name, backend), entries in sorted(OVERRIDES.items())
    for place, (_, kernel) in enumerate(entries)
    if not getattr(kernel, "bfloat16_only", False)
]


def run(body, needs, call, device, dtype):
    """(outputs, gradients) of a body on inputs of `dtype`, as NumPy arrays."""
    xp = namespace_for(device)
    inputs = map(as_float32, call.inputs) if dtype == "float32" else call.inputs
    arrays = [native(x.copy(order="K") if hasattr(x, "dtype") else x, device) for x in inputs]
    options = {k: native(v, device) for k, v in call.options.items()}
    with xp.quiet():
        value, backward = body(xp, *arrays, **options)
        kept = [np.array(to_numpy(v)) for v in outputs(value)]  # a closure may overwrite its own
        if backward is None:
            return kept, []
        dys = random_like(kept, 1)
        dys = tuple(
            native(np.zeros(v.shape, int) if dy is None else dy, place_of(v))
            for dy, v in zip(dys, outputs(value))
        )
        more = ((True,) * len(arrays),) if needs else ()
        return kept, backward(dys if isinstance(value, tuple) else dys[0], *more)


def accepts(when, call, device, dtype):
    inputs = map(as_float32, call.inputs) if dtype == "float32" else call.inputs
    options = {k: native(v, device) for k, v in call.options.items()}
    return when is None or when(*[native(x, device) for x in inputs], **options)


def largest_slope(name, call):
    """What a gradient is multiplied by before its terms cancel: 1, or of norms |weight| / sigma.

    A row of one channel has sigma = sqrt(eps) and a gradient of 0: torch's kernel subtracts two
    terms of that size.
    """
    if name not in ("layer_norm", "rms_norm") or not call.inputs[0].size:
        return 1.0
    x, weight = call.inputs[:2]
    rows = x.reshape(-1, np.prod(x.shape[x.ndim - call.options["n_axes"] :]))
    squares = rows.var(-1) if name == "layer_norm" else np.mean(rows**2, -1)
    sigma = np.sqrt(squares.min() + call.options["eps"])
    return max(1.0, (1 if weight is None else np.abs(weight).max()) / sigma)


def compare(name, backend, place, n=100):
    """Hold one override against the reference; an AssertionError if it never accepted a case."""
    when, kernel = OVERRIDES[name, backend][place]
    device = "cpu" if backend == "numpy" else "torch:cpu"
    accepted = []

    @examples(n)
    @given(call=CASES[name].calls(False), dtype=st.sampled_from(["float32", "float64"]))
    def hold(call, dtype):
        if not accepts(when, call, device, dtype):
            return
        accepted.append(call)
        tolerance = KERNEL_32 if dtype == "float32" else FORMULA_64
        values, grads = run(kernel, OPS[name].wants_needs, call, device, dtype)
        expected, expected_grads = run(OPS[name].raw, OPS[name].wants_needs, call, device, dtype)
        for a, b in zip(values, expected, strict=True):
            assert_close(a, b, tolerance, f"{name} on {backend}")
        atol = tolerance.atol * largest_slope(name, call)
        tolerance = replace(tolerance, atol=atol)
        for want, a, b in zip(CASES[name].takes_gradient(call), grads, expected_grads):
            if want:
                assert_close(a, b, tolerance, f"gradient of {name} on {backend}")

    hold()
    assert accepted, f"the override of {name} on {backend} has no comparison: no case fits `when`"


@pytest.mark.parametrize(("name", "backend", "place"), TABLE)
def test_an_override_equals_its_reference(name, backend, place):
    if name in UPDATES:
        assert (name, backend) in COMPARED_UPDATES, f"update {name} on {backend}: no comparison"
        return
    compare(name, backend, place)


# ---- the mechanism, on overrides that live for one test ------------------------------------------
@pytest.fixture
def table():
    """The override table, as it was before, afterwards."""
    before = {key: list(entries) for key, entries in OVERRIDES.items()}
    yield OVERRIDES
    OVERRIDES.clear()
    OVERRIDES.update(before)


def wrong_exp(xp, x):
    """exp with a gradient that is half of the true one."""
    y = xp.exp(x)
    return y, lambda dy: (dy * y * 0.5,)


def good_exp(xp, x):
    y = xp.exp(x)
    return y, lambda dy: (y * dy,)


def slope_of_exp():
    x = nplm.zeros(1, requires_grad=True)
    x.exp().sum().backward()
    return x.grad.item()


def test_an_override_is_used_on_its_backend_only(table, device):
    override("exp", backend="numpy")(wrong_exp)
    x = nplm.zeros(1, device=device, requires_grad=True)
    x.exp().sum().backward()
    assert x.grad.item() == (0.5 if device == "cpu" else 1)


def test_when_may_decline_and_the_last_override_is_asked_first(table):
    override("exp", backend="numpy")(good_exp)
    override("exp", backend="numpy", when=lambda x: x.shape == (1,))(wrong_exp)
    assert slope_of_exp() == 0.5
    x = nplm.zeros(2, requires_grad=True)
    x.exp().sum().backward()
    assert x.grad.tolist() == [1, 1]


def test_when_sees_arrays_and_options(table):
    asked = []
    override("sum", backend="numpy", when=lambda *a, **o: asked.append((a, o)))(None)
    x = nplm.ones(2, 3)
    x.sum(1, keepdim=True)
    ((arrays, options),) = asked
    assert arrays[0] is x.array
    assert options == {"dim": 1, "keepdim": True}


def test_reference_switches_overrides_off(table):
    override("exp", backend="numpy")(wrong_exp)
    with nplm.reference():
        assert slope_of_exp() == 1
        with nplm.reference():
            pass
        assert slope_of_exp() == 1
    assert slope_of_exp() == 0.5


@pytest.mark.parametrize(("setting", "slope"), [("1", "1.0"), ("0", "0.5"), (None, "0.5")])
def test_the_environment_switches_overrides_off(setting, slope):
    program = (
        "import nplm; from nplm.autograd.op import override\n"
        "def half(xp, x):\n    y = xp.exp(x)\n    return y, lambda dy: (dy * y * 0.5,)\n"
        "override('exp', backend='numpy')(half)\n"
        "x = nplm.zeros(1, requires_grad=True); x.exp().sum().backward(); print(x.grad.item())"
    )
    env = {k: v for k, v in os.environ.items() if k != "NPLM_REFERENCE"}
    env |= {} if setting is None else {"NPLM_REFERENCE": setting}
    result = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == slope


def test_an_update_can_be_overridden_too(table):
    name = "test_only_update"
    try:

        @update
        def test_only_update(xp, params, *, by):
            for p in params:
                p += by

        def kernel(xp, params, *, by):
            for p in params:
                p += 2 * by

        override(name, backend="numpy")(kernel)
        x = nplm.zeros(2)
        test_only_update([x], by=1)
        with nplm.reference():
            test_only_update([x], by=1)
        test_only_update([], by=1)
        assert x.tolist() == [3, 3]
    finally:
        UPDATES.pop(name, None)


def test_an_override_of_nothing_is_refused():
    with pytest.raises(KeyError, match="there is no op or update named 'exq'"):
        override("exq", backend="numpy")(good_exp)


def test_the_comparison_passes_a_good_override_and_fails_a_wrong_one(table):
    override("exp", backend="numpy")(good_exp)
    compare("exp", "numpy", 0, 10)
    override("exp", backend="numpy")(wrong_exp)
    with pytest.raises(AssertionError, match="gradient of exp on numpy"):
        compare("exp", "numpy", 0, 10)


def test_an_override_that_no_case_reaches_fails_the_comparison(table):
    override("exp", backend="torch", when=lambda x: x.ndim == 9)(good_exp)
    with pytest.raises(AssertionError, match="has no comparison"):
        compare("exp", "torch", 0, 10)
    assert isinstance(Call(()), Call)
