"""Bits per byte: every token once, whatever the sequences; on models whose answers are known."""

from math import log, log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.training_samples import SEQ_LEN, TEXT, make_text
from torch import nn

from pipelines.evaluation import evaluate_model
from pipelines.evaluation.baselines import table_bits, token_counts
from pipelines.evaluation.language import IGNORED, sequences
from pipelines.evaluation.measure import measure as measure_all
from pipelines.evaluation.token_cost import Compressed
from pipelines.models import ModelConfig
from pipelines.params.schema.flat import numbers
from pipelines.workspace import Workspace
from storage.errors import DataError
from storage.manifest import Manifest
from storage.shards import Shard

Z = np.zeros(0, np.int64)


@pytest.mark.parametrize("length", [1, 2, 5, 7, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 6, 7, 8, 23])
def test_windows_ask_for_every_token_but_the_first_exactly_once(count: int, length: int) -> None:
    tokens = np.arange(100, 100 + count).astype(np.uint16)
    asked = []
    for inputs, targets in sequences(tokens, length, batch=2):
        assert inputs.shape == targets.shape == (len(inputs), length)
        assert len(inputs) <= 2
        real = targets != IGNORED
        assert (inputs[real] + 1 == targets[real]).all()
        asked += targets[real].tolist()
    assert asked == tokens[1:].tolist()


class Uniform(nn.Module):
    """Knows nothing."""

    def __init__(self, vocabulary: int = 257) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*tokens.shape, self.vocabulary)


class Told(Uniform):
    """It must be told of a sequence's documents, and begins each at 0."""

    def forward(self, tokens: torch.Tensor, documents: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        assert (documents.shape, positions.shape) == (tokens.shape, tokens.shape)
        assert (positions[:, 0] == 0).all()
        return super().forward(tokens)


class Bigram(nn.Module):
    """The bigram model as a module, so that both must be charged the same."""

    def __init__(self, counts: np.ndarray) -> None:
        super().__init__()
        smoothed = counts + 0.1
        self.table = torch.from_numpy(np.log(smoothed / smoothed.sum(1, keepdims=True)))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table[tokens]


def test_of_a_large_split_only_what_compressors_get_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.evaluation.token_cost.COMPRESSED_LIMIT", 10)
    compressed = Compressed()
    for texts in ([b"abcd", b""], [b"12345678", b"efghij"], [b"k"]):
        compressed.take([np.frombuffer(text, np.uint8).astype(np.uint16) for text in texts])
    assert (compressed.documents, compressed.size) == ([b"abcd", b"efghij"], 10)


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return make_text(tmp_path)


def measure(ws: Workspace, model: nn.Module, seq_len: int = SEQ_LEN) -> dict:
    zone = ws.zone("shards")
    manifest = zone.manifest()
    config = ModelConfig(ws.params.model.model_dump(), TEXT, seq_len, "language", manifest.digest)
    return evaluate_model(model, config, zone, manifest, ws.params)


def tokens_of(ws: Workspace, split: str) -> list[np.ndarray]:
    zone = ws.zone("shards")
    paths = zone.manifest().select(split)["path"].to_pylist()
    return [Shard.open(zone.local_path(path)).tokens for path in paths]


def test_a_model_that_knows_nothing_pays_the_vocabulary(ws: Workspace) -> None:
    metrics = measure(ws, Uniform())
    (tokens,) = tokens_of(ws, "test")
    size = int((tokens != 256).sum())
    assert metrics["bytes"] == size
    assert metrics["documents"] == int((tokens == 256).sum()) == 4
    assert metrics["bits_per_byte"] == pytest.approx(((len(tokens) - 1) * log2(257) + 8) / size, abs=1e-6)
    assert metrics["loss"] == pytest.approx(log(257), abs=1e-6)
    assert metrics["perplexity"] == pytest.approx(257, rel=1e-4)


@pytest.mark.parametrize("samples", ["sequences", "documents"])
def test_without_separators_nothing_predicts_where_a_document_begins(samples: str, tmp_path: Path) -> None:
    ws = make_text(tmp_path, separator=None)
    zone = ws.zone("shards")
    manifest = zone.manifest()
    config = ModelConfig({}, manifest.header["spec"], 10_000, "language", "", samples, document_mask=True)
    metrics = evaluate_model(Told(256), config, zone, manifest, ws.params)
    (tokens,) = tokens_of(ws, "test")
    assert (metrics["documents"], metrics["bytes"]) == (4, len(tokens))
    bits = (len(tokens) - 4) * log2(256) + 8 * 4
    assert metrics["bits_per_byte"] == pytest.approx(bits / len(tokens), abs=1e-6)


@pytest.mark.parametrize("seq_len", [1, 16, 10_000])
def test_the_bigram_baseline_is_charged_like_a_model(ws: Workspace, seq_len: int) -> None:
    from pipelines.evaluation.baselines import counts_of_streams

    metrics = measure(ws, Bigram(counts_of_streams(tokens_of(ws, "train"), 257)), seq_len)
    assert metrics["bits_per_byte"] == pytest.approx(metrics["baseline"]["bigram"]["bits_per_byte"], abs=2e-6)
    assert metrics["bits_per_byte"] < 3, "the texts mostly count upwards"


def test_figures_do_not_depend_on_the_batch_beyond_rounding_and_repeat_exactly(ws: Workspace) -> None:
    model = ModelConfig(ws.params.model.model_dump(), TEXT, SEQ_LEN, "language", "").build(0)
    first = measure(ws, model)
    assert measure(ws, model) == first
    other = ws.params.model_copy(update={"evaluate": ws.params.evaluate.model_copy(update={"batch_size": 3})})
    small = measure(Workspace(ws.root, ws.project, other), model)
    assert small["bits_per_byte"] == pytest.approx(first["bits_per_byte"], abs=2e-6)


def test_data_of_another_kind_and_an_empty_split_are_refused(ws: Workspace) -> None:
    zone = ws.zone("shards")
    manifest = zone.manifest()
    config = ModelConfig({}, TEXT | {"vocab_size": 300}, SEQ_LEN, "language", "")
    with pytest.raises(DataError, match="vocab_size is 300, but the shards"):
        evaluate_model(Uniform(), config, zone, manifest, ws.params)
    without = type(manifest)(manifest.header, manifest.table.filter(manifest.table["split"].to_numpy() != "test"))
    with pytest.raises(DataError, match="no samples in split 'test'"):
        evaluate_model(Uniform(), ModelConfig({}, TEXT, SEQ_LEN, "language", ""), zone, without, ws.params)


def with_spec(manifest: Manifest, **changes: Any) -> Manifest:
    return type(manifest)(manifest.header | {"spec": manifest.header["spec"] | changes}, manifest.table)


@pytest.mark.parametrize("samples", ["sequences", "documents"])
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"encoding": "gpt2"}, "their encoding is 'gpt2'"),
        ({"encoding": None}, "their encoding is None"),
        ({"vocab_size": 300}, "their vocabulary of 300 has tokens beside the 256 bytes and the separator"),
        ({"vocab_size": 5000}, "their vocabulary of 5000"),
        ({"separator": 97}, "their separator is 97, which is a byte as well"),
        ({"separator": None}, "their vocabulary of 257 has tokens beside the 256 bytes"),
    ],
)
def test_tokens_that_are_no_bytes_have_no_figures_a_byte(
    ws: Workspace, samples: str, changes: dict[str, Any], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    zone = ws.zone("shards")
    manifest = with_spec(zone.manifest(), **changes)
    spec = manifest.header["spec"]
    config = ModelConfig({}, spec, 10_000, "language", "", samples)
    result = measure_all(Uniform(spec["vocab_size"]), config, zone, manifest, ws.params)
    assert f"evaluate: no bits per byte and no compressors of these tokens: {why}" in capsys.readouterr().out
    metrics = result.metrics
    assert not [name for name in numbers(metrics) if "byte" in name]
    table = "unigram" if spec["vocab_size"] > 1024 else "bigram"
    assert set(metrics["baseline"]) == {table}
    assert metrics["loss"] == pytest.approx(log(spec["vocab_size"]), abs=1e-5)
    assert metrics["perplexity"] == pytest.approx(spec["vocab_size"], rel=1e-4)
    assert metrics["baseline"][table]["loss"] < metrics["loss"], "it knows how often tokens are"
    (tokens,) = tokens_of(ws, "test")
    assert metrics["documents"] == 4
    assert metrics["tokens"] == int((tokens != spec["separator"]).sum())
    assert list(result.tables["loss"][0]) == ["name", "loss"]
    if samples == "documents":
        assert metrics["cut_tokens"] == 0


def test_a_unigram_by_hand() -> None:
    train, held_out = token_counts(Z, np.array([1, 1, 2]), 2000), token_counts(Z, np.array([1, 5]), 2000)
    assert table_bits(train, held_out, 0.5) == pytest.approx(-log2(2.5 / 1003) - log2(0.5 / 1003), rel=1e-12)


def test_a_token_that_is_not_in_the_vocabulary_is_named(ws: Workspace) -> None:
    """In a table of pairs it would count as another pair."""
    zone = ws.zone("shards")
    manifest = with_spec(zone.manifest(), vocab_size=120, separator=None)
    config = ModelConfig({}, manifest.header["spec"], SEQ_LEN, "language", "")
    with pytest.raises(DataError, match=r"\.arrow: tokens holds 256, but there are 120 tokens, numbered from 0"):
        evaluate_model(Uniform(120), config, zone, manifest, ws.params)
