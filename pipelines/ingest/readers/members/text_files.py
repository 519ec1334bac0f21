"""Source code and prose: a file a document."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from pipelines.ingest.readers.member import Reader

if TYPE_CHECKING:
    from pipelines.ingest.rows import Rows
    from pipelines.params import Curate


class Text(Reader):
    """Source code and prose: a file a document."""

    name = "text"
    kind = "text"
    by_row = False

    def read(self, name: str, file: BinaryIO, params: "Curate") -> "Iterator[Rows]":
        from pipelines.ingest.readers.text import read_text

        return read_text(name, file, params)
