"""Flat buffers: tensors that are views of one long array, one after the other.

Nobody has to know: such a Tensor is like any other. An update that finds neighbours in all of its
lists works on them as on one long array (backend/numpy_kernels/updates.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nplm.autograd.tensor import Tensor

Array = npt.NDArray[Any]


def flatten(tensors: Iterable[Tensor]) -> None:
    """Move what lies in NumPy into one flat buffer a dtype, in this order.

    Every `.array` becomes a view of it with the same values; the Tensors stay the same objects and
    keep their gradients. What shared one array shares it still. Views that were taken of `.array`
    before do not follow; one that is taken later keeps the whole buffer in memory. Tensors that lie
    so already, and torch's, are left alone.
    """
    sharing: dict[int, list[Tensor]] = {}  # by the array that they have in common
    for t in dict.fromkeys(t for t in tensors if t.xp.name == "numpy"):
        sharing.setdefault(id(t.array), []).append(t)
    for dtype in dict.fromkeys(tied[0].dtype for tied in sharing.values()):
        alike = [tied for tied in sharing.values() if tied[0].dtype == dtype]
        if _are_flat([tied[0].array for tied in alike]):
            continue
        ends = np.cumsum([0, *(tied[0].array.size for tied in alike)]).tolist()
        buffer = np.empty(ends[-1], dtype)
        for tied, start, stop in zip(alike, ends, ends[1:]):
            view = buffer[start:stop].reshape(tied[0].shape)
            view[...] = tied[0].array
            for t in tied:
                t.array = view  # frees the old one: there are never two copies of everything


def entries_like(params: Sequence[Tensor], value: float) -> list[Tensor]:
    """An entry of an optimizer's state for each parameter, full of `value`; NumPy's are flat."""
    entries = []
    for p in params:
        numbers = p.xp.full(p.shape if p.xp.name != "numpy" else (), value, p.array)
        # One number seen p.shape times: it takes no memory until it is flat.
        entries.append(Tensor(p.xp.broadcast_to(numbers, p.shape)))
    flatten(entries)
    return entries


def _are_flat(arrays: list[Array]) -> bool:
    """Whether each begins where the one before ends, in memory that is one array's."""
    base = arrays[0].base
    starts = [x.__array_interface__["data"][0] for x in arrays]
    return (
        base is not None
        and all(x.base is base and x.flags.carray for x in arrays)  # in order, and writeable
        and all(a + x.nbytes == b for a, b, x in zip(starts, starts[1:], arrays))
    )
