"""Manifests: what a dataset version holds. The digest of a manifest *is* the version.

A manifest is one Arrow IPC file: a row an object, a JSON header in the schema's metadata, and a seal in the footer, by
which a flipped bit is found (see seal.py). So a manifest of a million objects opens by mapping it, and nothing in it is
ever unpickled. It is written last: its existence means that the version is complete.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute

from storage.arrow_files import Malformed, read_batches
from storage.atomic import write_atomically
from storage.digest import canonical_json, digest_bytes
from storage.errors import DigestError, FormatError, LakeError
from storage.manifest.checks import check_header, check_rows
from storage.manifest.seal import BLANK, KEY, Digests, digests_of, sealed
from storage.mapped import let_go, mapping

#: The format in which a zone's manifest is written; older ones are read too.
FORMATS = {"raw": 2, "curated": 2, "shards": 3}
_SEALED = {"raw": 2, "curated": 2, "shards": 3}  # the first format that has a seal
# What format 2 added: of shards, they may be compressed at rest; of curated objects, rows of them may be left out.
_ADDED = {"shards": "plain_bytes", "curated": "left_out"}
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
    # rows: without those that are left out (left_out, as duplicates.py of the curate stage packs them; null: none)
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
        """Open the manifest in file `path` (or in folder `path`). Raises FormatError for one that isn't there, isn't
        known or makes no sense, DigestError for a damaged one, and LakeError where it can't be read."""
        file = path if path.suffix == Path(FILENAME).suffix and not os.path.isdir(path) else path / FILENAME
        with _readable(file), file.open("rb") as opened:
            digests = digests_of(opened, os.fstat(opened.fileno()).st_size)
            mapped = mapping(opened)  # what is never looked at takes no memory
            if mapped is None:
                return cls._decode(b"", digests, str(file), lambda: None)
            return cls._decode(pa.py_buffer(mapped), digests, str(file), partial(let_go, mapped))

    @classmethod
    def from_bytes(cls, data: bytes | pa.Buffer, what: str = "manifest") -> "Manifest":
        """Decode a manifest; `what` names it in errors. Raises as `load` does."""
        buffer = pa.py_buffer(data)
        return cls._decode(data, digests_of(pa.BufferReader(buffer), buffer.size), what, lambda: None)

    @classmethod
    def _decode(cls, data: bytes | pa.Buffer, digests: Digests, what: str, done: Callable[[], object]) -> "Manifest":
        """`done()` is called when what was looked at isn't needed for a while."""
        if not digests.intact:  # before anything in it is interpreted
            raise DigestError(what, str(digests.says), digests.found)
        try:
            header, table = _decoded(data, what, done)
            if digests.says is None and header["format"] >= _SEALED[header["zone"]]:
                raise Malformed(f"format {header['format']} has a seal, and here is none")
        except Malformed as error:
            raise FormatError(
                f"{what}: not a Shardline manifest ({error}). Restore it with `dvc checkout`, or make the dataset "
                "again with `dvc repro --force`."
            ) from error
        manifest = cls(header, table)
        manifest.__dict__.update(encoded=data, digest=digests.whole)
        return manifest

    @cached_property
    def encoded(self) -> bytes | pa.Buffer:
        """The file's bytes; the same manifest always has the same."""
        table = self.table.combine_chunks().replace_schema_metadata({_METADATA_KEY: canonical_json(self.header)})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema, metadata={KEY: BLANK}) as writer:
            writer.write_table(table)
        return sealed(sink.getvalue().to_pybytes())

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


def _decoded(data: bytes | pa.Buffer, what: str, done: Callable[[], object]) -> tuple[dict[str, Any], pa.Table]:
    """Header and table, checked. Raises Malformed; FormatError for a format that isn't known."""
    schema, batches = read_batches(data)
    try:
        header = json.loads((schema.metadata or {})[_METADATA_KEY])
    except (KeyError, ValueError, RecursionError) as error:
        raise Malformed(f"its header is none: {error}") from error
    if not isinstance(header, dict):
        raise Malformed(f"its header is {header!r:.80}")
    zone, version = str(header.get("zone")), header.get("format")
    newest = FORMATS.get(zone, max(FORMATS.values()))
    if type(version) is not int or version not in range(1, newest + 1):
        raise FormatError(
            f"{what}: manifest format {version!r}, but this Shardline reads formats 1 to {newest} "
            "only. Use the Shardline that wrote it, or make the dataset again with `dvc repro --force`."
        )
    if zone not in FORMATS:
        raise Malformed(f"its zone is {zone:.80}")
    check_header(header)
    added = _ADDED.get(zone) if version == 1 else None
    columns = {**CORE_COLUMNS, **ZONE_COLUMNS[zone], **(DOMAIN_COLUMN if "domain" in schema.names else {})}
    if added is not None:
        del columns[added]
    check_rows(schema, pa.schema(columns), batches, done)
    table = pa.Table.from_batches(batches, schema).replace_schema_metadata(None)
    if added is not None:
        values = table["bytes"] if added == "plain_bytes" else pa.nulls(table.num_rows, ZONE_COLUMNS[zone][added])
        table = table.append_column(added, values)
    return header, table


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turn the operating system's errors into a LakeError that names `file`."""
    try:
        yield
    except FileNotFoundError as error:
        raise FormatError(
            f"{file}: no manifest. The stage that makes this zone has not finished: run `dvc repro`."
        ) from error
    except OSError as error:
        raise LakeError(f"{file}: the manifest cannot be read ({error.strerror}). Check its permissions.") from error


def _where(table: pa.Table, column: str, value: str) -> pa.Table:
    """The rows with that value."""
    chosen = pa.compute.equal(table[column], value)
    first, count = pa.compute.index(chosen, True).as_py(), pa.compute.sum(chosen).as_py() or 0
    together = count and pa.compute.all(chosen.slice(first, count), skip_nulls=False).as_py()
    return table.slice(first, count) if together else table.filter(chosen)
