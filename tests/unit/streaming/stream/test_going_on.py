"""A stream goes on from its state, and refuses one of another order, data or version."""

import pickle
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from support.small_shards import PREFETCH, labels, make

from storage.errors import DataError, FormatError, ParamsError
from storage.lake import Zone
from storage.manifest import Manifest


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
