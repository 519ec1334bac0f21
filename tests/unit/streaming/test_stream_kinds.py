"""Streams of blobs, images, documents and mixtures, and what other frameworks see of a batch."""

import io
import itertools
import multiprocessing
import pickle
import threading
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.flat_streams import flat_stream

from pipelines.streaming import Mixing, Order, Ragged, Stream
from pipelines.streaming.gather import decode, fields
from storage.cache import Tiered
from storage.errors import DataError, ParamsError
from storage.images import decode_image
from storage.lake import Zone
from storage.manifest import Manifest
from storage.shards import Blobs, encode_samples, encode_tokens

SHAPE = (6, 5, 3)
COUNT = 20


def record(zone: Zone, data: Any, rows: int, tokens: int = 0) -> dict[str, Any]:
    stored = zone.publish(data, ".arrow")
    about = {"path": stored.path, "digest": stored.digest, "bytes": stored.bytes, "plain_bytes": stored.plain_bytes}
    return {**about, "rows": rows, "key": "", "split": "train", "tokens": tokens, "stats": None}


def png(number: int) -> bytes:
    target = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, SHAPE, dtype=np.uint8)
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


@pytest.fixture(params=["local", "memory"])
def zone(request: pytest.FixtureRequest, tmp_path: Path) -> Zone:
    return Zone(tmp_path / "zone", f"memory://{tmp_path}" if request.param == "memory" else None)


@pytest.fixture
def manifest(zone: Zone) -> Manifest:
    """Samples with an image, a text of so many bytes as the label says, and the label."""
    records = []
    for numbers in np.array_split(np.arange(COUNT), 3):
        columns = {
            "image": Blobs.of([png(number) for number in numbers.tolist()], "image", SHAPE),
            "text": [b"%d" % (number % 10) * number for number in numbers.tolist()],
            "label": numbers,
        }
        records.append(record(zone, encode_samples(columns, [f"id{number}" for number in numbers]), len(numbers)))
    spec = {
        "inputs": {
            "image": {"dtype": "uint8", "shape": list(SHAPE), "codec": "image"},
            "text": {"dtype": "uint8", "shape": None, "codec": "bytes"},
        },
        "target": {"name": "label", "dtype": "int64"},
    }
    return zone.commit(Manifest.build("shards", records, kind="samples", spec=spec))


def make(zone: Zone, manifest: Manifest, **settings: Any) -> Stream:
    return flat_stream(zone, manifest, **{"split": "train", "batch_size": 3, "seed": 5, **settings})


def check(batch: Any) -> None:
    expected = np.empty((1, *SHAPE), np.uint8)
    for image, text, number in zip(batch["image"], batch["text"], batch["label"].tolist(), strict=True):
        decode_image(png(number), expected[0])
        assert (image == expected[0]).all()
        assert text.tobytes() == b"%d" % (number % 10) * number


@pytest.mark.parametrize("prefetch", [0, 2])
def test_blobs_and_decoded_images(zone: Zone, manifest: Manifest, prefetch: int) -> None:
    with make(zone, manifest, epochs=2, prefetch=prefetch) as stream:
        batches = list(stream)
        times = stream.meter.snapshot()
    assert [len(batch["text"]) for batch in batches] == ([3] * 6 + [2]) * 2
    for batch in batches:
        assert isinstance(batch["text"], Ragged)
        check(batch)
    assert 0 < times.decode < times.elapsed
    assert min(times.gather, times.plan, times.fetch, times.wait) > 0
    assert (times.batches, times.samples) == (14, 40)
    assert set(times.shares()) == {"wait", "fetch", "plan", "decode", "gather"}
    again = pickle.loads(pickle.dumps(batches[3]))
    check(again)


HELD = 0.8  # seconds


@pytest.mark.parametrize("zone", ["memory"], indirect=True)
@pytest.mark.parametrize(
    ("part", "owner", "name", "settings"),
    [
        ("fetch", Tiered, "open", {"prefetch": 0}),
        ("fetch", Tiered, "open", {"prefetch": 2}),
        ("fetch", Tiered, "open", {"prefetch": 2, "bucket_batches": 2}),  # planning opens shards for their lengths
        ("plan", Order, "block", {"prefetch": 0}),  # without fetching ahead, which asks for blocks as well
        ("decode", decode, "decode_image", {"prefetch": 2}),
        ("gather", fields, "end_to_end", {"prefetch": 2}),
    ],
)
def test_the_meter_tells_which_part_is_slow(
    zone: Zone, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, part: str, owner: Any, name: str, settings: Any
) -> None:
    """One part is held up from its first call on, for HELD seconds: the consumer waits so long, and no other part."""
    with make(zone, manifest, epochs=1, **settings) as stream:
        expected = [batch["label"].tolist() for batch in stream]  # and what is imported at first is there
    gate, calls, real = threading.Event(), itertools.count(), getattr(owner, name)
    timer = threading.Timer(HELD, gate.set)

    def slow(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 0:
            timer.start()
        assert gate.wait(60)
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, slow)
    with make(zone, manifest, epochs=1, **settings) as stream:
        assert [batch["label"].tolist() for batch in stream] == expected
        times = stream.meter.snapshot()
    timer.join()
    took = {name: getattr(times, name) for name in times.shares()}
    assert {name for name, seconds in took.items() if seconds > HELD / 2} == {part, "wait"}, took
    assert took[part] < 2 * HELD


def test_padding_adds_black_images_and_empty_blobs(zone: Zone, manifest: Manifest) -> None:
    with make(zone, manifest, epochs=1, last="pad") as stream:
        *_, last = stream
    assert last["mask"].tolist() == [True, True, False]
    assert (len(last["text"]), len(last["text"][2]), last["image"][2].max(), last["label"][2]) == (3, 0, 0, 0)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    zone = Zone(tmp_path)
    files = [png(0), png(1)[:-40] + b"damaged", png(2)]
    data = encode_samples({"image": Blobs.of(files, "image", SHAPE)}, ["first", "second", "third"])
    spec = {"inputs": {"image": {"dtype": "uint8", "shape": list(SHAPE), "codec": "image"}}}
    manifest = zone.commit(Manifest.build("shards", [record(zone, data, 3)], kind="samples", spec=spec))
    with (
        make(zone, manifest, epochs=1, shuffle=False) as stream,
        pytest.raises(DataError, match=r"objects/\w+\.arrow: second: not decodable"),
    ):
        next(stream)


def _read(stream: Stream, pipe: Any) -> None:
    pipe.send([batch["label"].tolist() for batch in islice(stream, 9)])
    stream.close()


def test_a_spawned_process_goes_on_by_itself(tmp_path: Path) -> None:
    zone = Zone(tmp_path)
    data = encode_samples({"x": np.zeros((50, 2), np.float32), "label": np.arange(50)}, [str(i) for i in range(50)])
    spec = {"inputs": {"x": {"dtype": "float32", "shape": [2]}}, "target": {"name": "label", "dtype": "int64"}}
    manifest = zone.commit(Manifest.build("shards", [record(zone, data, 50)], kind="samples", spec=spec))
    with make(zone, manifest) as stream:
        list(islice(stream, 4))
        ours, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("spawn").Process(target=_read, args=(stream, theirs))
        child.start()
        assert ours.poll(60), "the child hangs"
        taken = ours.recv()
        child.join(60)
        assert child.exitcode == 0
        assert taken == [batch["label"].tolist() for batch in islice(stream, 9)]


def test_documents_of_token_windows(zone: Zone) -> None:
    lengths = [3, 9, 1, 12]
    tokens = np.concatenate([100 * index + np.arange(length) for index, length in enumerate(lengths)])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    data = encode_tokens(tokens.astype(np.uint16), offsets, list("abcd"))
    spec = {"dtype": "uint16", "vocab_size": 1000}
    records = [record(zone, data, 4, tokens=len(tokens))]
    manifest = zone.commit(Manifest.build("shards", records, kind="tokens", spec=spec))
    with make(zone, manifest, seq_len=7, document_mask=True, shuffle=False, epochs=1) as stream:
        [batch] = stream
    assert batch["tokens"].shape == batch["documents"].shape == batch["positions"].shape == (3, 8)
    assert (batch["positions"] == batch["tokens"] % 100).all()
    for numbers, row in zip(batch["documents"], batch["tokens"] // 100, strict=True):
        assert numbers.tolist() == np.unique(row, return_inverse=True)[1].tolist()


# -- mixtures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[dict[str, Zone], dict[str, Manifest]]:
    zones, manifests = {}, {}
    spec = {"inputs": {"x": {"dtype": "float32", "shape": [2]}}, "target": {"name": "label", "dtype": "int64"}}
    for index, (name, rows) in enumerate([("web", 60), ("books", 20), ("code", 9)]):
        zone = zones[name] = Zone(tmp_path / name, f"memory://{tmp_path}/{name}" if name == "books" else None)
        records = []
        for numbers in np.array_split(np.arange(rows) + 1000 * index, 3):
            columns = {"x": np.zeros((len(numbers), 2), np.float32), "label": numbers}
            records.append(record(zone, encode_samples(columns, [f"{name}{n}" for n in numbers]), len(numbers)))
        manifests[name] = zone.commit(Manifest.build("shards", records, kind="samples", spec=spec))
    return zones, manifests


WEIGHTS = {"web": {0: 1.0, 10: 3.0}, "books": 2.0, "code": 1.0}


def mix(mixed: Any, **settings: Any) -> Stream:
    return flat_stream(
        *mixed, **{"split": "train", "batch_size": 8, "seed": 5, "weights": WEIGHTS, "steps": 15, **settings}
    )


def test_a_mixture_goes_through_each_dataset_by_its_weight(mixed: Any) -> None:
    with mix(mixed, epochs=3) as stream:
        assert len(stream) == 15
        batches = list(stream)
    assert len(batches) == 45
    labels = np.concatenate([batch["label"] for batch in batches])
    for index, rows in enumerate([60, 20, 9]):
        own = labels[labels // 1000 == index] - 1000 * index
        counts = np.bincount(own, minlength=rows)
        assert len(own) > rows / 2
        assert counts.max() - counts.min() <= 1
    given = np.bincount(labels[10 * 8 :] // 1000)
    assert (abs(given - given.sum() * np.array([3, 2, 1]) / 6) <= 1).all()
    assert batches[7].ids() == [["web", "books", "code"][n // 1000] + str(n) for n in batches[7]["label"].tolist()]


def test_a_mixture_is_the_same_for_any_world_and_from_any_state(mixed: Any) -> None:
    with mix(mixed, epochs=2) as stream:
        whole, states = [], [stream.state_dict()]
        for batch in stream:
            whole.append(batch["label"].tolist())
            states.append(stream.state_dict())
    for step in range(0, 31, 6):
        parts = []
        for rank in range(3):
            with mix(mixed, epochs=2, rank=rank, world=3) as stream:
                stream.load_state_dict(states[step])
                parts.append([batch["label"].tolist() for batch in stream])
        joined = [[label for share in shares for label in share] for shares in zip(*parts, strict=True)]
        assert joined == whole[step:]
    with (
        mix(mixed, weights={**WEIGHTS, "code": 2.0}) as other,
        pytest.raises(ParamsError, match=r"stream\.mixture was"),
    ):
        other.load_state_dict(states[3])


def test_datasets_that_do_not_go_together_are_refused(mixed: Any, zone: Zone, manifest: Manifest) -> None:
    zones, manifests = mixed
    with pytest.raises(DataError, match="'pictures' and 'web' of the mixture have different columns: image image"):
        mix(({"web": zones["web"], "pictures": zone}, {"web": manifests["web"], "pictures": manifest}), weights=None)
    with pytest.raises(ParamsError, match="weights for web"):
        mix(mixed, weights={"web": 1.0})
    with pytest.raises(ValueError, match="a zone for each"):
        mix(({"web": zones["web"]}, manifests))
    with pytest.raises(ValueError, match="for a mixture"):
        Stream(zone, manifest, split="train", batch_size=2, seed=1, mixing=Mixing(weights={"web": 1.0}))


# -- other frameworks ------------------------------------------------------------------------------------------------


def test_arrays_speak_dlpack_without_a_copy(zone: Zone) -> None:
    import torch  # here, so that the spawned process needn't

    columns = {name: np.arange(24).astype(name).reshape(12, 2) for name in ("uint8", "uint16", "int32", "float64")}
    spec = {"inputs": {name: {"dtype": name, "shape": [2]} for name in columns}}
    data = encode_samples(columns, [str(index) for index in range(12)])
    manifest = zone.commit(Manifest.build("shards", [record(zone, data, 12)], kind="samples", spec=spec))
    with make(zone, manifest, shuffle=False) as stream:
        batch = next(stream)
    for name, values in batch.arrays.items():
        tensor, array = torch.from_dlpack(values), np.from_dlpack(values)
        assert tensor.numpy().dtype == array.dtype == np.dtype(name)
        assert tensor.data_ptr() == array.ctypes.data == values.ctypes.data
        assert tensor.tolist() == columns[name][:3].tolist()
