"""The batches of a stream: every sample once an epoch, shared out to the ranks, at any place, in any process."""

import multiprocessing
import pickle
import threading
from itertools import islice
from typing import Any

import numpy as np
import pytest
from support.small_shards import PREFETCH, ROWS, SEQ_LEN, SIZES, labels, make

from pipelines.streaming import Stream
from storage.lake import Zone
from storage.manifest import Manifest


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
