"""A dataset of one sample: it comes once an epoch to one of the ranks."""

from typing import Any, NamedTuple

import numpy as np
import pytest
from support.small_shards import SEQ_LEN, make, record

from pipelines.streaming import Batch
from storage.errors import DataError
from storage.lake import Zone
from storage.manifest import Manifest
from storage.shards import encode_samples, encode_tokens


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
