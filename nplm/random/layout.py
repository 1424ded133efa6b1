"""In which order torch fills a tensor: that of memory, not that of the indices.

A transposed or sliced tensor gets the stream's next number at its next address.
"""

from collections.abc import Sequence


def memory_order(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """The axes of a tensor from the largest step in memory to the smallest.

    An axis of step 0 (a broadcast one) has no place of its own and goes where torch's insertion
    sort leaves it. Negative steps count as positive: NumPy's views have them, torch copies instead.
    """
    order: list[int] = []  # fastest axis first, as torch builds it
    for axis in reversed(range(len(shape))):
        order.append(axis)
        at = len(order) - 1
        for before in reversed(range(at)):
            one, two = order[before], order[at]
            steps = abs(strides[one]), abs(strides[two])
            if 0 in steps:
                continue
            if steps[0] < steps[1]:
                break
            if steps[0] > steps[1] or shape[one] > shape[two]:
                order[before], order[at] = two, one
                at = before
    return tuple(reversed(order))


def is_contiguous(shape: Sequence[int], strides: Sequence[int], step: int = 1) -> bool:
    """Whether memory is in the order of the indices without gaps; `step` is that of an element."""
    if 0 in shape:
        return True
    for size, stride in zip(reversed(shape), reversed(strides)):
        if size != 1 and abs(stride) != step:
            return False
        step *= size
    return True
