"""Manifests: round trip, digest, refusal of what isn't known."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.digest import canonical_json, digest_bytes
from storage.errors import DigestError, FormatError, LakeError
from storage.manifest import FILENAME, Manifest

text = st.text(max_size=12)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
suffixes = st.sampled_from(["", ".arrow", ".arrow.zst", ".tar.gz", ".my data", ".данные", "..", ".a\\b"])


def row(digest: str, suffix: str = ".arrow") -> dict[str, Any]:
    return {"path": f"objects/{digest}{suffix}", "digest": digest, "bytes": 1, "rows": 1, "key": "k"}


def shards(*rows: dict[str, Any]) -> Manifest:
    about = {"plain_bytes": 1, "split": "train", "tokens": 0, "stats": None}
    return Manifest.build("shards", [about | row for row in rows], kind="tokens", spec={}, parents={"raw": "a" * 64})


records = st.lists(
    st.builds(
        lambda digest, suffix, about: row(digest, suffix) | about,
        digests,
        suffixes,
        st.fixed_dictionaries(
            {"bytes": st.integers(0, 2**58), "rows": st.integers(0, 2**40), "key": text}
            | {
                "plain_bytes": st.integers(0, 2**58),
                "split": st.sampled_from(["train", "val"]),
                "tokens": st.integers(0, 2**40),
                "stats": st.none() | text,
            }
        ),
    ),
    max_size=5,
)

BESIDE = {
    "raw": {"name": "x"},
    "curated": {"after": "x", "split": "train", "stats": None},
    "shards": {"plain_bytes": 1, "split": "train", "tokens": 0, "stats": None},
}


def write(file: Path, table: pa.Table, header: object, **settings: Any) -> None:
    """A manifest without a seal, as any program might write it."""
    table = table.replace_schema_metadata({b"shardline": canonical_json(header)})
    options = pa.ipc.IpcWriteOptions(**settings)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)


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
    about = {"digest": "", "bytes": 1, "rows": 1, "key": "", "tokens": 0, "stats": None}
    rows = [about | {"path": str(at), "split": split} for at, split in enumerate(["val", "train", "train", "val"])]
    manifest = Manifest.build("shards", rows, kind="tokens", spec={})
    before = pa.total_allocated_bytes()
    chosen = manifest.select("train")
    assert chosen["path"].to_pylist() == ["1", "2"]
    assert chosen["path"].chunk(0).buffers()[2].address == manifest.table["path"].chunk(0).buffers()[2].address
    assert pa.total_allocated_bytes() == before
    assert manifest.select("val")["path"].to_pylist() == ["0", "3"]


def test_an_unknown_format_is_refused_by_number(tmp_path: Path) -> None:
    table = pa.table({"path": ["x"]})
    write(tmp_path / FILENAME, table, {"format": 99})
    with pytest.raises(FormatError, match=r"manifest.arrow: manifest format 99.*reads formats 1 to 3"):
        Manifest.load(tmp_path)


def test_shards_of_format_1_are_plain(tmp_path: Path) -> None:
    """A dataset version of before shards were compressed at rest keeps its digest; all its shards are plain."""
    table = shards(row("a" * 64) | {"bytes": 7}).table.drop_columns(["plain_bytes"])
    write(tmp_path / FILENAME, table, {"format": 1, "zone": "shards", "kind": "samples"})
    manifest = Manifest.load(tmp_path)
    assert manifest.digest == digest_bytes((tmp_path / FILENAME).read_bytes())
    assert manifest.select("train")["plain_bytes"].to_pylist() == [7]
    assert Manifest.build("shards", manifest.records(), kind="samples").header["format"] == 3
    assert Manifest.build("raw", [], kind="files").header["format"] == 2


@pytest.mark.parametrize(("zone", "version"), [("raw", 1), ("curated", 1), ("shards", 2)])
def test_a_manifest_from_before_there_were_seals_is_read(tmp_path: Path, zone: str, version: int) -> None:
    manifest = Manifest.build(zone, [row("a" * 64) | BESIDE[zone]], kind="files")
    before = manifest.table.drop_columns(["left_out"]) if zone == "curated" else manifest.table
    write(tmp_path / FILENAME, before, manifest.header | {"format": version})
    old = Manifest.load(tmp_path)
    assert old.records() == manifest.records()
    assert old.digest == digest_bytes((tmp_path / FILENAME).read_bytes()) != manifest.digest


@pytest.mark.parametrize("keep", [0, 10, -20])
def test_a_torn_manifest_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    file = Manifest.build("raw", [], kind="files").save(tmp_path)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(FormatError, match=r"manifest.arrow: not a Shardline manifest"):
        Manifest.load(tmp_path)


def test_no_manifest_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="dvc repro"):
        Manifest.load(tmp_path)


# -- what nobody vouches for -----------------------------------------------------------------------------------------

GOOD = "0123456789abcdef" * 4
HOSTILE = [
    "../" * 21 + "x",
    "/" + "a" * 63,
    "A" * 64,
    "a" * 63,
    "a" * 65,
    "",
    "a" * 63 + "\n",
    "é" * 32,
    "a" * 63 + "\0",
]


@pytest.mark.parametrize("digest", HOSTILE)
def test_a_digest_that_is_none_is_refused(digest: str) -> None:
    """It names a file of the node cache, which is emptied and deleted."""
    with pytest.raises(FormatError, match="a digest is 64 hexadecimal characters"):
        Manifest.from_bytes(shards(row(GOOD), row(digest), row(GOOD)).encoded)


@pytest.mark.parametrize(
    "path",
    [
        f"../{GOOD}.arrow",
        f"/bjects/{GOOD}.arrow",
        f"objects/{GOOD}/../../x",
        f"objects/{GOOD}./x",
        f"objects/{GOOD}x",
        f"objects/{GOOD}.a\0b",
        f"objects/{'b' * 64}.arrow",
        f"objects/../{GOOD}",
        "objects/",
        "",
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(FormatError, match="a path objects/<digest><suffix>"):
        Manifest.from_bytes(shards(row(GOOD), row(GOOD, ".arrow.zst"), row(GOOD) | {"path": path}).encoded)


def test_the_odd_row_among_very_many_is_found(tmp_path: Path) -> None:
    """Rows are checked by columns, in pieces."""
    drawn = np.random.default_rng(0).bytes(32 * 50_000).hex()
    rows = [
        row(drawn[64 * at : 64 * at + 64], suffix) for at in range(50_000) for suffix in [".arrow", ""][at % 2 :][:1]
    ]
    shards(*rows).save(tmp_path)
    assert Manifest.load(tmp_path).records() == shards(*rows).records()
    rows[49_999]["path"] = rows[49_998]["path"]
    shards(*rows).save(tmp_path)
    with pytest.raises(FormatError, match=rows[49_999]["digest"]):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("column", ["path", "digest", "key", "name"])
@pytest.mark.parametrize("offset", [-1, 1 << 20, 2**31 - 1])
def test_offsets_that_lead_out_of_the_file_are_refused(tmp_path: Path, column: str, offset: int) -> None:
    """Arrow follows them wherever they lead. Of a manifest without a seal: nothing else tells."""
    manifest = Manifest.build("raw", [row(GOOD) | {"name": "two", "key": "k"}] * 3, kind="files")
    write(tmp_path / FILENAME, manifest.table, manifest.header | {"format": 1})
    data = (tmp_path / FILENAME).read_bytes()
    offsets = np.arange(4, dtype=np.int32) * len(manifest.table[column][0].as_py())
    assert data.count(offsets.tobytes()) == 1
    damaged = offsets.copy()
    damaged[2] = offset
    (tmp_path / FILENAME).write_bytes(data.replace(offsets.tobytes(), damaged.tobytes()))
    with pytest.raises(FormatError, match="not a Shardline manifest"):
        Manifest.load(tmp_path)


def test_a_suffix_that_is_no_text_is_refused() -> None:
    table = shards(row(GOOD, ".aé")).table
    at = table.column_names.index("path")
    path = pa.array([f"objects/{GOOD}.a".encode() + b"\xff\xfe"]).view(pa.string())
    with pytest.raises(FormatError, match="UTF"):
        Manifest.from_bytes(Manifest(shards().header, table.set_column(at, "path", path)).encoded)


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"bytes": -1}, "bytes is -1"),
        ({"plain_bytes": 2**62}, "plain_bytes: more in all"),
        ({"rows": 2**62}, "rows: more in all"),
        ({"split": None}, "have no split"),
        ({"digest": None}, "have no digest"),
    ],
)
def test_a_row_that_makes_no_sense_is_refused(about: dict[str, Any], says: str) -> None:
    with pytest.raises(FormatError, match=says):
        Manifest.from_bytes(shards(row(GOOD) | about).encoded)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"format": True}, "format True"),
        ({"format": "1"}, "format '1'"),
        ({"format": 1, "zone": ["raw"]}, r"zone is \['raw'\]"),
        ({"format": 1, "zone": "raw", "kind": 5}, "kind is 5"),
        ({"format": 1, "zone": "raw", "parents": {"raw": "../x"}}, "parent raw is '../x'"),
        ([1], r"header is \[1\]"),
        ({"format": 2, "zone": "raw"}, "has a seal, and here is none"),
        ({"format": 1, "zone": "shards"}, "its columns are"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(tmp_path: Path, header: object, says: str) -> None:
    write(tmp_path / FILENAME, Manifest.build("raw", [], kind="files").table, header)
    with pytest.raises(FormatError, match=says):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_compressed_columns_are_refused_before_they_are_unpacked(tmp_path: Path, codec: str) -> None:
    """A few hundred bytes may claim to hold terabytes."""
    manifest = Manifest.build("raw", [row(GOOD) | {"name": "x" * 1_000_000}], kind="files")
    write(tmp_path / FILENAME, manifest.table, manifest.header | {"format": 1}, compression=codec)
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(FormatError, match="compressed"):
        Manifest.load(tmp_path)
    assert pa.default_memory_pool().max_memory() == before


def test_every_flipped_bit_is_found() -> None:
    data = shards(row(GOOD), row("a" * 64)).encoded
    for at in range(len(data)):
        for bit in (1, 16, 128):
            damaged = bytearray(data)
            damaged[at] ^= bit
            with pytest.raises((FormatError, DigestError)):
                Manifest.from_bytes(bytes(damaged))


def test_a_sealed_manifest_is_an_arrow_file(tmp_path: Path) -> None:
    manifest = shards(row(GOOD))
    with pa.ipc.open_file(str(manifest.save(tmp_path))) as file:
        assert file.read_all().replace_schema_metadata(None) == manifest.table
        assert file.metadata[b"seal"][-64:].decode() != manifest.digest


def test_text_of_the_user_is_not_taken_for_a_seal() -> None:
    spec = {"note": "\0shardline seal\0" + "0" * 64}
    manifest = Manifest.build("raw", [], kind="files", spec=spec)
    assert Manifest.from_bytes(manifest.encoded).header["spec"] == spec


def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / FILENAME).mkdir()
    with pytest.raises(LakeError, match=r"manifest.arrow: the manifest cannot be read"):
        Manifest.load(tmp_path)
