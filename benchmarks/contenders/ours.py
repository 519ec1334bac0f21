"""Shardline's stream, as a user calls it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contender import Batch, Epoch, serve
from benchmarks.works import SHARD_BYTES, Work
from pipelines.streaming import Stream
from storage.lake import Zone
from storage.manifest import Manifest
from storage.shards import encode_samples, encode_tokens


def shards(work: Work, zone: Zone) -> Manifest:
    """The work as a version of the zone, in shards of 64 MiB."""
    return {"tokens": _tokens, "rows": _rows}[work.name](work, zone)


def _tokens(work: Work, zone: Zone) -> Manifest:
    """One token stream a shard. A window has a next token, so each shard ends with the first one of what follows."""
    tokens, records = work.arrays["tokens"], []
    for start, stop in _cuts(work.samples, tokens[0].nbytes):
        after = tokens[stop % work.samples, :1]
        stream = np.concatenate([tokens[start:stop].reshape(-1), after])
        encoded = encode_tokens(stream, np.array([0, len(stream)]), [f"from {start}"])
        records.append(_record(zone, encoded, 1, tokens=len(stream)))
    return zone.commit(Manifest.build("shards", records, kind="tokens", spec={"dtype": "uint16", "vocab_size": 50_000}))


def _rows(work: Work, zone: Zone) -> Manifest:
    arrays, records = work.arrays, []
    for start, stop in _cuts(work.samples, arrays["x"][0].nbytes + 8):
        columns = {name: np.asarray(values[start:stop]) for name, values in arrays.items()}
        encoded = encode_samples(columns, [str(row) for row in range(start, stop)])
        records.append(_record(zone, encoded, stop - start))
    inputs = {"x": {"dtype": "float32", "shape": [100]}}
    spec = {"inputs": inputs, "target": {"name": "label", "dtype": "int64"}}
    return zone.commit(Manifest.build("shards", records, kind="samples", spec=spec))


def _cuts(samples: int, sample_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges of samples, a shard each: of 64 MiB, but at least four."""
    count = min(SHARD_BYTES // sample_bytes, -(-samples // 4))
    for start in range(0, samples, count):
        yield start, min(start + count, samples)


def _record(zone: Zone, encoded: Any, rows: int, tokens: int = 0) -> dict[str, Any]:
    stored = zone.publish(encoded, ".arrow")
    about = {"path": stored.path, "digest": stored.digest, "bytes": stored.bytes, "rows": rows, "key": ""}
    return {**about, "split": "train", "tokens": tokens, "stats": None}


def stream(work: Work) -> Epoch:
    """Warm and local: the shards mapped in place."""

    def write(folder: Path) -> None:
        shards(work, Zone(folder))

    zone = Zone(work.made("shardline", write))
    settings: dict[str, Any] = {"seq_len": 2048} if work.name == "tokens" else {}
    batches = Stream(zone, zone.manifest(), split="train", batch_size=work.batch, seed=1, **settings)
    state = {"epoch": 0}

    def epoch(_: int) -> Iterator[Batch]:
        batches.set_epoch(state["epoch"])
        state["epoch"] += 1
        for batch in batches:
            yield {"tokens": batch["tokens"][:, :2048]} if work.name == "tokens" else batch
            if batch.step == len(batches) - 1:
                return

    return epoch


if __name__ == "__main__":
    serve({"stream": stream})
