"""Readers: a raw file → typed rows, piece by piece, and what had to be set aside (`member.py`).

Nothing heavy is imported here, since parameters are checked by what readers there are.
"""

from collections.abc import Iterable
from pathlib import PurePosixPath

from pipelines.ingest.readers.member import Reader
from storage.errors import DataError

__all__ = ["Reader", "detect"]


def detect(names: Iterable[str]) -> str:
    """The reader for a dataset, by the suffixes of its files. Raises DataError when they don't agree, and where all are
    .json, which may be anything."""
    from pipelines.params.data import READERS

    suffixes = {PurePosixPath(name).suffix.lower() for name in names}
    if suffixes == {".json"}:
        raise DataError(
            "curate.reader=auto: the sources are .json files, which may hold anything. Where each is a document, set "
            "curate.reader to text; an array of records is read once it has a record a line (jq -c '.[]'), as .jsonl."
        )
    members: dict[str, type[Reader]] = READERS.members  # type: ignore[assignment]
    by_suffix = {suffix: name for name, member in members.items() for suffix in member.suffixes}
    found = {by_suffix.get(suffix, "text") for suffix in suffixes}
    if len(found) > 1:
        raise DataError(
            f"curate.reader=auto: the sources mix {', '.join(sorted(found))}. Name one reader in curate.reader, and "
            "leave the other files out with ingest.exclude."
        )
    return found.pop() if found else "text"
