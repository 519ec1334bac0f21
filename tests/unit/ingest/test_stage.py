"""Plan, work, commit: what is worked again and what isn't."""

import json
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, write_params

from pipelines.ingest import data_stage
from pipelines.ingest.quarantine import GATHERED
from pipelines.ingest.stage import Item, Result, Summary, group, journal_of, run
from pipelines.runtime import locks
from pipelines.runtime.executors import PoolExecutor
from pipelines.workspace import Workspace
from storage.errors import DataError


def make(folder: Path, *stages: str) -> list[Summary]:
    ws = Workspace.open(folder)
    return [run(data_stage(name, ws), journal_of(ws, name), ws.params.compute) for name in stages]


ALL = ("ingest", "curate", "shard")


def test_a_second_run_works_nothing_and_keeps_the_version(recipe: Path) -> None:
    first = make(recipe, *ALL)
    second = make(recipe, *ALL)
    assert [summary.worked for summary in second] == [0, 0, 0]
    assert [s.manifest.digest for s in second] == [s.manifest.digest for s in first]
    assert all(summary.worked == summary.items > 0 for summary in first)


def test_from_scratch_elsewhere_gives_the_same_versions(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("elsewhere")
    (other / "texts").symlink_to(recipe / "texts")
    write_params(other, TINY)
    assert [s.manifest.digest for s in make(other, *ALL)] == [s.manifest.digest for s in make(recipe, *ALL)]


def test_one_more_file_is_one_item_in_each_stage(recipe: Path) -> None:
    make(recipe, *ALL)
    (recipe / "texts" / "doc005b.txt").write_text("one more\n" * 30)
    assert [summary.worked for summary in make(recipe, *ALL)] == [1, 1, 1]


def test_a_touched_file_changes_nothing_and_a_changed_one_its_items(recipe: Path) -> None:
    before = make(recipe, *ALL)
    file = recipe / "texts" / "doc003.txt"
    file.touch()
    assert make(recipe, "ingest")[0].manifest.digest == before[0].manifest.digest
    file.write_text(file.read_text() + "changed\n")
    after = make(recipe, *ALL)
    assert [summary.worked for summary in after] == [1, 1, 1]
    assert after[2].manifest.digest != before[2].manifest.digest


def test_a_lost_object_is_made_again_alone(recipe: Path) -> None:
    before = make(recipe, *ALL)
    path = before[2].manifest.records()[0]["path"]
    (recipe / "data" / "shards" / path).unlink()
    again = make(recipe, "shard")[0]
    assert again.worked == 1
    assert again.manifest.digest == before[2].manifest.digest
    assert (recipe / "data" / "shards" / path).is_file()


def test_objects_that_no_manifest_names_are_swept(recipe: Path) -> None:
    make(recipe, "ingest")
    (recipe / "texts" / "doc000.txt").unlink()
    manifest = make(recipe, "ingest")[0].manifest
    left = {f"objects/{file.name}" for file in (recipe / "data" / "raw" / "objects").iterdir()}
    assert left == set(manifest.table["path"].to_pylist())


def test_the_quarantine_names_each_file_and_its_reason(recipe: Path) -> None:
    (recipe / "texts" / "doc004.txt").write_bytes(b"\xff\xfe broken")
    make(recipe, "ingest")
    with pytest.raises(
        DataError, match=r"(?s)unusable samples: 1, more than curate.max_quarantined=0.*doc004.txt: not UTF-8"
    ):
        make(recipe, "curate")
    assert not (recipe / "data" / "curated" / "manifest.arrow").exists()
    write_params(recipe, {**TINY, "curate": {**TINY["curate"], "max_quarantined": 1}})  # type: ignore[dict-item]
    summary = make(recipe, "curate")[0]
    assert summary.quarantined == 1
    assert "doc004.txt" in (recipe / "data" / "curated" / "quarantine.jsonl").read_text()
    assert make(recipe, "curate")[0].worked <= 1  # an item that made nothing but quarantine is known too


def set_aside(folder: Path) -> list[dict[str, Any]]:
    """What a run that failed lists beside its journal."""
    return [json.loads(line) for line in unusable(folder).read_text().splitlines()]


def unusable(folder: Path) -> Path:
    return journal_of(Workspace.open(folder), "curate").with_suffix(".quarantine.jsonl")


def test_where_nothing_is_left_the_reasons_are_told_and_listed(recipe: Path) -> None:
    write_params(recipe, {**TINY, "curate": {**TINY["curate"], "max_quarantined": 100}})  # type: ignore[dict-item]
    kept = {file: file.read_bytes() for file in (recipe / "texts").iterdir()}
    for file in kept:
        file.write_bytes(b"\xff" + file.name.encode())
    make(recipe, "ingest")
    with pytest.raises(DataError) as raised:
        make(recipe, "curate")
    assert "curate: nothing is left: all was set aside. The first of it:" in str(raised.value)
    assert "doc000.txt: not UTF-8" in str(raised.value)
    assert str(unusable(recipe)) in str(raised.value)
    assert [entry["name"] for entry in set_aside(recipe)] == sorted(file.name for file in kept)
    for file, data in kept.items():
        file.write_bytes(data)
    make(recipe, "ingest", "curate")
    assert not unusable(recipe).exists()


def test_rows_are_counted_and_not_the_entries_that_tell_of_them(recipe: Path) -> None:
    (recipe / "rows.csv").write_bytes(b'a,note,y\n1,"x,u\n2,x,u\n3,x",y,u\n4,x,u\n5,\n6,x,u\n')
    table = {**TINY, "ingest": {"sources": ["rows.csv"]}, "curate": {"label": "y", "features": ["a"]}}
    write_params(recipe, {**table, "curate": {**table["curate"], "max_quarantined": 3}})
    make(recipe, "ingest")
    with pytest.raises(
        DataError, match=r"(?s)unusable samples: 4, more .*max_quarantined=3.*rows.csv:2 \(3 rows\): 4 fields"
    ):
        make(recipe, "curate")
    assert [(entry["name"], entry.get("rows")) for entry in set_aside(recipe)] == [
        ("rows.csv:2", 3),
        ("rows.csv:6", None),
    ]
    write_params(recipe, {**table, "curate": {**table["curate"], "max_quarantined": 4}})
    summary = make(recipe, "curate")[0]
    assert summary.quarantined == summary.manifest.header["counts"]["quarantined"] == 4
    assert sum(summary.manifest.table["rows"].to_pylist()) == 2
    assert make(recipe, "curate")[0].quarantined == 4


def test_a_run_stops_once_far_too_much_is_unusable(recipe: Path) -> None:
    for number in range(300):
        (recipe / "texts" / f"bad{number:03d}.txt").write_bytes(b"\xff%d" % number)
    make(recipe, "ingest")
    ws = Workspace.open(recipe)
    worked = []

    class Counts:
        def map(self, work, items):  # type: ignore[no-untyped-def]
            for item in items:
                worked.append(item)
                yield work(item)

    with pytest.raises(DataError, match=r"unusable samples: 1\d\d, more than curate.max_quarantined=0"):
        run(data_stage("curate", ws), journal_of(ws, "curate"), ws.params.compute, Counts())
    assert 0 < len(worked) < len(data_stage("curate", ws).plan())
    assert GATHERED < len(set_aside(recipe)) < 300


def test_processes_make_what_threads_make(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    expected = [summary.manifest.digest for summary in make(recipe, *ALL)]
    other = tmp_path_factory.mktemp("processes")
    (other / "texts").symlink_to(recipe / "texts")
    write_params(other, {**TINY, "compute": {"engine": "processes", "workers": 2}})
    assert [summary.manifest.digest for summary in make(other, *ALL)] == expected


def test_a_torn_journal_line_is_ignored(recipe: Path) -> None:
    ws = Workspace.open(recipe)
    stage, journal = data_stage("ingest", ws), journal_of(ws, "ingest")
    items = stage.plan()

    class Stops:
        def map(self, work, items):  # type: ignore[no-untyped-def]
            yield work(items[0])
            yield work(items[1])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(stage, journal, ws.params.compute, Stops())
    with journal.open("ab") as file:
        file.write(
            b'{"key": "of an earlier version", "records": [], "quarantined": [], "duplicates": []}\n{"key": "torn'
        )
    summary = run(stage, journal, ws.params.compute)
    assert summary.worked == len(items) - 2
    assert not journal.exists()


def test_the_executor_yields_every_result_once() -> None:
    for count in (0, 1, 7, 8, 9, 100):
        assert sorted(PoolExecutor(2, processes=False).map(abs, range(-count, 0))) == list(range(1, count + 1))


def test_groups_are_stable_when_a_name_comes() -> None:
    names = [f"file{i:04d}" for i in range(2000)]
    before = {tuple(names[i] for i in positions) for positions in group(names, 16)}
    changed = 0
    for extra in range(0, 2000, 100):
        more = sorted([*names, f"file{extra:04d}x"])
        after = {tuple(more[i] for i in positions) for positions in group(more, 16)}
        changed += len(after - before)
    assert changed <= 30  # 20 insertions: one group each, seldom two
    assert sum(len(g) for g in before) == 2000
    assert max(len(g) for g in before) <= 64


def test_items_travel_as_json() -> None:
    item = Item("k", "label", 3, {"a": [1]})
    assert Item(**item.__dict__) == item
    assert Result("k", []).quarantined == []


def test_history_does_not_show_in_the_version(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """After any additions and deletions the version is that of the same files from scratch."""
    make(recipe, *ALL)
    for name in ("doc000", "doc007", "doc016", "doc017"):
        (recipe / "texts" / f"{name}.txt").unlink()
        make(recipe, *ALL)
    (recipe / "texts" / "doc016b.txt").write_text("later\n" * 9)
    other = tmp_path_factory.mktemp("scratch")
    (other / "texts").symlink_to(recipe / "texts")
    write_params(other, TINY)
    assert [s.manifest.digest for s in make(recipe, *ALL)] == [s.manifest.digest for s in make(other, *ALL)]


def test_a_quarantine_file_of_another_commit_counts_for_nothing(recipe: Path) -> None:
    """Cut off between quarantine.jsonl and the manifest, without a journal: the items are worked again."""
    (recipe / "texts" / "doc004.txt").write_bytes(b"\xff\xfe broken")
    write_params(recipe, {**TINY, "curate": {**TINY["curate"], "max_quarantined": 9}})  # type: ignore[dict-item]
    whole = make(recipe, *ALL)[1]
    file = recipe / "data" / "curated" / "quarantine.jsonl"
    file.write_text(file.read_text() + '{"key": "other", "name": "x", "reason": "y"}\n')
    again = make(recipe, "curate")[0]
    assert again.worked == again.items
    assert again.manifest.digest == whole.manifest.digest
    assert make(recipe, "curate")[0].worked == 0


def test_a_source_file_that_is_compressed_is_not_taken_for_damaged(recipe: Path) -> None:
    """The lake's own compressed objects end in .zst, too."""
    import pyarrow as pa

    text = b"compressed at the source\n" * 20
    (recipe / "texts" / "packed.txt.zst").write_bytes(pa.Codec("zstd").compress(text, asbytes=True))
    sources = {"ingest": {"sources": ["texts/*"]}, "curate": TINY["curate"] | {"max_quarantined": 1}}  # type: ignore[operator]
    write_params(recipe, TINY | sources)
    ingested, curated = make(recipe, "ingest", "curate")
    zone = Workspace.open(recipe).zone("raw")
    for record in ingested.manifest.records():
        zone.verify(record["path"], record["digest"])
    assert curated.quarantined == 1
    assert make(recipe, "ingest")[0].worked == 0


def test_two_runs_of_a_stage_take_turns(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what one commits would sweep away what the other has made, and names in a manifest of its own."""
    make(recipe, "ingest")
    ws = Workspace.open(recipe)
    write_params(recipe, {**TINY, "curate": {**TINY["curate"], "files_per_object": 4}})  # type: ignore[dict-item]
    waits = threading.Event()
    monkeypatch.setattr(locks, "say", lambda text: waits.set())
    other = threading.Thread(target=make, args=(recipe, "curate"))

    class Meanwhile:
        def map(self, work, items):  # type: ignore[no-untyped-def]
            yield work(items[0])
            other.start()
            while other.is_alive() and not waits.wait(0.01):
                pass
            yield from map(work, items[1:])

    zone = ws.zone("curated")
    summary = run(data_stage("curate", ws), journal_of(ws, "curate"), ws.params.compute, Meanwhile())
    other.join()
    assert waits.is_set(), set(summary.manifest.table["path"].to_pylist()) - set(zone.sizes())
    assert set(zone.manifest().table["path"].to_pylist()) == set(zone.sizes())
    assert zone.manifest().table.num_rows > summary.manifest.table.num_rows  # the later run's


@pytest.mark.parametrize("crashes", [False, True])
def test_a_file_that_changes_while_it_is_ingested_is_not_known_by_what_it_was(recipe: Path, crashes: bool) -> None:
    """Else, once it is again what it was, the zone would go on with the other content."""
    file = recipe / "texts" / "doc000.txt"
    before = file.read_text()
    expected = make(recipe, "ingest")[0].manifest.digest
    (recipe / "data" / "raw" / "manifest.arrow").unlink()
    ws = Workspace.open(recipe)
    stage, journal = data_stage("ingest", ws), journal_of(ws, "ingest")

    class Changes:
        def map(self, work, items):  # type: ignore[no-untyped-def]
            file.write_text("other")
            yield work(items[0])
            if crashes:
                raise KeyboardInterrupt
            yield from map(work, items[1:])

    with pytest.raises(KeyboardInterrupt) if crashes else nullcontext():
        assert run(stage, journal, ws.params.compute, Changes()).manifest.digest != expected
        assert make(recipe, "ingest")[0].worked == 0  # it is as it was read
    file.write_text(before)
    assert make(recipe, "ingest")[0].manifest.digest == expected
