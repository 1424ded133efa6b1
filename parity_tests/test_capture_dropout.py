"""Dropout in compiled blocks: masks are drawn outside and handed in, the ones of single ops."""

import pytest

torch = pytest.importorskip("torch", reason="what is captured runs on torch: pip install torch")

import test_capture  # noqa: E402
from test_capture import (  # noqa: E402
    FAMILIES,
    GRADIENT,
    LOSS,
    B,
    T,
    apart,
    gradients,
    model_of,
    needs_compiler,
    window,
)

import nplm  # noqa: E402
from nplm.nn import functional as F  # noqa: E402
from nplm.train import capturing  # noqa: E402

counted, uncompiled = test_capture.counted, test_capture.uncompiled  # fixtures
no_warning_unseen = test_capture.no_warning_unseen


@needs_compiler
@pytest.mark.parametrize("family", FAMILIES)
def test_regions_drop_what_single_ops_drop_and_leave_the_stream_at_the_same_place(family, counted):
    ends = []
    for level in ("off", "region"):
        model = model_of(family, dropout=0.2)
        capturing.capture(model, level)
        nplm.manual_seed(5)
        runs = [gradients(model, window()) for _ in range(2)]  # the second has other masks
        ends.append((runs, nplm.random.default_generator.get_state(), capturing.level(model)))
    (expected, place, _), (found, same_place, level) = ends
    assert (level, len(counted)) == ("region", 2)
    assert same_place == place
    assert expected[0][0] != expected[1][0]
    for (loss, gradient), (captured, ours) in zip(expected, found):
        assert captured == pytest.approx(loss, rel=LOSS.rtol)
        for name, g in gradient.items():
            assert apart(ours[name], g) <= GRADIENT.atol, name


def test_another_rate_of_dropout_is_another_pair_and_none_draws_nothing(uncompiled):
    model = model_of("gpt2", dropout=0.2)
    block, x = model.blocks[0], nplm.randn(B, T, 32, device="torch:cpu", requires_grad=True)
    capturing.capture(model, "region")
    ends = []
    for rate in (0.2, 0.6, 0.2, 0.0):
        for module in block.modules():
            module.p = rate
        nplm.manual_seed(1)
        ends.append((block(x).array, nplm.random.default_generator.get_state()))
    assert not torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][0], ends[2][0])
    nplm.manual_seed(1)
    assert ends[3][1] == nplm.random.default_generator.get_state()
    assert len(uncompiled) == 3
    block.eval()
    block(x)
    assert len(uncompiled) == 4
    assert capturing.level(model) == "region"


def test_a_block_that_recomputes_drops_the_same_again(uncompiled):
    model, losses = model_of("gpt2", dropout=0.2), []
    for level in ("off", "region"):
        capturing.capture(model, level)
        model.recompute = True
        nplm.manual_seed(5)
        losses.append(gradients(model, window()))
    (loss, expected), (captured, found) = losses
    assert captured == pytest.approx(loss, rel=LOSS.rtol)
    assert True in uncompiled
    for name, gradient in expected.items():
        assert apart(found[name], gradient) <= GRADIENT.atol, name


def test_a_block_that_drops_elements_of_turned_arrays_runs_op_by_op_with_one_warning(
    uncompiled, monkeypatch
):
    model = model_of("gpt2", dropout=0.2)
    mlp = type(model.blocks[0].mlp)
    turned = lambda self, x: F.dropout(x.transpose(0, 1), 0.5).transpose(0, 1)  # noqa: E731
    monkeypatch.setattr(mlp, "forward", turned)
    capturing.capture(model, "region")
    with pytest.warns(UserWarning, match="region falls back to off: .* masks of contiguous arrays"):
        gradients(model, window())
    assert uncompiled == []
