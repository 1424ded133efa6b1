"""Habits that people bring from torch: augmented assignment, no_grad's forms, `.data`, `.grad`."""

import copy
import pickle

import pytest

torch = pytest.importorskip(
    "torch", reason="the judge of these tests is PyTorch: pip install torch"
)

import nplm  # noqa: E402
from nplm.parity.tolerances import FORMULA_64, assert_close  # noqa: E402

pytestmark = pytest.mark.op


@pytest.mark.parametrize("lib", [torch, nplm], ids=["torch", "nplm"])
def test_gradient_descent_by_hand_changes_the_parameters(lib):
    lib.manual_seed(0)
    layer = lib.nn.Linear(3, 1)
    x, y = lib.randn(8, 3), lib.randn(8, 1)
    losses = []
    for _ in range(20):
        loss = ((layer(x) - y) ** 2).mean()
        layer.zero_grad()
        loss.backward()
        with lib.no_grad():
            for p in layer.parameters():
                p -= 0.1 * p.grad
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("lib", [torch, nplm], ids=["torch", "nplm"])
def test_augmented_assignment_writes_in_place_and_keeps_the_object(lib):
    for change, expected in (
        (lambda t: t.__iadd__(2), 5), (lambda t: t.__isub__(2), 1), (lambda t: t.__imul__(2), 6),
        (lambda t: t.__itruediv__(2), 1.5),
    ):  # fmt: skip
        t = lib.zeros(2) + 3
        other_name = t
        assert change(t) is other_name
        assert other_name.tolist() == [expected, expected]
    with pytest.raises(RuntimeError):
        lib.ones(2, requires_grad=True).__iadd__(1)


def test_augmented_assignment_of_recorded_tensors_has_torchs_gradient(device):
    grads = []
    for lib, where in ((nplm, {"device": device}), (torch, {})):
        w = lib.ones(3, dtype=lib.float64, requires_grad=True, **where)
        total = lib.zeros(3, dtype=lib.float64, **where)
        total += w * 2
        total *= w
        total -= w
        total /= w + 1
        total.sum().backward()
        grads.append(w.grad)
    assert_close(grads[0], grads[1], FORMULA_64)


@pytest.mark.parametrize("lib", [torch, nplm], ids=["torch", "nplm"])
def test_every_form_of_no_grad_and_set_grad_enabled(lib):
    seen = []

    @lib.no_grad()
    def called():
        seen.append(lib.is_grad_enabled())

    @lib.no_grad
    def bare():
        seen.append(lib.is_grad_enabled())

    @lib.set_grad_enabled(False)
    def setter():
        seen.append(lib.is_grad_enabled())

    seen.append(lib.is_grad_enabled())
    called()
    bare()
    setter()
    with lib.no_grad():
        with lib.enable_grad():
            seen.append(lib.is_grad_enabled())
        seen.append(lib.is_grad_enabled())
    lib.set_grad_enabled(False)
    seen.append(lib.is_grad_enabled())
    lib.set_grad_enabled(True)
    with lib.set_grad_enabled(False):
        seen.append(lib.is_grad_enabled())
    seen.append(lib.is_grad_enabled())
    assert seen == [True, False, False, False, True, False, False, False, True]


@pytest.mark.parametrize("lib", [torch, nplm], ids=["torch", "nplm"])
def test_one_no_grad_object_serves_two_blocks(lib):
    mode = lib.no_grad()
    with mode:
        pass
    with mode:
        assert not lib.is_grad_enabled()
    assert lib.is_grad_enabled()


@pytest.mark.parametrize("lib", [torch, nplm], ids=["torch", "nplm"])
def test_a_gradient_of_another_shape_or_kind_is_refused(lib):
    w = lib.ones(2, requires_grad=True)
    w.grad = lib.zeros(2)
    w.grad = None
    for wrong in (lib.zeros(3), lib.zeros(2, dtype=lib.float64)):
        with pytest.raises(RuntimeError):
            w.grad = wrong
    with pytest.raises((RuntimeError, TypeError)):
        w.grad = 1.0


@pytest.mark.parametrize("lib", [torch, nplm], ids=["torch", "nplm"])
def test_data_can_be_written_and_replaced(lib):
    w = lib.ones(2, requires_grad=True)
    w.data -= 0.5
    assert w.tolist() == [0.5, 0.5]
    w.data = lib.zeros(2)
    assert w.requires_grad
    assert w.tolist() == [0, 0]


@pytest.mark.parametrize("lib", [torch, nplm], ids=["torch", "nplm"])
def test_comparing_with_none_or_text_is_no_elementwise_question(lib):
    x = lib.zeros(2)
    assert (x == None) is False  # noqa: E711
    assert (x != None) is True  # noqa: E711
    assert (x == "a") is False


@pytest.mark.parametrize("lib", [torch, nplm], ids=["torch", "nplm"])
def test_a_loss_can_be_formatted(lib):
    assert f"{lib.tensor(1.23456):.2f}" == "1.23"
    assert "tensor" in f"{lib.tensor([1.0, 2.0])}"


@pytest.mark.parametrize("lib", [torch, nplm], ids=["torch", "nplm"])
def test_softmax_of_nothing_is_nothing(lib):
    assert lib.zeros(3, 0).softmax(-1).tolist() == [[], [], []]
    assert lib.nn.functional.log_softmax(lib.zeros(0, 2), 0).tolist() == []


def test_a_tensor_says_how_to_be_saved_instead_of_pickled():
    for thing in (nplm.zeros(2), nplm.nn.Linear(2, 2)):
        with pytest.raises(TypeError, match=r"save model\.state_dict\(\)"):
            pickle.dumps(thing)
    assert copy.deepcopy(nplm.nn.Linear(2, 2)).weight.shape == (2, 2)
