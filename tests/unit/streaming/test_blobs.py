"""Rows of any length and encoded images, as a stream delivers them."""

import io
import itertools
import pickle
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.flat_streams import flat_stream

from pipelines.streaming import Batching, Loading, Stream, prefetch, source
from pipelines.streaming.gather import fields
from pipelines.streaming.gather.ragged import Ragged
from pipelines.streaming.gather.views import end_to_end
from storage.errors import DataError
from storage.images import decode_image
from storage.lake import Zone
from storage.manifest import Manifest
from storage.shards import Blobs, encode_samples

SPEC = {"clip": {"dtype": "uint8", "shape": None, "codec": "bytes"}, "label": {"dtype": "int64", "shape": []}}
ROWS = [7, 1, 0, 12, 5]


def clip(index: int, longest: int) -> bytes:
    return np.random.default_rng(index).bytes(index * 37 % (longest + 1))


def published(zone: Zone, shards: list[dict[str, Any]], spec: Mapping[str, Any]) -> Manifest:
    """A manifest of these columns, a shard each; sample i of all is named `i`."""
    records, names = [], iter(range(10**6))
    for columns in shards:
        ids = [str(next(names)) for _ in columns["label"]]
        stored = zone.publish(encode_samples(columns, ids), ".arrow")
        about = {"path": stored.path, "digest": stored.digest, "bytes": stored.bytes, "rows": len(ids)}
        records.append({**about, "key": "", "split": "train", "tokens": 0, "stats": None})
    return Manifest.build("shards", records, kind="samples", spec={"inputs": dict(spec)})


def clips(zone: Zone, longest: int) -> Manifest:
    starts = np.cumsum([0, *ROWS])
    shards = [
        {"clip": [clip(i, longest) for i in range(start, start + rows)], "label": np.arange(start, start + rows)}
        for start, rows in zip(starts, ROWS, strict=False)
    ]
    return published(zone, shards, SPEC)


@pytest.mark.parametrize("longest", [0, 20, 70_000])
@pytest.mark.parametrize("batch_size", [1, 4, 200])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_every_blob_comes_once_an_epoch_beside_its_label(
    tmp_path: Path, longest: int, batch_size: int, prefetch: int
) -> None:
    zone = Zone(tmp_path)
    manifest = clips(zone, longest)
    settings = {"split": "train", "batch_size": batch_size, "seed": 5, "prefetch": prefetch}
    with flat_stream(zone, manifest, epochs=2, **settings) as stream:
        seen, kept = [], []
        for batch in stream:
            ragged = batch["clip"]
            assert isinstance(ragged, Ragged)
            assert batch.ids() == [str(label) for label in batch["label"]]
            assert [row.tobytes() for row in ragged] == [clip(label, longest) for label in batch["label"].tolist()]
            seen += batch["label"].tolist()
            kept.append((batch, ragged.to_arrow().to_pylist()))
        assert sorted(seen[: sum(ROWS)]) == sorted(seen[sum(ROWS) :]) == list(range(sum(ROWS)))
        for batch, rows in kept:  # a batch that is kept is never written over
            assert batch["clip"].to_arrow().to_pylist() == rows
        again = pickle.loads(pickle.dumps(kept[0][0]))
        assert again["clip"].to_arrow().to_pylist() == kept[0][1]


def test_two_threads_gather_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two batches are made only once both are being made."""
    zone = Zone(tmp_path)
    settings = {"split": "train", "batch_size": 1, "seed": 5, "epochs": 1}
    manifest = clips(zone, 70_000)
    with flat_stream(zone, manifest, prefetch=0, **settings) as stream:
        expected = [(batch.ids(), batch["clip"].to_arrow()) for batch in stream]
    calls, both = itertools.count(), threading.Barrier(2)

    def meet(rows: Any) -> Any:
        if next(calls) < 2:
            both.wait(60)
        return end_to_end(rows)

    monkeypatch.setattr(fields, "end_to_end", meet)
    monkeypatch.setattr(prefetch, "_BRIEF", 60)
    monkeypatch.setattr(source, "_HANDED_OVER", 1)
    monkeypatch.setattr(source, "_SMALL", 100)
    monkeypatch.setattr(source, "cores", lambda: 2)
    with flat_stream(zone, manifest, **settings) as stream:
        assert [(batch.ids(), batch["clip"].to_arrow()) for batch in stream] == expected


def test_where_two_threads_do_not_gather_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = Zone(tmp_path)
    monkeypatch.setattr(source, "_SMALL", 500)
    monkeypatch.setattr(source, "cores", lambda: 2)

    def makers(manifest: Manifest) -> int:
        with Stream(zone, manifest, split="train", batch_size=2, seed=5) as stream:
            return stream._source.makers

    long = clips(zone, 70_000)
    assert makers(long) == 2
    assert makers(clips(zone, 20)) == 1  # small samples
    assert makers(images(zone)) == 1  # a decoder with threads of its own
    monkeypatch.setattr(source, "cores", lambda: 1)
    assert makers(long) == 1


def test_rows_too_long_for_a_batch_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = Zone(tmp_path)
    monkeypatch.setattr(fields, "LONGEST", 20)
    with (
        Stream(zone, clips(zone, 35), split="train", batch_size=30, seed=5) as stream,
        pytest.raises(DataError, match=r"objects/\w+\.arrow: \d+: 24 bytes in column 'clip'; at most 20 go"),
    ):
        next(stream)


@pytest.mark.parametrize("longest", [20, 70_000])
def test_blobs_lie_in_the_memory_that_was_asked_for(tmp_path: Path, longest: int) -> None:
    zone, made = Zone(tmp_path), list[np.ndarray]()  # type: ignore[type-arg]

    def own(nbytes: int) -> np.ndarray:  # type: ignore[type-arg]
        made.append(np.empty(nbytes, np.uint8))
        return made[-1]

    with Stream(
        zone, clips(zone, longest), split="train", batch_size=5, seed=5, epochs=1, loading=Loading(allocate=own)
    ) as stream:
        for batch in stream:
            values = batch["clip"].values
            assert any(np.shares_memory(values, memory) for memory in made)
            assert [row.tobytes() for row in batch["clip"]] == [clip(i, longest) for i in batch["label"].tolist()]


def test_padding_is_empty_blobs(tmp_path: Path) -> None:
    zone = Zone(tmp_path)
    with Stream(
        zone, clips(zone, 50), split="train", batch_size=10, seed=5, epochs=1, batching=Batching(last="pad")
    ) as stream:
        last = list(stream)[-1]
    assert last["mask"].tolist() == [True] * 5 + [False] * 5
    assert last["clip"].lengths.tolist()[5:] == [0] * 5
    assert [row.tobytes() for row in last["clip"]][:5] == [clip(i, 50) for i in last["label"].tolist()[:5]]


def picture(index: int) -> bytes:
    file = io.BytesIO()
    small = np.random.default_rng(index).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(small).resize((20 + index, 30)).save(file, "JPEG" if index % 2 else "PNG")
    return file.getvalue()


def images(zone: Zone, damaged: int | None = None) -> Manifest:
    files = [picture(i) if i != damaged else picture(i)[:100] for i in range(12)]
    parts = [range(5), range(5, 12)]
    shards = [
        {"photo": Blobs.of([files[i] for i in part], "image", (16, 16, 3)), "label": np.array(part)} for part in parts
    ]
    photo = {"dtype": "uint8", "shape": [16, 16, 3], "codec": "image"}
    return published(zone, shards, {"photo": photo, "label": SPEC["label"]})


def test_images_come_decoded(tmp_path: Path) -> None:
    zone = Zone(tmp_path)
    expected = np.empty((12, 16, 16, 3), np.uint8)
    for index in range(12):
        decode_image(picture(index), expected[index])
    with Stream(zone, images(zone), split="train", batch_size=5, seed=1, epochs=2) as stream:
        for batch in stream:
            assert batch["photo"].dtype == np.uint8
            np.testing.assert_array_equal(batch["photo"], expected[batch["label"]])


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_damaged_image_is_named_with_its_shard(tmp_path: Path, prefetch: int) -> None:
    zone = Zone(tmp_path)
    manifest = images(zone, damaged=7)
    path = manifest.table["path"][1].as_py()
    settings = {"split": "train", "batch_size": 12, "seed": 1, "prefetch": prefetch}
    with flat_stream(zone, manifest, **settings) as stream:
        for _ in range(2):
            with pytest.raises(DataError, match=rf"{path}: 7: not decodable: .*Truncated.*Leave the image out"):
                next(stream)


def test_another_codec_than_the_manifest_says_is_refused(tmp_path: Path) -> None:
    zone = Zone(tmp_path)
    manifest = clips(zone, 9)
    manifest.header["spec"]["inputs"]["clip"] = {"dtype": "uint8", "shape": [16, 16, 3], "codec": "image"}
    with (
        Stream(zone, manifest, split="train", batch_size=5, seed=1) as stream,
        pytest.raises(DataError, match=r"column 'clip' has bytes of uint8 .*the manifest says image of uint8"),
    ):
        next(stream)
