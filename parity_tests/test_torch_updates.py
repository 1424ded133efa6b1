"""Updates on torch by its fused kernels: equal to their references, each write counted."""

import itertools

import pytest

from nplm.autograd.op import UPDATES, choose
from nplm.backend import namespace_for
from nplm.parity.tolerances import FORMULA_64, KERNEL_32, assert_close

torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")

pytestmark = pytest.mark.step

XP = namespace_for("torch:cpu")
SHAPES = [(), (3,), (0,), (2, 3), (7, 5), (1,), (4, 1, 2), (33,)]
DTYPES = {torch.float32: KERNEL_32, torch.float64: FORMULA_64}


def drawn(dtype, seed, positive=False):
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]
    return [v * v for v in values] if positive else values


def copied(lists):
    return [[x.clone() if isinstance(x, torch.Tensor) else x for x in each] for each in lists]


def assert_equals_the_reference(name, lists, options, tolerance):
    ours, expected = copied(lists), copied(lists)
    kernel = choose(name, XP, tuple(ours), options)
    assert kernel is not None, f"{name}: the kernel declined"
    kernel(XP, *ours, **options)
    UPDATES[name].raw(XP, *expected, **options)
    for i, (mine, theirs) in enumerate(zip(ours, expected)):
        for a, b in zip(mine, theirs):
            if isinstance(a, torch.Tensor):
                assert_close(a, b, tolerance, f"list {i} of {name}")
                assert a.grad_fn is None
    return ours


def adam_options(**changes):
    return {
        "lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.3,
        "decoupled_weight_decay": True, "amsgrad": False, "maximize": False,
    } | changes  # fmt: skip


def adam_lists(dtype, amsgrad=False, steps=None):
    v_max = drawn(dtype, 4, positive=True) if amsgrad else []
    steps = steps or [float(1 + i % 3) for i in range(len(SHAPES))]
    return [drawn(dtype, 0), drawn(dtype, 1), drawn(dtype, 2), drawn(dtype, 3, True), v_max, steps]


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize(
    ("decoupled", "amsgrad", "maximize"), list(itertools.product((False, True), repeat=3))
)
def test_fused_adam_equals_the_reference_with_counts_of_its_own_for_each(
    dtype, decoupled, amsgrad, maximize
):
    options = adam_options(
        decoupled_weight_decay=decoupled, amsgrad=amsgrad, maximize=maximize
    )  # fmt: skip
    assert_equals_the_reference("adam_update", adam_lists(dtype, amsgrad), options, DTYPES[dtype])


def test_a_rate_and_counts_on_the_device_do_what_numbers_do():
    on_device = adam_lists(torch.float32)
    options = adam_options()
    ours = assert_equals_the_reference("adam_update", on_device, options, KERNEL_32)
    on_device[-1] = [torch.tensor(t) for t in on_device[-1]]
    options["lr"] = torch.tensor(0.1)
    choose("adam_update", XP, tuple(on_device), options)(XP, *on_device, **options)
    for a, b in zip(on_device[0], ours[0]):
        assert_close(a, b, KERNEL_32, "parameters")


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov", "maximize"),
    [(0.0, 0.0, False, False), (0.9, 0.0, False, True), (0.9, 0.4, False, False),
     (0.9, 0.0, True, False)],
)  # fmt: skip
def test_fused_sgd_equals_the_reference_with_fresh_and_old_buffers(
    dtype, momentum, dampening, nesterov, maximize
):
    buffers = drawn(dtype, 2) if momentum else []
    fresh = [i % 2 == 0 for i in range(len(SHAPES))] if momentum else []
    options = {
        "lr": 0.1, "momentum": momentum, "dampening": dampening, "weight_decay": 0.2,
        "nesterov": nesterov, "maximize": maximize,
    }  # fmt: skip
    lists = [drawn(dtype, 0), drawn(dtype, 1), buffers, fresh]
    assert_equals_the_reference("sgd_update", lists, options, DTYPES[dtype])


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_the_norm_and_scaling_equal_their_references(dtype):
    lists = [[torch.zeros((), dtype=dtype)], drawn(dtype, 0)]
    assert_equals_the_reference("total_norm_", lists, {"order": 2.0}, DTYPES[dtype])
    lists = [drawn(dtype, 0), [torch.tensor(0.3, dtype=dtype)]]
    assert_equals_the_reference("scale_", lists, {}, DTYPES[dtype])


def test_a_norm_of_both_dtypes_has_the_wider_one():
    mixed = [*drawn(torch.float32, 0), *drawn(torch.float64, 1)]
    lists = [[torch.zeros((), dtype=torch.float64)], mixed]
    assert_equals_the_reference("total_norm_", lists, {"order": 2.0}, KERNEL_32)


def test_norms_of_bfloat16_are_left_to_the_reference():
    """torch's kernel rounds every tensor's norm to 8 bits before they are added up."""
    lists = [[torch.zeros(())], [x.bfloat16() for x in drawn(torch.float32, 0)]]
    assert choose("total_norm_", XP, tuple(lists), {"order": 2.0}) is None


@pytest.mark.parametrize("what", ["gaps", "twice", "another dtype", "bfloat16"])
def test_what_a_fused_kernel_would_do_wrong_is_left_to_the_reference(what):
    lists = adam_lists(torch.float32)
    if what == "gaps":
        lists[0][4] = torch.randn(5, 7).T
    elif what == "twice":
        for each in lists:
            each[:] = each[:1] * 2
    elif what == "another dtype":
        lists[2][3] = lists[2][3].double()
    else:
        lists = [[x.bfloat16() if isinstance(x, torch.Tensor) else x for x in each]
                 for each in lists]  # fmt: skip
    assert choose("adam_update", XP, tuple(lists), adam_options()) is None


@pytest.mark.parametrize("name", ["adam_update", "sgd_update", "scale_"])
def test_a_fused_update_counts_its_write(name):
    """torch's own do not: whoever keeps a copy of a parameter goes by the count."""
    ps, gs = drawn(torch.float32, 0), drawn(torch.float32, 1)
    before = [p._version for p in ps]
    if name == "adam_update":
        lists, options = [ps, *adam_lists(torch.float32)[1:]], adam_options()
    elif name == "sgd_update":
        lists = [ps, gs, [], []]
        options = dict.fromkeys(("momentum", "dampening", "weight_decay"), 0.0)
        options |= {"lr": 0.1, "nesterov": False, "maximize": False}
    else:
        lists, options = [ps, [torch.tensor(2.0)]], {}
    choose(name, XP, tuple(lists), options)(XP, *lists, **options)
    assert all(p._version > b for p, b in zip(ps, before))
