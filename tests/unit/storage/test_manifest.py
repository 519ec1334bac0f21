"""Manifests: round trip, digest, refusal of what isn't known."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.digest import canonical_json, digest_bytes
from storage.errors import FormatError
from storage.manifest import FILENAME, Manifest

text = st.text(max_size=12)
records = st.lists(
    st.fixed_dictionaries(
        {"path": text, "digest": text, "bytes": st.integers(0, 2**62), "rows": st.integers(0, 2**40), "key": text}
        | {
            "plain_bytes": st.integers(0, 2**62),
            "split": st.sampled_from(["train", "val"]),
            "tokens": st.integers(0, 2**40),
            "stats": st.none() | text,
        }
    ),
    max_size=5,
)


@given(records, st.dictionaries(text, st.integers() | text, max_size=3))
def test_round_trip_keeps_records_header_and_digest(rows: list[dict[str, object]], spec: dict[str, object]) -> None:
    manifest = Manifest.build("shards", rows, kind="tokens", spec=spec)
    again = Manifest.from_bytes(manifest.encoded)
    assert again.records() == rows
    assert again.header == manifest.header
    assert again.digest == manifest.digest == digest_bytes(manifest.encoded)


def test_the_version_is_the_digest_of_the_file(tmp_path: Path) -> None:
    manifest = Manifest.build("raw", [], kind="files")
    file = manifest.save(tmp_path)
    assert file == tmp_path / FILENAME
    assert digest_bytes(file.read_bytes()) == manifest.digest == Manifest.load(tmp_path).digest


@given(records)
def test_a_split_has_its_rows_in_order(rows: list[dict[str, object]]) -> None:
    manifest = Manifest.build("shards", rows, kind="tokens", spec={})
    for split in ("train", "val", "test"):
        assert manifest.select(split).to_pylist() == [row for row in rows if row["split"] == split]


def test_a_split_that_lies_together_is_not_copied() -> None:
    """Of a million shards it would be some hundred megabytes."""
    row = {"digest": "", "bytes": 1, "rows": 1, "key": "", "tokens": 0, "stats": None}
    rows = [row | {"path": str(place), "split": split} for place, split in enumerate(["val", "train", "train", "val"])]
    manifest = Manifest.build("shards", rows, kind="tokens", spec={})
    before = pa.total_allocated_bytes()
    chosen = manifest.select("train")
    assert chosen["path"].to_pylist() == ["1", "2"]
    assert chosen["path"].chunk(0).buffers()[2].address == manifest.table["path"].chunk(0).buffers()[2].address
    assert pa.total_allocated_bytes() == before
    assert manifest.select("val")["path"].to_pylist() == ["0", "3"]


def test_an_unknown_format_is_refused_by_number(tmp_path: Path) -> None:
    table = pa.table({"path": ["x"]}).replace_schema_metadata({b"shardline": canonical_json({"format": 99})})
    with pa.OSFile(str(tmp_path / FILENAME), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(FormatError, match=r"manifest.arrow: manifest format 99.*reads formats 1 to 2"):
        Manifest.load(tmp_path)


def test_shards_of_format_1_are_plain(tmp_path: Path) -> None:
    """A dataset version of before shards were compressed at rest keeps its digest; all its shards are plain."""
    columns = {
        "path": ["objects/a.arrow"],
        "digest": ["a"],
        "bytes": [7],
        "rows": [1],
        "key": ["k"],
        "split": ["train"],
    }
    header = {b"shardline": canonical_json({"format": 1, "zone": "shards", "kind": "samples"})}
    table = pa.table(columns).replace_schema_metadata(header)
    with pa.OSFile(str(tmp_path / FILENAME), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    manifest = Manifest.load(tmp_path)
    assert manifest.digest == digest_bytes((tmp_path / FILENAME).read_bytes())
    assert manifest.select("train")["plain_bytes"].to_pylist() == [7]
    assert Manifest.build("shards", manifest.records(), kind="samples").header["format"] == 2
    assert Manifest.build("raw", [], kind="files").header["format"] == 1


@pytest.mark.parametrize("keep", [0, 10, -20])
def test_a_torn_manifest_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    file = Manifest.build("raw", [], kind="files").save(tmp_path)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(FormatError, match=r"manifest.arrow: not a Shardline manifest"):
        Manifest.load(tmp_path)


def test_no_manifest_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="dvc repro"):
        Manifest.load(tmp_path)
