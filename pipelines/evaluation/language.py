"""Bits per byte of a language model on held-out documents; loss and perplexity a token where nobody knows the bytes.

The rule. A split's shards hold documents end to end, each after a separator token. A shard of n tokens is cut into
sequences of `seq_len` tokens that don't overlap; in each, the model predicts every token from those before it in the
sequence (so the first ones of a sequence have little context), and the last sequence is as short as what is left. The
shard's first token, which nothing predicts, is charged 8 bits. All tokens are charged, separators included, and the
sum is divided by the bytes of the documents, without separators. The bigram model is charged for exactly the same
tokens. Compressors get the same bytes, document by document and end to end, and pay for no separator.

A model trained with `stream.document_mask` sees only what the sequence holds of the token's own document, and is
charged for the same tokens: the separator that ends a document is predicted from that document. (Where documents begin
with no separator, nothing predicts their first token, which is charged 8 bits.) Separators that only fill up a pack are
charged to nobody; in packs the last document of a shard has an end, too.

A model that has learnt from whole documents (`stream.samples: documents`) is measured on such, unless
`evaluate.samples` says otherwise: each document is cut to `seq_len` + 1 tokens, counting the separator before it, which
is given, and the one that ends it, which is charged. What is cut off is in no figure but `cut_bytes`; the bigram model
and the compressors get the same tokens and bytes as the model.

All this needs the bytes of tokens (`models.tokens`). Where nobody knows them, there are neither bits per byte nor
compressors: `tokens`, `cut_tokens` and the loss of a bigram (of a large vocabulary, a unigram) model take their place.
"""

from collections.abc import Iterator, Mapping
from functools import partial, reduce
from itertools import pairwise
from operator import add
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.console.progress import progress, say
from pipelines.evaluation.baselines import counts_of_streams, no_tokens, token_counts
from pipelines.evaluation.data import Array, HeldOut, cut_documents, open_split, padded_batches
from pipelines.evaluation.domains import domains_of, with_domains
from pipelines.evaluation.metrics.custom import CustomMetrics
from pipelines.evaluation.plots import bars
from pipelines.evaluation.result import Evaluation
from pipelines.evaluation.token_cost import Compressed, TokenCost
from pipelines.models import ModelConfig, Task, task_of
from pipelines.models.tasks import IGNORED, TOKENS
from pipelines.models.tokens import why_no_bytes
from pipelines.streaming.gather.document_ids import documents_of
from storage.errors import ParamsError
from storage.shards import Shard

#: (inputs, targets, what the model is given beside them, tokens that nothing predicts)
Questions = Iterator[tuple[Array, Array, dict[str, Tensor], int]]


def measure_language(
    model: nn.Module, config: ModelConfig, held: HeldOut, custom: CustomMetrics, samples: str = "sequences"
) -> Evaluation:
    """Metrics of a model of tokens; see the module's rule."""
    assert config.seq_len is not None
    zone, manifest, split, device = held.zone, held.manifest, held.split, held.device
    spec = manifest.header["spec"]
    vocabulary, separator = spec["vocab_size"], spec.get("separator")
    task = task_of(spec, config.document_mask).for_model(model)
    if samples == "documents" and spec.get("pack_len") is not None:
        raise ParamsError(
            "evaluate.samples: these shards hold packs (shard.pack_len), of which only sequences are read."
        )
    token_cost = {d: TokenCost(no_tokens(vocabulary)) for d in domains_of(manifest, split)}
    compressed, no_bytes = Compressed(), why_no_bytes(spec)
    if no_bytes:
        say(f"evaluate: no bits per byte and no compressors of these tokens: {no_bytes}.")
    with progress("evaluate", sum(manifest.select(split)["tokens"].to_pylist()), "tokens") as advance:
        for domain, own in token_cost.items():
            for shard in open_split(zone, manifest, split, domain):
                pieces, kept, cut = shown(shard, config.seq_len, held.batch, samples, task, separator, device)
                own.firsts += samples == "sequences" and bool(len(shard.tokens))
                for inputs, targets, beside, alone in pieces:
                    own.nats += cost(model, inputs, targets, device, custom, beside)
                    own.tokens += token_counts(inputs[targets != IGNORED], targets[targets != IGNORED], vocabulary)
                    own.firsts += alone
                    advance(int((targets != IGNORED).sum()))
                own.take(kept, cut)
                if not no_bytes:
                    compressed.take(kept)
    train = counts_of_streams((known_tokens(shard, task) for shard in open_split(zone, manifest, "train")), vocabulary)
    if task.document_mask is not None and task.document_mask.packed and train.ndim == 2:
        train[separator, separator] = 0  # what fills up packs

    def metrics_of(own: TokenCost) -> dict[str, Any]:
        figures = own.by_token(train) if no_bytes else own.by_byte(train)
        cut = {"cut_tokens" if no_bytes else "cut_bytes": own.cut}
        return figures | ({"samples": samples, **cut} if samples == "documents" else {})

    metrics = metrics_of(reduce(add, token_cost.values()))
    metrics["baseline"] |= compressed.metrics()
    metric, what = ("loss", "nats a token") if no_bytes else ("bits_per_byte", "bits per byte")
    rows = [{"name": "model", metric: metrics[metric]}]
    rows += [{"name": name, metric: block[metric]} for name, block in metrics["baseline"].items()]
    figure = partial(bars, rows, "name", metric, f"{what} of held-out documents (less is better)")
    result = Evaluation(metrics, {metric: rows}, {metric: figure})
    of_domains = {domain: metrics_of(own) for domain, own in token_cost.items()}
    return with_domains(result, of_domains, metric, f"{what} by domain (less is better)")


def shown(
    shard: Shard, length: int, batch: int, samples: str, task: Task, separator: int | None, device: torch.device
) -> tuple[Questions, list[Array], int]:
    """What a model is asked of a shard, the documents that this is of, and how many of their tokens are cut off."""
    known_tokens(shard, task)
    whole = texts(shard, separator)
    if samples == "sequences":
        return questions(shard, length, batch, task, device), whole, 0
    bare = separator is None  # so nothing predicts a document's first token
    kept = [text[: length + bare] for text in whole]
    streams = padded_batches(cut_documents(shard, length, separator), batch)
    pieces: Questions = (
        (inputs, targets, task.beside(_alone(*inputs.shape), device), bare * len(inputs)) for inputs, targets in streams
    )
    return pieces, kept, sum(map(len, whole)) - sum(map(len, kept))


def _alone(rows: int, length: int) -> dict[str, Array]:
    """What a model that keeps documents apart is told of one document a row."""
    positions = np.tile(np.arange(length + 1, dtype=np.int32), (rows, 1))
    return {"documents": np.zeros_like(positions), "positions": positions}


def sequences(tokens: Array, length: int, batch: int) -> Iterator[tuple[Array, Array]]:
    """Inputs and targets, int64 [≤ batch, length]: every token but the first is a target once; the rest is IGNORED."""
    count = -(-(len(tokens) - 1) // length) if len(tokens) > 1 else 0
    for first in range(0, count, batch):
        rows = min(batch, count - first)
        piece = tokens[first * length : (first + rows) * length + 1].astype(np.int64)
        inputs, targets = np.zeros(rows * length, np.int64), np.full(rows * length, IGNORED)
        inputs[: len(piece) - 1], targets[: len(piece) - 1] = piece[:-1], piece[1:]
        yield inputs.reshape(rows, length), targets.reshape(rows, length)


def questions(shard: Shard, length: int, batch: int, task: Task, device: torch.device) -> Questions:
    """The sequences of a shard with what the model is given beside them, and the number of tokens that nothing
    predicts. Targets that don't count are IGNORED."""
    first = np.arange(0, len(shard.tokens), length)
    for inputs, targets in sequences(shard.tokens, length, batch):
        if task.document_mask is None:
            yield inputs, targets, {}, 0
            continue
        arrays = {"tokens": np.concatenate([inputs[:, :1], targets], axis=1)}
        arrays["documents"], arrays["positions"] = documents_of(shard.offsets, first[: len(inputs)], length + 1)
        first = first[len(inputs) :]
        real = (targets != IGNORED) & ~task.document_mask.fills(arrays)
        kept = real & task.document_mask.counts(arrays)
        yield inputs, np.where(kept, targets, IGNORED), task.beside(arrays, device), int((real & ~kept).sum())


def cost(
    model: nn.Module, inputs: Array, targets: Array, device: torch.device, custom: CustomMetrics | None = None,
    beside: Mapping[str, Tensor] | None = None,
) -> float:  # fmt: skip
    """Nats that the model spends on the targets, summed in float64."""
    logits = model(torch.from_numpy(inputs).to(device), **(beside or {})).float()
    answer = torch.from_numpy(targets).to(device)
    if custom:
        counts = answer != IGNORED
        custom.update(logits[counts].cpu(), answer[counts].cpu())
    each = F.cross_entropy(logits.flatten(0, 1), answer.flatten(), reduction="none", ignore_index=IGNORED)
    return float(each.cpu().double().sum())


def known_tokens(shard: Shard, task: Task) -> Array:
    """A shard's tokens. Raises DataError for one that is not in the vocabulary."""
    task.check_values({TOKENS: shard.tokens}, shard.what)
    return shard.tokens


def texts(shard: Shard, separator: int | None) -> list[Array]:
    """The tokens of each document of a shard, without separators."""
    documents = (shard.tokens[start:end] for start, end in pairwise(shard.offsets))
    none = -1 if separator is None else separator
    return [document[document != none] for document in documents]
