"""Files that fsspec reaches: what a URL, glob or folder in `ingest.sources` stands for."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from pipelines.ingest.sources.member import Place, Source

if TYPE_CHECKING:
    from pipelines.ingest.sources.member import SourceFile


class Files(Source):
    """Files that fsspec reaches: `url` alone is short for {name: files, args: {url: …}}."""

    name = "files"

    url: str
    """URL, glob or folder."""

    def files(self, place: Place) -> "Iterable[SourceFile]":
        from pipelines.ingest.sources.listing import list_files

        return list_files(self.url, place)

    @contextmanager
    def open(self, url: str) -> Iterator[BinaryIO]:
        from fsspec.core import url_to_fs

        fs, path = url_to_fs(url)  # an archive's is closed when it is let go
        with fs.open(path, "rb") as file:
            yield file
