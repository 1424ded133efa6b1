"""`nplm.utils.checkpoint`: gradients and random stream are those without it, and torch's."""

import threading

import numpy as np
import pytest

import nplm
from nplm.autograd.graph import flags
from nplm.autograd.sinks import Sink, SinkStore
from nplm.errors import GraphError
from nplm.nn import functional as F
from nplm.parity.tolerances import EXACT, FORMULA_64, assert_close
from nplm.utils.checkpoint import checkpoint

torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")
pytestmark = pytest.mark.step


# ---- against torch -------------------------------------------------------------------------------
def outcome_of(library, recompute, body, n=3):
    """(values, gradients, the next draw) of `n` uses of one weight, each by `body`."""
    library.manual_seed(4)
    x = library.randn(5, 6, dtype=library.float64, requires_grad=True)
    weight = library.randn(6, 6, dtype=library.float64, requires_grad=True)
    F = library.nn.functional
    h = x
    for _ in range(n):
        function = lambda h: body(library, F, h, weight)  # noqa: E731
        if recompute:
            h = library.utils.checkpoint.checkpoint(function, h, use_reentrant=False)
        else:
            h = function(h)
    loss = (h * h).sum()
    loss.backward()
    values = [loss.detach(), x.grad, weight.grad, library.rand(3)]
    return [np.array(value.numpy()) for value in values]


def mixing(library, F, h, weight):
    return h + library.tanh(h @ weight)


def dropping(library, F, h, weight):
    return F.dropout(library.tanh(F.dropout(h, 0.3) @ weight), 0.5)


def drawing(library, F, h, weight):
    """Draws of every kind, before, between and after masks."""
    h = F.dropout(h * library.rand(5, 6, dtype=library.float64), 0.3)
    h = h + library.randn(5, 6, dtype=library.float64)
    return F.dropout(library.tanh(h @ weight), 0.5) * library.rand(5, 6, dtype=library.float64)


@pytest.mark.parametrize("body", [mixing, dropping, drawing], ids=lambda body: body.__name__)
def test_gradients_and_the_random_stream_are_torch_checkpoints(body):
    import torch.utils.checkpoint

    ours, theirs = (outcome_of(library, True, body) for library in (nplm, torch))
    for a, b in zip(ours, theirs):
        assert_close(a, b, FORMULA_64, body.__name__)
    assert_close(ours[-1], theirs[-1], EXACT, "the next draw")


@pytest.mark.parametrize("body", [mixing, dropping, drawing], ids=lambda body: body.__name__)
def test_gradients_have_the_bits_of_those_without(body):
    for a, b in zip(outcome_of(nplm, True, body), outcome_of(nplm, False, body)):
        assert_close(a, b, EXACT, body.__name__)


def test_without_the_random_state_the_second_run_draws_anew():
    for library in (nplm, torch):
        library.manual_seed(4)
        x = library.ones(400, requires_grad=True)
        drop = library.nn.functional.dropout
        y = library.utils.checkpoint.checkpoint(
            lambda x, drop=drop: drop(x, 0.5), x, use_reentrant=False, preserve_rng_state=False
        )
        y.sum().backward()
        differ = (np.array(y.detach().numpy()) > 0) != (np.array(x.grad.numpy()) > 0)
        assert 100 < differ.sum() < 300


def test_a_generator_of_its_own_gives_its_masks_twice():
    g = nplm.Generator().manual_seed(3)
    x = nplm.ones(400, requires_grad=True)
    y = checkpoint(lambda x: F.dropout(x, 0.5, generator=g), x)
    y.sum().backward()
    assert_close(x.grad, y.detach(), EXACT, "the mask")


# ---- every way in and out ------------------------------------------------------------------------
def leaf(*shape, seed=0):
    return nplm.tensor(np.random.default_rng(seed).normal(size=shape), requires_grad=True)


def both_ways(function, leaves):
    """The leaves' gradients with `function(checkpoint)` and with `function(a plain call)`."""
    found = []
    for run in (checkpoint, lambda f, *args, **kwargs: f(*args, **kwargs)):
        for tensor in leaves:
            tensor.grad = None
        function(run).sum().backward()
        found.append([None if t.grad is None else np.array(t.grad.numpy()) for t in leaves])
    return found


def assert_same(function, leaves):
    for a, b in zip(*both_ways(function, leaves)):
        assert (a is None) == (b is None)
        if a is not None:
            assert_close(a, b, EXACT, "gradient")


def test_several_outputs_some_of_them_unused_or_without_gradient():
    x, w = leaf(4), leaf(4, seed=1)

    def parts(h):
        return {"a": h * w, "b": [h + 1, (h.detach(), h.long())], "unused": h / w, "n": 3}

    def function(run):
        out = run(parts, x * 2)
        assert not out["b"][1][0].requires_grad
        assert out["n"] == 3
        return out["a"] + out["b"][0] * out["b"][1][0] + out["b"][1][1]

    assert_same(function, [x, w])


def test_arguments_in_containers_by_name_twice_and_passed_through():
    x, w = leaf(4), leaf(4, seed=1)

    def function(run):
        h, k = x * 2, w * 3
        a, same = run(lambda d, two, *, by_name: (d["h"] * two[0] * by_name, two[1]),
                      {"h": h}, (h, k), by_name=k)  # fmt: skip
        return a + same

    assert_same(function, [x, w])


def test_gradients_of_one_tensor_that_is_two_arguments_are_added_in_the_same_order():
    x, w = leaf(1000), leaf(1000, seed=1)

    def function(run):
        h = x * 2
        return run(lambda a, b: a * w + b / w + a * w.tanh() + b * 3, h, h)

    assert_same(function, [x, w])


def test_a_leaf_that_is_the_argument_and_used_inside_and_outside():
    x = leaf(4)
    assert_same(lambda run: run(lambda h: h * x + h, x) * x, [x])


def test_checkpoints_inside_of_checkpoints_and_inside_of_those():
    x, w = leaf(5, 5), leaf(5, 5, seed=1)

    def function(run):
        def inner(h):
            return F.dropout((h @ w).tanh(), 0.3)

        def middle(h):
            return run(inner, run(inner, F.dropout(h, 0.2)))

        nplm.manual_seed(1)
        y = run(lambda h: run(middle, h) + F.dropout(h, 0.5), x * 2)
        return y * float(nplm.rand(1))  # the stream is at the same place

    assert_same(function, [x, w])


def test_a_leaf_that_the_function_makes_and_a_tensor_that_it_keeps_are_its_own_business():
    x, kept = leaf(4), []

    def body(h):
        kept.append(h * 3)
        return kept[-1] * nplm.ones(4, dtype=nplm.float64, requires_grad=True)

    assert_same(lambda run: run(body, x * 2), [x])


def test_nothing_is_recorded_where_nothing_wants_a_gradient():
    x = nplm.ones(3)
    assert not checkpoint(lambda h: h * 2, x).requires_grad
    h = leaf(3) * 2
    with nplm.no_grad():
        assert not checkpoint(lambda h: h * 2, leaf(3)).requires_grad
        assert checkpoint(lambda g: g is h, h)  # a plain call


def test_a_hook_fires_once_when_the_last_gradient_has_arrived():
    w, seen = leaf(3), []
    w.register_post_accumulate_grad_hook(lambda t: seen.append(np.array(t.grad.numpy())))
    h = checkpoint(lambda h: h * w, nplm.ones(3, dtype=nplm.float64))
    (checkpoint(lambda h: h * w, h) * w).sum().backward()
    assert len(seen) == 1
    assert_close(seen[0], 3 * w.detach().numpy() ** 2, FORMULA_64, "gradient of w^3")


def test_gradients_go_into_a_dict_and_no_grad_changes():
    w, into = leaf(3), {}
    checkpoint(lambda h: h * w, nplm.ones(3, dtype=nplm.float64)).sum().backward(into=into)
    assert w.grad is None
    assert_close(into[w], np.ones(3), EXACT, "into")


class Written(Sink):
    """A sink that kernels write to; nothing else arrives."""

    def add(self, gradient):
        pytest.fail("a gradient was made and then added")


def test_kernels_write_to_the_sinks_that_the_forward_had():
    """Where a kernel writes is fixed when an op is recorded, with a checkpoint too."""
    rng = np.random.default_rng(0)
    w = nplm.tensor(rng.normal(size=(3, 4)), requires_grad=True)
    x = nplm.tensor(rng.normal(size=(8, 4)))
    sink = Written(np.full((3, 4), np.nan))
    flags.sinks = {w.node: sink}
    try:
        y = checkpoint(lambda x: F.linear(x, w), x).sum()
    finally:
        flags.sinks = None
    y.backward(into=SinkStore({w: sink}))
    assert sink.filled
    assert w.grad is None
    assert_close(sink.array, np.ones((3, 8)) @ x.numpy(), FORMULA_64, "sink")


def test_the_second_run_is_in_the_modes_of_the_first_and_leaves_the_threads_own():
    x, seen = leaf(3), []

    def body(h):
        seen.append((flags.recording, flags.reference))
        return h * 2

    with nplm.reference():
        y = checkpoint(body, x * 1).sum()
    with nplm.no_grad():
        y.backward()
        assert (flags.recording, flags.reference) == (False, False)
    assert seen == [(True, True)] * 2


def test_a_backward_on_another_thread_is_the_same():
    x = leaf(50)
    nplm.manual_seed(2)
    y = checkpoint(lambda h: F.dropout(h * 2, 0.5), x * 1)
    thread = threading.Thread(target=lambda: y.sum().backward())
    thread.start()
    thread.join()
    assert_close(x.grad, y.detach() / x.detach(), FORMULA_64, "the mask")


# ---- what is refused -----------------------------------------------------------------------------
def test_a_second_backward_is_an_error_as_without():
    y = checkpoint(lambda h: h * 2, leaf(3)).sum()
    y.backward()
    with pytest.raises(GraphError, match="walked before"):
        y.backward()


@pytest.mark.parametrize("first", [True, False])
def test_a_tensor_with_a_graph_that_is_no_argument_is_refused(first):
    """Whether its own graph is walked before the function's or after."""
    x = leaf(3)
    h = x * 2
    for _ in range(5 if first else 0):
        h = h + 1
    with pytest.raises(GraphError, match="one from outside; give it as an argument"):
        (checkpoint(lambda g: g * h, x * 1) + h).sum().backward()


def test_a_function_that_does_something_else_the_second_time_is_refused():
    a, b = leaf(3), leaf(3, seed=1)

    def refused(says, *bodies):
        turns = iter(bodies)
        with pytest.raises(GraphError, match=f"{says}.*it must do the same twice"):
            checkpoint(lambda h: next(turns)(h), a * 1).sum().backward()

    refused("shapes", lambda h: h, lambda h: h.sum())
    refused("shapes", lambda h: h, lambda h: (h, h))
    refused(r"a leaf that the first did not, of shape \(3,\)", lambda h: h, lambda h: h * b)
    refused("mask of shape None", lambda h: h, lambda h: F.dropout(h))
    refused(r"mask of shape \(3,\)", lambda h: F.dropout(h), lambda h: F.dropout(h[:2])[[0, 1, 1]])


def test_the_reentrant_variant_is_refused():
    with pytest.raises(NotImplementedError, match="use_reentrant=True is not supported"):
        checkpoint(lambda h: h, leaf(3), use_reentrant=True)
