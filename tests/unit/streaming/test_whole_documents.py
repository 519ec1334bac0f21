"""Whole documents as samples: what batches hold, in any order, from any state, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.flat_streams import flat_stream

from pipelines.streaming import Batching, Ragged, Stream, Text
from storage.errors import DataError, LakeError, ParamsError
from storage.lake import Zone
from storage.manifest import Manifest
from storage.shards import encode_samples, encode_tokens

SEQ_LEN, END = 20, 256
SPEC = {"dtype": "uint16", "vocab_size": 257, "separator": END}
Documents = dict[str, list[int]]


def record(zone: Zone, data: Any, rows: int, tokens: int = 0) -> dict[str, Any]:
    stored = zone.publish(data, ".arrow")
    about = {"path": stored.path, "digest": stored.digest, "bytes": stored.bytes, "plain_bytes": stored.plain_bytes}
    return {**about, "rows": rows, "split": "train", "tokens": tokens, "stats": None, "key": ""}


@pytest.fixture
def zone(tmp_path: Path) -> Zone:
    return Zone(tmp_path / "shards", f"memory://{tmp_path}")  # so that shards lie in memory


@pytest.fixture
def documents() -> Documents:
    """150 documents, by name, most of them short; empty ones, and ones that are just not cut, among them."""
    random = np.random.default_rng(4)
    sizes = np.minimum(random.lognormal(1.8, 1.0, 150).astype(int), 60)
    sizes[[3, 70]], sizes[[8, 90]], sizes[[9, 91]] = 0, SEQ_LEN - 1, SEQ_LEN
    return {f"doc{i}": [END, *random.integers(0, 256, size).tolist()] for i, size in enumerate(sizes)}


@pytest.fixture
def manifest(zone: Zone, documents: Documents) -> Manifest:
    return publish(zone, documents)


def publish(zone: Zone, documents: Documents, spec: dict[str, Any] = SPEC) -> Manifest:
    records, names = [], list(documents)
    for part in (names[:60], [], names[60:100], names[100:]):
        tokens = np.array([token for name in part for token in documents[name]], np.uint16)
        offsets = np.cumsum([0, *(len(documents[name]) for name in part)])
        records.append(record(zone, encode_tokens(tokens, offsets, part), len(part), len(tokens)))
    return zone.commit(Manifest.build("shards", records, kind="tokens", spec=spec))


def make(zone: Zone, manifest: Manifest, **settings: Any) -> Stream:
    base = {"split": "train", "batch_size": 6, "seed": 2, "seq_len": SEQ_LEN, "samples": "documents"}
    return flat_stream(zone, manifest, **{**base, "bucket_batches": 8, "pad_multiple": 8, "prefetch": 0, **settings})


@pytest.mark.parametrize(
    "settings", [{}, {"last": "pad"}, {"samples": "sequences"}, {"samples": "sequences", "seq_len": 400}]
)
def test_arrays_lie_in_the_memory_that_was_asked_for(zone: Zone, manifest: Manifest, settings: dict[str, Any]) -> None:
    """Pinned memory, say; windows of 400 tokens are copied in another way than those of 20."""
    made: list[np.ndarray] = []  # type: ignore[type-arg]

    def own(nbytes: int) -> np.ndarray:  # type: ignore[type-arg]
        made.append(np.empty(nbytes, np.uint8))
        return made[-1]

    plain = {} if settings.get("samples", "documents") == "documents" else {"pad_multiple": 1, "bucket_batches": 1}
    with (
        make(zone, manifest, epochs=1, allocate=own, **plain, **settings) as stream,
        make(zone, manifest, epochs=1, **plain, **settings) as other,
    ):
        for batch, expected in zip(stream, other, strict=True):
            tokens = batch["tokens"]
            assert any(np.shares_memory(tokens, memory) for memory in made)
            assert tokens.tolist() == expected["tokens"].tolist()


@pytest.mark.parametrize("settings", [{}, {"bucket_batches": 1}, {"shuffle": False}, {"last": "pad"}, {"memory": 1}])
def test_each_document_comes_once_cut_ended_and_padded(
    zone: Zone, manifest: Manifest, documents: Documents, settings: dict[str, Any]
) -> None:
    seen = []
    with make(zone, manifest, epochs=1, **settings) as stream:
        for batch in stream:
            lengths, width = batch["lengths"], batch["tokens"].shape[1] - 1
            assert width == min(-(-max(1, lengths.max() - 1) // 8) * 8, SEQ_LEN)
            for name, tokens, length in zip(batch.ids(), batch["tokens"].tolist(), lengths.tolist(), strict=False):
                whole = [*documents[name], END][: SEQ_LEN + 1]
                assert tokens[:length] == whole
                assert tokens[length:] == [END] * (width + 1 - length)
            assert lengths[len(batch.ids()) :].tolist() == [0] * (len(lengths) - len(batch.ids()))
            seen += batch.ids()
        shares = stream.meter.snapshot().of_documents()
    assert sorted(seen) == sorted(documents)
    kept = sum(min(len(tokens) + 1, SEQ_LEN + 1) for tokens in documents.values())
    lost = sum(len(tokens) + 1 for tokens in documents.values()) - kept
    assert lost > 0
    assert shares["cut"] == pytest.approx(lost / (lost + kept - len(documents)))
    assert 0 < shares["padding"] < (0.45 if not settings else 0.8)


def test_the_same_from_every_state_for_any_world(zone: Zone, manifest: Manifest) -> None:
    with make(zone, manifest, epochs=2, prefetch=2) as stream:
        whole, states = [], [stream.state_dict()]
        for batch in stream:
            whole.append(batch.ids())
            states.append(stream.state_dict())
    assert whole[:25] != whole[25:]
    for step, state in enumerate(states[:-1]):
        with make(zone, manifest) as stream:
            stream.load_state_dict(state)
            assert next(stream).ids() == whole[step]
            stream.set_epoch(step // 25)
            assert stream.batch(7).ids() == whole[step // 25 * 25 + 7]
    parts = []
    for rank in range(4):
        with make(zone, manifest, epochs=2, rank=rank, world=4, prefetch=1) as stream:
            stream.load_state_dict(states[11])
            parts.append([batch.ids() for batch in stream])
    assert [[name for part in step for name in part] for step in zip(*parts, strict=True)] == whole[11:]


def test_states_of_other_samples_or_buckets_are_refused(zone: Zone, manifest: Manifest) -> None:
    with make(zone, manifest) as stream, make(zone, manifest, bucket_batches=1) as plain:
        with pytest.raises(ParamsError, match=r"stream.bucket_batches was None and is 8"):
            stream.load_state_dict(plain.state_dict())
        with pytest.raises(ParamsError, match=r"stream.bucket_batches was 8 and is None"):
            plain.load_state_dict(stream.state_dict())
        with (
            make(zone, manifest, samples="sequences", bucket_batches=1) as windows,
            pytest.raises(ParamsError, match=r"stream.samples was 'documents' and is None"),
        ):
            windows.load_state_dict(plain.state_dict())


def test_a_missing_shard_keeps_its_blocks_batches_from_coming_and_none_before(
    tmp_path: Path, documents: Documents
) -> None:
    zone = Zone(tmp_path / "local")
    manifest = publish(zone, documents)
    with make(zone, manifest, epochs=1, window=10) as stream:
        expected = [batch.ids() for batch in stream]
        last = int(list(stream.order.ahead(0, 0))[-1][-1])
        inner = stream.order.order
        first = next(step for step in range(25) if last in inner.block(0, 0, step + 1)[0])
        first, stop = stream.order.bounds(first)
    assert 0 < first < stop - 1
    zone.folder.joinpath(manifest.select("train")["path"][last].as_py()).unlink()
    with make(zone, manifest, epochs=1, window=10, prefetch=2) as stream:
        assert [next(stream).ids() for _ in range(first)] == expected[:first]
        with pytest.raises(LakeError, match=r"is missing"):
            next(stream)


def test_blobs_are_bucketed_by_their_bytes(tmp_path: Path) -> None:
    zone, random = Zone(tmp_path), np.random.default_rng(0)
    texts = [random.bytes(int(size)) for size in random.lognormal(4, 1, 512)]
    data = encode_samples({"text": texts, "label": np.arange(512)}, [str(i) for i in range(512)])
    spec = {"inputs": {"text": {"dtype": "uint8", "shape": None, "codec": "bytes"}},
            "target": {"name": "label", "dtype": "int64"}}  # fmt: skip
    manifest = zone.commit(Manifest.build("shards", [record(zone, data, 512)], kind="samples", spec=spec))
    padding = {}
    for batches in (1, 16):
        with Stream(
            zone, manifest, split="train", batch_size=8, seed=1, epochs=1, batching=Batching(bucket_batches=batches)
        ) as stream:
            got = list(stream)
        assert all(isinstance(batch["text"], Ragged) for batch in got)
        assert sorted(label for batch in got for label in batch["label"].tolist()) == list(range(512))
        positions = sum(int(batch["text"].lengths.max()) * 8 for batch in got)
        padding[batches] = 1 - sum(map(len, texts)) / positions
    assert padding[16] < 0.6 * padding[1]


def test_what_does_not_go_together_is_refused(zone: Zone, manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="document_mask=True is for samples='sequences'"):
        make(zone, manifest, document_mask=True)
    with pytest.raises(ParamsError, match="pad_multiple=0"):
        make(zone, manifest, pad_multiple=0)
    other = Zone(tmp_path / "samples")
    data = encode_samples({"x": np.zeros((3, 2), np.float32)}, list("abc"))
    spec = {"inputs": {"x": {"dtype": "float32", "shape": [2]}}}
    samples = other.commit(Manifest.build("shards", [record(other, data, 3)], kind="samples", spec=spec))
    with pytest.raises(ParamsError, match=r"leave stream\.samples at sequences"):
        make(other, samples)


def test_documents_that_end_differently_are_not_mixed(zone: Zone, manifest: Manifest, documents: Documents) -> None:
    """The tokens of one batch are gathered alike, so the other's would end with a token that its data never has."""
    bare = {name: value for name, value in SPEC.items() if name != "separator"}
    for spec, ends in ((SPEC | {"separator": 0}, "0"), (bare, "None")):
        mixed = {"a": manifest, "b": publish(zone, documents, spec)}
        with pytest.raises(
            DataError, match=f"'a' and 'b' of the mixture have the separators 256 and {ends}, but whole"
        ):
            Stream(
                dict.fromkeys("ab", zone),
                mixed,
                split="train",
                batch_size=6,
                seed=2,
                text=Text(seq_len=9, samples="documents"),
            )
        with Stream(
            dict.fromkeys("ab", zone), mixed, split="train", batch_size=6, seed=2, text=Text(seq_len=9)
        ) as stream:
            assert next(stream)["tokens"].shape == (6, 10)  # windows have separators as the shards have them
