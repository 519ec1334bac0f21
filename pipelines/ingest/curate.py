"""curate: raw → curated. Typed, validated, deduplicated and split, in Parquet.

An item is a group of raw files; it makes one object for each split that occurs in it. Duplicates are found at the end,
over all objects: the manifest says which rows of each are left out.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.ingest.curated import CONTENT, ID, OWN, TOGETHER, Writer
from pipelines.ingest.domains import Records, by_domain, mark, named, outside, salt
from pipelines.ingest.duplicates import duplicates
from pipelines.ingest.duplicates.content import SPLITS, input_digests, sample_digests, splits, to_arrow
from pipelines.ingest.quarantine import rows_of
from pipelines.ingest.readers import Reader, detect, row_digests
from pipelines.ingest.rows import Rows
from pipelines.ingest.stage import Item, Result, group
from pipelines.params import Curate
from pipelines.params.data import READERS
from pipelines.runtime.own_code import digests
from pipelines.workspace import Workspace
from storage.digest import digest_json
from storage.errors import DataError
from storage.lake import Zone
from storage.manifest import Manifest

VERSION = 2  # of what `work` makes; raise it when the same input gives another object

_NEEDED = {"text": ("text",), "table": ("label",), "image": ("image", "height", "width", "label")}  # columns, by kind


@dataclass(frozen=True)
class CurateStage:
    """Reads groups of raw files into one Parquet object for each split."""

    params: Curate
    seed: int
    source: Zone
    zone: Zone
    name: str = "curate"
    folder: Path = Path()
    """Of the recipe, where a reader of the user's own is looked for."""
    code: tuple[str, ...] = ()
    """Digests of the files of such a reader."""

    @classmethod
    def of(cls, ws: Workspace) -> "CurateStage":
        own = ":" in READERS.name_of(ws.params.curate.reader)
        code = tuple(digests(ws, "curate")) if own else ()
        raw, curated = ws.zone("raw"), ws.zone("curated")
        return cls(ws.params.curate, ws.params.seed, raw, curated, folder=ws.root, code=code)

    @property
    def max_quarantined(self) -> int:
        return self.params.max_quarantined

    def plan(self) -> list[Item]:
        """One item a group of files of one domain, cut by content so that one more file changes one group."""
        items = [
            item for domain, files in by_domain(self.source.manifest().records()) for item in self._items(domain, files)
        ]
        kinds = {self._reader(item).kind: item.label for item in items}
        if len(kinds) > 1:
            raise DataError(
                "curate: the domains hold different kinds of data: "
                + "; ".join(f"{kind} ({label})" for kind, label in kinds.items())
                + ". Mix what is alike, or name one reader in curate.reader."
            )
        return items

    def _items(self, domain: str | None, files: Records) -> Iterator[Item]:
        names = [file["name"] for file in files]
        reader = detect(names) if self.params.reader == "auto" else READERS.name_of(self.params.reader)
        settings = self.params.model_dump(exclude={"files_per_object", "max_quarantined"})
        for positions in group(names, self.params.files_per_object):
            members = [{k: files[i][k] for k in ("name", "path", "digest")} for i in positions]
            inputs = [[member["name"], member["digest"]] for member in members]
            yield Item(
                key=digest_json(["curate", VERSION, self.seed, reader, settings, inputs, *salt(domain), *self.code]),
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
        """Read the group's files, one at a time and piece by piece, and write a Parquet object for each split."""
        reader, aside = self._reader(item), list[dict[str, Any]]()
        with ExitStack() as stack:
            writers = [stack.enter_context(closing(Writer(self.zone))) for _ in SPLITS]
            for file in item.payload["files"]:
                for table in self._tables(file, item, reader, aside):
                    self._share_out(table, reader.kind, writers)
            about = {"after": item.payload["after"], **mark(item.payload.get("domain"))}
            records = [
                {**writer.publish(reader.kind), "split": split, **about}
                for split, writer in zip(SPLITS, writers, strict=True)
                if writer.rows
            ]
        return Result(item.key, records, aside)

    def _reader(self, item: Item) -> Reader:
        name, chosen = item.payload["reader"], self.params.reader
        reader: Reader = READERS.make(name if chosen == "auto" else chosen, Reader, (self.folder,))
        return reader

    def _tables(
        self, file: dict[str, Any], item: Item, reader: Reader, aside: list[dict[str, Any]]
    ) -> Iterator[pa.Table]:
        """The rows of a raw file with their names and the reader's digests, about TOGETHER bytes at a time; what is set
        aside is added to `aside`."""
        domain, tables, size = item.payload.get("domain"), list[pa.Table](), 0
        with self.source.opened(file["path"], file["digest"]) as opened:
            pieces = reader.read(outside(domain, file["name"]), opened, self.params)
            for rows in (named(piece, domain) for piece in pieces):
                aside += rows.quarantined
                if not rows.ids:
                    continue
                if wrong := _unfit(rows, reader, tables):
                    raise DataError(f"curate.reader={READERS.name_of(self.params.reader)!r}: {file['name']}: {wrong}.")
                tables.append(_with_names(rows, self.params.deduplicate))
                size += tables[-1].nbytes
                if size > TOGETHER:
                    yield pa.concat_tables(tables)
                    tables, size = [], 0
        if tables:
            yield pa.concat_tables(tables)

    def _share_out(self, table: pa.Table, kind: str, writers: Sequence[Writer]) -> None:
        """Give the writer of each of SPLITS its rows, in their order. A sample's split is a function of the seed and of
        what a model sees of it."""
        samples = table.drop_columns([name for name in OWN if name in table.column_names])
        inputs = input_digests(samples, kind)
        if self.params.deduplicate:
            content = to_arrow(sample_digests(samples, inputs, table[CONTENT]))
            table = table.set_column(1, CONTENT, content)
        found = splits(inputs, self.seed, self.params.split)
        for number, writer in enumerate(writers):
            mine = np.flatnonzero(found == number)
            if len(mine):
                writer.write(table if len(mine) == len(table) else table.take(pa.array(mine)))

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
        readers = [self._reader(item) for item, result in zip(items, results, strict=True) for _ in result.records]
        left_out, listed = self._leave_out(records, readers) if self.params.deduplicate else (0, [])
        counts = {split: sum(r["rows"] for r in records if r["split"] == split) for split in SPLITS}
        counts["quarantined"] = sum(rows_of(result.quarantined) for result in results)
        counts["duplicates"] = left_out
        parents = {"raw": self.source.manifest().digest}
        return Manifest.build("curated", records, kind=readers[0].kind, counts=counts, parents=parents), listed

    def _leave_out(self, records: Records, readers: Sequence[Reader]) -> tuple[int, list[dict[str, Any]]]:
        """Note in `records` which rows are duplicates. Returns how many, and the list of them."""
        found = duplicates.find(self.zone, records)
        for number, record in enumerate(records):
            rows, (left_out, _) = json.loads(record["stats"])["rows"], found.of(number)
            record |= {"rows": rows - len(left_out), "left_out": duplicates.pack(rows, left_out)}
        by_row = [reader.by_row for reader in readers]
        return len(found.left_out), [*duplicates.listed(self.zone, records, found, by_row)]


def _unfit(rows: Rows, reader: Reader, before: Sequence[pa.Table]) -> str | None:
    """What is wrong with a piece, which somebody else's reader may have made, beside the pieces `before` it."""
    names = rows.table.column_names
    if missing := [name for name in _NEEDED[reader.kind] if name not in names]:
        return f"a piece without the column {missing[0]!r}, which {reader.kind} data has"
    if len(rows.ids) != rows.table.num_rows:
        return f"a piece with {len(rows.ids)} names for {rows.table.num_rows} rows"
    other = before and before[-1].drop_columns([name for name in OWN if name in before[-1].column_names]).schema
    if before and rows.table.schema != other:
        return f"pieces with different columns: {_types(other)}; {_types(rows.table.schema)}"
    return None


def _types(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _with_names(rows: Rows, with_content: bool) -> pa.Table:
    """The samples, below OWN's columns."""
    table = rows.table
    if with_content:
        content = row_digests.of_table(table) if rows.content is None else rows.content
        table = table.add_column(0, CONTENT, content)
    return table.add_column(0, ID, pa.array(rows.ids, pa.large_string()))
