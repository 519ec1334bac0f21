"""What a reader is, ours or anybody's."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Literal

from pipelines.params.schema.section import Section

if TYPE_CHECKING:
    from pipelines.ingest.rows import Rows
    from pipelines.params import Curate


class Reader(Section):
    """Reads files of one format. A reader's fields are its own parameters, `curate.reader.args`.

    Names of samples, splits, duplicates, Parquet and the quarantine are the stage's. Its columns are, by `kind`:

    - text: `text` (large_string), a document.
    - table: a column a feature (float64, all finite) and `label` (string for classes, float64 for numbers).
    - image: `image` (large_binary, the encoded file), `height` and `width` (int32) as it is shown, `label` (string).
    """

    name: ClassVar[str] = ""
    """By which `curate.reader` knows it; an own one is known by its import path."""
    kind: ClassVar[Literal["text", "image", "table"]]
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Of the files that `auto` gives to it, in small letters."""
    by_row: ClassVar[bool] = True
    """Whether the names of samples end in :<number>, as there are many in a file."""

    def read(self, name: str, file: BinaryIO, params: "Curate") -> "Iterator[Rows]":
        """All rows of file `name`, piece by piece: what is kept, and what is set aside with place and reason.

        `file` can be read and sought in; its bytes are those of the manifest. A reader asks for a piece at a time, so
        that memory is bounded by a piece and the longest row. What the pieces are doesn't change the result. Raises
        DataError for a file that can't be counted, and for parameters that don't fit its columns.
        """
        raise NotImplementedError
