"""curate: raw → curated. Typed, validated, deduplicated and split, in Parquet.

An item is a group of raw files; it makes one object for each split that occurs in it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from pipelines.ingest.domains import Records, by_domain, mark, named, outside, salt
from pipelines.ingest.duplicates import Entry, distinct_files, distinct_rows
from pipelines.ingest.quarantine import rows_of
from pipelines.ingest.readers import ID, KINDS, READERS, Rows, detect
from pipelines.ingest.stage import Item, Result, group
from pipelines.params import Curate
from pipelines.workspace import Workspace
from storage.digest import digest_json, keyed_fraction
from storage.errors import DataError
from storage.lake import Zone
from storage.manifest import Manifest

VERSION = 1
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class CurateStage:
    """Reads groups of raw files into one Parquet object for each split."""

    params: Curate
    seed: int
    source: Zone
    zone: Zone
    name: str = "curate"

    @classmethod
    def of(cls, ws: Workspace) -> "CurateStage":
        return cls(ws.params.curate, ws.params.seed, ws.zone("raw"), ws.zone("curated"))

    @property
    def max_quarantined(self) -> int:
        return self.params.max_quarantined

    def plan(self) -> list[Item]:
        """One item a group of files of one domain, cut by content so that one more file changes one group."""
        # By domain, so that of equal files a's comes before a-b's: by name it would not.
        files = [file for _, part in by_domain(self.source.manifest().records()) for file in part]
        files, duplicates = distinct_files(files) if self.params.deduplicate else (files, {})
        items = [item for domain, part in by_domain(files) for item in self._plan_one(domain, part, duplicates)]
        kinds = {KINDS[item.payload["reader"]]: item.label for item in items}
        if len(kinds) > 1:
            raise DataError(
                "curate: the domains hold different kinds of data: "
                + "; ".join(f"{kind} ({label})" for kind, label in kinds.items())
                + ". Mix what is alike, or name one reader in curate.reader."
            )
        return items

    def _plan_one(self, domain: str | None, files: Records, duplicates: dict[str, list[Entry]]) -> Iterator[Item]:
        names = (file["name"] for file in files)
        reader = detect(names) if self.params.reader == "auto" else self.params.reader
        settings = self.params.model_dump(exclude={"files_per_object", "max_quarantined"})
        for positions in group([file["name"] for file in files], self.params.files_per_object):
            members = [{k: files[i][k] for k in ("name", "path", "digest")} for i in positions]
            inputs = [[member["name"], member["digest"]] for member in members]
            yield Item(
                key=digest_json(["curate", VERSION, self.seed, reader, settings, inputs, *salt(domain)]),
                label=f"{members[0]['name']} … {members[-1]['name']}",
                bytes=sum(files[i]["bytes"] for i in positions),
                payload={
                    "reader": reader,
                    "files": members,
                    "after": files[positions[0] - 1]["name"] if positions[0] else "",
                    **mark(domain),
                },
                duplicates=[entry for member in members for entry in duplicates.get(member["digest"], [])],
            )

    def work(self, item: Item) -> Result:
        """Read the group's files and write a Parquet object for each split."""
        rows, duplicates = self._rows(item)
        aside = rows.quarantined
        if not rows.ids:
            return Result(item.key, [], aside)
        splits = pa.array([self.split(name) for name in rows.ids])
        table = rows.table.add_column(0, ID, pa.array(rows.ids, pa.large_string()))
        del rows  # whose names, as Python's strings, may take as much memory as all else
        found = [split for split in SPLITS if split in splits.unique().to_pylist()]
        records = [
            self._publish(table if len(found) == 1 else table.filter(pa.compute.equal(splits, split)), split, item)
            for split in found
        ]
        return Result(item.key, records, aside, duplicates)

    def _rows(self, item: Item) -> tuple[Rows, list[Entry]]:
        """The rows of the group's files, and what was left out since it equals some of them."""
        ids, tables = list[str](), list[pa.Table]()
        aside, duplicates = list[dict[str, Any]](), list[Entry]()
        by_row = self.params.deduplicate and KINDS[item.payload["reader"]] == "table"
        for file in item.payload["files"]:
            rows = self._read(file, item)
            rows, equal = distinct_rows(rows, file["name"]) if by_row else (rows, [])
            ids += rows.ids
            aside += rows.quarantined
            duplicates += equal
            if rows.ids:
                tables.append(rows.table)
        try:
            return Rows(ids, pa.concat_tables(tables) if tables else pa.table({}), aside), duplicates
        except pa.ArrowInvalid as error:
            raise DataError(
                f"{item.label}: the files' columns differ: {error}. Name them in curate.features."
            ) from error

    def _read(self, file: dict[str, Any], item: Item) -> Rows:
        """The rows of a raw file, whose bytes are let go of."""
        domain = item.payload.get("domain")
        data = self.source.read(file["path"], file["digest"])
        whole = data.obj if isinstance(data.obj, bytes) else bytes(data)  # a local file isn't copied
        del data
        return named(READERS[item.payload["reader"]](outside(domain, file["name"]), whole, self.params), domain)

    def _publish(self, part: pa.Table, split: str, item: Item) -> dict[str, Any]:
        """The record of one split's object, and the object."""
        stored = self.zone.publish(_parquet(part), ".parquet")
        about = {"path": stored.path, "digest": stored.digest, "bytes": stored.bytes, "rows": part.num_rows}
        stats = json.dumps(_facts(part, KINDS[item.payload["reader"]]), sort_keys=True)
        about |= {"after": item.payload["after"], "split": split, "stats": stats}
        return {**about, **mark(item.payload.get("domain"))}

    def split(self, name: str) -> str:
        """The split of a sample: by a hash of the seed and its name, so that it never moves when others come or go."""
        at, shares = keyed_fraction("split", self.seed, name), self.params.split
        return "train" if at < shares.train else "val" if at < shares.train + shares.val else "test"

    def build(self, items: Sequence[Item], results: Sequence[Result]) -> Manifest:
        """The curated manifest: a row an object."""
        records = [
            {**record, "key": result.key, "after": item.payload["after"]}  # of now: it is no part of the key
            for item, result in zip(items, results, strict=True)
            for record in result.records
        ]
        columns = {tuple(json.loads(record["stats"]).get("features", [])) for record in records}
        if len(columns) > 1:
            raise DataError(
                "curate: the files' columns differ: "
                + "; ".join(", ".join(names) for names in sorted(columns)[:2])
                + ". Name those to use in curate.features."
            )
        counts = {split: sum(r["rows"] for r in records if r["split"] == split) for split in SPLITS}
        counts["quarantined"] = sum(rows_of(result.quarantined) for result in results)
        kind = KINDS[items[0].payload["reader"]]
        return Manifest.build(
            "curated", records, kind=kind, counts=counts, parents={"raw": self.source.manifest().digest}
        )


def _facts(table: pa.Table, kind: str) -> dict[str, Any]:
    """What the shard stage must know of an object before it reads it: classes and features."""
    facts: dict[str, Any] = {}
    if "label" in table.column_names and table["label"].type == pa.string():
        facts["labels"] = sorted(set(table["label"].to_pylist()))
    if kind == "table":
        facts["features"] = [name for name in table.column_names if name not in (ID, "label")]
    return facts


def _parquet(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue()
