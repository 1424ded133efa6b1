"""`nplm parity ops`: every op is judged, its verdict is right, and planted faults turn it red."""

import json

import numpy as np
import pytest

from nplm.autograd.op import OPS, OVERRIDES, override

torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")
from nplm.parity import calibrate, three_way  # noqa: E402  (they need torch)
from nplm.parity.op_twins import TWINS  # noqa: E402
from nplm.parity.ops import REASONS, run_ops  # noqa: E402
from nplm.parity.three_way import Errors, Reason, Row, Rows, table  # noqa: E402

pytestmark = pytest.mark.op


@pytest.fixture(scope="module")
def all_rows():
    return run_ops()


@pytest.fixture
def plant():
    """`plant(name, body)`: another body for an op on NumPy, until the test ends."""
    before = {key: list(entries) for key, entries in OVERRIDES.items()}
    yield lambda name, body: override(name, backend="numpy")(body)
    OVERRIDES.clear()
    OVERRIDES.update(before)


def changed(name, value=lambda v: v, gradients=lambda g: g):
    """The op's own body with its value or its gradients changed."""

    def body(xp, *arrays, **options):
        y, backward = OPS[name].raw(xp, *arrays, **options)
        return value(y), lambda *dys: gradients(backward(*dys))

    return body


# ---- what is judged ------------------------------------------------------------------------------
def test_every_op_has_a_twin_with_realistic_inputs_and_every_twin_is_judged(all_rows):
    assert sorted(OPS) == sorted(TWINS)
    assert {row.name for row in all_rows} == set(OPS)


def test_every_gradient_of_every_op_has_a_row(all_rows):
    found = {(row.name, row.quantity) for row in all_rows}
    for name, twin in TWINS.items():
        for call in twin.calls(np.random.default_rng(0)):
            for i, want in enumerate(twin.takes_gradient(call)):
                names = OPS[name].array_names
                wanted = f"{names[0]}{i}" if OPS[name].variadic else names[i]
                assert not want or (name, f"gradient of {wanted}") in found


def test_every_op_is_within_its_budgets(all_rows):
    assert all_rows.equal, table(all_rows)
    assert len(all_rows) > 150


def test_an_error_of_more_than_twice_torchs_has_a_reason_and_every_reason_is_needed(all_rows):
    unexplained = [row for row in all_rows if row.ratio > 2 and all_rows.reason(row) is None]
    assert unexplained == []
    assert all_rows.stale() == []
    assert {key.split(": ")[0] for key in REASONS} <= set(OPS)


def test_equal_seeds_give_equal_rows_and_the_random_streams_are_left_alone():
    import nplm

    before = nplm.random.default_generator.to_torch_state(), torch.get_rng_state()
    one, two, other = (run_ops(["gelu", "sum"], seed=seed, repeats=1) for seed in (3, 3, 4))
    assert one.rows == two.rows != other.rows
    after = nplm.random.default_generator.to_torch_state(), torch.get_rng_state()
    for a, b in zip(before, after):
        np.testing.assert_array_equal(a, b)


def test_ops_on_torch_arrays_are_judged_too():
    assert run_ops(["linear", "layer_norm", "getitem", "transfer"], device="torch:cpu").equal


def test_unknown_names_and_no_repeats_are_refused():
    with pytest.raises(KeyError, match="expected names of ops, got"):
        run_ops(["exq"])
    with pytest.raises(ValueError, match="repeats >= 1, got 0"):
        run_ops(repeats=0)


# ---- planted faults ------------------------------------------------------------------------------
FAULTS = {
    "a value 1e-9 off": ("exp", changed("exp", value=lambda v: v * (1 + 1e-9)), "value"),
    "a wrong sign": (
        "div",
        changed("div", gradients=lambda g: (g[0], None if g[1] is None else -g[1])),
        "gradient of y",
    ),
    "half a gradient": (
        "linear",
        lambda xp, x, w, b=None: (
            OPS["linear"].raw(xp, x, w, b)[0],
            lambda dy, needs: tuple(
                g * 0.5 if i == 2 and g is not None else g
                for i, g in enumerate(OPS["linear"].raw(xp, x, w, b)[1](dy, needs))
            ),
        ),
        "gradient of bias",
    ),
    "no gradient": ("mul", changed("mul", gradients=lambda g: (g[0], None)), "gradient of y"),
    "a grown dtype": ("silu", changed("silu", value=lambda v: v.astype("float64")), "value"),
    "another shape": ("mean", changed("mean", value=lambda v: np.reshape(v, (1, *v.shape))),
                      "value"),
    "another index": ("argmax", changed("argmax", value=lambda v: v + 1), "value"),
    "a NaN": ("sqrt", changed("sqrt", value=lambda v: np.where(v > 1.9, np.nan, v)), "value"),
    "float32 errors alone": (
        "tanh",
        changed("tanh", value=lambda v: v * (1 + 1e-6) if v.dtype == np.float32 else v),
        "value",
    ),
}  # fmt: skip


@pytest.mark.fault
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_turns_its_row_red_and_no_other_op(fault, plant):
    name, body, quantity = FAULTS[fault]
    names = [name, "add", "softmax"]
    assert run_ops(names, repeats=1).equal
    plant(name, body)
    rows = run_ops(names, repeats=1)
    assert not rows.equal
    assert {row.name for row, _ in rows.faults} == {name}
    assert quantity in {row.quantity for row, _ in rows.faults}
    assert "diverged" in rows.verdict()
    assert f"of {name}: " in rows.verdict()
    assert "RED" in table(rows)


@pytest.mark.fault
def test_a_sum_without_the_largest_subtracted_is_red_in_float32(plant):
    def softmax(xp, x, dim):  # right in exact arithmetic
        e = xp.exp(x + 60)
        y = e / xp.sum(e, axis=dim, keepdims=True)
        return y, lambda dy: (y * (dy - xp.sum(dy * y, axis=dim, keepdims=True)),)

    plant("softmax", softmax)
    rows = run_ops(["softmax"], repeats=1)
    assert [row.quantity for row, text in rows.faults if "float32" in text]


# ---- the judge itself, on rows made by hand ------------------------------------------------------
def rows_of(ratio, reasons, formula=0.0):
    theirs = Errors(1e-6, 1e-6)
    row = Row("exp", "value", 1, formula, Errors(ratio * 1e-6, 1e-6), theirs)
    return Rows("ops", [row], reasons)


@pytest.mark.parametrize(
    ("ratio", "reasons", "equal", "stale"),
    [
        (1.9, {}, True, []),
        (2.1, {}, False, []),
        (np.nan, {}, False, []),
        (2.1, {"exp": Reason(3, "why")}, True, []),
        (2.1, {"exp: value": Reason(3, "why")}, True, []),
        (3.1, {"exp": Reason(3, "why")}, False, []),
        (1.4, {"exp": Reason(3, "why")}, True, ["exp"]),
        (1.4, {"exp: value": Reason(3, "why")}, True, ["exp: value"]),
        (2.1, {"log": Reason(3, "not among the rows: it cannot be judged")}, False, []),
    ],
)
def test_the_verdict_asks_for_a_reason_above_two_and_a_reason_is_stale_below(
    ratio, reasons, equal, stale
):
    rows = rows_of(ratio, reasons)
    assert rows.equal is equal
    assert rows.stale() == stale


def test_float64_is_judged_whatever_the_reason():
    assert not rows_of(1, {"exp": Reason(99, "why")}, formula=1e-9).equal
    assert not rows_of(1, {}, formula=np.nan).equal


def test_errors_are_relative_to_the_scale_of_the_tensor():
    truth = np.array([4.0, -2.0, 0.0])
    largest, rms = three_way.errors(truth + np.array([0.0, 0.0, 0.4]), truth)
    assert largest == pytest.approx(0.1)
    assert rms == pytest.approx(0.4 / np.sqrt(20))
    infinite = np.array([np.inf, np.nan, 1.0])
    assert three_way.errors(infinite, infinite) == (0.0, 0.0)
    assert three_way.errors(-infinite, infinite) == (np.inf, np.inf)
    assert three_way.errors(truth[:2], truth) == (np.inf, np.inf)
    assert three_way.errors(np.zeros(0), np.zeros(0)) == (0.0, 0.0)


def test_the_table_fits_80_columns_and_json_holds_every_row(all_rows):
    text = table(all_rows)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("\n") >= len(all_rows)
    loaded = json.loads(json.dumps(all_rows.to_json(), allow_nan=False))
    assert loaded["equal"] is True
    assert len(loaded["rows"]) == len(all_rows)
    assert all(row["reason"] for row in loaded["rows"] if row["ratio"] > 2)


# ---- how far torch is from itself ----------------------------------------------------------------
@pytest.mark.slow
def test_torchs_own_variants_differ_within_a_few_rounding_errors_and_the_table_says_so():
    rows = calibrate.calibrate()
    assert {row.name for row in rows} == set(calibrate.FUNCTIONS)
    for row in rows:
        assert row.note or row.apart <= row.first + row.second + three_way.HALF_ULP, row
    assert max(map(len, calibrate.table(rows).splitlines())) <= 80
    json.dumps(calibrate.to_json(rows), allow_nan=False)
    assert any(row.apart > 0 for row in rows if row.variants == "MATH, FLASH")
