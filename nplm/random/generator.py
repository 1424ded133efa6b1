"""torch.Generator in NumPy: the Mersenne Twister's words, and how every distribution uses them.
Read rounding.py and normals.py after it: they are arithmetic alone.
"""

import math
import operator
import secrets
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from nplm.errors import ConfigError
from nplm.random.layout import memory_order
from nplm.random.normals import box_muller, libm, pairs_of_normals
from nplm.random.rounding import F32, F64, fused_multiply_add

Array = npt.NDArray[Any]
Size = int | Sequence[int]
DType = npt.DTypeLike

N = 624  # words in the twister's state; when the last one is used up, all are renewed
BLOCK = 1 << 14  # numbers worked on at a time: few enough for every temporary to stay in cache
SMALL_PERM = (2**32 - 1) // 20  # from here on torch.randperm draws long words

# The C struct in torch.get_rng_state(): seed, left, 1, next, key, 0, kept normal, 0, is one kept,
# 0, 0.  `left` and `next` are one position seen from both ends; old torches filled the zeros.
TORCH_STATE = struct.Struct(f"QiiQ{N}Qdddi4xf?3x")


class Generator:
    """torch.Generator: a Mersenne Twister and one kept normal.   Bad arguments raise ConfigError.

    Equality with torch is claimed for its kernels on x86 with AVX2 or AVX512; on other CPUs float
    roundings differ, words do not.  Numbers come in the order of the indices; tensors that lie in
    memory otherwise are filled by nplm.ops.draws.  `size` is an int or a sequence of ints, `dtype`
    is float32 or float64 (of integers: any).
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
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(
                f"set_state: expected get_state()'s dict, got {error!r}; "
                "torch's bytes go to from_torch_state"
            ) from error
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
        seed, left, _, _, *key, _, normal, _, has, _, single = TORCH_STATE.unpack(raw.tobytes())
        _expect(not single, "from_torch_state: expected no kept float32 normal: torch keeps none")
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

    def bernoulli(self, size: Size, p: float | Array = 0.5) -> npt.NDArray[np.bool_]:
        """True where a fraction is below p.   torch.empty(size).bernoulli_(p) == 1

        The fraction is a float64 for a number p; for an array p, which broadcasts to `size`, it has
        the dtype of p, and is compared with the p of its own place.
        """
        out, kind = np.empty(_shape(size), np.bool_), F64
        chances: Iterable[float | Array] = repeat(p)
        good = np.all((np.asarray(p) >= 0.0) & (np.asarray(p) <= 1.0))
        _expect(good, f"bernoulli: expected 0 <= p <= 1, got p={p}")
        if isinstance(p, np.ndarray):
            kind = _floating(p.dtype)
            chances = _blocks(np.broadcast_to(p, out.shape).reshape(-1))
        for part, chance in zip(_blocks(out.reshape(-1)), chances):
            part[:] = self._fractions(part.size, kind) < chance
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
            part[:] = -1.0 / rate * libm(math.log1p, -self._fractions(part.size, F64))
        return out

    def randn(self, *size: Any, dtype: DType = F32) -> Array:
        """Standard normal.   torch.randn(2, 3) or torch.randn((2, 3))"""
        return self.normal(size[0] if len(size) == 1 else size, dtype=dtype)

    def normal(
        self,
        size: Size,
        mean: float = 0,
        std: float = 1,
        dtype: DType = F32,
        in_blocks: bool = True,
    ) -> Array:
        """Normal numbers by Box and Muller, two from two fractions u, v.   Tensor.normal_

        With radius = sqrt(-2 log(1 - u)) and angle = 2 pi v, radius * cos(angle) and radius *
        sin(angle) are independent normals.  Below 16 numbers, and in tensors that are not
        contiguous (`in_blocks=False`), torch makes pair after pair; else it makes blocks of 16: so
        the first of 15 numbers is not the first of 16.
        """
        shape, kind = _shape(size), _floating(dtype)
        _expect(std >= 0.0, f"normal: expected std >= 0, got std={std}")
        n = math.prod(shape)
        if n < 16 or not in_blocks:  # in float64 for both dtypes
            out = np.empty(n, kind)
            for part in _blocks(out):
                part[:] = fused_multiply_add(self._next_normals(part.size), std, mean)
            return out.reshape(shape)
        out = self._fractions(n, kind)
        for part in _blocks(out[: n - n % 16]):
            part[:] = box_muller(part, kind.type(mean), kind.type(std))
        if n % 16:  # the last 16 are drawn anew, over what the last whole block has given
            out[-16:] = box_muller(self._fractions(16, kind), kind.type(mean), kind.type(std))
        return out.reshape(shape)

    def _next_normals(self, n: int) -> Array:
        """n float64 normals; the other of the last pair is kept for the next such draw."""
        if n == 0:
            return np.empty(0)
        kept = [] if self._kept_normal is None else [self._kept_normal]
        pairs = self._fractions(n - len(kept) + (n - len(kept)) % 2, F64).reshape(-1, 2)
        normals = np.concatenate([kept, pairs_of_normals(v=pairs[:, 0], u=pairs[:, 1])])
        self._kept_normal = float(normals[n]) if len(normals) > n else None
        return normals[:n]

    def randint(self, low: int, high: int, size: Size, dtype: DType = np.int64) -> npt.NDArray[Any]:
        """word % (high - low) + low: in [low, high).   torch.randint(low, high, size)

        From 2**28 values on the words are long, so that the remainder stays nearly fair.
        """
        low, high = operator.index(low), operator.index(high)
        _expect(low < high, f"randint: expected low < high, got low={low} high={high}")
        in_range = low >= -(2**63) and high < 2**63
        _expect(in_range, f"randint: expected 64-bit bounds, got low={low} high={high}")
        return self._integers("randint", low, high - 1, size, dtype)

    def random(self, size: Size, dtype: DType = F32, low: int | None = None) -> npt.NDArray[Any]:
        """Integers from 0, or from `low`, to the largest of the dtype.   Tensor.random_()

        The largest float is that up to which all integers are floats: 2**24 or 2**53.
        """
        kind = np.dtype(dtype)
        last = _integers_of(kind)[1]
        if low is not None:
            return self._integers("random", operator.index(low), last, size, kind)
        draw = self._long_words if kind.itemsize == 8 else self._words
        shape = _shape(size)
        return (draw(math.prod(shape)) % np.uint64(last + 1)).astype(kind).reshape(shape)

    def _integers(self, name: str, low: int, last: int, size: Size, dtype: DType) -> Array:
        """Integers in [low, last]; if that is all of 64 bits, the long words as they are."""
        shape, kind = _shape(size), np.dtype(dtype)
        first_of, last_of = _integers_of(kind)
        good = first_of <= low <= last <= last_of
        _expect(good, f"{name}: {kind} holds {first_of} to {last_of}, got {low} to {last}")
        count = last - low + 1
        drawn = (self._words if count < 2**28 else self._long_words)(math.prod(shape))
        if count < 2**64:
            drawn = drawn % np.uint64(count) + np.uint64(low % 2**64)  # modulo 2**64, as in C
        return drawn.view(np.int64).astype(kind).reshape(shape)

    def random_int63(self) -> int:
        """One int in [0, 2**63), the seed of others.   torch.empty((), dtype=int64).random_()"""
        return int(self._long_words(1)[0]) % 2**63

    def randperm(self, n: int, dtype: DType = np.int64) -> npt.NDArray[Any]:
        """0 .. n-1 shuffled by Fisher and Yates: i swaps with one of i .. n-1.   torch.randperm(n)

        Each swap needs those before it: the one loop over elements (lists swap faster than arrays).
        From SMALL_PERM on i enters at the end of 0 .. i-1 and swaps with one of 0 .. i instead.
        """
        n, kind = operator.index(n), np.dtype(dtype)
        last = _integers_of(kind)[1]
        _expect(kind != np.bool_, "randperm: expected integers or floats, got bool")
        _expect(
            0 <= n <= last + 1, f"randperm: expected 0 <= n <= {last + 1} for {kind}, got n={n}"
        )
        if n >= SMALL_PERM:
            return self._large_randperm(n, kind)
        places = np.arange(max(n - 1, 0), dtype=np.uint64)
        partners = places + self._words(places.size) % (np.uint64(n) - places)
        out = list(range(n))
        for i, j in enumerate(partners.tolist()):
            out[i], out[j] = out[j], out[i]
        return np.array(out, dtype=kind)

    def _large_randperm(self, n: int, kind: np.dtype[Any]) -> npt.NDArray[Any]:
        """As many numbers as no list should hold: in an array, its long words in blocks."""
        out = np.empty(n, kind)
        cells = memoryview(out)  # type: ignore[arg-type]  # reads and writes faster than an array
        for start in range(0, n, BLOCK):
            places = np.arange(start, min(start + BLOCK, n), dtype=np.uint64)
            partners = self._long_words(places.size) % (places + np.uint64(1))
            for i, j in enumerate(partners.tolist(), start):
                cells[i] = cells[j]
                cells[j] = i
        return out

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
            order = memory_order(rows.shape, rows.strides)  # (1, 0) if the columns are contiguous
            shape = [rows.shape[axis] for axis in order]
            speed = rows / self.exponential(shape, dtype=rows.dtype).transpose(order)  # (B, V)
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


def _integers_of(kind: np.dtype[Any]) -> tuple[int, int]:
    """The first and the last integer that torch draws into a dtype."""
    if kind in (F32, F64):
        return -(2 ** (np.finfo(kind).nmant + 1)), 2 ** (np.finfo(kind).nmant + 1)
    _expect(kind.kind in "iub", f"dtype: expected integers or floats, got {kind}")
    return (0, 1) if kind == np.bool_ else (int(np.iinfo(kind).min), int(np.iinfo(kind).max))


def _check_weights(rows: Array, num_samples: int, replacement: bool) -> None:
    _floating(rows.dtype)
    _expect(rows.ndim == 2, f"multinomial: expected probs (V,) or (B, V), got {rows.ndim} axes")
    good = (np.isfinite(rows) & (rows >= 0)).all() and (rows.sum(axis=1) > 0).all()
    _expect(good, "multinomial: expected finite probs >= 0 with a positive one in every row")
    most = num_samples if replacement else min((rows > 0).sum(axis=1), default=num_samples)
    good = 0 < num_samples <= most  # a row gives no more than it has positive probs
    _expect(good, f"multinomial: expected 1 to {max(most, 1)} samples, got {num_samples}")
