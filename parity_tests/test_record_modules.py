"""Recorders and any torch module: what it returns, what it does in place, parts called twice."""

import dataclasses
from collections import namedtuple

import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="the judge of these tests is PyTorch: pip install torch"
)

from recorded_runs import names, value  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from nplm.parity import compare, record  # noqa: E402
from nplm.parity.trace import Place  # noqa: E402

pytestmark = pytest.mark.step


class Parts(nn.Module):
    """A torch model from functions: `forward(self, x)` is given, and so are its children."""

    def __init__(self, run, **children):
        super().__init__()
        self.run = run
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)


def one_step(model, x, loss=lambda y: y.square().sum(), optimizer=None, **options):
    """Forward, backward, update of a torch model; the trace."""
    if optimizer is None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(model, optimizer, **options) as recorder:
        loss(model(x)).backward()
        optimizer.step()
    return recorder.trace


def test_an_entry_is_what_torch_computed_and_its_terms_come_from_the_shapes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3), nn.GELU(), nn.Linear(3, 2, bias=False))
    x = torch.randn(2, 7, 5, requires_grad=True)
    h = [x]
    for layer in model:
        h.append(layer(h[-1]))
        h[-1].retain_grad()
    h[-1].square().sum().backward()
    grads = {name: p.grad.numpy().copy() for name, p in model.named_parameters()}
    model.zero_grad()
    trace = one_step(model, x.detach().requires_grad_())
    assert names(trace, "forward") == ["0.input", "0", "1", "2", "3", "output"]
    assert sorted(names(trace, "backward")) == sorted(names(trace, "forward"))
    for i, name in enumerate(["0.input", "0", "1", "2", "3"]):
        np.testing.assert_array_equal(value(trace, "forward", name, micro=1), h[i].detach())
        np.testing.assert_array_equal(value(trace, "backward", name, micro=1), h[i].grad)
    for name, grad in grads.items():
        for phase, micro in (("gradient", 1), ("accumulated", 1), ("clipped", 0)):
            np.testing.assert_array_equal(value(trace, phase, name, micro=micro), grad)
        after = dict(model.named_parameters())[name].detach()
        np.testing.assert_array_equal(value(trace, "parameter", name), after)
        assert not np.array_equal(value(trace, "start", name, step=0), after)
    terms = {(e.place.phase, e.place.name): e.terms for e in trace}
    assert [terms["forward", n] for n in ("0", "1", "3")] == [5, 3, 3]
    assert [terms["backward", n] for n in ("0.input", "0", "2")] == [3, 10, 10]
    assert {terms["gradient", n] for n in grads} == {14}  # rows: B T
    assert terms["clipped", "0.weight"] == 14


Pair = namedtuple("Pair", "a b")


@dataclasses.dataclass
class Bag:
    a: object
    b: object


RETURNS = {
    "tuple": lambda y, z: (y, [z, None]),
    "dict": lambda y, z: {"a": y, "b": {"c": z}, "n": 3},
    "namedtuple": Pair,
    "dataclass": Bag,
}


INSIDE = {
    "tuple": ["two.0", "two.1.0"], "dict": ["two.a", "two.b.c"],
    "namedtuple": ["two.a", "two.b"], "dataclass": ["two.a", "two.b"],
}  # fmt: skip


@pytest.mark.parametrize("kind", RETURNS)
@pytest.mark.parametrize("isolated", [False, True])
def test_tensors_inside_of_what_a_module_returns_are_named_and_its_type_stays(kind, isolated):
    def build():
        torch.manual_seed(0)
        two = Parts(lambda self, x: RETURNS[kind](self.fc(x), x.argmax(-1)), fc=nn.Linear(3, 3))
        returned = []

        def run(self, x):
            result = self.two(x)
            returned.append(result)
            first = [result.a, result] if kind in ("namedtuple", "dataclass") else [
                result["a"] if kind == "dict" else result[0], result]  # fmt: skip
            return first[0]

        return Parts(run, two=two), returned

    x = torch.randn(4, 3)
    reference = one_step(build()[0], x)
    model, returned = build()
    trace = one_step(model, x, like=reference if isolated else None)
    assert [n for n in names(trace, "forward") if n in INSIDE[kind]] == INSIDE[kind]
    assert type(returned[0]) is type(RETURNS[kind](1, 2))
    assert value(trace, "forward", INSIDE[kind][1], micro=1).dtype == np.int64
    assert INSIDE[kind][1] not in names(trace, "backward")  # integers have no gradient
    assert compare(trace, reference, mode="isolated").equal


def test_a_module_called_twice_a_frozen_part_and_two_groups_have_their_own_names():
    shared, frozen = nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(False)
    model = Parts(lambda self, x: self.shared(self.shared(self.frozen(x))),
                  shared=shared, frozen=frozen)  # fmt: skip
    optimizer = torch.optim.SGD(
        [{"params": [shared.weight]}, {"params": [shared.bias], "lr": 0.5}], lr=0.1, momentum=0.9
    )
    trace = one_step(model, torch.randn(2, 3), optimizer=optimizer)
    assert names(trace, "forward") == ["frozen.input", "frozen", "shared", "shared#2", "output"]
    assert set(names(trace, "backward")) == {"shared", "shared#2", "output"}
    assert sorted(names(trace, "gradient")) == ["shared.bias", "shared.weight"]
    assert trace.get(Place(1, 1, "gradient", "shared.bias")).terms == 4  # both calls
    assert names(trace, "lr") == ["lr.0", "momentum.0", "lr.1", "momentum.1"]
    assert names(trace, "state") == ["shared.weight.momentum_buffer", "shared.bias.momentum_buffer"]
    assert "frozen.weight" not in names(trace, "parameter")
    assert "frozen.weight" in names(trace, "start", step=0)


@pytest.mark.parametrize("isolated", [False, True])
def test_an_activation_in_place_is_recorded_before_and_after(isolated):
    def model():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))

    x = torch.randn(5, 3)
    plain = model()
    h = plain[0](x)
    reference = one_step(model(), x)
    trace = one_step(model(), x, like=reference) if isolated else reference
    np.testing.assert_array_equal(value(trace, "forward", "0", micro=1), h.detach())
    np.testing.assert_array_equal(value(trace, "forward", "1", micro=1), h.relu().detach())
    assert set(names(trace, "backward")) == {"0", "1", "2", "output"}
    assert compare(trace, reference, mode="isolated").equal
    plain(x).square().sum().backward()
    np.testing.assert_array_equal(
        value(trace, "gradient", "0.weight", micro=1), plain[0].weight.grad
    )


def test_buffers_that_a_step_changed_sparse_gradients_and_checkpoints_are_recorded():
    norm = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    trace = one_step(norm, torch.randn(4, 3))
    assert {"1.running_mean", "1.num_batches_tracked"} <= set(names(trace, "parameter"))
    sparse = nn.Embedding(5, 2, sparse=True)
    trace = one_step(sparse, torch.tensor([1, 1, 3]))
    assert value(trace, "gradient", "weight", micro=1).shape == (5, 2)
    inner = nn.Linear(3, 3)
    model = Parts(lambda self, x: checkpoint(self.inner, self.inner(x), use_reentrant=False),
                  inner=inner)  # fmt: skip
    trace = one_step(model, torch.randn(2, 3))
    # What backward computes again is not recorded again.
    assert names(trace, "forward") == ["inner.input", "inner", "inner#2", "output"]


def test_any_torch_optimizer_is_recorded_and_equal_to_itself_when_isolated():
    for kind in ("SGD", "AdamW", "Adagrad", "RMSprop", "Adafactor", "NAdam", "Rprop", "Adamax"):

        def build(kind=kind):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
            return model, getattr(torch.optim, kind)(model.parameters(), lr=0.01)

        x = torch.randn(5, 3)
        model, optimizer = build()
        reference = one_step(model, x, optimizer=optimizer)
        model, optimizer = build()
        trace = one_step(model, x, optimizer=optimizer, like=reference)
        assert compare(trace, reference, mode="isolated").equal, kind
        assert len(trace) == len(reference)


def test_a_part_called_by_itself_and_a_model_without_optimizer_are_recorded():
    model = nn.ModuleDict({"enc": nn.Linear(2, 2), "dec": nn.Linear(2, 2)})
    with record(model) as recorder:
        model["dec"](model["enc"](torch.ones(1, 2)).relu()).sum().backward()
    assert names(recorder.trace, "forward") == ["enc.input", "enc", "dec.input", "dec"]
    assert value(recorder.trace, "gradient", "enc.weight", micro=1).shape == (2, 2)
