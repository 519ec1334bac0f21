"""A stream takes a state that `state_dict` gave, of this data and order, at a place that there is, and no other."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.numbered_samples import publish

from pipelines.streaming import Stream
from storage.errors import DataError, FormatError, ParamsError
from storage.lake import Zone

STEPS = 10


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Stream]:
    zone = Zone(tmp_path)
    manifest = publish(zone, 5, rows=15, width=2)
    with Stream(zone, manifest, split="train", batch_size=8, seed=3, epochs=3) as stream:
        for _ in range(3):
            next(stream)
        yield stream


WRONG = [
    ({"step": STEPS}, FormatError, r"step=10, but epoch 0 has the batches 0 to 9\."),
    ({"step": 10_000}, FormatError, r"step=10000, but epoch 0 has the batches 0 to 9\."),
    ({"step": -1}, FormatError, r"step=-1: must be an int of at least 0\."),
    ({"step": 1.0}, FormatError, r"step=1\.0: must be an int"),
    ({"step": "1"}, FormatError, r"step='1': must be an int"),
    ({"step": None}, FormatError, r"step=None: must be an int"),
    ({"epoch": -3}, FormatError, r"epoch=-3: must be an int of at least 0\."),
    ({"epoch": True}, FormatError, r"epoch=True: must be an int"),
    ({"epoch": 4, "step": 0}, ParamsError, r"batch 0 of epoch 4, but this stream ends after epochs=3\. Raise epochs"),
    ({"epoch": 3, "step": 1}, ParamsError, r"batch 1 of epoch 3, but this stream ends after epochs=3\. Raise epochs"),
    ({"epoch": 2**70}, ParamsError, f"epoch={2**70}: must begin within the first"),
    ({"digest": None}, FormatError, r"digest=None must be a str\."),
    ({"digest": "0" * 64}, DataError, "taken on data version 0000"),
    ({"order": None}, FormatError, r"order=None must be a Mapping\."),
    ({"order": {}}, ParamsError, "seed was None and is 3"),
    ({"version": 2}, FormatError, r"state of version 2, but this Shardline reads 1 only"),
    ({"version": "1"}, FormatError, r"state of version '1'"),
    ({"version": True}, FormatError, r"state of version True"),
    ({"kind": "samples"}, FormatError, r"\['digest', 'epoch', 'kind', 'order', 'step', 'version'\]: kind is unknown"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG, ids=[str(change) for change, _, _ in WRONG])
def test_a_state_that_cannot_be_is_refused_with_what_is_wrong(
    stream: Stream, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    """And the stream stays where it is, with what it has prepared."""
    before, feed = stream.state_dict(), stream._feed
    with pytest.raises(error, match=message):
        stream.load_state_dict({**before, **change})
    assert stream.state_dict() == before
    assert stream._feed is feed


def test_a_state_without_a_field_is_refused(stream: Stream) -> None:
    state = stream.state_dict()
    for name in state:
        rest = {key: value for key, value in state.items() if key != name}
        with pytest.raises(FormatError, match="state of version None" if name == "version" else f"{name} is missing"):
            stream.load_state_dict(rest)
    for wrong in (None, [], "state", 7):
        with pytest.raises(FormatError, match="must be a mapping"):
            stream.load_state_dict(wrong)  # type: ignore[arg-type]
    assert stream.position == (0, 3)


def test_a_state_comes_back_from_json_at_the_first_place_the_last_and_the_end(stream: Stream) -> None:
    state = stream.state_dict()
    for epoch, step in ((0, 0), (2, STEPS - 1), (3, 0)):
        stream.load_state_dict(json.loads(json.dumps({**state, "epoch": epoch, "step": step})))
        assert stream.position == (epoch, step)
        assert len(list(stream)) == 3 * STEPS - (STEPS * epoch + step)
