"""A sample's split is its own: nobody else's coming, going or moving changes it, and equal samples share one."""

import io
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import TINY, write_params
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.ingest import data_stage
from pipelines.ingest.curated import read_whole
from pipelines.ingest.duplicates.content import SPLITS, input_digests, splits
from pipelines.ingest.duplicates.duplicates import kept_rows
from pipelines.ingest.stage import journal_of, run
from pipelines.params.data import Split
from pipelines.workspace import Workspace

Row = tuple[int, float, float, str]  # id, a, b, y; the model sees a and b, or the text that they make
Files = dict[str, list[Row]]
FORMATS = ("csv", "jsonl", "parquet")
SHARES = {"train": 0.5, "val": 0.3, "test": 0.2}

ROWS = st.tuples(
    st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.5, 2.5]), st.integers(0, 2).map(float), st.sampled_from("xz")
)
FILES = st.dictionaries(st.sampled_from("abcdefgh"), st.lists(ROWS, min_size=1, max_size=9), min_size=1, max_size=4)


def encoded(rows: list[Row], form: str) -> bytes:
    if form == "csv":
        return "".join(f"{line}\n" for line in ["id,a,b,y", *(f"{i},{a!r},{b!r},{y}" for i, a, b, y in rows)]).encode()
    if form == "jsonl":
        return b"".join(json.dumps({"id": i, "y": y, "text": f"{a + 0.0} {b}"}).encode() + b"\n" for i, a, b, y in rows)
    file = io.BytesIO()
    columns = dict(zip(("id", "a", "b", "y"), map(list, zip(*rows, strict=True)), strict=True))
    pyarrow.parquet.write_table(pa.table(columns), file)
    return file.getvalue()


def curated(files: Files, form: str, per_object: int) -> tuple[dict[str, int], list[tuple[str, tuple[Any, ...], bool]]]:
    """The counts of the manifest; and of each sample its split, what the model sees of it, and whether it is kept."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "in").mkdir()
        for name, rows in files.items():
            (folder / "in" / f"{name}.{form}").write_bytes(encoded(rows, form))
        curate = {"split": SHARES, "files_per_object": per_object}
        if form != "jsonl":
            curate |= {"label": "y", "features": ["a", "b"]}
        write_params(folder, {**TINY, "ingest": {"sources": ["in"]}, "curate": curate})
        ws = Workspace.open(folder)
        for name in ("ingest", "curate"):
            run(data_stage(name, ws), journal_of(ws, name), ws.params.compute)
        manifest, samples = ws.zone("curated").manifest(), []
        for record in manifest.records():
            table = read_whole(ws.zone("curated"), record)
            kept = set(kept_rows(table.num_rows, record["left_out"]).tolist())
            assert len(kept) == record["rows"]
            seen = table.select(["text"] if form == "jsonl" else ["a", "b"]).to_pylist()
            samples += [(record["split"], tuple(row.values()), number in kept) for number, row in enumerate(seen)]
    return manifest.header["counts"], samples


def split_of(samples: list[tuple[str, tuple[Any, ...], bool]]) -> dict[tuple[Any, ...], str]:
    """What the model sees → its split, of which there is but one."""
    found: dict[tuple[Any, ...], str] = {}
    for split, seen, _ in samples:
        assert found.setdefault(seen, split) == split
    return found


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=15)
@given(before=FILES, after=FILES, kept=st.randoms(use_true_random=False), per_object=st.integers(1, 3))
def test_a_split_is_a_sample_s_own(form: str, before: Files, after: Files, kept: Any, per_object: int) -> None:
    """`after` has some of the rows of `before`, in another order and other files, and others besides."""
    rows = [row for part in before.values() for row in part]
    mixed = {name: part + kept.sample(rows, kept.randrange(len(rows) + 1)) for name, part in after.items()}
    for part in mixed.values():
        kept.shuffle(part)
    first, second = curated(before, form, per_object)[1], curated(mixed, form, per_object)[1]
    old, new = split_of(first), split_of(second)
    assert {seen: new[seen] for seen in old if seen in new} == {seen: old[seen] for seen in old if seen in new}


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=15)
@given(files=FILES, per_object=st.integers(1, 3))
def test_every_row_is_kept_or_left_out_for_one_that_is(form: str, files: Files, per_object: int) -> None:
    counts, samples = curated(files, form, per_object)
    rows = [row for part in files.values() for row in part]
    assert counts["duplicates"] == len(rows) - len(set(rows))
    assert sum(counts.values()) == len(samples) == len(rows)
    assert {split: counts[split] for split in SPLITS} == Counter(
        dict.fromkeys(SPLITS, 0) | Counter(split for split, _, kept in samples if kept)
    )


@given(st.integers(0, 2**40), st.sampled_from([(0.8, 0.1, 0.1), (1, 0, 0), (0.34, 0.33, 0.33), (0, 0.5, 0.5)]))
@settings(max_examples=25)
def test_splits_have_their_shares(seed: int, shares: tuple[float, float, float]) -> None:
    """Four standard deviations and a bit."""
    count = 20_000
    digests = np.random.default_rng(1).integers(0, 2**64, (count, 2), dtype=np.uint64)
    found = np.bincount(splits(digests, seed, Split(**dict(zip(SPLITS, shares, strict=True)))), minlength=3)
    for number, share in zip(found.tolist(), shares, strict=True):
        assert abs(number - count * share) <= 5 * np.sqrt(count * share * (1 - share))


def test_minus_zero_is_zero() -> None:
    table = pa.table({"a": [0.0, -0.0], "b": [1.0, 1.0]})
    first, second = input_digests(table, "table")
    assert (first == second).all()


def test_splits_stay_as_they_are_from_version_to_version() -> None:
    digests = np.arange(24, dtype=np.uint64).reshape(12, 2) * np.uint64(0x9E3779B97F4A7C15)
    assert splits(digests, 7, Split(train=0.4, val=0.3, test=0.3)).tolist() == [0, 0, 0, 0, 2, 0, 2, 2, 1, 1, 0, 0]
