"""Parquet: a row a sample."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from pipelines.ingest.readers.member import Reader

if TYPE_CHECKING:
    from pipelines.ingest.rows import Rows
    from pipelines.params import Curate


class Parquet(Reader):
    """Parquet: a row a sample."""

    name = "parquet"
    kind = "table"
    suffixes = (".parquet",)

    def read(self, name: str, file: BinaryIO, params: "Curate") -> "Iterator[Rows]":
        from pipelines.ingest.readers.tables.parquet_rows import read_parquet

        return read_parquet(name, file, params)
