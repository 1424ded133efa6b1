"""How torch draws random numbers on the CPU, in NumPy: one Mersenne Twister, and for every
distribution the rule that turns its 32-bit words into values, down to the last rounding.
Read nothing before it; parity_tests/test_random.py holds it against PyTorch, bit by bit.
"""

import math
import operator
import secrets
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nplm.errors import ConfigError

Array = npt.NDArray[Any]
Size = int | Sequence[int]
DType = npt.DTypeLike

N = 624  # words in the twister's state; when the last one is used up, all are renewed
BLOCK = 1 << 14  # numbers worked on at a time: few enough for every temporary to stay in cache
F32, F64 = np.dtype(np.float32), np.dtype(np.float64)

# The C struct in torch.get_rng_state(): seed, left, 1, next, key, 0, kept normal, 0, is one kept,
# 0, 0.  `left` and `next` are one position seen from both ends; old torches filled the zeros.
TORCH_STATE = struct.Struct(f"QiiQ{N}Qdddi4xf?3x")


class Generator:
    """torch.Generator: a Mersenne Twister and one kept normal.   Bad arguments raise ConfigError.

    Equality with torch is claimed for contiguous tensors (torch fills memory in its order) and for
    its kernels on x86 with AVX2 or AVX512; on other CPUs float roundings differ, words do not.
    `size` is an int or a sequence of ints, `dtype` is float32 or float64.
    """

    def __init__(self, device: str = "cpu") -> None:
        _expect(device == "cpu", f"Generator: expected device 'cpu' (host draws), got {device!r}")
        self.device = device
        self._twister = np.random.MT19937(0)
        self.manual_seed(67280421310721)  # torch's default_rng_seed_val

    def manual_seed(self, seed: int) -> "Generator":
        """Start the stream of `seed`, whose lower 32 bits matter.   Generator.manual_seed"""
        seed = operator.index(seed)
        in_range = -(2**63) <= seed < 2**64
        _expect(in_range, f"manual_seed: expected -2**63 <= seed < 2**64, got {seed}")
        key = _seeded_key(seed)
        return self.set_state({"seed": seed % 2**64, "key": key, "pos": N, "normal": None})

    def seed(self) -> int:
        """Seed from the operating system and return the seed.   Generator.seed"""
        return self.manual_seed(secrets.randbits(53)).initial_seed()

    def initial_seed(self) -> int:
        """The seed that this stream started from.   Generator.initial_seed"""
        return self._seed

    def get_state(self) -> dict[str, Any]:
        """The place in the stream as plain Python values, ready for JSON.   Generator.get_state"""
        twister: Any = self._twister.state["state"]
        key, pos = twister["key"].tolist(), int(twister["pos"])
        return {"seed": self._seed, "key": key, "pos": pos, "normal": self._kept_normal}

    def set_state(self, state: dict[str, Any]) -> "Generator":
        """Go on from what `get_state` returned.   Generator.set_state"""
        try:
            seed, pos = operator.index(state["seed"]), operator.index(state["pos"])
            key = np.array(state["key"], dtype=np.uint32)
            normal = None if state["normal"] is None else float(state["normal"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"set_state: expected get_state()'s dict, got {error!r}") from error
        good = key.shape == (N,) and 0 <= pos <= N and 0 <= seed < 2**64
        _expect(good, f"set_state: expected {N} words and 0 <= pos <= {N}, got {key.shape}, {pos}")
        self._twister.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": pos}}
        self._seed, self._kept_normal = seed, normal
        return self

    def clone_state(self) -> "Generator":
        """Another generator at the same place of the same stream.   Generator.clone_state"""
        return Generator(self.device).set_state(self.get_state())

    def to_torch_state(self) -> npt.NDArray[np.uint8]:
        """The bytes of torch.get_rng_state() at this place of the stream."""
        seed, key, pos, normal = self.get_state().values()
        # A new key is as used up as one whose last word was drawn, but torch writes `next` = 0.
        following = 0 if pos == N and key == _seeded_key(seed).tolist() else pos
        kept = (0.0, normal or 0.0, 0.0, normal is not None, 0.0, False)
        raw = TORCH_STATE.pack(seed, N + 1 - pos, 1, following, *key, *kept)
        return np.frombuffer(bytearray(raw), np.uint8)

    def from_torch_state(self, array: npt.ArrayLike) -> "Generator":
        """Go on from the bytes of torch.get_rng_state()."""
        raw, expected = np.asarray(array), f"{TORCH_STATE.size} bytes of torch.get_rng_state()"
        good = raw.dtype == np.uint8 and raw.shape == (TORCH_STATE.size,)
        _expect(good, f"from_torch_state: expected {expected}, got {raw.dtype} {raw.shape}")
        seed, left, _, _, *key, _, normal, _, has, _, _ = TORCH_STATE.unpack(raw.tobytes())
        kept = normal if has else None
        return self.set_state({"seed": seed, "key": key, "pos": N + 1 - left, "normal": kept})

    def _words(self, n: int) -> npt.NDArray[np.uint64]:
        """n words of 32 bits, held in 64."""
        return self._twister.random_raw(n)

    def _long_words(self, n: int) -> npt.NDArray[np.uint64]:
        """n words of 64 bits, each from two draws, high half first."""
        pairs = self._words(2 * n)
        return pairs[::2] << np.uint64(32) | pairs[1::2]

    def _fractions(self, n: int, kind: np.dtype[Any]) -> Array:
        """n numbers k / 2**24 from words (float32), k / 2**53 from long words (float64); exact."""
        bits, draw = (24, self._words) if kind == F32 else (53, self._long_words)
        out = np.empty(n, kind)
        for part in _blocks(out):
            part[:] = draw(part.size) & np.uint64(2**bits - 1)
            part *= 2.0**-bits
        return out

    def rand(self, *size: Any, dtype: DType = F32) -> Array:
        """Uniform in [0, 1).   torch.rand(2, 3) or torch.rand((2, 3))"""
        return self.uniform(size[0] if len(size) == 1 else size, dtype=dtype)

    def uniform(self, size: Size, low: float = 0, high: float = 1, dtype: DType = F32) -> Array:
        """fraction * (high - low) + low, rounded once: in [low, high).   Tensor.uniform_"""
        shape, kind = _shape(size), _floating(dtype)
        bottom, top = kind.type(low), kind.type(high)
        good = bottom <= top and math.isfinite(high - low)
        _expect(good, f"uniform: expected finite low <= high, got low={low} high={high}")
        out = self._fractions(math.prod(shape), kind)
        for part in _blocks(out):
            part[:] = fused_multiply_add(part, top - bottom, bottom)
            part[part == top] = bottom  # rounding can reach `high`, which the interval excludes
        return out.reshape(shape)

    def bernoulli(self, size: Size, p: float = 0.5) -> npt.NDArray[np.bool_]:
        """True where a float64 fraction is below p.   torch.empty(size).bernoulli_(p) == 1"""
        _expect(0.0 <= p <= 1.0, f"bernoulli: expected 0 <= p <= 1, got p={p}")
        out = np.empty(_shape(size), np.bool_)
        for part in _blocks(out.reshape(-1)):
            part[:] = self._fractions(part.size, F64) < p
        return out

    def dropout_mask(self, size: Size, p: float = 0.5) -> npt.NDArray[np.bool_]:
        """What torch.nn.functional.dropout(x, p, training=True) keeps, for x of any dtype."""
        _expect(0.0 <= p <= 1.0, f"dropout_mask: expected 0 <= p <= 1, got p={p}")
        if p in (0.0, 1.0):  # nothing to decide, and nothing is drawn
            return np.full(_shape(size), p == 0.0)
        return self.bernoulli(size, 1.0 - p)

    def exponential(self, size: Size, rate: float = 1.0, dtype: DType = F32) -> Array:
        """-log(1 - fraction) / rate, in float64, then to dtype.   Tensor.exponential_"""
        _expect(rate > 0.0, f"exponential: expected rate > 0, got rate={rate}")
        out = np.empty(_shape(size), _floating(dtype))
        for part in _blocks(out.reshape(-1)):
            part[:] = -1.0 / rate * _libm(math.log1p, -self._fractions(part.size, F64))
        return out

    def randn(self, *size: Any, dtype: DType = F32) -> Array:
        """Standard normal.   torch.randn(2, 3) or torch.randn((2, 3))"""
        return self.normal(size[0] if len(size) == 1 else size, dtype=dtype)

    def normal(self, size: Size, mean: float = 0, std: float = 1, dtype: DType = F32) -> Array:
        """Normal numbers by Box and Muller, two from two fractions u, v.   Tensor.normal_

        With radius = sqrt(-2 log(1 - u)) and angle = 2 pi v, radius * cos(angle) and radius *
        sin(angle) are independent normals.  Below 16 numbers torch makes pair after pair, from 16
        on blocks of 16: so the first of 15 numbers is not the first of 16.
        """
        shape, kind = _shape(size), _floating(dtype)
        _expect(std >= 0.0, f"normal: expected std >= 0, got std={std}")
        n = math.prod(shape)
        if n < 16:  # in float64 for both dtypes
            pairwise = np.array([self._next_normal() for _ in range(n)], F64)
            return fused_multiply_add(pairwise, std, mean).astype(kind).reshape(shape)
        out = self._fractions(n, kind)
        for part in _blocks(out[: n - n % 16]):
            part[:] = _box_muller(part, kind.type(mean), kind.type(std))
        if n % 16:  # the last 16 are drawn anew, over what the last whole block has given
            out[-16:] = _box_muller(self._fractions(16, kind), kind.type(mean), kind.type(std))
        return out.reshape(shape)

    def _next_normal(self) -> float:
        """One float64 normal; the other of the pair is kept for the next small draw."""
        if self._kept_normal is not None:
            kept, self._kept_normal = self._kept_normal, None
            return kept
        v, u = self._fractions(2, F64).tolist()  # here v comes first
        radius, angle = math.sqrt(-2.0 * math.log1p(-u)), 2.0 * math.pi * v
        self._kept_normal = radius * math.sin(angle)
        return radius * math.cos(angle)

    def randint(self, low: int, high: int, size: Size) -> npt.NDArray[np.int64]:
        """word % (high - low) + low: in [low, high).   torch.randint(low, high, size)

        From 2**28 values on the words are long, so that the remainder stays nearly fair.
        """
        low, high, shape = operator.index(low), operator.index(high), _shape(size)
        _expect(low < high, f"randint: expected low < high, got low={low} high={high}")
        in_range = low >= -(2**63) and high < 2**63
        _expect(in_range, f"randint: expected 64-bit bounds, got low={low} high={high}")
        draw = self._words if high - low < 2**28 else self._long_words
        remainders = draw(math.prod(shape)) % np.uint64(high - low)
        return (remainders.view(np.int64) + np.int64(low)).reshape(shape)

    def random_int63(self) -> int:
        """One int in [0, 2**63), the seed of others.   torch.empty((), dtype=int64).random_()"""
        return int(self._long_words(1)[0]) % 2**63

    def randperm(self, n: int) -> npt.NDArray[np.int64]:
        """0 .. n-1 shuffled by Fisher and Yates: i swaps with one of i .. n-1.   torch.randperm(n)

        Each swap needs those before it: the one loop over elements (lists swap faster than arrays).
        """
        most = (2**32 - 1) // 20 - 1  # beyond it torch takes another path
        _expect(0 <= n <= most, f"randperm: expected 0 <= n <= {most}, got n={n}")
        places = np.arange(max(n - 1, 0), dtype=np.uint64)
        partners = places + self._words(places.size) % (np.uint64(n) - places)
        out = list(range(n))
        for i, j in enumerate(partners.tolist()):
            out[i], out[j] = out[j], out[i]
        return np.array(out, dtype=np.int64)

    def multinomial(self, probs: Array, num_samples: int, replacement: bool = False) -> Array:
        """Indices by weight.   (V,) -> (num_samples,), (B, V) -> (B, num_samples)

        A race: index v arrives after Exp(1) / probs[v], the first to arrive win.  Or, for several
        with replacement: look fractions up in the running sum.   torch.multinomial
        """
        probs = np.asarray(probs)
        rows = np.atleast_2d(probs)  # (B, V)
        _check_weights(rows, num_samples, replacement)
        if replacement and num_samples > 1:
            index = np.empty((len(rows), num_samples), np.int64)
            for row, chosen in zip(rows, index):
                running = np.cumsum(row)  # one after the other in the dtype of probs, as in torch
                running /= running[-1]
                running[-1] = 1.0
                fractions = self._fractions(num_samples, F64)
                chosen[:] = np.searchsorted(running.astype(F64), fractions)
        else:
            speed = rows / self.exponential(rows.shape, dtype=rows.dtype)  # (B, V)
            index = speed.argmax(axis=1)[:, None]  # of equals the first
            if num_samples > 1:
                index = np.argsort(-speed, axis=1, kind="stable")[:, :num_samples]
        return index.reshape(*probs.shape[:-1], num_samples)


def _seeded_key(seed: int) -> npt.NDArray[np.uint32]:
    """The twister's first state, by Knuth's recurrence from the seed's lower 32 bits."""
    key = [seed & 0xFFFFFFFF]
    for j in range(1, N):
        key.append((1812433253 * (key[-1] ^ key[-1] >> 30) + j) & 0xFFFFFFFF)
    return np.array(key, dtype=np.uint32)


def _blocks(out: Array) -> Iterator[Array]:
    return (out[start : start + BLOCK] for start in range(0, len(out), BLOCK))


def _box_muller(block: Array, mean: float, std: float) -> Array:
    """Fractions (16 k,) -> normals (16 k,): of every 16, 8 give a radius and the other 8 an angle.

    float64 takes log, cos, sin from the C library.  float32 takes Cephes' polynomials, repeated
    here with every rounding (ATen/native/cpu/avx_mathfun.h, on 8 lanes): NumPy's own float32
    functions would differ from torch in one normal of seven, by up to 4 units in the last place.
    """
    pairs = block.reshape(-1, 2, 8)
    u, angle = 1 - pairs[:, 0], pairs[:, 1] * block.dtype.type(2.0 * math.pi)  # u in (0, 1]
    if block.dtype == F32:
        radius, (cos, sin) = np.sqrt(-2 * _log32(u)), _cos_sin32(angle)
    else:
        radius = np.sqrt(-2 * _libm(math.log, u))
        cos, sin = _libm(math.cos, angle), _libm(math.sin, angle)
    return fused_multiply_add(np.stack([radius * cos, radius * sin], axis=1).reshape(-1), std, mean)


def _libm(function: Callable[[float], float], x: Array) -> Array:
    """The C library's function, one number at a time: NumPy's can differ in the last bit."""
    return np.fromiter(map(function, x.reshape(-1).tolist()), F64, x.size).reshape(x.shape)


LOG = np.array(
    [7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
     -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1], F32
)  # fmt: skip
SQRT_HALF, LN2_HIGH, LN2_LOW = np.array([0.707106781186547524, 0.693359375, -2.12194440e-4], F32)
COS = np.array([2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2], F32)
SIN = np.array([-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1], F32)
EIGHTHS = np.float32(1.27323954473516)  # 4 / pi, and -pi / 4 in three parts of few bits:
PI_4 = np.array([-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8], F32)


def _log32(x: Array) -> Array:
    """log(x) for positive float32: x = 2**e (1 + m) with small m, then a polynomial in m."""
    m, e = np.frexp(x)
    low = m < SQRT_HALF
    m, e = np.where(low, m + m, m) - 1, (e - low).astype(F32)
    y = LOG[0]
    for coefficient in LOG[1:]:
        y = _fma32(y, m, coefficient)
    y = _fma32(y * m, m * m, e * LN2_LOW)
    return _fma32(e, LN2_HIGH, m + _fma32(m * m, -0.5, y))


def _cos_sin32(x: Array) -> tuple[Array, Array]:
    """cos(x), sin(x) for float32 in [0, 2 pi]: polynomials around the nearest k pi / 4, k even."""
    k = ((x * EIGHTHS).astype(np.int32) + 1) & ~1
    for part in PI_4:
        x = _fma32(k, part, x)
    z = x * x
    cos = _fma32(_fma32(COS[0], z, COS[1]), z, COS[2])
    sin = _fma32(_fma32(SIN[0], z, SIN[1]), z, SIN[2])
    cos, sin = _fma32(cos * z, z, z * -0.5) + 1, _fma32(sin * z, x, x)
    swap = (k & 2) != 0  # an odd number of quarter turns away
    cos, sin = np.where(swap, sin, cos), np.where(swap, cos, sin)
    return np.where((k + 2) & 4, -cos, cos), np.where(k & 4, -sin, sin)


def _fma32(x: Array, a: Array | float, b: Array | float) -> Array:
    """x * a + b in float32, by way of float64: two roundings, which almost always equal one."""
    return (np.multiply(x, a, dtype=F64) + b).astype(F32)


def fused_multiply_add(x: Array, a: float, b: float) -> Array:
    """x * a + b rounded once, torch's fused instruction (unless x * a comes near underflow).

    Boldo and Melquiond, "Emulation of FMA and correctly rounded sums" (2008).
    """
    if b == 0:
        return np.asarray(x * x.dtype.type(a) + x.dtype.type(b))
    a64, b64 = np.array(a, F64), np.array(b, F64)
    if x.dtype == F32:  # products of float32 are exact in float64
        return _sum_to_odd(x * a64, b64).astype(F32)
    product = x * a64
    (x1, x2), (a1, a2) = _halves(x), _halves(a64)
    product_error = x2 * a2 - (((product - x1 * a1) - x2 * a1) - x1 * a2)
    low, low_error = _two_sum(b64, product_error)
    high, high_error = _two_sum(product, low)
    return high + _sum_to_odd(low_error, high_error)


def _halves(x: Array) -> tuple[Array, Array]:
    """x in two parts of 26 bits, whose products are exact (Veltkamp)."""
    high = x * (2.0**27 + 1) - (x * (2.0**27 + 1) - x)
    return high, x - high


def _two_sum(x: Array, y: Array) -> tuple[Array, Array]:
    """The rounded sum, and exactly what the rounding took (Knuth)."""
    total = x + y
    y_in_total = total - x
    return total, (x - (total - y_in_total)) + (y - y_in_total)


def _sum_to_odd(x: Array, y: Array) -> Array:
    """x + y, but inexact sums end in bit 1: then rounding again gives what rounding once gives."""
    total, error = _two_sum(x, y)
    bits = total.view(np.int64)
    outwards = np.where((error > 0) == (total > 0), 1, -1)  # away from zero, or towards it
    bits += np.where((error != 0) & (bits & 1 == 0), outwards, 0)
    return total


def _expect(condition: bool | np.bool_, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _shape(size: Size) -> tuple[int, ...]:
    shape = tuple(map(operator.index, size if isinstance(size, Sequence) else (size,)))
    _expect(all(n >= 0 for n in shape), f"size: expected integers >= 0, got {size!r}")
    return shape


def _floating(dtype: DType) -> np.dtype[Any]:
    kind = np.dtype(dtype)
    _expect(kind in (F32, F64), f"dtype: expected float32 or float64, got {kind}")
    return kind


def _check_weights(rows: Array, num_samples: int, replacement: bool) -> None:
    _floating(rows.dtype)
    _expect(rows.ndim == 2, f"multinomial: expected probs (V,) or (B, V), got {rows.ndim} axes")
    good = (np.isfinite(rows) & (rows >= 0)).all() and (rows.sum(axis=1) > 0).all()
    _expect(good, "multinomial: expected finite probs >= 0 with a positive one in every row")
    most = num_samples if replacement else min((rows > 0).sum(axis=1), default=num_samples)
    good = 0 < num_samples <= most  # a row gives no more than it has positive probs
    _expect(good, f"multinomial: expected 1 to {max(most, 1)} samples, got {num_samples}")


# The stream that all share, unpredictable until it is seeded.   torch.manual_seed, torch.random.*
default_generator = Generator()
default_generator.seed()
manual_seed = default_generator.manual_seed
initial_seed = default_generator.initial_seed
get_rng_state = default_generator.get_state
set_rng_state = default_generator.set_state
