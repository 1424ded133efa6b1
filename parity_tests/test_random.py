"""nplm.random against the running torch: the same numbers, the same place in the stream after."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from examples import examples
from hypothesis import assume, example, given
from hypothesis import strategies as st

from nplm import random as nr
from nplm.errors import ConfigError

torch = pytest.importorskip(
    "torch", reason="the judge of these tests is PyTorch: pip install torch"
)
from streams import DTYPES, assert_same_numbers, assert_same_place  # noqa: E402  (it needs torch)

pytestmark = pytest.mark.op

# Every size class of normal_: pair after pair below 16, whole blocks of 16, tails, several BLOCKs.
SIZES = [0, 1, 2, 7, 15, 16, 17, 31, 32, 1000, nr.BLOCK, nr.BLOCK + 17, 3 * nr.BLOCK + 5]

both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)


def seeded(seed):
    torch.manual_seed(seed)
    return nr.Generator().manual_seed(seed)


def draw_on_both(g, name, *args):
    """One draw of nplm and the same one of torch, as NumPy array and tensor."""
    if name in ("uniform", "normal", "exponential"):
        size, *parameters, dtype = args
        return (
            getattr(g, name)(size, *parameters, dtype=dtype),
            getattr(torch.empty(size, dtype=DTYPES[dtype]), f"{name}_")(*parameters),
        )
    if name in ("rand", "randn"):
        *size, dtype = args
        return getattr(g, name)(*size, dtype=dtype), getattr(torch, name)(
            *size, dtype=DTYPES[dtype]
        )
    if name == "bernoulli":
        size, p = args
        return g.bernoulli(size, p), torch.empty(size).bernoulli_(p) == 1
    if name == "dropout_mask":
        size, p, dtype = args
        x = torch.ones(size, dtype=DTYPES[dtype])
        return g.dropout_mask(size, p), torch.nn.functional.dropout(x, p, training=True) != 0
    if name == "random_int63":
        return np.array(g.random_int63()), torch.empty((), dtype=torch.int64).random_()
    if name == "multinomial":
        probs, num_samples, replacement = args
        return (
            g.multinomial(probs, num_samples, replacement),
            torch.multinomial(torch.from_numpy(probs), num_samples, replacement),
        )
    assert name in ("randint", "randperm")
    return getattr(g, name)(*args), getattr(torch, name)(*args)


def check(g, name, *args):
    assert_same_numbers(*draw_on_both(g, name, *args))
    assert_same_place(g)


# ---- one distribution at a time -----------------------------------------------------------------


@both_dtypes
def test_rand_equals_torch_rand(dtype):
    g = seeded(1)
    for size in SIZES:
        check(g, "rand", size, dtype)
    check(g, "rand", 3, 4, dtype)
    check(g, "rand", (5, 2), dtype)
    check(g, "rand", (), dtype)


@both_dtypes
@pytest.mark.parametrize(
    ("low", "high"),
    # between the last two 15 float32 fit, so one draw in 32 rounds up to `high`
    [(0, 1), (-1, 1), (-0.3, 1 / 3), (2, 2.1), (-(37**-0.5), 37**-0.5), (5, 5), (1e6, 1e6 + 1)],
)
def test_uniform_equals_torch_uniform_after_one_rounding(low, high, dtype):
    g = seeded(2)
    for size in SIZES:
        check(g, "uniform", size, low, high, dtype)


@both_dtypes
@pytest.mark.parametrize(("mean", "std"), [(0, 1), (0, 0.02), (0.3, 1.7), (-5, 0.01), (1.5, 0)])
def test_normal_equals_torch_normal_in_every_size_class(mean, std, dtype):
    g = seeded(3)
    for size in SIZES:
        check(g, "normal", size, mean, std, dtype)


@both_dtypes
def test_randn_equals_torch_randn(dtype):
    g = seeded(4)
    check(g, "randn", 300, 401, dtype)
    check(g, "randn", (2, 3, 2), dtype)


def test_a_million_float32_normals_equal_torch():
    g = seeded(5)
    for _ in range(4):
        check(g, "randn", 250_000, np.float32)


@both_dtypes
def test_the_second_normal_of_a_pair_waits_across_other_draws(dtype):
    g = seeded(6)
    check(g, "normal", 3, 0.5, 2.0, dtype)  # leaves one
    check(g, "randn", 100, dtype)
    check(g, "randint", 0, 10, (5,))
    check(g, "normal", 1, 0.0, 1.0, np.float64)  # takes it, at another scale and dtype
    check(g, "normal", 1, 0.0, 1.0, dtype)
    g.manual_seed(6)
    torch.manual_seed(6)  # forgets it
    check(g, "normal", 2, 0.0, 1.0, dtype)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0, 1),
        (-7, 5),
        (0, 2**28 - 1),
        (0, 2**28),
        (-3, 2**40),
        (-(2**63), 2**63 - 1),
        (2**62, 2**63 - 1),
    ],
)
def test_randint_equals_torch_randint_on_both_sides_of_28_bits(low, high):
    g = seeded(7)
    for size in [(), (0,), (1,), (5, 11), (700,)]:
        check(g, "randint", low, high, size)


def test_random_int63_equals_the_base_seed_of_a_dataloader():
    g = seeded(8)
    for _ in range(20):
        check(g, "random_int63")


@pytest.mark.parametrize("n", [0, 1, 2, 3, 10, 625, 20_000])
def test_randperm_equals_torch_randperm(n):
    check(seeded(9), "randperm", n)


def test_shuffles_follow_a_dataloader_through_epochs():
    loader = torch.utils.data.DataLoader(torch.arange(37), batch_size=37, shuffle=True)
    g = seeded(10)
    for _ in range(3):
        (theirs,) = list(loader)
        g.random_int63()  # the base seed of the workers
        assert_same_numbers(nr.Generator().manual_seed(g.random_int63()).randperm(37), theirs)
        assert_same_place(g)


@both_dtypes
@pytest.mark.parametrize("p", [0.0, 0.1, 0.37, 0.5, 1.0])
def test_masks_equal_torch_dropout_and_bernoulli(p, dtype):
    g = seeded(11)
    for size in [(), 1, (33, 44), nr.BLOCK + 3]:
        check(g, "dropout_mask", size, p, dtype)
        check(g, "bernoulli", size, p)


@both_dtypes
def test_exponential_equals_torch_exponential(dtype):
    g = seeded(12)
    for size in SIZES:
        check(g, "exponential", size, 1.0, dtype)
        check(g, "exponential", size, 1.3, dtype)


@both_dtypes
@pytest.mark.parametrize("shape", [(50,), (4, 300), (1, 1)])
def test_multinomial_equals_torch_multinomial(shape, dtype):
    g = seeded(13)
    weights = np.random.default_rng(0).random(shape).astype(dtype)
    for num_samples in {1, min(7, shape[-1]), shape[-1]}:
        for replacement in (False, True):
            check(g, "multinomial", weights, num_samples, replacement)
    check(g, "multinomial", weights, 1000, True)


def test_multinomial_compares_float32_sums_with_float64_fractions():
    weights = np.random.default_rng(1).random(4096).astype(np.float32)
    check(seeded(19), "multinomial", weights, 200_000, True)


@both_dtypes
def test_multinomial_never_takes_a_weight_of_zero(dtype):
    g = seeded(14)
    weights = np.array([0, 0.2, 0, 1e-6, 3.0, 0], dtype)
    for replacement in (False, True):
        for num_samples in (1, 3):
            for _ in range(50):
                ours, theirs = draw_on_both(g, "multinomial", weights, num_samples, replacement)
                assert_same_numbers(ours, theirs)
                assert (weights[ours] > 0).all()


# ---- any order of draws -------------------------------------------------------------------------

dtypes = st.sampled_from(list(DTYPES))
sizes = st.integers(0, 40) | st.tuples(st.integers(0, 6), st.integers(0, 50))
# Zero, or far from where float32 loses bits to underflow: there fused results are not repeated.
numbers = st.just(0.0) | st.floats(1e-20, 3) | st.floats(-3, -1e-20)
calls = st.one_of(
    st.tuples(st.just("rand"), sizes, dtypes),
    st.tuples(st.just("randn"), sizes, dtypes),
    st.tuples(st.just("normal"), sizes, numbers, numbers.map(abs), dtypes),
    st.tuples(st.just("uniform"), sizes, numbers.map(lambda x: -abs(x)), numbers.map(abs), dtypes),
    st.tuples(st.just("exponential"), sizes, st.floats(0.01, 9), dtypes),
    st.tuples(st.just("bernoulli"), sizes, st.floats(0, 1)),
    st.tuples(st.just("dropout_mask"), sizes, st.floats(0, 1), dtypes),
    st.tuples(st.just("randint"), st.integers(-(2**35), 0), st.integers(1, 2**35), st.just((9,))),
    st.tuples(st.just("random_int63")),
    st.tuples(st.just("randperm"), st.integers(0, 700)),
)


@examples(400)
@given(seed=st.integers(-(2**63), 2**64 - 1), sequence=st.lists(calls, max_size=8))
def test_any_sequence_of_draws_keeps_both_streams_in_step(seed, sequence):
    g = seeded(seed)
    assert g.initial_seed() == torch.initial_seed()
    assert_same_place(g)
    for call in sequence:
        check(g, *call)


# ---- states -------------------------------------------------------------------------------------


@pytest.mark.parametrize("drawn", [0, 1, 623, 624, 625, 1248, 5000])
def test_states_travel_between_torch_and_nplm(drawn):
    torch.manual_seed(2**40 + 5)
    torch.rand(drawn)
    torch.randn(3)  # keeps a normal
    g = nr.Generator().from_torch_state(torch.get_rng_state().numpy())
    assert_same_place(g)
    check(g, "randn", 2, np.float64)
    g.rand(17)
    g.randn(1)
    torch.set_rng_state(torch.from_numpy(g.to_torch_state()))
    assert torch.initial_seed() == g.initial_seed() == 2**40 + 5
    check(g, "randn", 2, np.float64)
    check(g, "rand", 1000, np.float32)


def test_a_position_at_the_end_of_the_state_is_written_as_torch_writes_it():
    for drawn in (0, 624):
        g = seeded(15)
        check(g, "rand", drawn, np.float32)


def test_a_state_survives_json_and_a_clone_goes_its_own_way():
    g = nr.Generator().manual_seed(16)
    g.randn(5)
    state, twin = json.loads(json.dumps(g.get_state())), g.clone_state()
    first = g.randn(7, dtype=np.float64)
    assert first.tobytes() == twin.randn(7, dtype=np.float64).tobytes()
    assert first.tobytes() == g.set_state(state).randn(7, dtype=np.float64).tobytes()
    assert g.get_state() == twin.get_state()


def test_a_new_generator_starts_where_torchs_does():
    theirs = torch.Generator()
    ours = nr.Generator()
    assert ours.initial_seed() == theirs.initial_seed()
    assert_same_numbers(ours.rand(9), torch.rand(9, generator=theirs))


def test_the_module_functions_drive_one_default_generator():
    before = nr.get_rng_state()
    try:
        assert nr.manual_seed(17) is nr.default_generator
        assert nr.initial_seed() == 17
        state = nr.get_rng_state()
        first = nr.default_generator.rand(5)
        nr.set_rng_state(state)
        torch.manual_seed(17)
        assert first.tobytes() == nr.default_generator.rand(5).tobytes()
        assert_same_numbers(first, torch.rand(5))
    finally:
        nr.set_rng_state(before)


def test_seed_is_fresh_and_returned():
    g = nr.Generator()
    first, second = g.seed(), g.seed()
    assert first != second
    assert g.initial_seed() == second < 2**53


# ---- rounding once ------------------------------------------------------------------------------


# A hair (2**-57, 2**-113) above halfway between 1 and its neighbour: two roundings would give 1.
@given(x=st.floats(-1e3, 1e3), a=st.floats(-1e3, 1e3), b=st.floats(-1e3, 1e3))
@example(x=411849.0, a=20857 * 2.0**-57, b=1.0)
@example(x=252707057.0, a=4562284561 * 2.0**-113, b=1.0)
def test_fma_rounds_the_exact_value_once(x, a, b):
    assume(all(v == 0 or abs(v) > 1e-30 for v in (x, a, b)))  # no draw underflows
    exact = Fraction(x) * Fraction(a) + Fraction(b)
    assert nr.fused_multiply_add(np.array([x]), a, b)[0] == float(exact)
    x32, a32, b32 = np.float32(x), np.float32(a), np.float32(b)
    exact = Fraction(float(x32)) * Fraction(float(a32)) + Fraction(float(b32))
    ours = nr.fused_multiply_add(np.array([x32]), a32, b32)[0]
    distance = abs(Fraction(float(ours)) - exact)
    for other in (np.nextafter(ours, np.float32(s)) for s in (-math.inf, math.inf)):
        assert distance <= abs(Fraction(float(other)) - exact)


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: nr.Generator("cuda"), "Generator: expected device 'cpu'"),
        (lambda g: g.manual_seed(2**64), r"manual_seed: expected -2\*\*63 <= seed < 2\*\*64, got"),
        (lambda g: g.randint(3, 3, (1,)), "randint: expected low < high, got low=3 high=3"),
        (lambda g: g.randint(0, 2**63, 1), "randint: expected 64-bit bounds"),
        (lambda g: g.randperm(-1), "randperm: expected 0 <= n <= .*, got n=-1"),
        (lambda g: g.randperm(129, np.int8), "randperm: expected 0 <= n <= 128 for int8, got n"),
        (lambda g: g.randperm(1, np.bool_), "randperm: expected integers or floats, got bool"),
        (lambda g: g.randint(0, 257, 1, np.uint8), "randint: uint8 holds 0 to 255, got 0 to 256"),
        (lambda g: g.randint(-1, 2, 1, np.bool_), "randint: bool holds 0 to 1, got -1 to 1"),
        (lambda g: g.random(1, np.int8, 128), "random: int8 holds -128 to 127, got 128 to 127"),
        (lambda g: g.random(1, np.complex64), "dtype: expected integers or floats, got complex64"),
        (lambda g: g.rand(2, -1), r"size: expected integers >= 0, got \(2, -1\)"),
        (lambda g: g.rand(2, dtype=np.float16), "dtype: expected float32 or float64, got float16"),
        (lambda g: g.uniform(2, 1.0, 0.0), "uniform: expected finite low <= high, got low=1.0"),
        (lambda g: g.uniform(2, math.nan, 0.0), "uniform: expected finite low <= high"),
        (lambda g: g.normal(2, 0.0, -1.0), "normal: expected std >= 0, got std=-1.0"),
        (lambda g: g.exponential(2, 0.0), "exponential: expected rate > 0, got rate=0.0"),
        (lambda g: g.bernoulli(2, 1.5), "bernoulli: expected 0 <= p <= 1, got p=1.5"),
        (lambda g: g.bernoulli(1, np.array([math.nan])), "bernoulli: expected 0 <= p <= 1, got"),
        (lambda g: g.bernoulli(1, np.array([1])), "dtype: expected float32 or float64, got int64"),
        (lambda g: g.dropout_mask(2, -0.5), "dropout_mask: expected 0 <= p <= 1, got p=-0.5"),
        (lambda g: g.multinomial(np.ones((2, 2, 2)), 1), "multinomial: expected probs"),
        (lambda g: g.multinomial(np.ones(3, np.int64), 1), "dtype: expected float32 or float64"),
        (lambda g: g.multinomial(np.array([0.5, -0.5]), 1), "multinomial: expected finite probs"),
        (lambda g: g.multinomial(np.array([0.5, math.nan]), 1), "multinomial: expected finite"),
        (lambda g: g.multinomial(np.zeros(3), 1), "with a positive one in every row"),
        (lambda g: g.multinomial(np.array([1.0, 0.0]), 2), "expected 1 to 1 samples, got 2"),
        (lambda g: g.set_state({"seed": 1}), "set_state: expected get_state.*KeyError"),
        (lambda g: g.set_state(g.get_state() | {"pos": 625}), "set_state: expected 624 words"),
        (lambda g: g.set_state(g.to_torch_state()), "torch's bytes go to from_torch_state"),
        (lambda g: g.from_torch_state(np.zeros(16, np.uint8)), "expected 5056 bytes"),
        (lambda g: g.from_torch_state(np.zeros(5056, np.uint8)), "set_state: expected 624 words"),
    ],
)
def test_bad_arguments_are_named_and_draw_nothing(call, message):
    g = nr.Generator().manual_seed(18)
    before = g.get_state()
    with pytest.raises(ConfigError, match=message):
        call(g)
    assert g.get_state() == before
