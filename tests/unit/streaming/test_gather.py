"""The gather by addresses against a plain loop, and what it checks before it trusts an address."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.streaming.fetch import Fetcher
from pipelines.streaming.gather import rows as rows_module
from pipelines.streaming.gather.fields import Field, Fixed, Tokens
from pipelines.streaming.gather.gatherer import Gatherer
from storage.cache import Tiered
from storage.errors import DataError, DigestError, FormatError
from storage.lake import Zone
from storage.manifest import Manifest
from storage.shards import encode_samples, encode_tokens

SIZES = [5, 0, 9, 1, 7]
FIELDS = (Fixed.of("x", "float32", (3, 2)), Fixed.of("label", "int64"))
SEQ_LEN = 4

Made = tuple[Gatherer, list[dict[str, np.ndarray[Any, Any]]]]


def record(zone: Zone, data: Any, rows: int, tokens: int = 0) -> dict[str, Any]:
    stored = zone.publish(data, ".arrow")
    about = {"path": stored.path, "digest": stored.digest, "bytes": stored.bytes, "rows": rows, "key": ""}
    return {**about, "split": "train", "tokens": tokens, "stats": None}


def fetcher(zone: Zone, table: pa.Table) -> Fetcher:
    return Fetcher([(Tiered(zone), table)])


def make_samples(zone: Zone, claimed: list[int] | None = None, fields: tuple[Field, ...] = FIELDS) -> Made:
    random, shards, records = np.random.default_rng(5), [], []
    for index, rows in enumerate(SIZES):
        labels = np.arange(rows) + 100 * index
        shards.append({"x": random.random((rows, 3, 2), dtype=np.float32), "label": labels})
        records.append(record(zone, encode_samples(shards[-1], [f"{index}/{row}" for row in range(rows)]), rows))
    manifest = Manifest.build("shards", records, kind="samples")
    return Gatherer(fetcher(zone, manifest.table), np.array(claimed or SIZES), fields), shards


@pytest.fixture(params=["local", "memory"])
def zone(request: pytest.FixtureRequest, tmp_path: Path) -> Zone:
    return Zone(tmp_path, f"memory://{tmp_path}" if request.param == "memory" else None)


def everything() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """All samples and some again, in no order."""
    shard = np.repeat(np.arange(len(SIZES)), SIZES)
    row = np.concatenate([np.arange(rows) for rows in SIZES])
    pick = np.random.default_rng(1).integers(0, len(shard), 60)
    return shard[pick], row[pick]


def check(made: Made) -> None:
    gatherer, shards = made
    shard, row = everything()
    got = gatherer.take(shard, row)
    for field in FIELDS:
        expected = np.stack([shards[s][field.name][r] for s, r in zip(shard, row, strict=True)])
        assert got[field.name].dtype == expected.dtype
        np.testing.assert_array_equal(got[field.name], expected)
        assert got[field.name].flags.writeable
        assert got[field.name].flags.c_contiguous
    assert gatherer.ids(shard, row) == [f"{s}/{r}" for s, r in zip(shard, row, strict=True)]


def test_samples_come_in_the_order_that_was_asked_for(zone: Zone) -> None:
    made = make_samples(zone)
    check(made)
    made[0].close()
    check(made)


def test_no_samples_give_empty_arrays(zone: Zone) -> None:
    none = np.empty(0, dtype=np.int64)
    got = make_samples(zone)[0].take(none, none)
    assert {name: (values.shape, values.dtype.name) for name, values in got.items()} == {
        "x": ((0, 3, 2), "float32"),
        "label": ((0,), "int64"),
    }


def test_token_windows_overlap_by_one_token(zone: Zone) -> None:
    streams = [np.arange(23, dtype=np.uint16), np.arange(1000, 1009, dtype=np.uint16)]
    bounds = [np.array([0, 2, 10, 23]), np.array([0, 9])]
    records = [
        record(zone, encode_tokens(tokens, offsets, [f"{i}{j}" for j in range(len(offsets) - 1)]), 1, len(tokens))
        for i, (tokens, offsets) in enumerate(zip(streams, bounds, strict=True))
    ]
    table = Manifest.build("shards", records, kind="tokens").table
    gatherer = Gatherer(fetcher(zone, table), np.array([5, 2]), (Tokens.of("tokens", "uint16", SEQ_LEN),))
    shard, row = np.array([1, 0, 0, 1, 0]), np.array([1, 4, 0, 0, 2])
    assert gatherer.take(shard, row)["tokens"].tolist() == [
        [1004, 1005, 1006, 1007, 1008],
        [16, 17, 18, 19, 20],
        [0, 1, 2, 3, 4],
        [1000, 1001, 1002, 1003, 1004],
        [8, 9, 10, 11, 12],
    ]
    assert gatherer.ids(shard, row) == ["10+4", "02+6", "00+0", "10+0", "01+6"]


@pytest.mark.parametrize("long", [1, 1 << 20])
def test_rows_are_copied_alike_by_arrow_and_by_way_of_a_scratch_array(
    long: int, zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "_LONG", long)
    check(make_samples(zone))


def test_more_shards_than_may_be_open_are_closed_and_opened_again(zone: Zone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.streaming.gather.gatherer.MAX_OPEN", 2)
    gatherer, shards = make_samples(zone)
    for shard in [0, 2, 4, 3, 0, 2]:
        assert gatherer.take(np.array([shard]), np.array([0]))["label"].tolist() == [shards[shard]["label"][0]]
        assert len(gatherer._shards) <= 2
    check((gatherer, shards))


def test_shards_in_memory_are_held_up_to_the_limit(zone: Zone) -> None:
    gatherer, shards = make_samples(zone)
    gatherer.memory = 2
    for shard in [0, 2, 4, 3, 0, 2]:
        assert gatherer.take(np.array([shard]), np.array([0]))["label"].tolist() == [shards[shard]["label"][0]]
    check((gatherer, shards))
    gatherer.take(np.array([3]), np.array([0]))
    if zone.root is None:
        assert list(gatherer._shards) == [3]
        assert gatherer._in_memory == {3: gatherer._shards[3].buffer.size}
    else:
        assert len(gatherer._shards) == 4  # mapped files cost nothing


def test_it_can_be_pickled(zone: Zone) -> None:
    gatherer, shards = make_samples(zone)
    check((gatherer, shards))
    check((pickle.loads(pickle.dumps(gatherer)), shards))


def test_a_shard_with_fewer_rows_than_the_manifest_says_is_refused(zone: Zone) -> None:
    gatherer, _ = make_samples(zone, claimed=[5, 0, 10, 1, 7])
    with pytest.raises(DataError, match=r"objects/\w+\.arrow: 9 samples in column 'x', but the manifest says 10"):
        gatherer.take(np.array([2]), np.array([9]))


def test_a_column_unlike_the_manifest_is_refused(zone: Zone) -> None:
    gatherer, _ = make_samples(zone, fields=(Fixed.of("x", "float64", (3, 2)),))
    with pytest.raises(DataError, match=r"column 'x' has float32 \[3, 2\] a row, the manifest says float64"):
        gatherer.take(np.array([0]), np.array([0]))


def test_a_damaged_shard_is_named_and_the_others_are_still_read(tmp_path: Path) -> None:
    gatherer, shards = make_samples(Zone(tmp_path))
    file = tmp_path / gatherer.fetcher.parts[0][1]["path"][2].as_py()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    for _ in range(2):
        with pytest.raises(DigestError, match=str(file)):
            gatherer.take(np.array([0, 2]), np.array([0, 0]))
    assert gatherer.take(np.array([0]), np.array([3]))["label"].tolist() == [shards[0]["label"][3]]


def test_a_shard_of_an_unknown_format_is_refused_by_name(tmp_path: Path) -> None:
    zone = Zone(tmp_path)
    data = bytes(encode_samples({"x": np.zeros(3)}, list("abc"))).replace(b'"format":1', b'"format":7')
    table = Manifest.build("shards", [record(zone, data, 3)], kind="samples").table
    gatherer = Gatherer(fetcher(zone, table), np.array([3]), (Fixed.of("x", "float64"),))
    with pytest.raises(FormatError, match=r"objects/\w+\.arrow: shard format 7, but this Shardline reads 1"):
        gatherer.take(np.array([0]), np.array([0]))
