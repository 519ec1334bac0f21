"""Bits per byte of a language model on held-out documents.

The rule. A split's shards hold documents end to end, each after a separator token. A shard of n tokens is cut into
windows of `seq_len` tokens that don't overlap; in each, the model predicts every token from those before it in the
window (so the first ones of a window have little context), and the last window is as short as what is left. The
shard's first token, which nothing predicts, is charged 8 bits. All tokens are charged, separators included, and the
sum is divided by the bytes of the documents, without separators. The bigram model is charged for exactly the same
tokens. Compressors get the same bytes, document by document and end to end, and pay for no separator.

A model trained with `stream.documents` sees only what the window holds of the token's own document, and is charged for
the same tokens: the separator that ends a document is predicted from that document. (Where documents begin with no
separator, nothing predicts their first token, which is charged 8 bits.) Separators that only fill up a pack are charged
to nobody; in packs the last document of a shard has an end, too.

A model that has learnt from whole documents (`stream.samples: documents`) is measured on such, unless
`evaluate.samples` says otherwise: each document is cut to `seq_len` + 1 tokens, counting the separator before it, which
is given, and the one that ends it, which is charged. What is cut off is in no figure but `cut_bytes`; the bigram model
and the compressors get the same tokens and bytes as the model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from math import exp, log

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.evaluation.baselines import (
    COMPRESSED_LIMIT,
    bigram_bits,
    bigram_counts,
    compressed_bits,
    pair_counts,
    xz_9e,
    zlib_9,
)
from pipelines.evaluation.chosen import Chosen
from pipelines.evaluation.data import Array, open_split
from pipelines.evaluation.plots import bars
from pipelines.evaluation.result import Evaluation
from pipelines.evaluation.whole_documents import cut_documents, padded_batches
from pipelines.models import ModelConfig, Task, task_of
from pipelines.models.tasks import IGNORED
from pipelines.progress import progress, track
from pipelines.streaming.documents import documents_of
from storage.errors import ParamsError
from storage.lake import Zone
from storage.manifest import Manifest
from storage.shards import Shard

FIRST_TOKEN_BITS = 8.0
#: (inputs, targets, what the model is given beside them, tokens that nothing predicts)
Questions = Iterator[tuple[Array, Array, dict[str, Tensor], int]]


def measure_language(
    model: nn.Module, config: ModelConfig, zone: Zone, manifest: Manifest, split: str, batch: int, device: torch.device,
    chosen: Chosen, samples: str = "windows",
) -> Evaluation:  # fmt: skip
    """Metrics of a model of tokens; see the module's rule."""
    assert config.seq_len is not None
    spec = manifest.header["spec"]
    vocabulary, separator = spec["vocab_size"], spec["separator"]
    task = task_of(spec, config.documents).for_model(model)
    if samples == "documents" and spec.get("pack_len") is not None:
        raise ParamsError("evaluate.samples: these shards hold packs (shard.pack_len), of which only windows are read.")
    nats, firsts, cut, documents = 0.0, 0, 0, Texts()
    tokens = manifest.select(split)["tokens"].to_pylist()
    held_out = np.zeros((vocabulary, vocabulary), np.int64)
    with progress("evaluate", sum(tokens), "tokens") as advance:
        for shard in open_split(zone, manifest, split):
            whole = texts(shard, separator)
            if samples == "documents":
                streams = cut_documents(shard, config.seq_len, separator)
                pieces: Questions = ((inputs, targets, {}, 0) for inputs, targets in padded_batches(streams, batch))
                kept = [text[: config.seq_len] for text in whole]
                cut += sum(map(len, whole)) - sum(map(len, kept))
            else:
                pieces, kept = questions(shard, config.seq_len, batch, task, device), whole
                firsts += bool(len(shard.tokens))
            for inputs, targets, beside, alone in pieces:
                nats += cost(model, inputs, targets, device, chosen, beside)
                held_out += pair_counts(inputs[targets != IGNORED], targets[targets != IGNORED], vocabulary)
                firsts += alone
                advance(int((targets != IGNORED).sum()))
            documents.add(kept)
    size = max(1, documents.size)
    train = bigram_counts((shard.tokens for shard in open_split(zone, manifest, "train")), vocabulary)
    if task.documents is not None and task.documents.packed:
        train[separator, separator] = 0  # what fills up packs
    model_bits = (nats / log(2) + FIRST_TOKEN_BITS * firsts) / size
    bigram = (bigram_bits(train, held_out) + FIRST_TOKEN_BITS * firsts) / size
    loss = nats / max(1, int(held_out.sum()))
    baseline = {"bigram": {"bits_per_byte": bigram}} | _compressors(documents.some)
    metrics = {
        "bits_per_byte": model_bits,
        "loss": loss,
        "perplexity": exp(min(loss, 700.0)),
        "documents": documents.count,
        "bytes": size,
        "baseline": baseline,
    }
    if samples == "documents":
        metrics |= {"samples": samples, "cut_bytes": cut}
    rows = [{"name": "model", "bits_per_byte": model_bits}]
    rows += [{"name": name, "bits_per_byte": block["bits_per_byte"]} for name, block in baseline.items()]
    figure = partial(bars, rows, "name", "bits_per_byte", "bits per byte of held-out documents (less is better)")
    return Evaluation(metrics, {"bits_per_byte": rows}, {"bits_per_byte": figure})


def windows(tokens: Array, length: int, batch: int) -> Iterator[tuple[Array, Array]]:
    """Inputs and targets, int64 [≤ batch, length]: every token but the first is a target once; the rest is IGNORED."""
    count = -(-(len(tokens) - 1) // length) if len(tokens) > 1 else 0
    for first in range(0, count, batch):
        rows = min(batch, count - first)
        piece = tokens[first * length : (first + rows) * length + 1].astype(np.int64)
        inputs, targets = np.zeros(rows * length, np.int64), np.full(rows * length, IGNORED)
        inputs[: len(piece) - 1], targets[: len(piece) - 1] = piece[:-1], piece[1:]
        yield inputs.reshape(rows, length), targets.reshape(rows, length)


def questions(shard: Shard, length: int, batch: int, task: Task, device: torch.device) -> Questions:
    """The windows of a shard with what the model is given beside them, and the number of tokens that nothing predicts.
    Targets that don't count are IGNORED."""
    first = np.arange(0, len(shard.tokens), length)
    for inputs, targets in windows(shard.tokens, length, batch):
        if task.documents is None:
            yield inputs, targets, {}, 0
            continue
        arrays = {"tokens": np.concatenate([inputs[:, :1], targets], axis=1)}
        arrays["documents"], arrays["positions"] = documents_of(shard.offsets, first[: len(inputs)], length + 1)
        first = first[len(inputs) :]
        real = (targets != IGNORED) & ~task.documents.fills(arrays)
        kept = real & task.documents.counts(arrays)
        yield inputs, np.where(kept, targets, IGNORED), task.beside(arrays, device), int((real & ~kept).sum())


def cost(
    model: nn.Module, inputs: Array, targets: Array, device: torch.device, chosen: Chosen | None = None,
    beside: Mapping[str, Tensor] | None = None,
) -> float:  # fmt: skip
    """Nats that the model spends on the targets, summed in float64."""
    logits = model(torch.from_numpy(inputs).to(device), **(beside or {})).float()
    answer = torch.from_numpy(targets).to(device)
    if chosen:
        counts = answer != IGNORED
        chosen.update(logits[counts].cpu(), answer[counts].cpu())
    each = F.cross_entropy(logits.flatten(0, 1), answer.flatten(), reduction="none", ignore_index=IGNORED)
    return float(each.cpu().double().sum())


def texts(shard: Shard, separator: int) -> list[bytes]:
    """The bytes of each document of a shard."""
    tokens, offsets = shard.tokens, shard.offsets
    documents = (tokens[start:end] for start, end in pairwise(offsets))
    return [document[document != separator].astype(np.uint8).tobytes() for document in documents]


@dataclass
class Texts:
    """How many there are, their bytes (size), and `some` of them for the compressors: the first ones that fit into
    COMPRESSED_LIMIT, so that a split may be larger than the memory."""

    count: int = 0
    size: int = 0
    some: list[bytes] = field(default_factory=list)

    def add(self, texts: list[bytes]) -> None:
        held = sum(map(len, self.some))
        for text in texts:
            self.count, self.size = self.count + 1, self.size + len(text)
            if text and held + len(text) <= COMPRESSED_LIMIT:
                self.some.append(text)
                held += len(text)


def _compressors(chosen: list[bytes]) -> dict[str, dict[str, float]]:
    """zlib and xz on documents, of which there are so many `bytes`."""
    if not chosen:
        return {}
    size = sum(map(len, chosen))
    compressors = (("zlib", zlib_9), ("xz", xz_9e))
    return {
        name: compressed_bits(compress, chosen) | {"bytes": size}
        for name, compress in track(compressors, "compress", len(compressors), "compressors")
    }
