"""`stream.batch_ramp`: a global batch that grows with the step."""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BeforeValidator


def _ramp(value: Any) -> Any:
    """Steps as numbers; raises ValueError that names the entry."""
    if value is None:
        return None
    if not isinstance(value, dict) or not value:
        raise ValueError("must be step: samples, beginning at step 0: {0: 16, 500: 32, 2000: 64}")
    for step, size in value.items():
        if isinstance(step, bool) or not re.fullmatch(r"\d+", str(step)):
            raise ValueError(f"{step!r} is no step: a whole number from 0 on")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{size!r} at step {step} is no batch: a whole number from 1 on")
    return {int(step): value[step] for step in sorted(value, key=int)}


def check_ramp(ramp: Mapping[int, int], last: int) -> None:
    """Raises ValueError unless `ramp` (step → samples, rising steps) begins at step 0, grows in multiples of its first
    size, and ends at `last`."""
    if 0 not in ramp:
        raise ValueError(f"batch_ramp begins at step {min(ramp)}: give the size at step 0, too")
    sizes = list(ramp.values())
    for before, size in pairwise(sizes):
        if size <= before:
            raise ValueError(f"batch_ramp: {size} after {before}, but each size must be larger than the one before")
        if size % sizes[0]:
            near = -(-size // sizes[0]) * sizes[0]
            raise ValueError(f"batch_ramp: {size} is no multiple of the first size, {sizes[0]}: set it to {near}")
    if sizes[-1] != last:
        raise ValueError(
            f"batch_ramp ends at {sizes[-1]}, but batch_size = {last}: set stream.batch_size to {sizes[-1]}"
        )


#: Step → samples.
Ramp = Annotated[dict[int, int] | None, BeforeValidator(_ramp)]
