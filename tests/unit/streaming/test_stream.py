"""The stream: its batches, its state, its ends and its thread."""

import gc
import multiprocessing
import pickle
import threading
import weakref
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from support.flat_streams import flat_stream
from support.servers import wait_for

from pipelines.streaming import Batch, Stream
from pipelines.streaming.prefetch import Prefetcher, close_items
from storage.errors import DataError, DigestError, FormatError, LakeError, ParamsError
from storage.lake import Zone
from storage.manifest import Manifest
from storage.shards import encode_samples, encode_tokens

SIZES = [13, 0, 20, 5]  # rows of the shards of split train
ROWS = sum(SIZES)
SEQ_LEN = 8


def record(zone: Zone, data: Any, rows: int, split: str = "train", tokens: int = 0) -> dict[str, Any]:
    stored = zone.publish(data, ".arrow")
    about = {"path": stored.path, "digest": stored.digest, "bytes": stored.bytes, "rows": rows, "key": ""}
    return {**about, "split": split, "tokens": tokens, "stats": None}


@pytest.fixture
def zone(tmp_path: Path) -> Zone:
    return Zone(tmp_path / "shards")


@pytest.fixture
def samples(zone: Zone) -> Manifest:
    """Samples whose label is their number over all shards, and x twice that."""
    records, first = [], 0
    for rows in SIZES:
        labels = np.arange(first, first + rows)
        columns = {"x": np.repeat(2 * labels, 2).reshape(-1, 2).astype(np.float32), "label": labels}
        records.append(record(zone, encode_samples(columns, [f"id{label}" for label in labels]), rows))
        first += rows
    records.append(record(zone, encode_samples({"x": np.zeros((0, 2)), "label": np.zeros(0)}, []), 0, split="val"))
    spec = {"inputs": {"x": {"dtype": "float32", "shape": [2]}}, "target": {"name": "label", "dtype": "int64"}}
    return zone.commit(Manifest.build("shards", records, kind="samples", spec=spec))


@pytest.fixture
def tokens(zone: Zone) -> Manifest:
    records = []
    for index, count in enumerate([50, 8, 0, 9, 33]):
        values = np.arange(count, dtype=np.uint16) + 1000 * index
        encoded = encode_tokens(values, np.array([0, count]), [f"doc{index}"])
        records.append(record(zone, encoded, 1, tokens=count))
    return zone.commit(Manifest.build("shards", records, kind="tokens", spec={"dtype": "uint16", "vocab_size": 9000}))


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def make(zone: Zone, manifest: Manifest, **settings: Any) -> Stream:
    return flat_stream(zone, manifest, **{"split": "train", "batch_size": 4, "seed": 11, "window": 6, **settings})


def labels(batches: Any) -> list[list[int]]:
    return [batch["label"].tolist() for batch in batches]


PREFETCH = pytest.mark.parametrize("prefetch", [0, 1, 2, 5])


# -- what it delivers ------------------------------------------------------------------------------------------------


@PREFETCH
def test_an_epoch_has_every_sample_once_with_its_columns_together(zone: Zone, samples: Manifest, prefetch: int) -> None:
    with make(zone, samples, epochs=1, prefetch=prefetch) as stream:
        batches = list(stream)
    assert [len(batch["label"]) for batch in batches] == [4] * 9 + [2]
    assert [(batch.epoch, batch.step, batch.size) for batch in batches] == [(0, i, 4) for i in range(9)] + [(0, 9, 2)]
    seen = np.concatenate([batch["label"] for batch in batches])
    assert sorted(seen.tolist()) == list(range(ROWS))
    assert seen.tolist() != list(range(ROWS))
    for batch in batches:
        assert batch.arrays["x"].tolist() == [[2.0 * label] * 2 for label in batch["label"]]
        assert batch.ids() == [f"id{label}" for label in batch["label"]]


def test_epochs_differ_and_follow_one_another(zone: Zone, samples: Manifest) -> None:
    with make(zone, samples, epochs=2) as stream:
        both = list(stream)
        assert [batch.epoch for batch in both] == [0] * 10 + [1] * 10
        assert labels(both[:10]) != labels(both[10:])
        with pytest.raises(StopIteration):
            next(stream)
    with make(zone, samples) as stream:
        endless = list(islice(stream, 35))
        assert labels(endless[:20]) == labels(both)
        assert endless[-1].epoch == 3


def test_without_shuffling_the_stored_order(zone: Zone, samples: Manifest) -> None:
    with make(zone, samples, epochs=1, shuffle=False) as stream:
        assert [label for batch in labels(stream) for label in batch] == list(range(ROWS))


@pytest.mark.parametrize("last", ["keep", "drop", "pad"])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_share_each_global_batch_for_any_world(zone: Zone, samples: Manifest, last: Any, world: int) -> None:
    with make(zone, samples, epochs=2, last=last) as alone:
        whole = list(alone)
    parts = []
    for rank in range(world):
        with make(zone, samples, epochs=2, last=last, rank=rank, world=world) as stream:
            parts.append(list(stream))
            assert stream.meter.snapshot().samples == sum(batch.count for batch in parts[-1])
    for batch, *shares in zip(whole, *parts, strict=True):
        assert {(share.epoch, share.step, share.size) for share in shares} == {(batch.epoch, batch.step, batch.size)}
        real = [share["label"][share["mask"]] if last == "pad" else share["label"] for share in shares]
        assert [len(labels) for labels in real] == [share.count for share in shares]
        joined = np.concatenate(real).tolist()
        assert joined == batch["label"][batch["mask"] if last == "pad" else slice(None)].tolist()
        assert len(joined) == batch.size


def test_the_last_batch_dropped_or_padded(zone: Zone, samples: Manifest) -> None:
    with make(zone, samples, epochs=1, last="drop") as stream:
        assert len(stream) == 9
        assert [batch.size for batch in stream] == [4] * 9
    with make(zone, samples, epochs=1, last="pad") as stream:
        batches = list(stream)
    assert {batch["x"].shape for batch in batches} == {(4, 2)}
    assert [batch["mask"].tolist() for batch in batches] == [[True] * 4] * 9 + [[True, True, False, False]]
    assert batches[-1]["label"].tolist()[2:] == [0, 0]
    assert batches[-1].size == len(batches[-1].ids()) == 2


def test_of_a_dropped_batch_no_shard_is_fetched_ahead(zone: Zone, samples: Manifest) -> None:
    spared = 0
    with make(zone, samples, last="drop", batch_size=20, window=1, lanes=1) as stream:
        for epoch in range(3):
            stream.set_epoch(epoch)
            read = set(np.searchsorted(np.cumsum(SIZES), stream.batch(0)["label"], side="right").tolist())
            assert {shard for shards in stream.order.ahead(epoch, 0) for shard in shards.tolist()} == read
            spared += len(read) < 3
    assert spared


def test_token_windows(zone: Zone, tokens: Manifest) -> None:
    with make(zone, tokens, seq_len=SEQ_LEN, epochs=1, batch_size=3) as stream:
        batches = list(stream)
    starts = [1000 * shard + SEQ_LEN * i for shard, windows in [(0, 6), (3, 1), (4, 4)] for i in range(windows)]
    assert sorted(batch["tokens"][row, 0] for batch in batches for row in range(len(batch["tokens"]))) == starts
    for batch in batches:
        assert batch["tokens"].dtype == np.uint16
        assert (np.diff(batch["tokens"].astype(int)) == 1).all()
        assert batch["tokens"].shape[1] == SEQ_LEN + 1
    assert batches[0].ids()[0] == "doc{}+{}".format(*divmod(int(batches[0]["tokens"][0, 0]), 1000))


def test_batches_may_be_kept(zone: Zone, samples: Manifest) -> None:
    with make(zone, samples, epochs=1) as stream:
        kept, copies = [], []
        for batch in stream:
            kept.append(batch)
            copies.append(batch["x"].copy())
            batch["label"][:] = -1
    assert all(np.array_equal(batch["x"], copy) for batch, copy in zip(kept, copies, strict=True))


# -- random access and other processes -------------------------------------------------------------------------------


def test_random_access_is_the_epochs_batch_and_leaves_the_state_alone(zone: Zone, samples: Manifest) -> None:
    with make(zone, samples, epochs=2) as stream:
        batches = list(stream)
    with make(zone, samples) as stream:
        next(stream)
        state = stream.state_dict()
        assert labels(stream.batch(i) for i in range(10)) == labels(batches[:10])
        assert stream.batch(-1)["label"].tolist() == batches[9]["label"].tolist()
        assert stream.state_dict() == state
        stream.set_epoch(1)
        assert labels(stream.batch(i) for i in range(10)) == labels(batches[10:])
        assert labels(islice(stream, 2)) == labels(batches[10:12])
        for index in (10, -11):
            with pytest.raises(IndexError, match="epoch of 10"):
                stream.batch(index)


def test_going_to_where_it_is_keeps_what_was_prepared(zone: Zone, samples: Manifest) -> None:
    def preparing() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "shardline-prefetch"}

    with make(zone, samples) as stream:
        others = preparing()
        first = [next(stream) for _ in range(len(stream))]
        (thread,) = preparing() - others
        stream.set_epoch(1)
        second = [next(stream) for _ in range(len(stream))]
        assert preparing() - others == {thread}
        stream.set_epoch(1)  # back
        assert labels(islice(stream, 10)) == labels(second) != labels(first)
        assert thread not in preparing()


def test_stream_and_batch_can_be_pickled(zone: Zone, samples: Manifest) -> None:
    with make(zone, samples) as stream:
        first = next(stream)
        copy = pickle.loads(pickle.dumps(stream))
        with copy:
            assert labels(islice(copy, 5)) == labels(islice(stream, 5))
    again = pickle.loads(pickle.dumps(first))
    assert (again["label"].tolist(), again.ids(), again.step) == (first["label"].tolist(), first.ids(), 0)


def _take_in_child(stream: Stream, pipe: Any) -> None:
    pipe.send(labels([stream.batch(0), *islice(stream, 12)]))
    stream.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_goes_on_by_itself(zone: Zone, samples: Manifest) -> None:
    with make(zone, samples) as stream:
        list(islice(stream, 3))
        ours, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(target=_take_in_child, args=(stream, theirs))
        child.start()
        assert ours.poll(60), "the child hangs"
        taken = ours.recv()
        child.join(60)
        assert child.exitcode == 0
        assert taken == labels([stream.batch(0), *islice(stream, 12)])


# -- state -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", ["keep", "drop"])
@PREFETCH
def test_restored_at_every_step_it_gives_the_same_tail(zone: Zone, samples: Manifest, prefetch: int, last: Any) -> None:
    with make(zone, samples, epochs=2, prefetch=prefetch, last=last) as stream:
        states = [stream.state_dict()]
        batches = []
        for batch in stream:
            batches.append(batch)
            states.append(stream.state_dict())
    assert len({(state["epoch"], state["step"]) for state in states}) == len(states) == len(batches) + 1
    for step, state in enumerate(states):
        with make(zone, samples, epochs=2, prefetch=prefetch, last=last) as again:
            again.load_state_dict(pickle.loads(pickle.dumps(state)))
            assert labels(again) == labels(batches[step:])


def test_a_stream_in_use_can_be_set_back_and_to_another_world(zone: Zone, samples: Manifest) -> None:
    with make(zone, samples) as stream, make(zone, samples, rank=1, world=2) as half:
        list(islice(stream, 4))
        state = stream.state_dict()
        tail = labels(islice(stream, 9))
        stream.load_state_dict(state)
        assert labels(islice(stream, 9)) == tail
        half.load_state_dict(state)
        assert labels(islice(half, 5)) == [batch[2:] for batch in tail[:5]]


def test_breaking_off_and_going_on_loses_nothing(zone: Zone, samples: Manifest) -> None:
    with make(zone, samples, epochs=1) as stream:
        whole = labels(stream)
    with make(zone, samples, epochs=1) as stream:
        head = labels(islice(stream, 3))
        stream.close()
        assert head + labels(stream) == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 12}, "seed was 11 and is 12"),
        ({"batch_size": 6}, r"stream\.batch_size was 4 and is 6"),
        ({"window": 7}, r"stream\.window was 6 and is 7"),
        ({"lanes": 2}, r"stream\.lanes was 1 and is 2"),
        ({"shuffle": False}, "shuffle was True and is False"),
    ],
)
def test_a_state_of_another_order_is_refused(zone: Zone, samples: Manifest, change: Any, message: str) -> None:
    with make(zone, samples) as stream, make(zone, samples, **change) as other:
        next(stream)
        with pytest.raises(ParamsError, match=message):
            other.load_state_dict(stream.state_dict())
        assert (other.state_dict()["epoch"], other.state_dict()["step"]) == (0, 0)


def test_a_state_of_other_data_or_an_unknown_version_is_refused(zone: Zone, samples: Manifest, tmp_path: Path) -> None:
    with make(zone, samples) as stream:
        state = stream.state_dict()
        assert set(state) == {"version", "epoch", "step", "digest", "order"}
        with pytest.raises(FormatError, match="state of version 99"):
            stream.load_state_dict({**state, "version": 99})
        with pytest.raises(DataError, match=f"data version {'0' * 64}, but this is {samples.digest}"):
            stream.load_state_dict({**state, "digest": "0" * 64})
        with pytest.raises(ParamsError, match="order version was 0 and is 3"):
            stream.load_state_dict({**state, "order": {**state["order"], "order version": 0}})


# -- one sample in all -----------------------------------------------------------------------------------------------


@pytest.fixture(params=["samples", "tokens"])
def single(zone: Zone, request: pytest.FixtureRequest) -> tuple[Manifest, dict[str, Any]]:
    """A version with a single row `x`, or a single window of tokens, and what a stream of it must be told."""
    values = np.arange(SEQ_LEN + 1)
    if request.param == "samples":
        stored = record(zone, encode_samples({"x": values[None].astype(np.float32)}, ["only"]), 1)
        spec: dict[str, Any] = {"inputs": {"x": {"dtype": "float32", "shape": [len(values)]}}}
        return zone.commit(Manifest.build("shards", [stored], kind="samples", spec=spec)), {}
    encoded = encode_tokens(values.astype(np.uint16), np.array([0, len(values)]), ["only"])
    stored, spec = record(zone, encoded, 1, tokens=len(values)), {"dtype": "uint16", "vocab_size": 9000}
    return zone.commit(Manifest.build("shards", [stored], kind="tokens", spec=spec)), {"seq_len": SEQ_LEN}


class Delivered(NamedTuple):
    """A batch: its place and size, the names and values of its samples, and its rows with those that only pad."""

    place: tuple[int, int, int]
    ids: list[str]
    values: list[Any]
    rows: int

    @classmethod
    def of(cls, batch: Batch) -> "Delivered":
        values = batch["x" if "x" in batch else "tokens"]
        real = values[batch["mask"]] if "mask" in batch else values
        return cls((batch.epoch, batch.step, batch.size), batch.ids(), real.tolist(), len(values))


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("last", ["keep", "pad"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_single_sample_comes_once_an_epoch_to_one_of_the_ranks(
    zone: Zone, single: tuple[Manifest, dict[str, Any]], world: int, last: Any, prefetch: int
) -> None:
    """The others take as many steps without one, and each rank goes on from any state as it would have."""
    manifest, window = single
    settings = {"batch_size": 6, "epochs": 3, "last": last, "world": world, "prefetch": prefetch, **window}
    parts: list[list[Delivered]] = []
    for rank in range(world):
        with make(zone, manifest, rank=rank, **settings) as stream:
            assert (stream.rows, len(stream)) == (1, 1)
            states, part = [stream.state_dict()], []
            for batch in stream:
                part.append(Delivered.of(batch))
                states.append(stream.state_dict())
        parts.append(part)
        assert [(state["epoch"], state["step"]) for state in states] == [(0, 0), (1, 0), (2, 0), (3, 0)]
        for taken, state in enumerate(states):
            with make(zone, manifest, rank=rank, **settings) as again:
                again.load_state_dict(state)
                assert [Delivered.of(batch) for batch in again] == part[taken:]
    for epoch, shares in enumerate(zip(*parts, strict=True)):
        assert {share.place for share in shares} == {(epoch, 0, 1)}
        assert [name for share in shares for name in share.ids] == ["only+0" if window else "only"]
        assert [row for share in shares for row in share.values] == [list(range(SEQ_LEN + 1))]
        assert [share.rows for share in shares] == [6 // world if last == "pad" else len(share.ids) for share in shares]
    assert len(parts[0]) == 3


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_single_sample_that_would_be_dropped_is_an_error(
    zone: Zone, single: tuple[Manifest, dict[str, Any]], world: int
) -> None:
    manifest, window = single
    for rank in range(world):
        with pytest.raises(DataError, match=r"1 samples, fewer than one batch of 6.*Lower stream\.batch_size to 1"):
            make(zone, manifest, rank=rank, world=world, batch_size=6, last="drop", **window)
    with make(zone, manifest, batch_size=1, last="drop", epochs=2, **window) as stream:
        assert [batch.size for batch in stream] == [1, 1]


# -- bad data --------------------------------------------------------------------------------------------------------


def test_an_empty_split_names_split_zone_and_setting(zone: Zone, samples: Manifest) -> None:
    with pytest.raises(DataError, match=rf"{zone.folder}.*split 'test' has no shards.*train, val.*curate\.split\.test"):
        make(zone, samples, split="test")
    with pytest.raises(DataError, match=rf"{zone.folder}.*split 'val' is empty.*curate\.split\.val"):
        make(zone, samples, split="val")


@pytest.mark.parametrize(("kind", "window"), [("samples", {}), ("tokens", {"seq_len": SEQ_LEN})])
def test_a_version_without_shards_says_so(zone: Zone, kind: str, window: dict[str, Any], request: Any) -> None:
    spec = request.getfixturevalue(kind).header["spec"]
    empty = zone.commit(Manifest.build("shards", [], kind=kind, spec=spec))
    with pytest.raises(DataError, match=r"split 'train' has no shards; there are: none\. Raise curate\.split\.train"):
        make(zone, empty, **window)


def test_too_little_data_says_what_to_lower(zone: Zone, tokens: Manifest) -> None:
    with pytest.raises(DataError, match=r"no window of 50 tokens.*Lower stream\.seq_len"):
        make(zone, tokens, seq_len=50)
    with pytest.raises(DataError, match=r"11 samples, fewer than one batch of 12.*Lower stream\.batch_size to 11"):
        make(zone, tokens, seq_len=SEQ_LEN, batch_size=12, last="drop")
    with pytest.raises(ParamsError, match=r"set stream\.seq_len"):
        make(zone, tokens)
    with pytest.raises(ParamsError, match=r"5 ranks share stream\.batch_size=4"):
        make(zone, tokens, seq_len=SEQ_LEN, world=5)
    with pytest.raises(ParamsError, match="last='all'"):
        make(zone, tokens, seq_len=SEQ_LEN, last="all")


@PREFETCH
def test_an_error_in_the_thread_reaches_the_consumer_each_time(zone: Zone, samples: Manifest, prefetch: int) -> None:
    file = zone.folder / samples.table["path"][2].as_py()
    whole = file.read_bytes()
    file.write_bytes(bytes([*whole[:-200], whole[-200] ^ 8, *whole[-199:]]))
    with make(zone, samples, epochs=1, prefetch=prefetch) as stream:
        for _ in range(2):
            with pytest.raises(DigestError, match=str(file)):
                list(stream)
        file.unlink()
        with pytest.raises((DataError, LakeError), match=str(file)):
            list(stream)
        file.write_bytes(whole)
        state = stream.state_dict()
        assert len(list(stream)) == 10 - state["step"]


# -- the thread ------------------------------------------------------------------------------------------------------


def prefetching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "shardline-prefetch"]


def test_no_thread_before_the_first_batch_nor_after_close_nor_at_the_end(zone: Zone, samples: Manifest) -> None:
    with make(zone, samples) as stream:
        assert not prefetching()
        next(stream)
        assert len(prefetching()) == 1
    assert not prefetching()
    with make(zone, samples, epochs=1) as stream:
        list(stream)
        assert not prefetching()


def test_a_forgotten_stream_ends_its_thread(zone: Zone, samples: Manifest) -> None:
    stream = make(zone, samples)
    batch = next(stream)
    assert prefetching()
    del stream
    gc.collect()
    wait_for(lambda: not prefetching(), "the end of its thread")
    assert batch.ids()  # which needs the shards, not the stream


def test_the_prefetcher_stays_within_its_depth() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            made.append(item)
            yield item

    prefetcher = Prefetcher(items(), depth=3)
    for taken in range(50):
        assert next(prefetcher) == taken
        assert len(made) <= taken + 1 + 3 + 1
    prefetcher.close()
    assert len(made) < 100


def test_the_prefetcher_keeps_nothing_that_was_taken() -> None:
    hold = threading.Event()

    def items() -> Iterator[set[int]]:
        yield {1}
        assert hold.wait(60)

    prefetcher = Prefetcher(items(), depth=1)
    taken = weakref.ref(next(prefetcher))
    wait_for(lambda: taken() is None, "the item is let go", seconds=10)
    hold.set()
    prefetcher.close()


def test_waiting_is_measured(zone: Zone, samples: Manifest) -> None:
    with make(zone, samples) as stream:
        assert stream.wait_seconds == 0
        next(stream)
        waited = stream.wait_seconds
        assert waited > 0
        stream.batch(0)
        assert stream.wait_seconds == waited


def test_a_second_interruption_loses_nothing(zone: Zone, samples: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another Ctrl-C while the first one's threads are waited for: the next loop goes on from the state."""
    settings = {"split": "train", "batch_size": 8, "seed": 3, "epochs": 1}
    with flat_stream(zone, samples, **settings) as stream:  # type: ignore[arg-type]
        expected = [batch["label"].tolist() for batch in stream]
    with flat_stream(zone, samples, **settings) as stream:  # type: ignore[arg-type]
        seen = [next(stream)["label"].tolist()]

        def interrupted(items: object) -> None:
            close_items(items)  # type: ignore[arg-type]
            raise KeyboardInterrupt

        monkeypatch.setattr("pipelines.streaming.feed.close_items", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stream._restart()
        monkeypatch.undo()
        seen.extend(batch["label"].tolist() for batch in stream)
    assert seen == expected


def test_a_forgotten_prefetcher_is_told_and_not_waited_for() -> None:
    """Garbage is collected in any thread, and one that the item needs may not wait for the item."""
    made, gate = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        made.set()
        assert gate.wait(60)
        yield 1

    prefetcher = Prefetcher(items(), 1)
    assert made.wait(60)
    prefetcher.close(wait=False)
    assert prefetcher._thread.is_alive()
    gate.set()
    prefetcher.close()
    assert not prefetcher._thread.is_alive()
