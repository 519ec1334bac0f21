"""CSV and TSV: a record a sample."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from pipelines.ingest.readers.member import Reader

if TYPE_CHECKING:
    from pipelines.ingest.rows import Rows
    from pipelines.params import Curate


class Csv(Reader):
    """CSV and TSV: a record a sample."""

    name = "csv"
    kind = "table"
    suffixes = (".csv", ".tsv")

    def read(self, name: str, file: BinaryIO, params: "Curate") -> "Iterator[Rows]":
        from pipelines.ingest.readers.tables.csv_rows import read_csv

        return read_csv(name, file, params)
