"""Flat buffers, and the updates that run over them: the same bits as tensor by tensor.

Every kernel of backend/numpy_kernels/updates.py is held against its reference here.
"""

import copy
from contextlib import contextmanager
from itertools import chain

import numpy as np
import pytest
from examples import examples
from hypothesis import example, given
from hypothesis import strategies as st

import nplm
from nplm import nn, optim
from nplm.autograd.op import OVERRIDES
from nplm.backend import numpy as xp
from nplm.backend import threads
from nplm.backend.numpy_kernels import updates
from nplm.models import Decoder, DecoderConfig
from nplm.nn.utils import scale_, total_norm_
from nplm.optim.adam import adam_update
from nplm.optim.flat import entries_like, flatten
from nplm.optim.sgd import sgd_update
from nplm.parity.tolerances import EXACT, FORMULA_64, KERNEL_32, ROUNDING_32, RUN_64, assert_close

pytestmark = pytest.mark.step

SHAPES = [(), (3,), (0,), (2, 3), (7, 5), (1,), (4, 1, 2), (33,)]
LAYOUTS = ["flat", "apart", "mixed", "gaps"]
dtypes = st.sampled_from(["float32", "float64"])
thread_counts = st.sampled_from([1, 2, 3])
seeds = st.integers(0, 2**31)


@contextmanager
def small_tiles(n_threads):
    """Tiles of 5 elements and dot products of 4 on so many threads: small arrays have several."""
    before = updates.TILE, updates.BLOCK, threads._chosen
    updates.TILE, updates.BLOCK, threads._chosen = 5, 4, n_threads
    try:
        with xp.quiet():
            yield
    finally:
        updates.TILE, updates.BLOCK, threads._chosen = before


def drawn(rng, dtype, positive=False):
    values = [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]
    return [v * v for v in values] if positive else values


def laid_out(values, layout, rng):
    """Copies of arrays in memory: one after the other, each alone, both, or with odd strides."""
    tensors = [nplm.tensor(v.copy()) for v in values]
    if layout == "mixed":
        flatten(t for t in tensors if rng.random() < 0.7)
    elif layout != "apart":
        flatten(tensors)
    if layout == "gaps":  # transposed, and every second element of each row
        return [
            np.repeat(t.array.T, 2, 0)[::2].T if t.ndim and rng.random() < 0.5 else t.array
            for t in tensors
        ]
    return [t.array for t in tensors]


def hold(kernel, update, make_lists, options, n_threads, steps=5):
    """A kernel and its reference from equal arrays, several times: every bit is the same."""
    ours, theirs = make_lists(), make_lists()
    with small_tiles(n_threads):
        for _ in range(steps):
            kernel(xp, *ours, **options)
            update.raw(xp, *theirs, **options)
            for x, y in zip(chain(*ours), chain(*theirs)):
                assert_close(x, y, EXACT, update.name)


# ---- the kernels ---------------------------------------------------------------------------------
@examples(80)
@given(
    seed=seeds, dtype=dtypes, n_threads=thread_counts,
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 5),
    bad=st.sampled_from([None, np.nan, np.inf, 1e30]),
    options=st.fixed_dictionaries({
        "lr": st.sampled_from([0.0, 0.1]), "beta1": st.sampled_from([0.0, 0.3, 0.5, 0.9]),
        "beta2": st.sampled_from([0.5, 0.999]), "eps": st.sampled_from([1e-8, 1e-3]),
        "weight_decay": st.sampled_from([0, 0.1]), "decoupled_weight_decay": st.booleans(),
        "amsgrad": st.booleans(), "maximize": st.booleans(),
    }),
)  # fmt: skip
def test_adam_over_runs_has_the_bits_of_its_reference(
    seed, dtype, n_threads, layouts, bad, options
):
    def lists():
        rng = np.random.default_rng(seed)
        values = [drawn(rng, dtype, positive=i > 2) for i in range(5)]
        if bad is not None:
            values[1][3][0, 1] = bad
        p, g, m, v, v_max = (laid_out(x, layout, rng) for x, layout in zip(values, layouts))
        steps = rng.integers(1, 3, len(SHAPES)).astype(float).tolist()
        return [p, g, m, v, v_max if options["amsgrad"] else [], steps]

    hold(updates.adam_update, adam_update, lists, options, n_threads)


@examples(60)
@given(
    seed=seeds, dtype=dtypes, n_threads=thread_counts,
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 3),
    options=st.fixed_dictionaries({
        "lr": st.sampled_from([0.0, 0.1]), "momentum": st.sampled_from([0, 0.9]),
        "dampening": st.sampled_from([0, 0.3]), "weight_decay": st.sampled_from([0, 0.1]),
        "nesterov": st.booleans(), "maximize": st.booleans(),
    }),
)  # fmt: skip
def test_sgd_over_runs_has_the_bits_of_its_reference(seed, dtype, n_threads, layouts, options):
    def lists():
        rng = np.random.default_rng(seed)
        p, g, b = (laid_out(drawn(rng, dtype), layout, rng) for layout in layouts)
        return [p, g, *([b, (rng.random(len(SHAPES)) < 0.4).tolist()] if options["momentum"]
                        else [[], []])]  # fmt: skip

    hold(updates.sgd_update, sgd_update, lists, options, n_threads)


@examples(60)
@given(
    seed=seeds, dtype=dtypes, n_threads=thread_counts, layout=st.sampled_from(LAYOUTS),
    factor=st.sampled_from([1.0, 0.3, 0.0, np.nan, np.inf]),
)  # fmt: skip
def test_scaling_over_runs_has_the_bits_of_its_reference(seed, dtype, n_threads, layout, factor):
    def lists():
        rng = np.random.default_rng(seed)
        values = drawn(rng, dtype)
        values[3][0] = np.nan, np.inf, -0.0
        return [laid_out(values, layout, rng), [np.asarray(factor)]]  # of float64, as it may be

    hold(updates.scale_, scale_, lists, {}, n_threads)


@examples(60)
@given(
    seed=seeds, dtype=dtypes, n_threads=thread_counts, layout=st.sampled_from(LAYOUTS),
    bad=st.sampled_from([None, np.nan, np.inf, 1e25, 1.5e19]),
)  # fmt: skip
@example(0, "float32", 1, "flat", 1e25)  # whose square is infinite in float32,
@example(0, "float32", 1, "flat", 1.5e19)  # and here the sum of two squares is
def test_the_norm_over_runs_equals_its_reference(seed, dtype, n_threads, layout, bad):
    rng = np.random.default_rng(seed)
    values = drawn(rng, dtype)
    if bad is not None:
        values[4][2, 1] = values[7][0] = bad
    tensors, (ours, theirs) = laid_out(values, layout, rng), np.zeros((2, 1), dtype)
    with small_tiles(n_threads):
        updates.total_norm_(xp, [ours], tensors, order=2.0)
        total_norm_.raw(xp, [theirs], tensors, order=2.0)
    assert_close(ours, theirs, ROUNDING_32 if dtype == "float32" else FORMULA_64)
    with small_tiles(1):
        updates.total_norm_(xp, [theirs], tensors, order=2.0)
    assert_close(ours, theirs, EXACT, "on one thread")


def test_the_norm_of_a_million_float32_numbers_is_right_to_the_last_place():
    x = np.random.default_rng(0).standard_normal(1_000_003).astype(np.float32)
    x[::1000] = 30
    total = np.zeros((), np.float32)
    updates.total_norm_(xp, [total], [x], order=2.0)
    exact = np.sqrt(np.sum(x.astype(np.float64) ** 2))
    assert abs(float(total) - exact) <= np.spacing(np.float32(exact))


# ---- who is merged, and who declines -------------------------------------------------------------
def flat_lists(*n_lists, dtype="float32"):
    return [laid_out(drawn(np.random.default_rng(i), dtype), "flat", None) for i in n_lists]


def test_flat_lists_are_one_run_and_every_list_has_to_be_flat():
    p, g, m = flat_lists(0, 1, 2)
    (run,) = updates.runs([0] * len(p), p, g, m)
    assert [x.shape for x in run.arrays] == [(sum(x.size for x in p),)] * 3
    assert all(np.shares_memory(x, y[0]) for x, y in zip(run.arrays, (p, g, m)))
    apart = [x.copy() for x in m]
    assert len(updates.runs([0] * len(p), p, g, apart)) == sum(x.size > 0 for x in p)
    assert len(updates.runs([0, 0, 0, 1, 1, 1, 1, 1], p, g, m)) == 2
    assert len(updates.runs([0] * 8, p[::-1], g[::-1], m[::-1])) == 7  # not in memory's order


def test_neighbours_in_a_read_only_or_strided_or_many_axed_array_stay_alone():
    table = np.zeros((4, 6), np.float32)
    locked = np.zeros(12, np.float32)
    parts = [locked[:6], locked[6:]]
    for x in parts:
        x.flags.writeable = False
    memory = bytearray(48)  # of two arrays
    others = [np.frombuffer(memory, np.float32, 6, i)[:] for i in (0, 24)]
    for arrays in (list(table), parts, [locked[0:6:2], locked[6::2]], others):
        assert len(updates.runs([0] * len(arrays), arrays)) == len(arrays)


def test_arrays_of_another_dtype_or_given_twice_are_left_to_the_reference():
    ((when, _),) = OVERRIDES["adam_update", "numpy"]
    p, g = flat_lists(0, 1)
    assert when(p, g, g, g, [], [1.0] * len(p))
    assert not when(p, [x.astype("float64") for x in g], g, g, [], [1.0] * len(p))
    assert not when([p[1], p[1]], g[:2], g[:2], g[:2], [], [1.0, 1.0])
    ((when, _),) = OVERRIDES["scale_", "numpy"]
    assert when(g, [np.ones(())])
    assert not when([g[1], g[1]], [np.ones(())])


# ---- flattening ----------------------------------------------------------------------------------
def small_model(seed=0):
    nplm.manual_seed(seed)
    return Decoder(DecoderConfig(vocab_size=11, context=8, n_layer=2, n_head=2, n_embd=8))


def bases(tensors):
    return {id(t.array if t.array.base is None else t.array.base) for t in tensors}


def step(model, optimizer, seed):
    rng = np.random.default_rng(seed)
    tokens = nplm.tensor(rng.integers(0, 11, (3, 8)))
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(tokens).reshape(-1, 11), tokens.reshape(-1))
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    return loss.item()


def grouped(model):
    params = list(model.parameters())
    groups = [{"params": [p for p in params if p.ndim > 1], "weight_decay": 0.1},
              {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0}]  # fmt: skip
    return optim.AdamW(groups, lr=1e-2)


def test_flattening_keeps_values_objects_ties_and_gradients():
    model = small_model()
    assert model.head.weight is model.wte.weight
    tied = nn.Parameter(model.wte.weight.array)  # another Tensor on the same array
    before = {k: v.array.copy() for k, v in model.state_dict().items()}
    params = list(model.parameters())
    params[0].grad = gradient = nplm.ones(*params[0].shape)
    flatten([*params, params[0], tied])
    assert len(bases(params)) == 1
    assert list(model.parameters()) == params
    assert tied.array is model.wte.weight.array
    assert params[0].grad is gradient
    for name, value in model.state_dict().items():
        assert_close(value, before[name], EXACT, name)
    (run,) = updates.runs([0] * len(params), [p.array for p in params])
    assert run.arrays[0].size == sum(p.numel() for p in params)


def test_flattening_again_moves_nothing_and_frozen_parameters_stay():
    model = small_model()
    frozen = model.wpe.weight.requires_grad_(False)
    optimizer, before = grouped(model), frozen.array
    step(model, optimizer, 0)
    optimizer.flatten()
    groups = [[p for p in g["params"] if p.requires_grad] for g in optimizer.param_groups]
    assert [len(bases(group)) for group in groups] == [1, 1]
    assert frozen.array is before
    arrays = [id(p.array) for p in model.parameters()]
    optimizer.flatten()
    assert [id(p.array) for p in model.parameters()] == arrays


def test_dtypes_have_buffers_of_their_own_and_torch_tensors_stay():
    ours = [nplm.ones(2), nplm.ones(3, dtype=nplm.float64), nplm.zeros(0), nplm.ones(())]
    flatten(ours)
    assert ours[0].array.base is ours[2].array.base is ours[3].array.base
    assert ours[1].array.base is not ours[0].array.base
    assert [t.dtype for t in ours] == ["float32", "float64", "float32", "float32"]
    pytest.importorskip("torch")
    theirs = nplm.ones(2, device="torch:cpu")
    before = theirs.array
    flatten([theirs])
    assert theirs.array is before
    (entry,) = entries_like([theirs], 0.5)
    assert (entry.device, entry.tolist()) == ("torch:cpu", [0.5, 0.5])


@pytest.mark.parametrize("name", ["AdamW", "SGD", "RMSprop", "Rprop"])
def test_new_moments_are_flat_and_hold_what_they_should(name):
    model = small_model()
    options = {"SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.9}}.get(name, {})
    optimizer = getattr(optim, name)(model.parameters(), lr=1e-3, **options)
    step(model, optimizer, 0)
    states = list(optimizer.state.values())
    for entry in states[0].keys() - {"step"}:
        assert len(bases(state[entry] for state in states)) == 1, entry
    values = [e.array for e in entries_like(list(model.parameters()), 0.25)]
    assert all((x == 0.25).all() for x in values)


def run(flat, after, n_threads):
    """(losses, values) of twelve float64 updates, with `after(model, optimizer)` in the middle."""
    model = small_model().to(nplm.float64)
    optimizer, losses = grouped(model), []
    with small_tiles(n_threads):
        for k in range(12):
            if k == 6:
                model, optimizer = after(model, optimizer)
            if flat and k in (0, 6):
                optimizer.flatten()
            losses.append(step(model, optimizer, k))
    return losses, [p.array for p in model.parameters()]


def copied(model, optimizer):
    """A copy of both, made by deepcopy and through a state_dict."""
    other = copy.deepcopy(model)
    new = grouped(other)
    new.load_state_dict(copy.deepcopy(optimizer).state_dict())
    return other, new


def reloaded(model, optimizer):
    """Both from files; the optimizer's entries under "number.name"."""
    named = optimizer.state_dict()
    nplm.save(model.state_dict(), "model.safetensors")
    entries = {f"{i}.{k}": t for i, state in named["state"].items() for k, t in state.items()}
    nplm.save(entries, "optimizer.safetensors")
    model, state = small_model(1).to(nplm.float64), {}
    for key, value in nplm.load("optimizer.safetensors").items():
        number, name = key.split(".")
        state.setdefault(int(number), {})[name] = value
    new = grouped(model)
    new.flatten()
    model.load_state_dict(nplm.load("model.safetensors"))
    new.load_state_dict({**named, "state": state})
    return model, new


def in_float32(model, optimizer):
    """The same model in another dtype; its optimizer starts again."""
    return model, grouped(model.to(nplm.float32))


MIDDLES = {f.__name__: f for f in (copied, reloaded, in_float32)}


@pytest.mark.parametrize("middle", MIDDLES)
def test_a_run_is_the_same_flat_or_not_and_on_any_number_of_threads(middle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected, _ = run(False, MIDDLES[middle], 1)
    losses, values = run(True, MIDDLES[middle], 1)
    tolerance = KERNEL_32 if middle == "in_float32" else RUN_64  # a norm has another order of sums
    assert_close(np.array(losses), np.array(expected), tolerance, "losses")
    for n_threads in (2, 3):
        again, others = run(True, MIDDLES[middle], n_threads)
        assert again == losses
        for x, y in zip(others, values):
            assert_close(x, y, EXACT, f"parameter, on {n_threads} threads")


def test_loaded_moments_are_flat_again():
    model = small_model()
    optimizer = grouped(model)
    step(model, optimizer, 0)
    _, new = copied(model, optimizer)
    matrices = new.param_groups[0]["params"]
    assert len(bases(new.state[p]["exp_avg"] for p in matrices)) == 1


def test_flat_parameters_are_free_to_change_dtype_and_to_be_loaded():
    model = small_model()
    flatten(model.parameters())
    values = {k: v.array.copy() for k, v in model.state_dict().items()}
    other = small_model(1)
    flatten(other.parameters())
    other.load_state_dict(model.state_dict())
    assert len(bases(other.parameters())) == 1
    for name, value in other.to(nplm.float64).state_dict().items():
        assert_close(value, values[name].astype("float64"), EXACT, name)
    assert len(bases(other.parameters())) > 1
