"""What a stream is told must make sense: of another type or out of its range it is refused, with its name and value."""

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from support.flat_streams import flat_stream
from support.numbered_samples import publish

from pipelines.streaming import Stream, Text
from pipelines.streaming.options import KINDS
from storage.errors import DataError, ParamsError
from storage.lake import Zone

AT_LEAST_1 = (
    "batch_size", "world", "window", "pad_multiple", "bucket_batches", "epochs", "seq_len", "lanes", "first_window",
    "steps",
)  # fmt: skip
AT_LEAST_0 = ("prefetch", "ahead", "memory")
FLAGS = ("shuffle", "keep_lanes", "document_mask")
NO_INTS = (True, 1.5, "1", [1])
WRONG = [
    *((name, value, f"an int of at least {least}")
      for names, least in ((AT_LEAST_1, 1), (AT_LEAST_0, 0)) for name in names for value in (least - 1, -4, *NO_INTS)),
    *((name, None, "an int") for name in ("batch_size", "window", "prefetch", "seed")),
    *(("seed", value, f"an int from 0 to {2**63 - 1}") for value in (-1, 2**63, 2**64, *NO_INTS)),
    *(("rank", value, "an int from 0 to 0") for value in (1, -1, *NO_INTS)),
    *((name, value, "True or False") for name in FLAGS for value in (1, "no", None)),
    *(("last", value, "one of keep, drop, pad") for value in ("all", True, None, ["keep"])),
    *(("samples", value, "one of sequences, documents") for value in ("rows", None)),
    *(("split", value, "the name of a split") for value in (None, 3)),
]  # fmt: skip


@pytest.fixture(scope="module")
def zone(tmp_path_factory: pytest.TempPathFactory) -> Zone:
    zone = Zone(tmp_path_factory.mktemp("zone"))
    publish(zone, 2, rows=15, width=2)
    return zone


def make(zone: Zone, **settings: Any) -> Stream:
    return flat_stream(zone, zone.manifest(), **{"split": "train", "batch_size": 8, "seed": 3, **settings})


@pytest.mark.parametrize(("name", "value", "wanted"), WRONG)
def test_nonsense_is_refused_by_its_name(zone: Zone, name: str, value: Any, wanted: str) -> None:
    with pytest.raises(ParamsError) as told:
        make(zone, **{name: value})
    assert str(told.value).startswith(f"{name}={value!r}: must be {wanted}")


def test_what_goes_to_the_edge_is_taken(zone: Zone) -> None:
    edges = {"seed": 2**63 - 1, "prefetch": 0, "ahead": 0, "memory": 0, "window": 1, "first_window": 1, "lanes": 8}
    with make(zone, epochs=1, batch_size=8, world=8, rank=7, **edges) as stream:
        assert [batch.count for batch in stream] == [1, 1, 1, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_ramp": {0: 4.0, 9: 8}}, r"batch_ramp at step 0=4\.0: must be an int of at least 1"),
        ({"batch_ramp": {0: 4, -9: 8}}, r"a step of batch_ramp=-9: must be an int of at least 0"),
        ({"world": 9}, r"9 ranks share stream\.batch_size=8"),
        ({"lanes": 3}, r"stream\.lanes=3 does not divide stream\.batch_size=8"),
        ({"document_mask": True}, r"hold no documents of tokens: leave stream\.document_mask at false"),
    ],
)
def test_what_does_not_fit_together_is_refused(zone: Zone, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        make(zone, **settings)


def test_a_split_without_a_batch_is_refused(zone: Zone) -> None:
    with pytest.raises(DataError, match=r"split 'tset' has no shards; there are: train\."):
        make(zone, split="tset")
    with pytest.raises(DataError, match=r"30 samples, fewer than one batch of 31, and last='drop'"):
        make(zone, batch_size=31, last="drop")


OLD = {
    "order": ("shuffle", "lanes", "window", "first_window", "keep_lanes"),
    "batching": ("batch_ramp", "last", "bucket_batches"),
    "text": ("seq_len", "samples", "document_mask", "pad_multiple"),
    "mixing": ("mixture", "domain", "weights", "steps"),
    "loading": ("tiers", "ahead", "memory", "prefetch", "allocate"),
}


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, names in OLD.items() for name in names])
def test_a_field_that_is_given_as_a_keyword_is_told_its_part(zone: Zone, part: str, name: str) -> None:
    with pytest.raises(TypeError, match=rf"no keyword '{name}': it is a field .* Write {part}=\w+\({name}=…\)"):
        Stream(zone, zone.manifest(), split="train", batch_size=8, seed=3, **{name: 1})  # type: ignore[arg-type]


def test_what_is_no_keyword_or_no_part_is_refused(zone: Zone) -> None:
    with pytest.raises(TypeError, match=r"no keyword 'windw'\. Its parts are order=Ordering\(…\), batching=Batching\("):
        Stream(zone, zone.manifest(), split="train", batch_size=8, seed=3, windw=6)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"order must be Ordering\(…\), not Text"):
        Stream(zone, zone.manifest(), split="train", batch_size=8, seed=3, order=Text())  # type: ignore[arg-type]


def test_a_part_stays_as_it_was_made() -> None:
    for kind in KINDS.values():
        with pytest.raises(FrozenInstanceError):
            setattr(kind(), fields(kind)[0].name, None)
        with pytest.raises(TypeError, match="positional"):
            kind(None)
