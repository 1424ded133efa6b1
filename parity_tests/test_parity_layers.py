"""`nplm parity layers`: every layer is judged in several settings; planted faults turn it red."""

import inspect
import json

import numpy as np
import pytest

from nplm import nn
from nplm.autograd.op import OPS, OVERRIDES, override
from nplm.backend.numpy_kernels import linear as linear_kernels

torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")
from nplm.parity.layers import REASONS, SETTINGS, run_layers  # noqa: E402  (it needs torch)
from nplm.parity.three_way import table  # noqa: E402

pytestmark = pytest.mark.layer


@pytest.fixture(scope="module")
def all_rows():
    return run_layers()


@pytest.fixture
def table_of_overrides():
    """The override table is put back after the test."""
    before = {key: list(entries) for key, entries in OVERRIDES.items()}
    yield
    OVERRIDES.clear()
    OVERRIDES.update(before)


def test_every_public_layer_is_judged(all_rows):
    public = {
        name
        for name in nn.__all__
        if inspect.isclass(kind := getattr(nn, name))
        and issubclass(kind, nn.Module)
        and kind is not nn.Module
    }
    assert public == set(SETTINGS) == {row.name for row in all_rows}


def test_every_parameter_of_every_setting_has_a_row(all_rows):
    found = {(row.name, row.quantity) for row in all_rows}
    for name, settings in SETTINGS.items():
        assert (name, "output") in found
        for setting in settings:
            for parameter, _ in setting.make(torch).named_parameters():
                assert (name, f"gradient of {parameter}") in found


def test_every_layer_is_within_its_budgets_and_every_reason_is_needed(all_rows):
    assert all_rows.equal, table(all_rows)
    assert all_rows.stale() == []
    assert {key.split(": ")[0] for key in REASONS} <= set(SETTINGS)
    assert len(all_rows) > 60


def test_layers_on_torch_arrays_are_judged_too():
    assert run_layers(["Linear", "Dropout", "Embedding"], repeats=1, device="torch:cpu").equal


def test_the_table_fits_80_columns_and_json_holds_every_row(all_rows):
    assert max(map(len, table(all_rows).splitlines())) <= 80
    loaded = json.loads(json.dumps(all_rows.to_json(), allow_nan=False))
    assert len(loaded["rows"]) == len(all_rows)


def test_equal_seeds_give_equal_rows():
    one, two, other = (run_layers(["MLP"], seed=seed, repeats=1) for seed in (3, 3, 4))
    assert one.rows == two.rows != other.rows


def test_unknown_names_and_no_repeats_are_refused():
    with pytest.raises(KeyError, match="expected some of"):
        run_layers(["Linea"])
    with pytest.raises(ValueError, match="repeats >= 1, got 0"):
        run_layers(repeats=0)


# ---- planted faults ------------------------------------------------------------------------------
def scaled_gradient(name, place, factor):
    """What runs for the op, its kernel, with one of its gradients multiplied."""
    kernel = getattr(linear_kernels, name)

    def body(xp, *arrays, **options):
        value, backward = kernel(xp, *arrays, **options)

        def wrong(*dys, **needs):
            grads = list(backward(*dys, **needs))
            grads[place] = None if grads[place] is None else grads[place] * factor
            return tuple(grads)

        return value, wrong

    return body


def other_option(name, **changed):
    return lambda xp, *arrays, **options: OPS[name].raw(xp, *arrays, **(options | changed))


def shifted_mask(xp, x, keep, p):
    return OPS["dropout"].raw(xp, x, np.roll(keep, 1, axis=-1), p)


FAULTS = {
    "bias gradient halved": ("linear", scaled_gradient("linear", 2, 0.5),
                             "Linear", {"gradient of bias"}),
    "weight gradient 1e-9 off": ("linear", scaled_gradient("linear", 1, 1 + 1e-9),
                                 "Linear", {"gradient of weight"}),
    "another eps": ("layer_norm", other_option("layer_norm", eps=1e-6), "LayerNorm", None),
    "scores not scaled": ("attention", other_option("attention", scale=1.0),
                          "CausalSelfAttention", None),
    "no causal mask": ("attention", other_option("attention", causal=False),
                       "CausalSelfAttention", None),
    "rope turns backwards": ("rope", lambda xp, x, c, s: OPS["rope"].raw(xp, x, c, -s),
                             "CausalSelfAttention", None),
    "another approximation": ("gelu", other_option("gelu", approximate="tanh"), "GELU", None),
    "another mask": ("dropout", shifted_mask, "Dropout", {"output", "gradient of input 0"}),
    "a sum for a mean": ("mse_loss", other_option("mse_loss", reduction="sum"), "MSELoss", None),
    "ignored targets count": ("cross_entropy", other_option("cross_entropy", ignore_index=-1),
                              "CrossEntropyLoss", None),
    "padding gets a gradient": ("embedding", other_option("embedding", padding_idx=None),
                                "Embedding", {"gradient of weight"}),
}  # fmt: skip


@pytest.mark.fault
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_turns_its_layer_red(fault, table_of_overrides):
    name, body, layer, quantities = FAULTS[fault]
    assert run_layers([layer, "SiLU"], repeats=1).equal
    override(name, backend="numpy")(body)
    rows = run_layers([layer, "SiLU"], repeats=1)
    red = {row.quantity for row, _ in rows.faults}
    assert red
    assert quantities is None or red == quantities
    assert {row.name for row, _ in rows.faults} == {layer}
    assert "diverged" in rows.verdict()
