"""What was set aside: entries with a name and a reason, and `rows` where one stands for another number than 1."""

from collections.abc import Iterable, Sequence
from typing import Any

from storage.errors import DataError

GATHERED = 100  # more than allowed before reading stops: so that one run tells of more than one fault
_SHOWN = 5

Entry = dict[str, Any]


def rows_of(entries: Iterable[Entry]) -> int:
    """How many samples the entries stand for."""
    return sum(entry.get("rows", 1) for entry in entries)


def first_of(entries: Sequence[Entry]) -> str:
    """The first entries, a line each."""
    return "\n".join(f"  {entry['name']}{_more(entry)}: {entry['reason']}" for entry in entries[:_SHOWN])


def _more(entry: Entry) -> str:
    return f" ({entry['rows']} rows)" if "rows" in entry else ""


def too_many(stage: str, rows: int, limit: int, entries: Sequence[Entry], listed: str = "") -> DataError:
    """The error of a stage that set aside `rows` samples, more than `limit`; `listed` says where all of them stand."""
    return DataError(
        f"{stage}: unusable samples: {rows}, more than curate.max_quarantined={limit} allows. The first of them:\n"
        f"{first_of(entries)}\n{listed}"
        "Mend the sources, or the reader's settings under `curate`, or raise curate.max_quarantined."
    )


def uncountable(name: str, reason: str) -> DataError:
    """The error of a file that may hold any number of rows: to set it aside as one would be to lose the others."""
    return DataError(
        f"{name}: {reason}. Nobody knows how many rows it holds, so it is not set aside: mend it, or leave it out with "
        "ingest.exclude."
    )


class Aside:
    """Collects what a reader sets aside of a file. Where that is far more than `limit`, the rest isn't read."""

    def __init__(self, limit: int) -> None:
        self.limit, self.rows, self.entries = limit, 0, list[Entry]()
        self._told = 0

    def new(self) -> list[Entry]:
        """The entries since this was asked last."""
        entries, self._told = self.entries[self._told :], len(self.entries)
        return entries

    def add(self, name: str, reason: str, rows: int = 1) -> None:
        """Raises DataError once there are more than `limit` and GATHERED."""
        self.entries.append({"name": name, "reason": reason} | ({} if rows == 1 else {"rows": rows}))
        self.rows += rows
        if self.rows > self.limit + GATHERED:
            raise too_many("curate", self.rows, self.limit, self.entries, "Reading stopped there. ")
