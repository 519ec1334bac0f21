"""For tests of a lake that fails: how long a fault may last, and reads that succeed or name their object."""

import time
from collections.abc import Callable

import numpy as np
import pytest

from storage.errors import LakeError
from storage.lake import StoredObject, Zone
from storage.objects.retries import RangeReader

TIMEOUT = 1.5  # seconds, of `compute.lake_timeout` where a fault lasts
SLACK = 2.0  # seconds: the machine is busy
DATA = np.random.default_rng(0).bytes(20 << 20)
RANGES = 5  # of 4 MiB, in which such an object is read
OnRange = Callable[[int, int], None]


def fetch(zone: Zone, stored: StoredObject, on_range: OnRange | None = None, timeout: float = 20) -> bytes:
    """By a reader of its own, so that no connection is left of another test."""
    out = bytearray(stored.bytes)
    RangeReader(str(zone.url), timeout=timeout).read_into(stored.path, 0, out, on_range)
    return bytes(out)


def fails(zone: Zone, stored: StoredObject, *says: str, on_range: OnRange | None = None) -> None:
    """Reading fails within the time-out, with one error that names the object."""
    begun = time.monotonic()
    with pytest.raises(LakeError) as caught:
        fetch(zone, stored, on_range, TIMEOUT)
    assert time.monotonic() - begun < TIMEOUT + SLACK
    for text in (zone.describe(stored.path), *says):
        assert text in str(caught.value)
