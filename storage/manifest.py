"""Manifests: what a dataset version holds. The digest of a manifest *is* the version.

A manifest is one Arrow IPC file: a row an object, and a JSON header in the schema's metadata. So a manifest of a
million objects opens by mapping it, and nothing in it is ever unpickled. It is written last: its existence means that
the version is complete.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute

from storage.atomic import write_atomically
from storage.digest import canonical_json, digest_bytes, digest_opened
from storage.errors import FormatError
from storage.mapped import map_opened

#: The format in which a zone's manifest is written; older ones are read too.
FORMATS = {"raw": 1, "curated": 2, "shards": 2}
# Of shards 2: they have plain_bytes, and may be compressed at rest. Of curated objects 2: rows of them may be left out.
FILENAME = "manifest.arrow"
_METADATA_KEY = b"shardline"

#: Columns of every manifest; a zone adds its own from `ZONE_COLUMNS`.
CORE_COLUMNS: dict[str, pa.DataType] = {
    "path": pa.string(),  # relative to the zone's root: objects/<digest><suffix>
    "digest": pa.string(),  # hexadecimal BLAKE3 of the object's plain bytes
    "bytes": pa.int64(),  # as it lies in the lake
    "rows": pa.int64(),  # samples (documents of a token shard)
    "key": pa.string(),  # of the item that made the object
}
ZONE_COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "raw": {"name": pa.string()},
    # after: the raw file before the object's group, which names the group whatever comes or goes inside it
    # rows: without those that are left out (left_out, as pipelines/ingest/duplicates.py packs them; null: none is)
    "curated": {"after": pa.string(), "split": pa.string(), "stats": pa.string(), "left_out": pa.binary()},
    # plain_bytes: once decompressed; as many as bytes where the shard is plain
    "shards": {"plain_bytes": pa.int64(), "split": pa.string(), "tokens": pa.int64(), "stats": pa.string()},
}
#: Where the sources name domains; else there is no such column.
DOMAIN_COLUMN = {"domain": pa.string()}


@dataclass(frozen=True)
class Manifest:
    """`header` (JSON values: format, zone, kind, spec, parents, counts) and `table`, a row an object."""

    header: dict[str, Any]
    table: pa.Table = field(repr=False)

    @classmethod
    def build(cls, zone: str, records: list[dict[str, Any]], **header: Any) -> "Manifest":
        """A manifest of `zone` over `records`, which hold that zone's columns; their order is kept. Records without
        `plain_bytes` are of plain objects."""
        domains = DOMAIN_COLUMN if any("domain" in record for record in records) else {}
        schema = pa.schema({**CORE_COLUMNS, **ZONE_COLUMNS[zone], **domains})
        rows = [{"plain_bytes": record["bytes"], **record} for record in records]
        return cls({"format": FORMATS[zone], "zone": zone, **header}, pa.Table.from_pylist(rows, schema=schema))

    @classmethod
    def load(cls, path: Path) -> "Manifest":
        """Open the manifest in file `path` (or in folder `path`). Raises FormatError for an unknown or damaged one."""
        file = path / FILENAME if path.is_dir() or not path.suffix else path
        if not file.is_file():
            raise FormatError(f"{file}: no manifest. The stage that makes this zone has not finished: run `dvc repro`.")
        with file.open("rb") as opened:
            manifest = cls.from_bytes(map_opened(opened), str(file))  # what is never looked at takes no memory
            manifest.__dict__["digest"] = digest_opened(opened)
        return manifest

    @classmethod
    def from_bytes(cls, data: bytes | pa.Buffer, what: str = "manifest") -> "Manifest":
        """Decode a manifest; `what` names it in errors."""
        try:
            table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
            header = json.loads((table.schema.metadata or {})[_METADATA_KEY])
        except (pa.ArrowInvalid, KeyError, ValueError, OSError) as error:
            raise FormatError(f"{what}: not a Shardline manifest ({error}). Restore it with `dvc checkout`.") from error
        newest = FORMATS.get(header.get("zone"), max(FORMATS.values()))
        if header.get("format") not in range(1, newest + 1):
            raise FormatError(
                f"{what}: manifest format {header.get('format')!r}, but this Shardline reads formats 1 to {newest} "
                "only. Use the Shardline that wrote it, or make the dataset again with `dvc repro --force`."
            )
        if header.get("zone") == "shards" and header["format"] == 1:
            table = table.append_column("plain_bytes", table["bytes"])
        manifest = cls(header, table.replace_schema_metadata(None))
        manifest.__dict__["encoded"] = data
        return manifest

    @cached_property
    def encoded(self) -> bytes | pa.Buffer:
        """The file's bytes; the same manifest always has the same."""
        table = self.table.combine_chunks().replace_schema_metadata({_METADATA_KEY: canonical_json(self.header)})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        return bytes(sink.getvalue().to_pybytes())

    @cached_property
    def digest(self) -> str:
        """The dataset version: hexadecimal BLAKE3 of the file."""
        return digest_bytes(self.encoded)

    def save(self, folder: Path) -> Path:
        """Write `folder/manifest.arrow` atomically and durably."""
        return write_atomically(folder / FILENAME, self.encoded)

    def select(self, split: str, domain: str | None = None) -> pa.Table:
        """The rows of one split, in order, or of one `domain` of it: not copied where they lie together."""
        table = _where(self.table, "split", split)
        return table if domain is None else _where(table, "domain", domain)

    @property
    def splits(self) -> list[str]:
        return sorted(pa.compute.unique(self.table["split"]).to_pylist())

    @property
    def domains(self) -> list[str]:
        """By name; none where the sources name none."""
        if "domain" not in self.table.column_names:
            return []
        return sorted(pa.compute.unique(self.table["domain"]).to_pylist())

    def records(self) -> list[dict[str, Any]]:
        """The objects as dictionaries. Only for zones of modest size: it is O(objects) Python objects."""
        return list(self.table.to_pylist())


def _where(table: pa.Table, column: str, value: str) -> pa.Table:
    """The rows with that value."""
    chosen = pa.compute.equal(table[column], value)
    first, count = pa.compute.index(chosen, True).as_py(), pa.compute.sum(chosen).as_py() or 0
    together = count and pa.compute.all(chosen.slice(first, count), skip_nulls=False).as_py()
    return table.slice(first, count) if together else table.filter(chosen)
