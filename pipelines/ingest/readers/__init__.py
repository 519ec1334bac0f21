"""Readers: the bytes of a raw file → typed rows, and what had to be set aside.

An author of a reader writes one function `(name, bytes, params) → Rows`. Names, splits, deduplication, Parquet and the
quarantine are the stage's.
"""

from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

from pipelines.ingest.readers.csv_rows import read_csv
from pipelines.ingest.readers.images import read_image
from pipelines.ingest.readers.jsonl_rows import read_jsonl
from pipelines.ingest.readers.parquet_rows import read_parquet
from pipelines.ingest.readers.text import read_text
from pipelines.ingest.rows import Rows
from pipelines.params import Curate
from storage.errors import DataError

__all__ = ["KINDS", "READERS", "Rows", "detect"]

Reader = Callable[[str, bytes, Curate], Rows]

READERS: dict[str, Reader] = {
    "text": read_text,
    "image_folder": read_image,
    "csv": read_csv,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
}

#: Kinds of curated data: documents of text, encoded images with a label, rows of numbers with a label.
KINDS = {"text": "text", "image_folder": "image", "csv": "table", "jsonl": "text", "parquet": "table"}
_SUFFIXES = {
    "csv": {".csv", ".tsv"},
    "jsonl": {".jsonl", ".ndjson"},
    "parquet": {".parquet"},
    "image_folder": {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"},
}
_BY_SUFFIX = {suffix: reader for reader, suffixes in _SUFFIXES.items() for suffix in suffixes}


def detect(names: Iterable[str]) -> str:
    """The reader for a dataset, by the suffixes of its files. Raises DataError when they don't agree, and where all are
    .json, which may be anything."""
    suffixes = {PurePosixPath(name).suffix.lower() for name in names}
    if suffixes == {".json"}:
        raise DataError(
            "curate.reader=auto: the sources are .json files, which may hold anything. Where each is a document, set "
            "curate.reader to text; an array of records is read once it has a record a line (jq -c '.[]'), as .jsonl."
        )
    found = {_BY_SUFFIX.get(suffix, "text") for suffix in suffixes}
    if len(found) > 1:
        raise DataError(
            f"curate.reader=auto: the sources mix {', '.join(sorted(found))}. Name one reader in curate.reader, and "
            "leave the other files out with ingest.exclude."
        )
    return found.pop() if found else "text"
