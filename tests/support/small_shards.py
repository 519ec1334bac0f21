"""For tests of streams: a few shards of samples or tokens, and a stream over them."""

from typing import Any

import pytest
from support.flat_streams import flat_stream

from pipelines.streaming import Stream
from storage.lake import Zone
from storage.manifest import Manifest

SIZES = [13, 0, 20, 5]  # rows of the shards of split train
ROWS = sum(SIZES)
SEQ_LEN = 8


def record(zone: Zone, data: Any, rows: int, split: str = "train", tokens: int = 0) -> dict[str, Any]:
    stored = zone.publish(data, ".arrow")
    about = {"path": stored.path, "digest": stored.digest, "bytes": stored.bytes, "rows": rows, "key": ""}
    return {**about, "split": split, "tokens": tokens, "stats": None}


def make(zone: Zone, manifest: Manifest, **settings: Any) -> Stream:
    return flat_stream(zone, manifest, **{"split": "train", "batch_size": 4, "seed": 11, "window": 6, **settings})


def labels(batches: Any) -> list[list[int]]:
    return [batch["label"].tolist() for batch in batches]


PREFETCH = pytest.mark.parametrize("prefetch", [0, 1, 2, 5])
