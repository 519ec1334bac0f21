"""Shards of samples that are numbered through, for tests of what a stream delivers."""

from typing import Any

import numpy as np

from storage.lake import Zone
from storage.manifest import Manifest
from storage.objects.compression import Compression
from storage.shards import encode_samples


def publish(zone: Zone, shards: int, *, rows: int, width: int, first: int = 0, how: Compression = "none") -> Manifest:
    """A version of shards of `rows` rows of `width` random numbers, labelled through from `first` on."""
    random, records = np.random.default_rng(1), []
    for begin in range(first, first + rows * shards, rows):
        labels = np.arange(begin, begin + rows)
        columns: dict[str, Any] = {"x": random.random((rows, width), dtype=np.float32), "label": labels}
        stored = zone.publish(encode_samples(columns, [f"id{label}" for label in labels]), ".arrow", how)
        about = {"path": stored.path, "digest": stored.digest, "bytes": stored.bytes, "plain_bytes": stored.plain_bytes}
        records.append({**about, "rows": rows, "key": "", "split": "train", "tokens": 0, "stats": None})
    spec = {"inputs": {"x": {"dtype": "float32", "shape": [width]}}, "target": {"name": "label", "dtype": "int64"}}
    return zone.commit(Manifest.build("shards", records, kind="samples", spec=spec))
