"""nplm.optim.swa_utils against torch.optim.swa_utils: the same bits in float64."""

import copy

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

import nplm
from nplm import nn
from nplm.optim import swa_utils
from nplm.parity.tolerances import EXACT, assert_close, to_numpy

torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")
from side_by_side import assert_same_outcome, net  # noqa: E402  (it needs torch)

pytestmark = pytest.mark.step

tutils = torch.optim.swa_utils
FUSED = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")  # its lerp rounds once
fused = pytest.mark.skipif(not FUSED, reason="torch's lerp is fused on x86 with AVX2 only")
AVERAGES = {
    "swa by default": lambda u: {},
    "swa of one": lambda u: {"avg_fn": u.get_swa_avg_fn()},
    "swa of many": lambda u: {"multi_avg_fn": u.get_swa_multi_avg_fn()},
    "ema of one": lambda u: {"avg_fn": u.get_ema_avg_fn(0.9)},
    "ema of many": lambda u: {"multi_avg_fn": u.get_ema_multi_avg_fn(0.97)},
    "ema of many, quick": lambda u: {"multi_avg_fn": u.get_ema_multi_avg_fn(0.3)},
}
each_average = pytest.mark.parametrize("kind", AVERAGES)


class Pair:
    """A model of nplm and one of torch with equal weights, and their averages."""

    def __init__(self, kind, device="cpu", dtype="float64", average_on=None, **options):
        self.dtype = dtype
        self.ours = net(nplm).to(device, getattr(nplm, dtype))
        self.theirs = net(torch).to(getattr(torch, dtype))
        make = AVERAGES[kind]
        self.average = swa_utils.AveragedModel(self.ours, average_on, **make(swa_utils), **options)
        self.their_average = tutils.AveragedModel(self.theirs, **make(tutils), **options)

    def move(self, rng):
        """Weights and buffers as after an update, the same on both sides."""
        for ours, theirs in zip(
            [*self.ours.parameters(), *self.ours.buffers()],
            [*self.theirs.parameters(), *self.theirs.buffers()],
        ):
            new = to_numpy(theirs) + rng.standard_normal(theirs.shape) * 10.0 ** rng.integers(-9, 1)
            with nplm.no_grad(), torch.no_grad():
                ours.copy_(nplm.tensor(new.astype(self.dtype)))
                theirs.copy_(torch.tensor(new.astype(self.dtype)))

    def update(self):
        self.average.update_parameters(self.ours)
        self.their_average.update_parameters(self.theirs)

    def check(self):
        assert_same_states(self.average.state_dict(), self.their_average.state_dict())


def assert_same_states(ours, theirs):
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert_close(ours[name], value, EXACT, name)


@fused
@each_average
@pytest.mark.parametrize("use_buffers", [False, True])
def test_every_average_has_torchs_bits_over_many_updates(kind, use_buffers, device):
    pair, rng = Pair(kind, device, use_buffers=use_buffers), np.random.default_rng(1)
    pair.check()
    for _ in range(60):
        pair.move(rng)
        pair.update()
        pair.check()
    assert int(pair.average.n_averaged) == 60
    assert_close(pair.average.module.scratch, pair.their_average.module.scratch, EXACT)


@fused
@each_average
def test_every_average_has_torchs_bits_in_float32(kind):
    pair, rng = Pair(kind, dtype="float32"), np.random.default_rng(2)
    for _ in range(30):
        pair.move(rng)
        pair.update()
    pair.check()


@fused
@examples(60)
@given(
    seed=st.integers(0, 2**31),
    decay=st.floats(0, 1),
    dtype=st.sampled_from(["float32", "float64"]),
    special=st.booleans(),
)
def test_an_ema_step_has_torchs_bits_for_any_numbers(seed, decay, dtype, special):
    rng = np.random.default_rng(seed)
    old = rng.standard_normal(rng.integers(0, 40)) * 10.0 ** rng.integers(-8, 8)
    new = old * (1 + rng.standard_normal(old.shape) * 10.0 ** rng.integers(-12, 2))
    if special and old.size > 4:
        old[:4], new[2:5] = [np.inf, np.nan, -0.0, 0.0], [0.0, 0.0, -np.inf]
    results = []
    for library, utils in ((nplm, swa_utils), (torch, tutils)):
        a, b = (library.tensor(x.astype(dtype)) for x in (old, new))
        utils.get_ema_multi_avg_fn(decay)([a], [b], 3)
        results.append(to_numpy(a).view(f"i{a.numpy().itemsize}"))
    both_nan = np.isnan(results[0].view(dtype)) & np.isnan(results[1].view(dtype))
    assert_close(results[0][~both_nan], results[1][~both_nan], EXACT)


@fused
def test_a_step_beside_a_tie_is_rounded_once():
    start = np.array([1 + 2.0**-52])
    end = np.array([1.5 + 2.0**-31 + 2.0**-52])
    weight = 2.0**-52 * (1 - 2.0**-30)  # a move of 2**-53 (1 - 2**-60), just below half a place
    ours, theirs = nplm.tensor(start), torch.tensor(start).lerp_(torch.tensor(end), weight)
    swa_utils._lerp_(ours, nplm.tensor(end), weight)
    assert_close(ours, theirs, EXACT)
    assert_close(ours, start, EXACT)


def test_the_first_update_copies_and_the_second_averages():
    pair = Pair("swa by default")
    with nplm.no_grad():
        pair.average.module.free.fill_(7.0)
        pair.ours.free.fill_(3.0)
    pair.average.update_parameters(pair.ours)
    assert_close(pair.average.module.free, np.full((1, 3), 3.0), EXACT)
    with nplm.no_grad():
        pair.ours.free.fill_(4.0)
    pair.average.update_parameters(pair.ours)
    assert_close(pair.average.module.free, np.full((1, 3), 3.5), EXACT)
    assert_close(pair.ours.free, np.full((1, 3), 4.0), EXACT)


@fused
@each_average
def test_a_state_dict_goes_on_in_the_other_library(kind):
    pair, rng = Pair(kind), np.random.default_rng(3)
    for _ in range(5):
        pair.move(rng)
        pair.update()
    fresh = Pair(kind)
    fresh.ours, fresh.theirs = pair.ours, pair.theirs
    fresh.average.load_state_dict(pair.their_average.state_dict())
    ours = {k: torch.tensor(to_numpy(v)) for k, v in pair.average.state_dict().items()}
    fresh.their_average.load_state_dict(ours)
    assert int(fresh.average.n_averaged) == 5
    for _ in range(5):
        fresh.move(rng)
        fresh.update()
        pair.update()
    assert_same_states(fresh.average.state_dict(), pair.their_average.state_dict())
    assert_same_states(pair.average.state_dict(), fresh.their_average.state_dict())


def test_tied_weights_are_averaged_once_and_stay_tied():
    pair, rng = Pair("ema of one"), np.random.default_rng(4)
    for _ in range(3):
        pair.move(rng)
        pair.update()
    for module in (pair.average.module, copy.deepcopy(pair.average).module):
        assert module.head.weight is module.emb.weight
        assert module.shared is module.blocks[0]
        assert module.head.weight is not pair.ours.head.weight
    pair.check()


def test_a_deep_copy_goes_on_by_itself():
    pair, rng = Pair("swa of one"), np.random.default_rng(5)
    pair.update()
    other = copy.deepcopy(pair.average)
    before = {k: to_numpy(v).copy() for k, v in pair.average.state_dict().items()}
    pair.move(rng)
    other.update_parameters(pair.ours)
    assert int(other.n_averaged) == 2
    assert_same_states(pair.average.state_dict(), before)
    pair.average.update_parameters(pair.ours)
    assert_same_states(pair.average.state_dict(), other.state_dict())


def test_the_average_lies_where_it_is_told_and_takes_a_model_from_elsewhere():
    pair, rng = Pair("ema of one", average_on="torch:cpu"), np.random.default_rng(6)
    assert {v.device for v in pair.average.state_dict().values()} == {"torch:cpu"}
    for _ in range(4):
        pair.move(rng)
        pair.update()
    pair.check()
    assert {p.device for p in pair.ours.parameters()} == {"cpu"}


def test_it_is_a_module_that_gives_what_its_copy_gives():
    pair = Pair("swa by default")
    pair.update()
    ids = np.array([[0, 3, 1]])
    assert_close(pair.average(nplm.tensor(ids)), pair.ours(nplm.tensor(ids)), EXACT)
    assert repr(pair.average).startswith("AveragedModel(\n  (module): Net(")
    assert all(p.requires_grad and p.grad is None for p in pair.average.parameters())


def test_integer_buffers_are_averaged_as_torch_averages_them():
    for kind in ("swa by default", "ema of one", "ema of many"):
        results = []
        for library, utils in ((nplm, swa_utils), (torch, tutils)):
            model = library.nn.Module()
            model.w = library.nn.Parameter(library.ones(2))
            model.register_buffer("counts", library.tensor([3, 90]))
            average = utils.AveragedModel(model, use_buffers=True, **AVERAGES[kind](utils))
            for _ in range(4):
                model.counts += 7
                average.update_parameters(model)
            results.append(to_numpy(average.module.counts))
        assert_close(results[0], results[1], EXACT, kind)


def test_a_function_for_lists_gets_one_list_a_dtype_and_the_count():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3).double())
    calls = []
    average = swa_utils.AveragedModel(
        model, multi_avg_fn=lambda ours, theirs, n: calls.append((len(ours), len(theirs), int(n)))
    )
    average.update_parameters(model)
    assert calls == []  # the first one copies
    average.update_parameters(model)
    assert calls == [(2, 2, 1)] * 2


def test_what_torch_refuses_is_refused_in_its_words():
    def both_functions(library):
        utils = library.optim.swa_utils
        utils.AveragedModel(library.nn.Linear(1, 1), avg_fn=print, multi_avg_fn=print)

    assert_same_outcome(both_functions)
    for decay in (-0.1, 1.5):
        for name in ("get_ema_avg_fn", "get_ema_multi_avg_fn"):
            assert_same_outcome(
                lambda library, n=name, d=decay: getattr(library.optim.swa_utils, n)(d)
            )


def test_another_model_is_refused_before_anything_changes():
    average = swa_utils.AveragedModel(nn.Linear(2, 3))
    before = {k: to_numpy(v).copy() for k, v in average.state_dict().items()}
    for other, says in (
        (nn.Linear(2, 4), r"weight of shape \(3, 2\), got \(4, 2\)"),
        (nn.Linear(2, 3, bias=False), r"bias of shape \(3,\), got None"),
    ):
        with pytest.raises(ValueError, match=says):
            average.update_parameters(other)
    assert_same_states(average.state_dict(), before)


def test_update_bn_reads_nothing_from_the_loader_of_a_model_without_batch_norm():
    for library in (nplm, torch):

        def loader():
            raise AssertionError("it was read")
            yield

        model = library.nn.Linear(2, 2)
        before = to_numpy(model.weight).copy()
        assert library.optim.swa_utils.update_bn(loader(), model) is None
        assert_close(model.weight, before, EXACT)
        with pytest.raises(AttributeError):
            library.optim.swa_utils.update_bn([], 3)
