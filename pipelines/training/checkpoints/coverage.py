"""Whether boxes fill a tensor exactly: every element in one of them, and in one only."""

from collections import Counter
from collections.abc import Sequence
from itertools import product

Box = tuple[Sequence[int], Sequence[int]]
"""[offsets of the first corner, sizes], an entry for each axis."""

MOST_AXES = 8  # along which a tensor may be cut; a layout has fewer


def fault(shape: Sequence[int], boxes: Sequence[Box]) -> str | None:
    """What is wrong with `boxes` as the pieces of a tensor of `shape`; None where they fill it exactly.

    Each box adds its corners to a sum, with alternating signs. What the boxes cover and how often follows from that sum
    alone, so it must be the one of the whole tensor. Linear in the number of boxes.
    """
    if 0 in shape:
        return None if not boxes else "it has no elements, but chunks"
    for offsets, sizes in boxes:
        ends = len(offsets) == len(sizes) == len(shape) and zip(offsets, sizes, shape, strict=True)
        if not ends or not all(at >= 0 and size > 0 and at + size <= whole for at, size, whole in ends):
            return f"its chunk at {list(offsets)} of sizes {list(sizes)} is not inside it"
    axes = [axis for axis, whole in enumerate(shape) if any(sizes[axis] != whole for _, sizes in boxes)]
    if len(axes) > MOST_AXES:
        return f"it is cut along {len(axes)} axes, and may be along {MOST_AXES}"
    left: Counter[tuple[int, ...]] = Counter()
    _add(left, axes, [0] * len(shape), shape, -1)
    for offsets, sizes in boxes:
        _add(left, axes, offsets, sizes, 1)
    wrong = min((corner for corner, count in left.items() if count), default=None)
    if wrong is None:
        return None
    place = [0] * len(shape)
    for axis, at in zip(axes, wrong, strict=True):
        place[axis] = at
    return f"its chunks {'overlap' if left[wrong] > 0 else 'leave a gap'} at {place}"


def _add(
    corners: Counter[tuple[int, ...]], axes: list[int], at: Sequence[int], sizes: Sequence[int], sign: int
) -> None:
    """Add a box's corners, as far as `axes` tell them apart: + for the first one, - for its neighbours, and so on."""
    for ends in product((0, 1), repeat=len(axes)):
        corner = tuple(at[axis] + end * sizes[axis] for axis, end in zip(axes, ends, strict=True))
        corners[corner] += sign * (-1) ** sum(ends)
