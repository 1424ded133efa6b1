"""Module against torch.nn.Module: the same code is run on both libraries and must say the same."""

import copy
from functools import partial

import numpy as np
import pytest

import nplm
from nplm import nn
from nplm.errors import BackendError
from nplm.parity.tolerances import EXACT, assert_close, to_numpy

torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")
from side_by_side import LIBRARIES, assert_same, net, outcome  # noqa: E402  (it needs torch)

pytestmark = pytest.mark.layer


# ---- registration --------------------------------------------------------------------------------
def test_names_come_in_the_order_of_torch():
    def names(library):
        model = net(library)
        return {
            "parameters": [k for k, _ in model.named_parameters()],
            "all": [k for k, _ in model.named_parameters(remove_duplicate=False)],
            "flat": [k for k, _ in model.named_parameters("p", recurse=False)],
            "buffers": [k for k, _ in model.named_buffers()],
            "modules": [k for k, _ in model.named_modules()],
            "every": [k for k, _ in model.named_modules(None, "m", False)],
            "children": [k for k, _ in model.named_children()],
            "state": [(k, tuple(v.shape)) for k, v in model.state_dict().items()],
            "prefix": list(model.blocks.state_dict(prefix="x.")),
            "counts": (len(list(model.parameters())), len(list(model.buffers()))),
            "types": [type(m).__name__ for m in model.modules()],
        }

    found = assert_same(names)
    assert "head.weight" not in found["parameters"]  # tied: once, under its first name
    assert {"emb.weight", "head.weight"} <= {name for name, _ in found["state"]}
    assert "scratch" not in dict(found["state"])


def test_an_empty_list_of_modules_is_a_module_too():
    def names(library):
        model = library.nn.Module()
        model.empty, model.full = library.nn.ModuleList(), library.nn.ModuleList()
        model.full.append(library.nn.ModuleList())
        return [(k, type(m).__name__) for k, m in model.named_modules()]

    assert len(assert_same(names)) == 4


def test_assignments_do_what_torch_does():
    def tables(model):
        return [
            sorted(set(model.__dict__[t]) - {"training"})
            for t in ("_parameters", "_buffers", "_modules")
        ] + [sorted(model.state_dict())]

    def run(library, *steps):
        model = net(library)
        said = [outcome(partial(step, model), library) for step in steps]
        return tables(model), said

    def put(name, make):
        return lambda model, library: setattr(model, name, make(library))

    parameter = lambda library: library.nn.Parameter(library.ones(2))  # noqa: E731
    module = lambda library: library.nn.Linear(2, 2)  # noqa: E731
    tensor = lambda library: library.ones(2)  # noqa: E731
    nothing = lambda _: None  # noqa: E731
    for name in ("free", "scale", "scratch", "emb", "child", "nothing", "steps", "new", "missing"):
        for make in (parameter, module, tensor, nothing, lambda _: 7):
            ours, theirs = (run(library, put(name, make)) for library in LIBRARIES)
            assert ours[0] == theirs[0], name
            assert [s and s[0] for s in ours[1]] == [s and s[0] for s in theirs[1]], name  # classes
        for remove in (lambda m, _: delattr(m, "free"), lambda m, _: delattr(m, "scale"),
                       lambda m, _: delattr(m, "emb"), lambda m, _: delattr(m, "steps"),
                       lambda m, _: delattr(m, "absent")):  # fmt: skip
            ours, theirs = (run(library, remove, put(name, parameter)) for library in LIBRARIES)
            assert ours == theirs, name


@pytest.mark.parametrize(
    "action",
    [
        lambda lib: net(lib).absent,
        lambda lib: lib.nn.Linear(2, 3).wieght,
        lambda lib: setattr(net(lib), "free", 3),
        lambda lib: net(lib).register_buffer("free", lib.ones(1)),
        lambda lib: net(lib).register_parameter("scale", lib.nn.Parameter(lib.ones(1))),
        lambda lib: net(lib).register_module("forward", lib.nn.ReLU()),
        lambda lib: net(lib).add_module("steps", lib.nn.ReLU()),
        lambda lib: net(lib).load_state_dict([]),
    ],
)
def test_errors_have_the_words_of_torch(action):
    kind, words = outcome(action, torch)
    assert outcome(action, nplm) == (kind, words)


@pytest.mark.parametrize("name", ["", "a.b"])
@pytest.mark.parametrize("method", ["register_parameter", "register_buffer", "register_module"])
def test_names_that_no_state_dict_could_hold_are_refused(name, method):
    for library in LIBRARIES:
        with pytest.raises(KeyError, match=r"name can.{1,2}t"):
            getattr(library.nn.Module(), method)(name, None)


@pytest.mark.parametrize("method", ["register_parameter", "register_buffer", "register_module"])
def test_values_of_another_kind_are_refused(method):
    for library in LIBRARIES:
        with pytest.raises(TypeError):
            getattr(library.nn.Module(), method)("name", 3)


def test_what_needs_the_constructor_says_so_and_the_rest_is_free():
    def run(library):
        class Early(library.nn.Module):
            def __init__(self, value):
                self.value = value
                super().__init__()

        said = []
        for make in (lambda lib: lib.nn.ReLU(), lambda lib: lib.nn.Parameter(lib.ones(1))):
            kind, words = outcome(lambda lib, make=make: Early(make(lib)), library)
            said.append((kind, words.replace("parameters", "parameter")))
        return said, Early(3).value

    assert_same(run)


def test_a_parameter_that_replaces_a_transient_buffer_is_saved():
    def run(library):
        module = library.nn.Module()
        module.register_buffer("w", library.ones(2), persistent=False)
        module.w = library.nn.Parameter(library.ones(2))
        return list(module.state_dict())

    assert assert_same(run) == ["w"]


# ---- everything below ----------------------------------------------------------------------------
def test_train_and_eval_reach_every_module_and_return_the_model():
    def run(library):
        model = net(library)
        modes = [[m.training for m in f(model).modules()]
                 for f in (lambda m: m, lambda m: m.eval(), lambda m: m.train())]  # fmt: skip
        model.blocks.eval()
        return modes, [m.training for m in model.modules()]

    assert_same(run)
    for library in LIBRARIES:
        with pytest.raises(ValueError, match="train"):
            net(library).train("yes")


def test_a_child_may_have_its_own_way_to_train():
    def run(library):
        class Frozen(library.nn.Linear):
            def train(self, mode=True):
                return super().train(False)

        return [m.training for m in library.nn.Sequential(Frozen(2, 2)).train().modules()]

    assert assert_same(run) == [True, False]


def test_apply_visits_children_first_as_torch():
    def run(library):
        seen = []
        model = net(library)
        assert model.apply(lambda m: seen.append(type(m).__name__)) is model
        return seen

    assert assert_same(run)[-1] == "Net"


def test_freezing_and_zeroing_gradients_equal_torch():
    def run(library):
        model, said = net(library), []
        say = lambda: said.append([(p.requires_grad, None if p.grad is None else p.grad.tolist())  # noqa: E731
                                   for p in model.parameters()])  # fmt: skip
        model.blocks.requires_grad_(False)
        model.free.grad = library.ones(1, 3)
        say()
        model.zero_grad(set_to_none=False)
        say()
        model.zero_grad()
        say()
        model.requires_grad_()
        say()
        return said

    assert_same(run)


def test_frozen_parameters_get_no_gradient(device):
    model = net(nplm).to(device)
    model.emb.requires_grad_(False)
    model(nplm.tensor([[1, 2]], device=device)).sum().backward()
    assert model.emb.weight.grad is None
    assert model.blocks[1].fc.weight.grad is not None


# ---- moving --------------------------------------------------------------------------------------
def test_to_moves_in_place_and_keeps_identities_ties_and_gradients(device):
    model = net(nplm)
    ids = [id(t) for t in [*model.parameters(), *model.buffers()]]
    model(nplm.tensor([[1, 2, 3]])).sum().backward()
    before = {name: to_numpy(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    assert len(before) > 5
    assert model.to(device) is model
    assert model.to(nplm.float64) is model
    assert [id(t) for t in [*model.parameters(), *model.buffers()]] == ids
    assert model.head.weight is model.emb.weight
    for tensor in [*model.parameters(), *model.buffers()]:
        assert (tensor.device, tensor.dtype) == (device, nplm.float64)
    for name, p in model.named_parameters():
        if name in before:
            assert (p.grad.device, p.grad.dtype) == (device, nplm.float64)
            assert_close(p.grad, before[name].astype(np.float64), EXACT, name)
    model.zero_grad()
    model(nplm.tensor([[1, 2, 3]], device=device)).sum().backward()
    assert model.emb.weight.grad.dtype == nplm.float64


def test_to_takes_devices_dtypes_and_tensors(device):
    module = nn.Linear(2, 2)
    module.register_buffer("count", nplm.tensor([1, 2]))
    like = nplm.zeros(1, dtype=nplm.float64, device=device)
    for move in (
        lambda m: m.to(device, nplm.float64),
        lambda m: m.to(device=device, dtype=nplm.float64),
        lambda m: m.to(device).to("float64"),
        lambda m: m.to(device).double(),
        lambda m: m.to(like),
    ):
        module.to("cpu", nplm.float32)
        move(module)
        assert (module.weight.device, module.weight.dtype) == (device, nplm.float64)
        assert (module.count.device, module.count.dtype) == (device, nplm.int64)
    assert module.float().weight.dtype == nplm.float32


def test_to_refuses_before_anything_moves():
    module = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="expected a floating dtype, got"):
        module.to(nplm.int64)
    with pytest.raises(BackendError, match="unknown device 'gpu'"):
        module.to("gpu", nplm.float64)
    assert (module.weight.device, module.weight.dtype) == ("cpu", nplm.float32)


def test_moved_values_share_no_memory_with_the_old():
    module = nn.Linear(2, 2)
    old = module.weight.array
    module.to("torch:cpu")
    with nplm.no_grad():
        module.weight.fill_(3)
    assert not (old == 3).any()


def test_deepcopy_is_independent_keeps_ties_and_drops_gradients():
    def run(library):
        model = net(library)
        model(library.tensor([[1, 2]])).sum().backward()
        twin = copy.deepcopy(model.eval())
        with library.no_grad():
            model.emb.weight.fill_(0)
        return (
            twin.head.weight is twin.emb.weight,
            twin.shared is twin.blocks[0],
            [k for k, _ in twin.named_parameters()],
            list(twin.state_dict()),
            bool((twin.emb.weight != 0).all()),
            twin.emb.weight.grad is None,
            [type(p).__name__ for p in twin.parameters()],
            twin.training,
            twin.emb.weight.requires_grad,
        )

    assert_same(run)


# ---- parameters ----------------------------------------------------------------------------------
def test_a_parameter_is_a_leaf_that_wants_a_gradient():
    def run(library):
        p, q = library.nn.Parameter(library.ones(2)), library.nn.Parameter(library.ones(2), False)
        return p.requires_grad, p.is_leaf, q.requires_grad, repr(p).split("\n")[0]

    assert_same(run)


def test_a_parameter_reuses_its_gradient_buffer(device):
    p = nn.Parameter(nplm.ones(2, device=device))
    (p * 3).sum().backward()
    first = to_numpy(p.grad)
    p.grad = None
    (p * 4).sum().backward()
    assert np.shares_memory(to_numpy(p.grad), first)
    assert to_numpy(p.grad).tolist() == [4, 4]
    (p * 4).sum().backward()
    assert to_numpy(p.grad).tolist() == [8, 8]
