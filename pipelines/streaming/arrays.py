"""Types of the arrays that are handed from module to module."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]
#: By name: arrays [n, …], or Ragged of n rows.
Arrays = dict[str, Any]


def int64(column: "pa.ChunkedArray") -> Ints:
    """A column of whole numbers without nulls, int64 [n], to be read only: the column's own memory where it is so."""
    values = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # which copies even one
    numbers: Ints = np.from_dlpack(values).astype(np.int64, copy=False)  # to_numpy would import pandas
    return numbers
