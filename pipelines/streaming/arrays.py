"""Types of the arrays that are handed from module to module."""

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]
#: By name: arrays [n, …], or Ragged of n rows.
Arrays = dict[str, Any]
