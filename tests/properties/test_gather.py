"""Every kind of field gathers what a plain loop over the shards would, whatever is asked for."""

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.streaming.fetch import Fetcher
from pipelines.streaming.gather import rows
from pipelines.streaming.gather.decode import Decoder
from pipelines.streaming.gather.fields import Blobs, Field, Fixed, Images, Tokens
from pipelines.streaming.gather.gatherer import Gatherer
from pipelines.streaming.gather.ragged import Ragged
from storage.cache import Tiered
from storage.images import decode_image
from storage.lake import Zone
from storage.manifest import Manifest
from storage.shards import Blobs as StoredBlobs
from storage.shards import Column, encode_samples, encode_tokens

SIZES = [6, 0, 11, 1]
SHAPE = (5, 4, 3)
Sample = dict[str, Any]


def png(random: np.random.Generator) -> bytes:
    target = io.BytesIO()
    Image.fromarray(random.integers(0, 256, SHAPE, dtype=np.uint8)).save(target, "PNG")
    return target.getvalue()


def publish(zone: Zone, data: Any, rows: int, tokens: int = 0) -> dict[str, Any]:
    stored = zone.publish(data, ".arrow")
    about = {"path": stored.path, "digest": stored.digest, "bytes": stored.bytes, "plain_bytes": stored.plain_bytes}
    return {**about, "rows": rows, "key": "", "split": "train", "tokens": tokens, "stats": None}


@cache
def samples() -> tuple[Gatherer, list[list[Sample]]]:
    """A gatherer over shards with a column of each kind, and the samples of each shard."""
    zone, random = Zone(Path("/nonexistent"), "memory://gather-samples"), np.random.default_rng(3)
    records, expected = [], []
    for count in SIZES:
        files = [png(random) for _ in range(count)]
        texts = [random.bytes(int(random.integers(0, 40)) * (index % 3)) for index in range(count)]
        columns: dict[str, Any] = {
            "image": StoredBlobs.of(files, "image", SHAPE),
            "byte": random.integers(0, 256, count, dtype=np.uint8),
            "cube": random.random((count, 2, 3, 2)),
            "grid": random.integers(0, 9, (count, 1024), dtype=np.int32),
            "none": np.zeros((count, 0), np.float32),
            "text": texts,
        }
        records.append(publish(zone, encode_samples(columns, [str(index) for index in range(count)]), count))
        pixels = np.zeros((count, *SHAPE), np.uint8)
        for index, file in enumerate(files):
            decode_image(file, pixels[index])
        columns |= {"image": pixels}
        expected.append([{name: values[index] for name, values in columns.items()} for index in range(count)])
    fields: tuple[Field, ...] = (
        Images("image", Column(np.dtype("uint8"), SHAPE, "image"), Decoder(SHAPE, 1)),
        Fixed.of("byte", "uint8"),
        Fixed.of("cube", "float64", (2, 3, 2)),
        Fixed.of("grid", "int32", (1024,)),
        Fixed.of("none", "float32", (0,)),
        Blobs("text", Column(np.dtype("uint8"), (), "bytes")),
    )
    table = Manifest.build("shards", records, kind="samples").table
    return Gatherer(Fetcher([(Tiered(zone), table)]), np.array(SIZES), fields), expected


@st.composite
def asked(draw: st.DrawFn, sizes: list[int]) -> list[tuple[int, int]]:
    """(shard, row) of samples."""
    filled = [index for index, size in enumerate(sizes) if size]
    place = st.sampled_from(filled).flatmap(lambda shard: st.tuples(st.just(shard), st.integers(0, sizes[shard] - 1)))
    return draw(st.lists(place, max_size=30))


def arrays(places: list[tuple[int, int]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    both = np.array(places, dtype=np.int64).reshape(-1, 2)
    return both[:, 0].copy(), both[:, 1].copy()


def plain(value: Any) -> Any:
    return [row.tobytes() for row in value] if isinstance(value, Ragged) else value.tolist()


@pytest.mark.parametrize(("long", "together"), [(1, 1), (1, 5000), (512, 1), (1 << 20, 64 << 10)])
@given(places=asked(SIZES), data=st.data())
def test_all_kinds_of_columns(long: int, together: int, places: list[tuple[int, int]], data: st.DataObject) -> None:
    gatherer, expected = samples()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_LONG", long)
        patch.setattr(rows, "_SCRATCH", together)
        block = gatherer.locate(*arrays(places))
        bounds = sorted(data.draw(st.tuples(st.integers(0, len(places)), st.integers(0, len(places)))))
        got = gatherer.gather(block, slice(*bounds))
    wanted = [expected[shard][row] for shard, row in places[slice(*bounds)]]
    for name in got:
        if name == "text":
            assert plain(got[name]) == [sample[name] for sample in wanted]
        else:
            assert got[name].shape == (len(wanted), *np.shape(expected[0][0][name]))
            assert plain(got[name]) == [np.asarray(sample[name]).tolist() for sample in wanted]
    middle = data.draw(st.integers(0, len(wanted)))
    parts = [gatherer.part(got, 0, middle), gatherer.part(got, middle, len(wanted))]
    for name in got:
        assert plain(parts[0][name]) + plain(parts[1][name]) == plain(got[name])
    padded = gatherer.padded(got, len(wanted), len(wanted) + 2)
    assert padded["mask"].tolist() == [True] * len(wanted) + [False] * 2
    for name in got:
        assert plain(padded[name])[: len(wanted)] == plain(got[name])
        assert not np.any(
            [np.any(np.frombuffer(row, np.uint8)) if name == "text" else row for row in padded[name][-2:]]
        )


SEQ_LEN = 5
DOCUMENTS = [[0, 3, 3, 4, 0, 9, 1, 1, 12], [], [40], [1] * 13, [0, 0, 6]]


@cache
def tokens() -> tuple[Gatherer, list[list[Sample]]]:
    zone = Zone(Path("/nonexistent"), "memory://gather-tokens")
    records, expected, counts = [], [], []
    for index, lengths in enumerate(DOCUMENTS):
        stream = np.arange(sum(lengths), dtype=np.uint16) + 100 * index
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        encoded = encode_tokens(stream, offsets, [f"d{place}" for place in range(len(lengths))])
        records.append(publish(zone, encoded, len(lengths), len(stream)))
        document = np.repeat(np.arange(len(lengths)), lengths)
        position = np.concatenate([np.arange(length) for length in lengths] or [np.empty(0, int)])
        counts.append(max(0, len(stream) - 1) // SEQ_LEN)
        windows = [slice(row * SEQ_LEN, row * SEQ_LEN + SEQ_LEN + 1) for row in range(counts[-1])]
        expected.append([
            {
                "tokens": stream[window].tolist(),
                "documents": np.unique(document[window], return_inverse=True)[1].tolist(),
                "positions": position[window].tolist(),
            }
            for window in windows
        ])  # fmt: skip
    table = Manifest.build("shards", records, kind="tokens").table
    field = Tokens.of("tokens", "uint16", SEQ_LEN, document_mask=True)
    return Gatherer(Fetcher([(Tiered(zone), table)]), np.array(counts), (field,)), expected


@given(places=asked([7, 0, 7, 2, 1]))
def test_token_windows_with_their_documents(places: list[tuple[int, int]]) -> None:
    gatherer, expected = tokens()
    assert gatherer.samples.tolist() == [6, 0, 7, 2, 1]
    places = [(shard, row) for shard, row in places if row < gatherer.samples[shard]]
    got = gatherer.take(*arrays(places))
    wanted = [expected[shard][row] for shard, row in places]
    assert {values.dtype.name for values in got.values()} == {"uint16", "int32"}
    for name in ("tokens", "documents", "positions"):
        assert got[name].shape == (len(wanted), SEQ_LEN + 1)
        assert got[name].tolist() == [sample[name] for sample in wanted]
