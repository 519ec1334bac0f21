"""A data stage is plan, work and commit, so that the same code runs on threads, processes and Prefect tasks.

    plan()            the items, in order; pure: an item's key is the digest of its inputs, parameters and version
    work(item)        idempotent; publishes the item's objects and says what they are
    commit(results)   writes the manifest, last

Results are appended to a journal as they come. An item whose result is in the journal, or in the zone's present
manifest, and whose objects are there, is not worked again: a crash costs the unfinished items only.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipelines.console.formats import human_bytes
from pipelines.console.progress import progress
from pipelines.ingest.quarantine import GATHERED, first_of, rows_of, too_many
from pipelines.params import Compute
from pipelines.runtime.executors import Executor, choose_executor
from pipelines.runtime.locks import exclusive
from pipelines.workspace import Workspace
from storage.atomic import storage_errors, write_atomically
from storage.digest import canonical_json, digest_bytes, digest_file, keyed_uint64
from storage.errors import DataError, FormatError
from storage.lake import Zone
from storage.manifest import Manifest

QUARANTINE = "quarantine.jsonl"
DUPLICATES = "duplicates.jsonl"


@dataclass(frozen=True)
class Item:
    """A unit of work. `payload` holds JSON values only, so that items travel to any process or machine."""

    key: str
    label: str
    bytes: int
    payload: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Result:
    """What an item made: manifest `records`, and what it set aside, each with name and reason. A record has no key,
    unless it is of other inputs than the item was planned for."""

    key: str
    records: list[dict[str, Any]]
    quarantined: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Summary:
    """What a run of a stage did."""

    stage: str
    manifest: Manifest = field(repr=False)
    items: int
    worked: int
    quarantined: int
    duplicates: int = 0

    def __str__(self) -> str:
        objects = self.manifest.table.num_rows
        size = sum(self.manifest.table["bytes"].to_pylist())
        aside = f", {self.quarantined} quarantined (see {QUARANTINE})" if self.quarantined else ""
        aside += f", {self.duplicates} duplicates left out (see {DUPLICATES})" if self.duplicates else ""
        return (
            f"{self.stage}: {self.worked} of {self.items} items worked, {self.items - self.worked} were there; "
            f"{objects} objects, {human_bytes(size)}{aside}; version {self.manifest.digest[:12]}"
        )


class DataStage(Protocol):
    """What the three data stages have in common. Implementations are cheap to pickle. `build` gives the manifest, and
    the list of the duplicates that it leaves out."""

    @property
    def name(self) -> str: ...
    @property
    def zone(self) -> Zone: ...
    @property
    def max_quarantined(self) -> int: ...
    def plan(self) -> list[Item]: ...
    def work(self, item: Item) -> Result: ...
    def build(self, items: Sequence[Item], results: Sequence[Result]) -> tuple[Manifest, list[dict[str, Any]]]: ...


def journal_of(ws: Workspace, stage: str) -> Path:
    """Where a stage notes the results of a run that has not been committed."""
    return ws.state / "journal" / f"{stage}.jsonl"


def run(stage: DataStage, journal: Path, compute: Compute, executor: Executor | None = None) -> Summary:
    """Plan, work what is not there, commit. Interrupted or killed, the same call goes on where it was."""
    with at_work(stage, journal):
        items = stage.plan()
        known = pending(stage, items, journal)
        todo = [item for item in items if item.key not in known]
        executor = executor or choose_executor(compute, sum(item.bytes for item in todo))
        aside = sum(rows_of(result.quarantined) for result in known.values())
        with progress(stage.name, len(todo), "items") as advance, Journal(journal) as record:
            for result in executor.map(stage.work, todo):
                known[result.key] = result
                record(result)
                advance()
                aside += rows_of(result.quarantined)
                if aside > stage.max_quarantined + GATHERED:  # the rest of the work would be in vain
                    refuse_unusable(stage, [known[item.key] for item in items if item.key in known], journal)
        return commit(stage, items, known, journal, worked=len(todo))


def at_work(stage: DataStage, journal: Path) -> AbstractContextManager[None]:
    """From plan to commit, for one run of a stage at a time: a commit removes what its manifest doesn't name, which
    another run may have just made. (`writer.exclusive` is around whole jobs, which start stages as processes.)"""
    return exclusive(journal.with_suffix(".lock"), stage.zone.folder)


def pending(stage: DataStage, items: Sequence[Item], journal: Path) -> dict[str, Result]:
    """The results that are known already, by key; the items that are not in it are to be worked."""
    wanted = {item.key for item in items}
    known = {result.key: result for result in (*_committed(stage.zone), *read_journal(journal))}
    sizes = stage.zone.sizes() if known else {}
    return {
        key: result
        for key, result in known.items()
        if key in wanted
        and all("key" not in record and sizes.get(record["path"]) == record["bytes"] for record in result.records)
    }


def commit(
    stage: DataStage, items: Sequence[Item], results: dict[str, Result], journal: Path, *, worked: int
) -> Summary:
    """Check the quarantine, write quarantine.jsonl, duplicates.jsonl and then the manifest, and drop the journal."""
    ordered = [results[item.key] for item in items]
    refuse_unusable(stage, ordered, journal)
    aside = [{"key": result.key, **entry} for result in ordered for entry in result.quarantined]
    manifest, duplicates = stage.build(items, ordered)
    if lines := _write_lines(stage.zone.folder / QUARANTINE, aside):
        manifest = Manifest({**manifest.header, "quarantine": digest_bytes(lines)}, manifest.table)
    _write_lines(stage.zone.folder / DUPLICATES, duplicates)
    stage.zone.commit(manifest)
    journal.unlink(missing_ok=True)
    left_out = manifest.header["counts"].get("duplicates", 0)
    return Summary(stage.name, manifest, len(items), worked, rows_of(aside), left_out)


def refuse_unusable(stage: DataStage, results: Sequence[Result], journal: Path) -> None:
    """Raise DataError where more is set aside than may be, or nothing is left. All of it is listed beside the journal
    then: the zone's list is that of its manifest."""
    aside = [entry for result in results for entry in result.quarantined]
    listed, rows = journal.with_suffix(f".{QUARANTINE}"), rows_of(aside)
    if rows <= stage.max_quarantined and any(result.records for result in results):
        listed.unlink(missing_ok=True)
        return
    _write_lines(listed, aside)
    where = f"All that was set aside: {listed}\n"
    if rows > stage.max_quarantined:
        raise too_many(stage.name, rows, stage.max_quarantined, aside, where)
    reason = f"all was set aside. The first of it:\n{first_of(aside)}\n{where}" if aside else "every file is empty. "
    raise DataError(f"{stage.name}: nothing is left: {reason}Check curate.reader and its settings.")


def _write_lines(file: Path, entries: Sequence[dict[str, Any]]) -> bytes:
    """Write a JSON line an entry; without one there is no file. Returns the lines."""
    lines = b"".join(canonical_json(entry) + b"\n" for entry in entries)
    if lines:
        write_atomically(file, lines)
    else:
        file.unlink(missing_ok=True)
    return lines


def _committed(zone: Zone) -> Iterator[Result]:
    """The results that the present manifest holds. One that cannot be read counts as none; so does one whose quarantine
    file is another's (a commit was cut off between the two), since results would lose what they set aside."""
    if not zone.complete:
        return
    try:
        manifest = zone.manifest()
    except FormatError:
        return
    file = zone.folder / QUARANTINE
    if manifest.header.get("quarantine") != (digest_file(file) if file.is_file() else None):
        return
    records = manifest.records()
    aside: dict[str, list[dict[str, Any]]] = {}
    for entry in _json_lines(zone.folder / QUARANTINE):
        aside.setdefault(entry.pop("key"), []).append(entry)
    made: dict[str, list[dict[str, Any]]] = {key: [] for key in aside}
    for record in records:
        made.setdefault(record.pop("key"), []).append(record)
    for key, objects in made.items():
        yield Result(key, objects, aside.get(key, []))


class Journal:
    """Results of an uncommitted run, a JSON line each; a torn last line is ignored when read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> "Journal":
        with storage_errors(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._handle = self.file.open("ab+")
            if self._handle.tell() and self.file.read_bytes()[-1:] != b"\n":
                self._handle.write(b"\n")  # ends a line that a crash tore
        return self

    def __call__(self, result: Result) -> None:
        with storage_errors(self.file):
            self._handle.write(canonical_json(asdict(result)) + b"\n")
            self._handle.flush()

    def __exit__(self, *_: object) -> None:
        self._handle.close()


def read_journal(file: Path) -> list[Result]:
    """The results in a journal; none where there is no such file."""
    return [Result(entry["key"], entry["records"], entry["quarantined"]) for entry in _json_lines(file)]


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_bytes().splitlines() if file.is_file() else []:
        try:
            yield json.loads(line)
        except ValueError:
            continue  # torn by a crash


def group(names: Iterable[str], average: int, *salt: Any) -> list[list[int]]:
    """Cut a list into groups of `average` names, by content: a group ends at a name whose hash says so (1 in
    `average`), or at 4 x average. So a name that comes or goes changes its own group, seldom a neighbour's.
    Returns lists of positions."""
    groups: list[list[int]] = [[]]
    for position, name in enumerate(names):
        groups[-1].append(position)
        if keyed_uint64("group", *salt, name) % average == 0 or len(groups[-1]) >= 4 * average:
            groups.append([])
    return [positions for positions in groups if positions]
