"""curate: raw → curated. Typed, validated, deduplicated and split, in Parquet.

An item is a group of raw files; it makes one object for each split that occurs in it. Duplicates are found at the end,
over all objects: the manifest says which rows of each are left out.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.ingest.curated import CONTENT, ID, Writer, blocks
from pipelines.ingest.domains import Records, by_domain, mark, named, outside, salt
from pipelines.ingest.duplicates import duplicates
from pipelines.ingest.duplicates.content import SPLITS, input_digests, sample_digests, splits, to_arrow
from pipelines.ingest.quarantine import rows_of
from pipelines.ingest.readers import KINDS, READERS, detect
from pipelines.ingest.rows import Rows
from pipelines.ingest.stage import Item, Result, group
from pipelines.params import Curate
from pipelines.workspace import Workspace
from storage.digest import digest_json
from storage.errors import DataError
from storage.lake import Zone
from storage.manifest import Manifest

VERSION = 2  # of what `work` makes; raise it when the same input gives another object


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
        items = [
            item for domain, files in by_domain(self.source.manifest().records()) for item in self._items(domain, files)
        ]
        kinds = {KINDS[item.payload["reader"]]: item.label for item in items}
        if len(kinds) > 1:
            raise DataError(
                "curate: the domains hold different kinds of data: "
                + "; ".join(f"{kind} ({label})" for kind, label in kinds.items())
                + ". Mix what is alike, or name one reader in curate.reader."
            )
        return items

    def _items(self, domain: str | None, files: Records) -> Iterator[Item]:
        names = [file["name"] for file in files]
        reader = detect(names) if self.params.reader == "auto" else self.params.reader
        settings = self.params.model_dump(exclude={"files_per_object", "max_quarantined"})
        for positions in group(names, self.params.files_per_object):
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
            )

    def work(self, item: Item) -> Result:
        """Read the group's files, one at a time, and write a Parquet object for each split."""
        kind, aside = KINDS[item.payload["reader"]], list[dict[str, Any]]()
        with ExitStack() as stack:
            writers = [stack.enter_context(closing(Writer(self.zone))) for _ in SPLITS]
            for file in item.payload["files"]:
                rows = self._read(file, item)
                aside += rows.quarantined
                if rows.ids:
                    self._share_out(rows, kind, writers)
            about = {"after": item.payload["after"], **mark(item.payload.get("domain"))}
            records = [
                {**writer.publish(kind), "split": split, **about}
                for split, writer in zip(SPLITS, writers, strict=True)
                if writer.rows
            ]
        return Result(item.key, records, aside)

    def _read(self, file: dict[str, Any], item: Item) -> Rows:
        """The rows of a raw file, whose bytes are let go of."""
        domain = item.payload.get("domain")
        data = self.source.read(file["path"], file["digest"])
        whole = data.obj if isinstance(data.obj, bytes) else bytes(data)  # a local file isn't copied
        del data
        return named(READERS[item.payload["reader"]](outside(domain, file["name"]), whole, self.params), domain)

    def _share_out(self, rows: Rows, kind: str, writers: Sequence[Writer]) -> None:
        """Give the writer of each of SPLITS its rows, in their order. A sample's split is a function of the seed and of
        what a model sees of it."""
        table, inputs = rows.table, input_digests(rows.table, kind)
        if self.params.deduplicate:
            table = table.add_column(0, CONTENT, to_arrow(sample_digests(table, inputs, rows.content)))
        table = table.add_column(0, ID, pa.array(rows.ids, pa.large_string()))
        found = splits(inputs, self.seed, self.params.split)
        for block in blocks(table):
            part = table[block]
            for number, writer in enumerate(writers):
                mine = np.flatnonzero(found[block] == number)
                if len(mine):
                    writer.write(part if len(mine) == len(part) else part.take(pa.array(mine)))

    def build(self, items: Sequence[Item], results: Sequence[Result]) -> tuple[Manifest, list[dict[str, Any]]]:
        """The curated manifest, a row an object, and the list of what is left out of it."""
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
        readers = [item.payload["reader"] for item, result in zip(items, results, strict=True) for _ in result.records]
        left_out, listed = self._leave_out(records, readers) if self.params.deduplicate else (0, [])
        counts = {split: sum(r["rows"] for r in records if r["split"] == split) for split in SPLITS}
        counts["quarantined"] = sum(rows_of(result.quarantined) for result in results)
        counts["duplicates"] = left_out
        parents = {"raw": self.source.manifest().digest}
        return Manifest.build("curated", records, kind=KINDS[readers[0]], counts=counts, parents=parents), listed

    def _leave_out(self, records: Records, readers: Sequence[str]) -> tuple[int, list[dict[str, Any]]]:
        """Note in `records` which rows are duplicates. Returns how many, and the list of them."""
        found = duplicates.find(self.zone, records)
        for number, record in enumerate(records):
            rows, (left_out, _) = json.loads(record["stats"])["rows"], found.of(number)
            record |= {"rows": rows - len(left_out), "left_out": duplicates.pack(rows, left_out)}
        by_line = [reader not in ("text", "image_folder") for reader in readers]
        return len(found.left_out), [*duplicates.listed(self.zone, records, found, by_line)]
