"""Images in a folder for each class."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from pipelines.ingest.readers.member import Reader

if TYPE_CHECKING:
    from pipelines.ingest.rows import Rows
    from pipelines.params import Curate


class ImageFolder(Reader):
    """Images in a folder for each class."""

    name = "image_folder"
    kind = "image"
    suffixes = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
    by_row = False

    def read(self, name: str, file: BinaryIO, params: "Curate") -> "Iterator[Rows]":
        from pipelines.ingest.readers.images import read_image

        return read_image(name, file, params)
