"""Domains in the data stages: sources by name, in one dataset version."""

import json
from collections import Counter
from pathlib import Path

import pytest
from conftest import TINY
from support.domains import MIXTURE, SECTIONS, SNIPPET, make, shards, write

from pipelines.reproduce.inspect import show_zone
from pipelines.streaming import Loading, Mixing, Stream, Text
from pipelines.workspace import Workspace
from storage.errors import DataError, SourceError
from storage.shards import Shard


def test_without_domains_nothing_changes(recipe: Path) -> None:
    """Pinned before there were domains; the last two change with pyarrow alone, which writes its version into them."""
    summaries = make(Workspace.open(recipe))
    assert [summary.manifest.digest[:16] for summary in summaries] == [
        "4ceaf62b1e75a232",
        "7f60f88572e0e370",
        "9d51de4202b573b5",
    ]
    assert all("domain" not in summary.manifest.table.column_names for summary in summaries)


def test_a_domain_goes_with_its_files_and_no_object_or_shard_mixes_two(folder: Path) -> None:
    raw, curated, sharded = (summary.manifest for summary in make(write(folder)))
    assert raw.domains == curated.domains == sharded.domains == ["code", "prose"]
    assert Counter(raw.table["domain"].to_pylist()) == {"code": 30, "prose": 21}
    assert all(record["name"].startswith(f"{record['domain']}/") for record in raw.records())
    ws = Workspace.open(folder)
    for split in sharded.splits:
        for domain in sharded.domains:
            with Stream(
                ws.zone("shards"),
                sharded,
                split=split,
                batch_size=4,
                seed=0,
                epochs=1,
                text=Text(seq_len=8),
                mixing=Mixing(domain=domain),
                loading=Loading(prefetch=0),
            ) as stream:
                ids = [name for batch in stream for name in batch.ids()]
            assert ids
            assert {name.split("/")[0] for name in ids} == {domain}


def test_one_more_file_in_one_domain_is_one_item_in_each_stage(folder: Path) -> None:
    ws = write(folder)
    before = make(ws)
    other = {record["path"] for record in shards(ws).records() if record["domain"] == "prose"}
    (folder / "texts" / "doc005b.txt").write_text("one more\n" * 30)
    after = make(ws)
    assert [summary.worked for summary in after] == [1, 1, 1]
    assert after[2].manifest.digest != before[2].manifest.digest
    assert other <= set(shards(ws).table["path"].to_pylist())
    (folder / "texts" / "zzz.txt").write_text("the last of its domain\n" * 30)
    assert [summary.worked for summary in make(ws)] == [1, 1, 1]


def test_readers_are_chosen_for_each_domain_and_kinds_must_agree(folder: Path) -> None:
    (folder / "letters.jsonl").write_text("".join(json.dumps({"text": f"Dear {i}, " * 20}) + "\n" for i in range(9)))
    sources = {"code": ["texts/**/*.txt"], "letters": ["letters.jsonl"]}
    ws = write(folder, ingest={"sources": sources}, curate=TINY["curate"])
    assert make(ws)[1].manifest.domains == ["code", "letters"]
    (folder / "table.csv").write_text("a,b\n1,2\n")
    ws = write(folder, ingest={"sources": {**sources, "numbers": ["table.csv"]}}, curate=TINY["curate"])
    with pytest.raises(DataError, match=r"different kinds of data: text \(letters/.*\); table \(numbers/table.csv"):
        make(ws)


def test_a_domain_is_no_class(folder: Path) -> None:
    """The class of an image is its folder's name, so that one without a folder is set aside, in a domain too."""
    from PIL import Image

    for path in ("pictures/cat/a.png", "pictures/dog/b.png", "pictures/c.png"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), (ord(path[-5]), 0, 0)).save(folder / path)
    ws = write(
        folder,
        ingest={"sources": {"photos": ["pictures/**/*.png"]}},
        curate={"split": {"train": 1.0, "val": 0.0, "test": 0.0}},
    )
    assert make(ws)[2].manifest.header["spec"]["classes"] == ["cat", "dog"]
    assert '"photos/c.png"' in (ws.zone("curated").folder / "quarantine.jsonl").read_text()


def test_a_file_in_two_domains_is_refused(folder: Path) -> None:
    ws = write(folder, ingest={"sources": {"all": ["texts/*.txt"], "some": ["texts/doc00*.txt"]}})
    with pytest.raises(SourceError, match=r"doc000.txt is in the domains 'all' and 'some'"):
        make(ws)


def test_of_equal_files_that_of_the_domain_that_comes_first_is_kept(folder: Path) -> None:
    (folder / "books" / "doc000.md").write_bytes((folder / "texts" / "doc000.txt").read_bytes())
    ws = write(folder, ingest={"sources": {"a-b": ["books/*.md"], "a": ["texts/doc00*.txt"]}})
    make(ws)
    zone = ws.zone("shards")
    paths = shards(ws).table["path"].to_pylist()
    names = [name for path in paths for name in Shard.open(zone.local_path(path)).ids.to_pylist()]
    assert "a/doc000.txt" in names
    assert "a-b/doc000.md" not in names


def test_the_page_s_example_runs_as_it_is_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ws = write(folder, **SECTIONS)
    assert ws.params.stream.mixture == MIXTURE
    make(ws)
    exec(compile(SNIPPET, "docs/mixtures.md", "exec"), {})
    assert capsys.readouterr().out == ("['code', 'prose']\n{'code': 0.5, 'prose': 0.5} {'code': 0.25, 'prose': 0.75}\n")
    with Stream(
        ws.zone("shards"),
        shards(ws),
        split="train",
        seed=7,
        batch_size=8,
        mixing=Mixing(mixture=ws.params.stream.mixture),
        text=Text(seq_len=32),
    ) as stream:
        counts = [
            Counter(name.split("/")[0] for name in batch.ids()) for _, batch in zip(range(12), stream, strict=False)
        ]
    assert (counts[0], counts[9]) == ({"code": 6, "prose": 2}, {"code": 3, "prose": 5})


def test_a_zone_is_shown_with_its_domains(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ws = write(folder)
    make(ws)
    for zone in ("raw", "shards"):
        show_zone(ws, zone)
    out = capsys.readouterr().out
    assert "domain    prose: 21 files" in out
    assert "domain    code: " in out and "objects, test " in out  # noqa: PT018
