"""Blobs: the rows of a variable-width column, as one run of bytes and 64-bit offsets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from storage.shards.schema import BYTES, VARIABLE, Column, check_codec


@dataclass(frozen=True, eq=False)
class Blobs:
    """Row i is values[offsets[i]:offsets[i + 1]]; `values` uint8 [bytes], `offsets` int64 [rows + 1].

    `codec` is "bytes" for rows that are delivered as they are, "image" for encoded JPEG and PNG files; then `shape` is
    [height, width, channels] to which they are decoded, or () where sizes vary. Raises ValueError when offsets don't
    rise from 0 to the number of bytes or codec and shape don't agree, TypeError for other dtypes.
    """

    values: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    codec: str = BYTES
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.values.dtype != np.uint8 or self.offsets.dtype != np.int64:
            raise TypeError(
                f"blobs are uint8 values and int64 offsets, given: {self.values.dtype}, {self.offsets.dtype}"
            )
        if self.values.ndim != 1 or self.offsets.ndim != 1 or not len(self.offsets):
            raise ValueError(f"blobs are one run of bytes and rows + 1 offsets, given: {self._shapes()}")
        object.__setattr__(self, "offsets", np.ascontiguousarray(self.offsets))
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.values) or not rising(self.offsets):
            raise ValueError(f"offsets must rise from 0 to the number of bytes, {len(self.values)}")
        if self.codec not in VARIABLE:
            raise ValueError(f"codec {self.codec!r}: blobs have one of {', '.join(VARIABLE)}")
        check_codec(Column(self.values.dtype, self.shape, self.codec))

    def _shapes(self) -> str:
        return f"values {self.values.shape}, offsets {self.offsets.shape}"

    @classmethod
    def of(cls, rows: Sequence[Buffer], codec: str = BYTES, shape: tuple[int, ...] = ()) -> Self:
        """Blobs from a bytes-like object a row, copied end to end."""
        views = [memoryview(row).cast("B") for row in rows]
        offsets = np.zeros(len(views) + 1, np.int64)
        np.cumsum([len(view) for view in views], out=offsets[1:])
        return cls(np.frombuffer(b"".join(views), np.uint8), offsets, codec, shape)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> memoryview:
        """The bytes of a row, without a copy."""
        place = range(len(self))[row]
        return self.values.data[self.offsets[place] : self.offsets[place + 1]]


def rising(offsets: npt.NDArray[np.int64]) -> bool:
    """Whether no offset is below the one before it."""
    return not (offsets[1:] < offsets[:-1]).any()
