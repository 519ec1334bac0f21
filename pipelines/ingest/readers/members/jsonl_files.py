"""JSON Lines: a document a line."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from pipelines.ingest.readers.member import Reader

if TYPE_CHECKING:
    from pipelines.ingest.rows import Rows
    from pipelines.params import Curate


class Jsonl(Reader):
    """JSON Lines: a document a line."""

    name = "jsonl"
    kind = "text"
    suffixes = (".jsonl", ".ndjson")

    def read(self, name: str, file: BinaryIO, params: "Curate") -> "Iterator[Rows]":
        from pipelines.ingest.readers.jsonl_rows import read_jsonl

        return read_jsonl(name, file, params)
