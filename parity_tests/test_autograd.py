"""The engine: hooks, accumulation, memory, errors, threads.  Gradients: test_random_graphs.py."""

import copy
import gc
import sys
import threading
import weakref

import numpy as np
import pytest
from agreement import normal

import nplm
from nplm import nn
from nplm.autograd.graph import Leaf, flags, reachable
from nplm.errors import BackendError, GraphError
from nplm.nn import functional as F
from nplm.parity.tolerances import EXACT, FORMULA_64, assert_close

pytestmark = pytest.mark.op


def leaf(*shape, device="cpu", seed=0):
    return nplm.tensor(normal(*shape, seed=seed), device=device, requires_grad=True)


# ---- hooks and where gradients go ----------------------------------------------------------------
def test_a_hook_fires_once_a_backward_when_the_last_of_several_edges_has_arrived(device):
    x, y = leaf(3, device=device), leaf(3, device=device, seed=1)
    seen = []
    x.register_post_accumulate_grad_hook(lambda t: seen.append((t, np.array(t.grad))))
    (x * y + x.exp() + x.sum() * x).sum().backward()
    (x * 2).sum().backward()
    assert [t is x for t, _ in seen] == [True, True]
    np.testing.assert_array_equal(seen[1][1], np.asarray(x.grad))
    np.testing.assert_array_equal(seen[0][1] + 2, np.asarray(x.grad))


def test_a_hook_fires_although_one_of_the_edges_brings_no_gradient(device):
    x = leaf(3, 4, device=device)
    fired = []
    x.register_post_accumulate_grad_hook(lambda t: fired.append(1))
    values, _ = x.max(1)  # only used in part
    cos = x.detach()[:, :2]
    loss = values.sum() + F.rope(x, cos, cos * x[:, 2:]).sum()  # rope sends nothing to sin
    loss.backward()
    assert fired == [1]


def test_a_constant_that_has_a_gradient_elsewhere_still_gets_it(device):
    logits, weight = leaf(2, 3, device=device), leaf(3, device=device, seed=1)
    targets = nplm.tensor([0, 2], device=device)
    (F.cross_entropy(logits, targets, weight * weight) + (weight * 3).sum()).backward()
    np.testing.assert_array_equal(np.asarray(weight.grad), [3, 3, 3])


def test_hooks_are_for_leaves_that_want_a_gradient():
    for tensor in (nplm.zeros(2), leaf(2) * 2):
        with pytest.raises(GraphError, match="expected a leaf that requires a gradient"):
            tensor.register_post_accumulate_grad_hook(print)


def test_gradients_add_up_over_backwards(device):
    x = leaf(3, device=device)
    for _ in range(3):
        (x * x).sum().backward()
    assert_close(x.grad, 6 * np.asarray(x.detach()), FORMULA_64)


def test_backward_into_equals_grad_and_leaves_grad_alone(device):
    def loss():
        return (F.layer_norm(x @ w, (4,)) * w[0]).sum()

    x, w = leaf(2, 3, device=device), leaf(3, 4, device=device, seed=1)
    into = {}
    loss().backward(into=into)
    assert x.grad is None
    assert w.grad is None
    loss().backward(into=into)
    for _ in range(2):
        loss().backward()
    for tensor in (x, w):
        assert_close(nplm.Tensor(into[tensor]), tensor.grad, EXACT)
    assert set(into) == {x, w}


def test_a_gradient_can_be_given_as_tensor_or_number(device):
    x = leaf(2, device=device)
    (x * 3).backward(nplm.tensor([1.0, 2.0], dtype=nplm.float64, device=device))
    np.testing.assert_array_equal(np.asarray(x.grad), [3, 6])
    (x * 3).sum().backward(0.5)
    np.testing.assert_array_equal(np.asarray(x.grad), [4.5, 7.5])
    y = nplm.zeros(2, device=device, requires_grad=True)
    y.exp().backward(nplm.ones(2, dtype=nplm.float64, device=device))
    assert y.grad.dtype == nplm.float32
    with pytest.raises(GraphError, match=r"expected a gradient of shape \(2,\)"):
        (x * 3).backward(nplm.ones(3, device=device))


def test_a_borrowed_gradient_is_not_changed_by_what_others_add(device):
    x, y = leaf(3, device=device), leaf(3, device=device, seed=1)
    given = nplm.ones(3, dtype=nplm.float64, device=device)
    (x + y + x + x).backward(given)  # `add` hands its dy to both sides
    (x + y).backward(given)
    assert given.tolist() == [1, 1, 1]
    assert (x.grad.tolist(), y.grad.tolist()) == ([4, 4, 4], [2, 2, 2])


def test_a_parameter_reuses_its_gradient_buffer(device):
    p = nn.Parameter(nplm.tensor(normal(3), device=device))
    (p * 2).sum().backward()
    kept = p.grad
    (p * 1).sum().backward()
    assert p.grad is kept
    assert p.grad.tolist() == [3, 3, 3]
    p.grad = None
    (p * 5).sum().backward()
    assert np.shares_memory(np.asarray(p.grad), np.asarray(kept))
    assert p.grad.tolist() == [5, 5, 5]


def test_retain_grad_keeps_the_gradient_of_a_result(device):
    x = leaf(3, device=device)
    y = x * 2
    y.retain_grad()
    top, _ = nplm.stack([y, y * y]).max(0)
    top.retain_grad()
    top.sum().backward()
    assert top.grad.tolist() == [1, 1, 1]
    assert_close(y.grad * 2, x.grad, FORMULA_64)
    with pytest.raises(GraphError, match="does not require a gradient"):
        nplm.zeros(2).retain_grad()


# ---- memory --------------------------------------------------------------------------------------
def test_no_activation_survives_backward():
    x = leaf(4, 4)
    gc.disable()  # reference counts alone must be enough
    try:
        y = nplm.tanh(x)
        z = F.softmax((y @ x).exp(), -1)
        watched = [weakref.ref(t.array) for t in (y, z)]
        loss = (z * z).sum()
        del y, z
        assert [ref() is None for ref in watched] == [False, False]  # the closures hold them
        loss.backward()
        assert [ref() is None for ref in watched] == [True, True]
        assert loss.node is not None
    finally:
        gc.enable()


def test_a_graph_that_nobody_walks_is_freed_with_its_result():
    x = leaf(4)
    y = x.exp()
    watched = weakref.ref(y.array)
    loss = (y * y).sum()
    del y, loss
    assert watched() is None


def test_a_leaf_that_died_takes_its_gradient_along():
    x, y = leaf(2), leaf(2, seed=1)
    loss = (x * y).sum()
    del x
    loss.backward()
    assert y.grad is not None


def test_a_chain_of_20000_nodes_needs_no_recursion(device):
    x = leaf(2, device=device)
    y = x
    for _ in range(20_000):
        y = y + 1.0
    assert y.node.rank == 20_000 > sys.getrecursionlimit()
    y.sum().backward()
    assert x.grad.tolist() == [1, 1]
    del y


def test_every_node_waits_for_its_last_consumer(device):
    """A ladder: 2**30 paths, one visit a node."""
    x = leaf(1, device=device)
    y = x
    for _ in range(30):
        y = y + y
    assert sum(reachable(y.node).values()) == 61
    y.backward()
    assert x.grad.tolist() == [2**30]


def test_a_second_backward_is_a_clear_error(device):
    x = leaf(2, device=device)
    shared = x.exp()
    first, second = shared.sum(), (shared * 2).sum()
    first.backward()
    for loss in (first, second):
        with pytest.raises(GraphError, match=r"was walked before .* one backward per forward"):
            loss.backward()
    assert_close(x.grad, np.exp(np.asarray(x.detach())), FORMULA_64)


# ---- what records --------------------------------------------------------------------------------
def test_no_grad_works_as_a_block_and_as_a_decorator():
    x = leaf(2)

    @nplm.no_grad()
    def double(x):
        assert not nplm.is_grad_enabled()
        with nplm.enable_grad():
            assert (x * 2).requires_grad
        return x * 2

    for _ in range(2):
        assert not double(x).requires_grad
    with nplm.no_grad():
        assert not (x * 2).requires_grad
        with nplm.set_grad_enabled(True):
            assert (x * 2).requires_grad
    with pytest.raises(ZeroDivisionError), nplm.no_grad():
        1 / 0  # noqa: B018
    assert nplm.is_grad_enabled()


def test_the_flags_belong_to_a_thread():
    inside, seen = threading.Barrier(2), {}

    def work():
        seen["before"] = (flags.recording, flags.reference)
        inside.wait(10)  # the main thread is inside its blocks
        seen["during"] = (flags.recording, flags.reference, (leaf(1) * 2).requires_grad)
        inside.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    with nplm.no_grad(), nplm.reference():
        inside.wait(10)
        inside.wait(10)
        assert (flags.recording, flags.reference) == (False, True)
    thread.join()
    assert seen == {"before": (True, False), "during": (True, False, True)}


def test_results_that_no_gradient_can_flow_through_do_not_require_one(device):
    x = leaf(2, 3, device=device)
    for y in (x > 0, x.argmax(), x.max(1).indices, x.long(), x.bool(), x.detach(), x.data):
        assert not y.requires_grad
        assert y.is_leaf
    assert x.max(1).values.requires_grad
    assert not (x.detach() * 2).requires_grad
    assert not x.is_leaf or isinstance(x.node, Leaf)


def test_only_floating_leaves_can_require_gradients(device):
    with pytest.raises(GraphError, match="expected a floating tensor, got int64"):
        nplm.tensor([1, 2], device=device, requires_grad=True)
    with pytest.raises(GraphError, match="detach"):
        (leaf(2, device=device) * 2).requires_grad_(False)
    x = leaf(2, device=device)
    x.requires_grad = False
    with pytest.raises(GraphError, match="was not recorded"):
        (x * 2).sum().backward()
    with pytest.raises(GraphError, match=r"expected a scalar, got shape \(2,\)"):
        (leaf(2, device=device) * 2).backward()


def test_a_deep_copy_is_a_leaf_of_its_own(device):
    x = leaf(3, device=device)
    (x * x).sum().backward()
    one, other = copy.deepcopy([x, x])
    assert one is other
    assert one.requires_grad
    assert_close(one.grad, x.grad, EXACT)
    (one * 1).sum().backward()
    assert_close(x.grad, 2 * np.asarray(x.detach()), EXACT)
    one.detach().add_(1)
    assert np.asarray(x.detach())[0] + 1 == np.asarray(one.detach())[0]
    p = copy.deepcopy(nn.Parameter(x.detach()))
    assert type(p) is nn.Parameter
    with pytest.raises(GraphError, match="expected a leaf"):
        copy.deepcopy(x * 2)


# ---- what cannot be mixed ------------------------------------------------------------------------
@pytest.mark.parametrize("array", [np.ones(2), [1.0, 2.0], (1, 2), "2"], ids=repr)
def test_raw_arrays_do_not_slip_into_ops(array, device):
    x = leaf(2, device=device)
    for f in (lambda: x * array, lambda: array * x, lambda: x + array, lambda: array - x):
        with pytest.raises(TypeError, match=r"expected a Tensor or a number|unsupported operand"):
            f()


def test_torch_tensors_do_not_slip_into_ops():
    torch = pytest.importorskip("torch", reason="the second namespace is PyTorch")
    for f in (lambda t: leaf(2) * t, lambda t: t * leaf(2), lambda t: leaf(2, device="cpu") @ t):
        with pytest.raises(TypeError):
            f(torch.ones(2))


def test_two_backends_do_not_meet_in_one_op():
    pytest.importorskip("torch", reason="the second namespace is PyTorch")
    with pytest.raises(BackendError, match=r"add: expected all tensors on one device, got cpu and"):
        leaf(2) + leaf(2, device="torch:cpu")
    with pytest.raises(BackendError, match="unknown device 'tpu'"):
        nplm.zeros(2, device="tpu")


def test_an_error_in_an_op_names_the_op_its_shapes_and_its_options(device):
    with pytest.raises(RuntimeError, match="linear: expected inputs with 3") as caught:
        F.linear(leaf(2, 4, device=device), leaf(5, 3, device=device))
    assert caught.value.__notes__ == [
        "in nplm op 'linear' with inputs (2, 4), (5, 3), None and options {}"
    ]
    with pytest.raises(IndexError) as caught:
        leaf(2, device=device).sum(3, keepdim=True)
    assert "'sum' with inputs (2,) and options {" in caught.value.__notes__[0]
    assert "'dim': 3" in caught.value.__notes__[0]


def test_nothing_in_a_step_on_torch_has_a_grad_fn():
    torch = pytest.importorskip("torch", reason="the second namespace is PyTorch")
    seen = []
    wraps = nplm.Tensor.__init__

    def watch(self, array, requires_grad=False):
        wraps(self, array, requires_grad)
        seen.append((self.array.requires_grad, self.array.grad_fn))

    x = torch.ones(4, 3, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nplm.Tensor, "__init__", watch)
        given = nplm.Tensor(x * 2)  # brings torch's graph along
        w = nn.Parameter(nplm.tensor(np.ones((2, 3), np.float32), device="torch:cpu"))
        loss = F.cross_entropy(
            F.gelu(F.linear(F.layer_norm(given, (3,)), w)),
            nplm.tensor([0, 1, 1, 0], device="torch:cpu"),
        )
        loss.backward()
        with nplm.no_grad():
            w.sub_(w.grad, alpha=0.1)
    assert len(seen) > 6
    assert set(seen) == {(False, None)}
    assert x.grad is None
