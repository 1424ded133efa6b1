"""Updates on NumPy: Adam, SGD, norms and scaling over long runs of memory, in tiles, on threads.

Read optim/adam.py, optim/sgd.py and nn/utils.py before. The order of operations is the same, and so
are the bits, on any number of threads; only a norm is summed in another order.
"""

import math
from collections.abc import Callable, Sequence
from ctypes import addressof, c_char
from itertools import chain, groupby
from typing import Any, NamedTuple
from weakref import ReferenceType, ref

import numpy as np

from nplm.autograd.op import override
from nplm.backend.scratch import scratch
from nplm.backend.threads import in_parts

# Elements of a tile: small enough that its arrays are in the cache when the next operation reads
# them, large enough that two threads seldom wait for the interpreter.
TILE = 1 << 17
BLOCK = 1 << 13  # terms of one dot product: from 10,000 on OpenBLAS would use threads of its own
LONG = 1 << 20  # elements of a part, where one operation is all that is done with them: waking
# another thread, which takes 100 microseconds or more, pays from there on


# ---- runs and tiles ------------------------------------------------------------------------------
class Run(NamedTuple):
    """Arrays of one shape, one of each list: 1-d, or as they are where one has gaps in memory."""

    key: Any
    arrays: list[np.ndarray]


class _Known(NamedTuple):
    """What lies side by side in some lists: the next step brings the same arrays."""

    arrays: list[ReferenceType[np.ndarray]]  # of all lists in a row; one that dies ends all this
    groups: list[list[int]]  # the places in the lists, neighbours together
    joined: list[list[np.ndarray]]  # each group's arrays, as _joined; nothing for one by itself


_known: dict[tuple[int, int], _Known] = {}


def runs(keys: Sequence[Any], *lists: list[np.ndarray]) -> list[Run]:
    """The i-th arrays of all lists and the i-th key; neighbours with equal keys as one long Run.

    Neighbours follow each other in memory in every list, as views of one 1-d array that
    optim/flat.py makes. Arrays without elements are left out.
    """
    if not lists[0]:
        return []
    arrays, place = list(chain(*lists)), (len(lists), id(lists[0][0]))
    known = _known.get(place)
    if known is None or len(known.arrays) != len(arrays) or not all(
        [there() is here for there, here in zip(known.arrays, arrays)]
    ):  # fmt: skip
        known = _known[place] = _look(place, arrays, lists)
    found = []
    for group, joined in zip(known.groups, known.joined):
        for key, places in groupby(group, keys.__getitem__):
            some = list(places)
            if not joined or len(some) < len(group):
                found.append(Run(key, _joined([[x[i] for i in some] for x in lists])))
            else:
                found.append(Run(key, joined))
    return found


def _look(
    place: tuple[int, int], arrays: list[np.ndarray], lists: Sequence[list[np.ndarray]]
) -> _Known:
    """Find the neighbours, whose addresses cost more than all else that is asked of small arrays.

    Whether they can be written to is asked here and not again.
    """
    groups: list[list[int]] = []
    ends: list[int] = []
    for i, each in enumerate(zip(*lists)):
        if not each[0].size:
            continue
        starts = [_address(x) for x in each]
        last = groups[-1][-1] if starts == ends else -1
        if last >= 0 and all(x[i].base is x[last].base for x in lists):
            groups[-1].append(i)
        else:
            groups.append([i])
        ends = [start + x.nbytes for start, x in zip(starts, each)]
    joined = [_joined([[x[i] for i in g] for x in lists]) if len(g) > 1 else [] for g in groups]

    def forget(_: object) -> None:  # else a joined view would keep memory that nobody has
        _known.pop(place, None)

    return _Known([ref(x, forget) for x in arrays], groups, joined)


def _address(x: Any) -> int:
    """Where x begins, or 0, where nothing ends, unless it is a part of a 1-d array of its dtype."""
    base = x.base
    flat = x.flags.carray and isinstance(base, np.ndarray) and base.ndim == 1
    flat = flat and base.flags.carray and base.dtype == x.dtype
    return addressof(c_char.from_buffer(x)) if flat else 0  # ten times as fast as x.ctypes.data


def _joined(neighbours: list[list[Any]]) -> list[np.ndarray]:
    """What follows each other in every list as one 1-d view; what has gaps stays as it is."""
    firsts = [arrays[0] for arrays in neighbours]
    if len(neighbours[0]) == 1:
        whole = all(x.flags.c_contiguous for x in firsts)
        return [x.reshape(-1) for x in firsts] if whole else firsts
    n = sum(x.size for x in neighbours[0])
    starts = [(_address(x) - addressof(c_char.from_buffer(x.base))) // x.itemsize for x in firsts]
    return [x.base[start : start + n] for x, start in zip(firsts, starts)]


def over_tiles(them: list[Run], body: Callable[..., None], least: int = TILE) -> None:
    """Call `body(key, *arrays)` on every tile of every run, all elements divided over the threads.

    A thread has at least `least` elements. An array of several axes, which has gaps, is one tile.
    """

    def part(low: int, high: int) -> None:  # of the elements of all runs in a row
        begin = 0
        for key, arrays in them:
            end = begin + arrays[0].size
            if arrays[0].ndim == 1:
                stop = min(high, end) - begin
                for a in range(max(low, begin) - begin, stop, TILE):
                    body(key, *(x[a : min(a + TILE, stop)] for x in arrays))
            elif low <= begin < high:
                body(key, *arrays)
            begin = end

    in_parts(sum(run.arrays[0].size for run in them), part, least)


def _alike(params: list[np.ndarray], *lists: list[Any], **options: Any) -> bool:
    """Whether every list has its parameter's dtype, and no parameter comes twice.

    Threads would change one that does at once. Lists of numbers, and empty ones, are not looked at.
    """
    arrays = [x for x in lists if x and isinstance(x[0], np.ndarray)]
    dtypes = [p.dtype for p in params]
    return len(set(map(id, params))) == len(params) and all(
        [dtypes[: len(each)] == [x.dtype for x in each] for each in arrays]
    )


# ---- optimizers ----------------------------------------------------------------------------------
def _descent(
    p: np.ndarray, g: np.ndarray, x: np.ndarray, weight_decay: float, maximize: bool
) -> np.ndarray:
    """The gradient with its sign and with the decay of Adam and SGD; g itself if it is that."""
    out = scratch("update g", p.shape, p.dtype) if maximize or weight_decay != 0 else g
    if maximize:
        g = np.negative(g, out=out)
    if weight_decay != 0:
        g = np.add(g, np.multiply(p, weight_decay, out=x), out=out)
    return g


@override("adam_update", backend="numpy", when=_alike)
def adam_update(
    xp, params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, *, lr, beta1, beta2, eps,
    weight_decay, decoupled_weight_decay, amsgrad, maximize,
):  # fmt: skip
    """optim.adam.adam_update: tiles that stay in the cache, on threads, and no temporaries."""

    def tile(t, p, g, m, v, v_max=None):
        x, y = scratch("update x", p.shape, p.dtype), scratch("update y", p.shape, p.dtype)
        if weight_decay != 0 and decoupled_weight_decay:
            p *= 1 - lr * weight_decay
        g = _descent(p, g, x, 0.0 if decoupled_weight_decay else weight_decay, maximize)

        np.subtract(g, m, out=x)  # lerp
        if 1 - beta1 < 0.5:
            x *= 1 - beta1
            m += x
        else:
            x *= 1 - p.dtype.type(1 - beta1)
            np.subtract(g, x, out=m)
        v *= beta2
        np.multiply(g, 1 - beta2, out=x)
        x *= g
        v += x
        if amsgrad:
            v = np.maximum(v_max, v, out=v_max)

        np.sqrt(v, out=x)
        x /= (1 - beta2**t) ** 0.5
        x += eps
        np.multiply(m, -(lr / (1 - beta1**t)), out=y)
        y /= x
        p += y

    moments = [exp_avgs, exp_avg_sqs, *([max_exp_avg_sqs] if amsgrad else [])]
    over_tiles(runs(steps, params, grads, *moments), tile)


@override("sgd_update", backend="numpy", when=_alike)
def sgd_update(
    xp, params, grads, momentum_buffers, fresh, *, lr, momentum, dampening, weight_decay, nesterov,
    maximize,
):  # fmt: skip
    """optim.sgd.sgd_update: tiles that stay in the cache, on threads, and no temporaries."""

    def tile(new, p, g, b=None):
        x = scratch("update x", p.shape, p.dtype)
        g = _descent(p, g, x, weight_decay, maximize)
        if momentum != 0:
            if new:
                b[...] = g
            else:
                b *= momentum
                b += np.multiply(g, 1 - dampening, out=x)
            g = np.add(g, np.multiply(b, momentum, out=x), out=x) if nesterov else b
        p += np.multiply(g, -lr, out=x)

    if momentum != 0:
        over_tiles(runs(fresh, params, grads, momentum_buffers), tile)
    else:
        over_tiles(runs([False] * len(params), params, grads), tile)


# ---- clipping ------------------------------------------------------------------------------------
@override(
    "total_norm_", backend="numpy",
    when=lambda totals, tensors, order: order == 2 and all(
        x.dtype == totals[0].dtype for x in tensors
    ),
)  # fmt: skip
def total_norm_(xp, totals, tensors, *, order):
    """nn.utils.total_norm_ of order 2: dot products of blocks, added in float64.

    One dot product of everything would be 1e-4 off in float32, from ten million terms on.
    """
    squares = 0.0
    for _, (x,) in runs([None] * len(tensors), tensors):
        x = np.ascontiguousarray(x).reshape(-1)
        blocks = x[: x.size // BLOCK * BLOCK].reshape(-1, BLOCK)
        sums = np.empty(len(blocks), x.dtype)

        def part(i, j, rows=blocks, out=sums):
            np.vecdot(rows[i:j], rows[i:j], out=out[i:j])

        in_parts(len(blocks), part, LONG // BLOCK)
        rest = x[blocks.size :]
        squares += float(sums.sum(dtype=np.float64)) + float(np.vecdot(rest, rest))
    # Rounded before the root is taken: what is too large for the dtype is infinite, as elsewhere.
    totals[0][...] = math.sqrt(totals[0].dtype.type(squares))


@override(
    "scale_", backend="numpy",
    when=lambda tensors, factors: len(set(map(id, tensors))) == len(tensors),
)  # fmt: skip
def scale_(xp, tensors, factors):
    """nn.utils.scale_: on threads, and not at all by 1, which would change no bit."""
    (factor,) = factors
    if factor != 1:
        scale = lambda _, x: np.multiply(x, factor, out=x)  # noqa: E731
        over_tiles(runs([None] * len(tensors), tensors), scale, LONG)
