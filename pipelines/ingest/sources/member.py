"""What a source is, ours or anybody's. Nothing heavy is imported here, since parameters are checked by it."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar

from pipelines.params.schema.section import Section

if TYPE_CHECKING:
    from pipelines.params import Ingest


@dataclass(frozen=True)
class SourceFile:
    """A file of a source. `name` is the same on every machine, for files their path below the source's fixed part;
    that of the domain stands before it where there is one. `url` is what `Source.open` takes. Set for it are `domain`
    and `source`, the place of its source in the list where that isn't one of files."""

    name: str
    url: str
    bytes: int
    fingerprint: str
    domain: str | None = None
    source: int | None = None

    @property
    def digest(self) -> str | None:
        """BLAKE3 of a local file; of others only their store's fingerprint is known, which says what it is of."""
        return None if ":" in self.fingerprint else self.fingerprint


@dataclass(frozen=True)
class Place:
    """What a source may ask for: `ingest.exclude` and `links`, the recipe's folder `root`, a folder `state` for what it
    keeps of its own, and `digests`, BLAKE3 of local files by their paths: those of files that are as they were at the
    last time are known."""

    ingest: "Ingest"
    root: Path
    state: Path
    digests: Callable[[list[str]], list[str]]


class Source(Section):
    """Raw files from one place. A source's fields are its own parameters, `args` of an entry of `ingest.sources`."""

    name: ClassVar[str] = ""
    """By which `ingest.sources` knows it; an own one is known by its import path."""

    def files(self, place: Place) -> Iterable[SourceFile]:
        """Every file that there is now. Its fingerprint changes when its content does, and with nothing else: a file
        with a known name and fingerprint isn't opened again. Names that match `ingest.exclude` are left out later."""
        raise NotImplementedError

    def open(self, url: str) -> AbstractContextManager[BinaryIO]:
        """The file with this URL, which `files` gave, perhaps in another process: an open file, or a context that gives
        one. It is read once, to its end, and closed."""
        raise NotImplementedError
