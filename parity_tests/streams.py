"""What the tests of the random stream share: equal bits, equal places, tensors of every layout."""

import numpy as np
import torch

import nplm
from nplm.parity.tolerances import OTHER_CPU_ULPS, to_numpy

# With AVX2 or AVX512 torch rounds x * a + b once and takes float32 log, cos, sin from polynomials
# that nplm.random repeats: every bit is equal.
EVERY_BIT = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")

DTYPES = {np.float32: torch.float32, np.float64: torch.float64}
KEPT = slice(5016, None)  # where torch.get_rng_state() has the kept normal


def assert_same_numbers(ours, theirs, scale=0.0):
    """Shape, dtype and every bit; on other CPUs the stated ulps of the largest float or `scale`."""
    ours, theirs = to_numpy(ours), to_numpy(theirs)
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    if EVERY_BIT or ours.dtype.kind != "f" or not ours.size:
        assert ours.tobytes() == theirs.tobytes(), f"{(ours != theirs).mean():.2%} differ"
    else:
        ulp = np.spacing(theirs.dtype.type(max(np.abs(theirs).max(), scale)))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=OTHER_CPU_ULPS * ulp)


def assert_same_place(ours, theirs=None):
    """Every byte of the state: seed, key, position, kept normal."""
    ours = ours.to_torch_state()
    theirs = (torch.get_rng_state() if theirs is None else theirs.get_state()).numpy().copy()
    if not EVERY_BIT:  # the kept normal is a float64 of the C library there too
        ours[KEPT], theirs[KEPT] = 0, 0
    np.testing.assert_array_equal(ours, theirs)


# ---- tensors -------------------------------------------------------------------------------------
# The size classes of normal_: pairs below 16, whole blocks of 16, tails, more than one BLOCK.
SHAPES = [
    (), (0,), (1,), (2,), (7,), (15,), (16,), (17,), (31,), (32,), (47,), (1000,), (16401,),
    (3, 0), (0, 5), (1, 1), (1, 16), (16, 1), (3, 5), (4, 4), (2, 8), (5, 7), (33, 17), (130, 127),
    (2, 3, 5), (1, 3, 6), (4, 1, 9), (2, 2, 4), (3, 1, 1), (5, 4, 3), (2, 3, 2, 3), (2, 1, 4, 2),
]  # fmt: skip


def _rotated(L, shape, make):
    ndim = len(shape)
    return make((*shape[1:], *shape[:1])).permute((*(range(ndim)[-1:]), *range(ndim - 1)))


# layout -> (library, shape, a function from a shape to a contiguous tensor) -> a tensor of `shape`
LAYOUTS = {
    "contiguous": lambda L, shape, make: make(shape),
    "transposed": lambda L, shape, make: make(shape[::-1]).permute((*range(len(shape))[::-1],)),
    "rotated": lambda L, shape, make: _rotated(L, shape, make),
    "every second": lambda L, shape, make: (
        make((*shape[:-1], 2 * shape[-1]))[..., ::2] if shape else make(())
    ),
    "columns": lambda L, shape, make: (
        make((*shape[:-1], shape[-1] + 3))[..., 1:-2] if shape else make(())
    ),
    "rows": lambda L, shape, make: (
        make((shape[0] + 2, *shape[1:]))[1:-1] if shape else make(())
    ),
    "every second, transposed": lambda L, shape, make: (
        make((*shape[::-1][:-1], 2 * shape[0]))[..., 1::2].permute((*range(len(shape))[::-1],))
        if shape
        else make(())
    ),
}  # fmt: skip
BROADCAST = {
    "rows of one": lambda L, shape, make: make((1, *shape[1:])[: len(shape)]).expand(shape),
    "one for all": lambda L, shape, make: make(()).expand(shape),
    "a column, transposed": lambda L, shape, make: (
        make((*shape[:0:-1], 1)).permute((*range(len(shape))[::-1],)).expand(shape)
        if shape
        else make(())
    ),
}


def tensor_of(L, shape, dtype="float32", layout="contiguous", device="cpu", value=0):
    """A tensor of one value with the given layout, of nplm or of torch."""
    place = {"device": device} if L is nplm else {}
    layouts = LAYOUTS | BROADCAST
    return layouts[layout](L, shape, lambda s: L.full(s, value, dtype=getattr(L, dtype), **place))
