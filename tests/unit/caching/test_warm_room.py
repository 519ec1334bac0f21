"""How much `cache warm` fetches: what a tier can pin."""

import os
import time
from pathlib import Path

from pipelines.caching.warm import _room
from storage.cache import NodeCache

DAY = 86_400


def test_what_nobody_reads_any_more_gives_place(tmp_path: Path) -> None:
    """Else a dataset that replaces another one could not be warmed, though training would push the old one out."""
    node = NodeCache(tmp_path / "cache", 100, 10, idle=DAY)
    assert _room(node, set()) == 90
    for name, days in (("a", 3.0), ("b", 0.5), ("c", 0.5)):
        file = node.path(name * 64)
        file.write_bytes(bytes(30))
        os.utime(file, (time.time() - days * DAY,) * 2)
    assert _room(node, {"c" * 64}) == 90 - 30
