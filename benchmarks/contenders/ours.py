"""Shardline's stream, as a user calls it: warm and local, cold from S3, hot from Redis."""

import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contender import Batch, Epoch, later, serve
from benchmarks.parts.works import SHARD_BYTES, Work
from pipelines.streaming import Loading, Stream, Text
from storage.cache.hot.cache import HotCache, Timing
from storage.cache.node.cache import NodeCache
from storage.cache.tiered import Tiered
from storage.lake import Zone
from storage.manifest import FORMATS, Manifest
from storage.shards import encode_samples, encode_tokens
from storage.shards.blobs import Blobs
from storage.shards.schema import FORMAT

NODE_BUDGET = 4 << 30  # bytes: more than any work has


# -- writing -----------------------------------------------------------------------------------------------------------


def shards(work: Work, zone: Zone, shard_bytes: int = SHARD_BYTES) -> Manifest:
    """The work as a version of the zone, in shards of `shard_bytes`, but at least four."""
    if work.name == "tokens":
        return _tokens(work, zone, shard_bytes)
    records, (columns, spec) = [], _columns(work)
    for start, stop in _cuts(work.samples, work.bytes // work.samples, shard_bytes):
        part = {name: _part(values, start, stop) for name, values in columns.items()}
        encoded = encode_samples(part, [str(row) for row in range(start, stop)])
        records.append(_record(zone, encoded, stop - start))
    return zone.commit(Manifest.build("shards", records, kind="samples", spec=spec))


def _tokens(work: Work, zone: Zone, shard_bytes: int) -> Manifest:
    """One token stream a shard. A window has a next token, so each shard ends with the first one of what follows."""
    tokens, records = work.arrays["tokens"], []
    for start, stop in _cuts(work.samples, tokens[0].nbytes, shard_bytes):
        after = tokens[stop % work.samples, :1]
        stream = np.concatenate([tokens[start:stop].reshape(-1), after])
        encoded = encode_tokens(stream, np.array([0, len(stream)]), [f"from {start}"])
        records.append(_record(zone, encoded, 1, tokens=len(stream)))
    return zone.commit(Manifest.build("shards", records, kind="tokens", spec={"dtype": "uint16", "vocab_size": 50_000}))


def _columns(work: Work) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns of a work of samples, and what the manifest says of them."""
    arrays = dict(work.arrays)
    target = {"name": "label", "dtype": "int64"} if "label" in arrays else None
    if "values" not in arrays:
        inputs = {
            name: {"dtype": values.dtype.name, "shape": list(values.shape[1:])}
            for name, values in arrays.items()
            if name != "label"
        }
        return arrays, {"inputs": inputs, "target": target}
    codec, shape = ("image", (224, 224, 3)) if work.name == "jpegs" else ("bytes", ())
    name = "image" if work.name == "jpegs" else "blob"
    blobs = Blobs(arrays["values"], np.asarray(arrays["offsets"]), codec, shape)
    facts = {"dtype": "uint8", "shape": list(shape) or None, "codec": codec}
    return {name: blobs, "label": arrays["label"]}, {"inputs": {name: facts}, "target": target}


def _part(values: Any, start: int, stop: int) -> Any:
    if not isinstance(values, Blobs):
        return np.asarray(values[start:stop])
    offsets = values.offsets[start : stop + 1]
    return Blobs(values.values[offsets[0] : offsets[-1]], offsets - offsets[0], values.codec, values.shape)


def _cuts(samples: int, sample_bytes: int, shard_bytes: int) -> Iterator[tuple[int, int]]:
    count = max(1, min(shard_bytes // sample_bytes, -(-samples // 4)))
    for start in range(0, samples, count):
        yield start, min(start + count, samples)


def _record(zone: Zone, encoded: Any, rows: int, tokens: int = 0) -> dict[str, Any]:
    stored = zone.publish(encoded, ".arrow")
    about = {
        "path": stored.path,
        "digest": stored.digest,
        "bytes": stored.bytes,
        "plain_bytes": stored.plain_bytes,
        "rows": rows,
        "key": "",
    }
    return {**about, "split": "train", "tokens": tokens, "stats": None}


# -- reading -----------------------------------------------------------------------------------------------------------


def settings(work: Work) -> dict[str, Any]:
    """What every stream of the work is given."""
    tokens = {"text": Text(seq_len=2048)} if work.name == "tokens" else {}
    return {"split": "train", "batch_size": work.batch, "seed": 1, **tokens}


def arrays(batch: Batch) -> Batch:
    """The batch's arrays: of blobs their bytes, of token windows the 2,048 that the peers deliver as well."""
    if "blob" in batch:
        return {"blob": batch["blob"].values, "label": batch["label"]}
    return {"tokens": batch["tokens"][:, :2048]} if "tokens" in batch else batch


def warm(work: Work) -> Epoch:
    """Warm and local: the shards mapped in place."""

    def write(folder: Path) -> None:
        shards(work, Zone(folder))

    zone = Zone(work.made(f"shardline-{FORMATS['shards']}.{FORMAT}", write))
    stream = Stream(zone, zone.manifest(), **settings(work))
    epochs = count()

    def epoch(_: int) -> Iterator[Batch]:
        stream.set_epoch(next(epochs))
        for batch in stream:
            yield arrays(batch)
            if batch.step == len(stream) - 1:
                return

    return epoch


def cold(work: Work) -> Epoch:
    """From S3 through a node cache whose folder is empty: each epoch is a new stream's first."""
    zone = remote(work)
    place, numbers = work.folder / "cold-shardline", count()

    def epoch(_: int) -> Iterator[Batch]:
        node = NodeCache(place / str(next(numbers)), NODE_BUDGET)
        with (
            Tiered(zone, node) as tiers,
            Stream(zone, zone.manifest(), epochs=1, loading=Loading(tiers=tiers), **settings(work)) as stream,
        ):
            yield from map(arrays, stream)
        later(lambda: shutil.rmtree(place, ignore_errors=True))

    return epoch


def hot(work: Work) -> Epoch:
    """From Redis through a node cache whose folder is empty. The first epoch fills Redis; then nothing may be asked of
    the lake any more."""
    zone = remote(work)
    patient = Timing(timeout=30)  # a busy machine may not send it to the lake
    hot_cache = HotCache(work.job["url"], work.job["budget"], timing=patient)
    place, numbers = work.folder / "hot-shardline", count()

    def epoch(_: int) -> Iterator[Batch]:
        node = NodeCache(place / str(number := next(numbers)), NODE_BUDGET)
        with (
            Tiered(zone, node, hot_cache) as tiers,
            Stream(zone, zone.manifest(), epochs=1, loading=Loading(tiers=tiers), **settings(work)) as stream,
        ):
            yield from map(arrays, stream)
            asked = tiers.counters()["lake"].bytes
        later(lambda: shutil.rmtree(place, ignore_errors=True))
        if number and asked:
            raise RuntimeError(f"{asked} bytes came from the lake, not from Redis")

    return epoch


def remote(work: Work) -> Zone:
    """The work's zone whose objects are below the job's `lake`, published there when they aren't; its manifest is in a
    local folder."""
    folder = work.folder / f"remote-{work.job['lake'].removeprefix('s3://').replace('/', '-')}"
    zone = Zone(folder, work.job["lake"])
    found = zone.sizes() if zone.complete else {}
    if not zone.complete or any(found.get(obj["path"]) != obj["bytes"] for obj in zone.manifest().records()):
        shards(work, zone, work.job.get("shard_bytes", SHARD_BYTES))
    return zone


if __name__ == "__main__":
    serve({"stream": warm, "cold": cold, "hot": hot})
