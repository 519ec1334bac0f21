"""shard: curated → shards. Samples in a keyed random order, in files that a training job maps.

An item is a group of curated objects of one split and domain: they are mixed and cut into shards. So memory is bounded
by a group, every object is read once, and one more source file changes one group.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from pipelines.ingest.curated import ID, read_whole
from pipelines.ingest.domains import Records, by_domain, inside, mark, salt
from pipelines.ingest.duplicates.duplicates import kept_rows
from pipelines.ingest.encoders.encode import (
    SEPARATOR,
    VOCABULARY,
    Encoded,
    encode_documents,
    encode_images,
    encode_inputs,
    features,
    image_shape,
    merge_moments,
    pixels,
)
from pipelines.ingest.stage import Item, Result, group
from pipelines.params import Shard
from pipelines.workspace import Workspace
from storage.digest import digest_json, keyed_uint64
from storage.errors import DataError, FormatError, ParamsError
from storage.lake import Zone
from storage.manifest import Manifest
from storage.objects.compression import Compression
from storage.shards import SUFFIX

VERSION = 4  # of what `work` makes; raise it when the same input gives another object
_MIB = 1 << 20
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class ShardStage:
    """Mixes groups of curated objects into shards."""

    params: Shard
    seed: int
    source: Zone
    zone: Zone
    name: str = "shard"
    max_quarantined: int = 0

    @classmethod
    def of(cls, ws: Workspace) -> "ShardStage":
        return cls(ws.params.shard, ws.params.seed, ws.zone("curated"), ws.zone("shards"))

    @property
    def _compression(self) -> Compression:
        """At rest. Local shards are mapped, so they stay plain."""
        return "none" if self.zone.root is not None else self.params.compression

    def plan(self) -> list[Item]:
        """One item a group of curated objects of one split and domain; groups are drawn by a keyed hash of the objects'
        names."""
        curated = self.source.manifest()
        facts = _facts(curated)
        packs = self.params.pack_len
        if packs is not None and curated.header["kind"] != "text":
            raise ParamsError(
                f"shard.pack_len={packs} is for text, but this is {curated.header['kind']} data: leave it out."
            )
        settings = self.params.model_dump(exclude={"shuffle_objects", "compression"})
        if packs is None:
            del settings["pack_len"]  # so that shards from before there were packs stay as they are
        how = self._compression
        filled = [record for record in curated.records() if record["rows"]]  # not all duplicates of others' rows
        objects = sorted(filled, key=lambda record: keyed_uint64("mix", self.seed, record["after"]))
        items = []
        for split in curated.splits:
            for domain, members in by_domain(record for record in objects if record["split"] == split):
                names = [member["after"] for member in members]
                for positions in group(names, self.params.shuffle_objects, split, self.seed):
                    part = [members[i] for i in positions]
                    about = {"split": split, "kind": curated.header["kind"], "facts": facts}
                    items.append(self._item(part, domain, about, settings, how))
        return items

    def _item(
        self, members: Records, domain: str | None, about: dict[str, Any], settings: dict[str, Any], how: Compression
    ) -> Item:
        """`about`: split, kind and facts; `settings`: what the shards depend on."""
        left_out = [(member.get("left_out") or b"").hex() for member in members]
        inputs = [[member["digest"], out] for member, out in zip(members, left_out, strict=True)]
        key = digest_json(["shard", VERSION, self.seed, *about.values(), settings, inputs, *salt(domain)])
        return Item(
            key=key if how == "none" else digest_json([key, how]),
            label=f"{inside(domain, about['split'])}: {len(members)} objects",
            bytes=sum(member["bytes"] for member in members),
            payload={
                **about,
                "objects": [
                    {"path": member["path"], "digest": member["digest"], "rows": member["rows"], "left_out": out}
                    for member, out in zip(members, left_out, strict=True)
                ],
                # Whatever form samples take and however shards are stored, the rows' order is the same.
                "mix": digest_json(["mix", self.seed, about["split"], inputs]),
                **mark(domain),
            },
        )

    def work(self, item: Item) -> Result:
        """Read the group, put its rows in a keyed random order, and write them as shards of about `target_mb`."""
        records = []
        for shard in _encode(*self._read(item), item.payload["kind"], item.payload["facts"], self.params):
            stored = self.zone.publish(shard.data, SUFFIX, self._compression)
            stats = json.dumps(shard.moments, sort_keys=True) if shard.moments else None
            about = {"split": item.payload["split"], "tokens": shard.tokens, "stats": stats}
            records.append({**asdict(stored), "rows": shard.rows, **about, **mark(item.payload.get("domain"))})
        return Result(item.key, records)

    def _read(self, item: Item) -> tuple[pa.Table, NDArray[np.int64]]:
        """The group's rows, and the order of those that are kept."""
        tables, kept, before = list[pa.Table](), list[NDArray[np.int64]](), 0
        for member in item.payload["objects"]:
            tables.append(read_whole(self.source, member))
            kept.append(before + _kept(tables[-1].num_rows, member))
            before += tables[-1].num_rows
        return pa.concat_tables(tables), _shuffled(np.concatenate(kept), item.payload["mix"])

    def build(self, items: Sequence[Item], results: Sequence[Result]) -> tuple[Manifest, list[dict[str, Any]]]:
        """The shards manifest, with the spec: what a model may know of the data. Nothing is left out here."""
        records = [{**record, "key": result.key} for result in results for record in result.records]
        curated = self.source.manifest()
        splits = sorted({record["split"] for record in records})
        counts = {s: sum(r["rows"] for r in records if r["split"] == s) for s in splits}
        kind = "tokens" if curated.header["kind"] == "text" else "samples"
        manifest = Manifest.build(
            "shards",
            records,
            kind=kind,
            spec=_spec(curated.header["kind"], _facts(curated), records, self.params),
            counts=counts,
            parents={"curated": curated.digest, **curated.header["parents"]},
        )
        return manifest, []


def _kept(rows: int, member: dict[str, Any]) -> NDArray[np.int64]:
    """The rows of a curated object that go into shards. Raises FormatError where they aren't as many as its manifest
    says."""
    try:
        kept = kept_rows(rows, bytes.fromhex(member["left_out"]) or None)
        if len(kept) != member["rows"]:
            raise ValueError(f"{len(kept)} of {rows} rows are kept, not {member['rows']}")
    except ValueError as error:
        raise FormatError(
            f"{member['path']}: the object and the curated manifest differ ({error}). Restore both with `dvc "
            "checkout`, or make them again with `dvc repro --force curate`."
        ) from error
    return kept


def _shuffled(rows: NDArray[np.int64], key: str) -> NDArray[np.int64]:
    """`rows` in an order that depends on `key` alone: by the ranks of Philox's raw 64-bit words, which NumPy keeps
    stable over its versions (Salmon et al., 2011)."""
    words = np.random.Philox(key=int(key[:32], 16)).random_raw(len(rows))
    return rows[np.argsort(words, kind="stable")]


def _encode(
    table: pa.Table, order: NDArray[np.int64], kind: str, facts: dict[str, Any], params: Shard
) -> Iterator[Encoded]:
    """The rows `order` of `table` as shards."""
    if kind == "text":
        texts = _views(table["text"], order)
        names = table[ID].take(pa.array(order))
        sizes = np.fromiter((2 * (text.size + 1) for text in texts), np.int64, len(texts))
        for start, stop in _cuts(sizes, params.target_mb):
            ids = names[start:stop].to_pylist()
            yield encode_documents([memoryview(text) for text in texts[start:stop]], ids, params.pack_len)
        return
    table = table.take(pa.array(order))
    labels = _labels(table["label"], facts)
    if kind == "image":
        height, width, channels = image_shape(table, params)
        row_bytes = np.full(table.num_rows, height * width * channels + 8)
        if params.images == "encoded":
            row_bytes = pa.compute.binary_length(table["image"]).to_numpy() + 8
        for start, stop in _cuts(row_bytes, params.target_mb):
            part = table.slice(start, stop - start)
            if params.images == "encoded":
                yield encode_images(part, labels[start:stop], params)
            else:
                yield encode_inputs(pixels(part, params), labels[start:stop], part[ID].to_pylist())
        return
    inputs = features(table, facts["features"])
    for start, stop in _cuts(np.full(len(inputs), inputs[0].nbytes + 8), params.target_mb):
        yield encode_inputs(inputs[start:stop], labels[start:stop], table[ID][start:stop].to_pylist())


def _views(column: pa.ChunkedArray, order: NDArray[np.int64]) -> list[pa.Buffer]:
    """The texts `order` of a column, without a copy."""
    places = np.full(len(column), -1, np.int64)
    places[order] = np.arange(len(order))
    views, first = [pa.py_buffer(b"")] * len(order), 0
    for chunk in column.chunks:
        for row in np.flatnonzero(places[first : first + len(chunk)] >= 0).tolist():
            views[places[first + row]] = chunk[row].as_buffer()
        first += len(chunk)
    return views


def _labels(column: pa.ChunkedArray, facts: dict[str, Any]) -> Any:
    if facts["classes"] is None:
        return column.to_numpy().astype(np.float32)
    return pa.compute.index_in(column, pa.array(facts["classes"])).to_numpy().astype(np.int64)


def _cuts(sizes: Any, target_mb: float) -> Iterator[tuple[int, int]]:
    """Row ranges of shards of nearly equal bytes, as few as keep them at `target_mb` or below on average."""
    ends = np.cumsum(sizes)
    count = min(max(1, math.ceil(int(ends[-1]) / (target_mb * _MIB))), len(sizes))
    at = np.searchsorted(ends, ends[-1] * np.arange(1, count) / count, side="left") + 1
    bounds = sorted({0, *at.tolist(), len(sizes)})
    yield from pairwise(bounds)


def _facts(curated: Manifest) -> dict[str, Any]:
    """Classes (numbers in numeric order) and features of the whole dataset."""
    try:
        known = [dict(json.loads(stats)) for stats in curated.table["stats"].to_pylist()]
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(
            f"The curated manifest's facts of its objects cannot be read ({error}). Restore it with `dvc checkout`, or "
            "make it again with `dvc repro --force curate`."
        ) from error
    labels = {label for stats in known for label in stats.get("labels", [])}
    numeric = all(_NUMBER.fullmatch(label) for label in labels)
    classes = sorted(labels, key=lambda label: (Decimal(label), label)) if numeric else sorted(labels)
    features = next((stats["features"] for stats in known if "features" in stats), None)
    return {"classes": classes or None, "features": features}


def _spec(kind: str, facts: dict[str, Any], records: list[dict[str, Any]], params: Shard) -> dict[str, Any]:
    if kind == "text":
        packs = {} if params.pack_len is None else {"pack_len": params.pack_len}
        return {"vocab_size": VOCABULARY, "dtype": "uint16", "separator": SEPARATOR, "encoding": "bytes"} | packs
    moments = [json.loads(r["stats"]) for r in records if r["split"] == "train" and r["stats"]]
    mean, std = merge_moments(moments) if moments else (None, None)
    target: dict[str, Any] = {"name": "label", "dtype": "int64" if facts["classes"] else "float32"}
    if not facts["classes"] and moments:
        [target["mean"]], [target["std"]] = merge_moments([part["target"] for part in moments])
    shapes = sorted({str(json.loads(record["stats"])["shape"]) for record in records if record["stats"]})
    if len(shapes) > 1:
        raise DataError(
            f"shard: samples have different shapes: {', '.join(shapes[:3])}. Set shard.image_size, to which images "
            "are resized."
        )
    shape = json.loads(records[0]["stats"])["shape"]
    inputs = {"dtype": "uint8" if kind == "image" else "float32", "shape": shape}
    if kind == "image" and params.images == "encoded":
        inputs["codec"] = "image"
    return {
        "inputs": {"x": inputs},
        "target": target,
        "classes": facts["classes"],
        "features": facts["features"],
        "image_mode": params.image_mode if kind == "image" else None,
        "mean": mean,
        "std": std,
    }
