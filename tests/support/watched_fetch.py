"""For tests of fetching ahead: numbered shards, and a cache that notes what is opened and holds it back."""

import threading
from typing import Any

import numpy as np
import pyarrow as pa

from storage.cache import Tiered
from storage.lake import StoredObject, Zone
from storage.manifest import Manifest
from storage.shards import encode_samples

ROWS, SHARDS = 32, 8


class Watched(Tiered):
    """A cache that notes what is opened, and holds it back while `gate` is closed: all, or what is `held`."""

    def __init__(self, zone: Zone, held: str = "") -> None:
        super().__init__(zone)
        self.opened: list[str] = []
        self.gate, self.held = threading.Event(), held
        self.gate.set()

    def open(self, obj: StoredObject) -> tuple[pa.Buffer, bool]:
        self.opened.append(obj.path)
        assert self.held not in ("", obj.path) or self.gate.wait(60)
        return super().open(obj)


def publish(zone: Zone, begin: int = 0, shards: int = SHARDS) -> Manifest:
    """A version of shards whose rows are numbered through, from `begin` on."""
    records = []
    for first in range(begin, begin + ROWS * shards, ROWS):
        labels = np.arange(first, first + ROWS)
        columns = {"x": np.full((ROWS, 100), labels[:, None], np.float32), "label": labels}
        stored = zone.publish(encode_samples(columns, [f"id{label}" for label in labels]), ".arrow")
        about = {"path": stored.path, "digest": stored.digest, "bytes": stored.bytes, "plain_bytes": stored.plain_bytes}
        records.append({**about, "rows": ROWS, "key": "", "split": "train", "tokens": 0, "stats": None})
    spec = {"inputs": {"x": {"dtype": "float32", "shape": [100]}}, "target": {"name": "label", "dtype": "int64"}}
    return zone.commit(Manifest.build("shards", records, kind="samples", spec=spec))


def paths(manifest: Manifest) -> list[str]:
    return list(manifest.table["path"].to_pylist())


def along(*shards: int) -> list[tuple[int, Any]]:
    return [(0, np.array([shard])) for shard in shards]


def size(manifest: Manifest, index: int = SHARDS - 1) -> int:
    """Bytes of a shard; the last is among the largest, by the length of its ids."""
    return int(manifest.table["bytes"][index].as_py())


def threads(*names: str) -> list[threading.Thread]:
    """The threads whose names begin so."""
    return [thread for thread in threading.enumerate() if thread.name.startswith(names)]
