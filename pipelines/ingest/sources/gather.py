"""All sources together: which files there are, each with a name of its own."""

from dataclasses import replace
from pathlib import Path, PurePosixPath

from pipelines.ingest.domains import inside
from pipelines.ingest.sources.listing import Fingerprints, excluded
from pipelines.ingest.sources.member import Place, Source, SourceFile
from pipelines.ingest.sources.members.files import Files
from pipelines.params import Ingest
from pipelines.params.domains import SOURCES, shown
from pipelines.params.schema.registry import Named
from storage.errors import ShardlineError, SourceError
from storage.redact import mask

_BRACKETS = " [ab] stands for a or b; for a bracket itself write [[]."


def list_sources(ingest: Ingest, root: Path, state: Path) -> list[SourceFile]:
    """Every file that `ingest.sources` matches, by name. Relative paths start at `root`, the recipe's folder.

    A local file's fingerprint is its BLAKE3, kept by size and time in `state` so that it is read once; a remote one's
    is what its store gives (ETag, checksum, version). Raises SourceError for a source that can't be listed, matches
    nothing or gives two files the same name; for a file that can't be read, a link to nothing, a file in two domains.
    """
    found: dict[str, SourceFile] = {}
    owner: dict[tuple[int | None, str], str | None] = {}
    with Fingerprints(state / "fingerprints.db") as fingerprints:
        place = Place(ingest, root, state, fingerprints.of)
        for position, (domain, source) in enumerate(ingest.each):
            files = _list_one(source, position, place)
            if not files:
                raise _no_files(source, root)
            for file in (replace(file, name=inside(domain, file.name), domain=domain) for file in files):
                other = found.setdefault(file.name, file)
                if (other.source, other.url) != (file.source, file.url):
                    raise SourceError(
                        mask(f"ingest.sources: {other.url} and {file.url} would both be named {file.name!r}. ")
                        + "Give one glob that starts at a folder above both."
                    )
                if (first := owner.setdefault((file.source, file.url), domain)) != domain:
                    raise SourceError(
                        mask(f"ingest.sources: {file.url} is in the domains {first!r} and {domain!r}, and a sample ")
                        + "belongs to one. Narrow the sources of one of them."
                    )
    return [found[name] for name in sorted(found)]


def _no_files(source: str | Named, root: Path) -> SourceError:
    if not isinstance(source, str):
        return SourceError(f"ingest.sources: {source.name} has no file. Check its args, and ingest.exclude.")
    return SourceError(
        f"ingest.sources: {mask(source)!r} matches no file. Check the path (relative ones start at {root}), the glob, "
        f"and ingest.exclude.{_BRACKETS if '[' in source else ''}"
    )


def _list_one(source: str | Named, position: int, place: Place) -> list[SourceFile]:
    member = source_of(source, place.root)
    if isinstance(member, Files):
        return [*member.files(place)]
    try:
        files = [file for file in member.files(place) if not excluded(file.name, place.ingest.exclude)]
    except ShardlineError:
        raise
    except Exception as error:  # whatever a user's class raises
        raise SourceError(
            mask(f"ingest.sources: {shown(source)} cannot list its files: {type(error).__name__}: {error}")
        ) from error
    for file in files:
        parts = PurePosixPath(file.name)
        if parts.is_absolute() or ".." in parts.parts or not parts.parts:
            raise SourceError(f"ingest.sources: {shown(source)}: {file.name!r} is no name of a file below a folder")
    kind = type(member).__name__  # with the colon, no fingerprint is taken for a digest
    return [replace(file, fingerprint=f"{kind}:{file.fingerprint}", source=position) for file in files]


def source_of(source: str | Named, root: Path) -> Source:
    """The source that an entry of `ingest.sources` names; one of the user's own is looked for in `root` first. Raises
    ParamsError."""
    if isinstance(source, str):
        return Files(url=source)
    made: Source = SOURCES.make(source, Source, (root,))
    return made
