"""The shards of a split, in the manifest's order, without shuffling: each sample and each byte exactly once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipelines.evaluation.splits import check_split
from pipelines.models import ModelConfig
from pipelines.models.tasks import IGNORED, INPUTS
from pipelines.streaming.gather.decode import Decoder
from storage.errors import DataError
from storage.lake import Zone
from storage.manifest import Manifest
from storage.shards import Shard

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The split that a model is measured on, and how: so many samples at once, on that device."""

    zone: Zone
    manifest: Manifest
    split: str
    batch: int
    device: torch.device

    def samples(self, target: str, domain: str | None = None) -> Iterator[tuple[Array, Array]]:
        """Its batches; see `sample_batches`."""
        return sample_batches(self.zone, self.manifest, self.split, target, self.batch, domain)


def open_split(zone: Zone, manifest: Manifest, split: str, domain: str | None = None) -> Iterator[Shard]:
    """Every shard of `split`, or of one domain of it, verified, one after the other. Raises DataError for an empty
    split, DigestError."""
    check_split(manifest, split)
    for record in manifest.select(split, domain).select(["path", "digest", "plain_bytes"]).to_pylist():
        path, digest, size = record["path"], record["digest"], record["plain_bytes"]
        file = zone.local_path(path)
        if file is not None:
            zone.verify(path, digest, size)
            yield Shard.open(file)
        else:
            yield Shard.open(zone.read(path, digest, plain_bytes=size), zone.describe(path))


def sample_batches(
    zone: Zone, manifest: Manifest, split: str, target: str, size: int, domain: str | None = None
) -> Iterator[tuple[Array, Array]]:
    """(inputs [n, *shape], targets [n]) with n ≤ `size`, as copies; images decoded."""
    for shard in open_split(zone, manifest, split, domain):
        targets = shard.column(target)
        for start in range(0, shard.rows, size):
            rows = range(start, min(start + size, shard.rows))
            yield _inputs(shard, rows), np.array(targets[start : rows.stop])


def _inputs(shard: Shard, rows: range) -> Array:
    """The inputs of `rows` [n, *shape]. Raises DataError for an image that cannot be decoded."""
    column = shard.columns[INPUTS]
    if not column.variable:
        return np.array(shard.column(INPUTS)[rows.start : rows.stop])
    values, offsets = shard.blobs(INPUTS)
    out = np.empty((len(rows), *column.shape), np.uint8)
    images = [values[offsets[row] : offsets[row + 1]].data for row in rows]
    with Decoder(column.shape) as decoder:
        decoder.into(images, out, lambda index: f"{shard.what}: {shard.ids[rows[index]]}")
    return out


def check_fits(config: ModelConfig, manifest: Manifest) -> None:
    """Raise DataError unless the data has the shape and the meaning of what the model learnt from."""
    spec = manifest.header["spec"]
    for fact in ("vocab_size", "separator", "encoding", "inputs", "target", "classes", "features"):
        if _meaning(config.spec.get(fact)) != _meaning(spec.get(fact)):
            raise DataError(
                f"The model was trained on data whose {fact} is {_short(config.spec.get(fact))}, but the shards "
                f"(version {manifest.digest[:12]}) have {_short(spec.get(fact))}. Train again: `dvc repro`."
            )


def _meaning(fact: Any) -> Any:
    """A fact of a spec without how the shards store it, which a model never sees."""
    return {k: _meaning(v) for k, v in fact.items() if k != "codec"} if isinstance(fact, dict) else fact


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def cut_documents(shard: Shard, seq_len: int, separator: int | None) -> list[Array]:
    """The shard's documents, each with the separator before it and, unless cut, the one that ends it: up to `seq_len` +
    1 tokens. Without a separator, as they are."""
    documents = [shard.tokens[start : min(end, start + seq_len + 1)] for start, end in pairwise(shard.offsets.tolist())]
    if separator is None:
        return documents
    return [
        document if len(document) > seq_len else np.append(document, np.array(separator, document.dtype))
        for document in documents
    ]


def padded_batches(documents: Sequence[Array], batch: int) -> Iterator[tuple[Array, Array]]:
    """Inputs and targets, int64 [≤ batch, longest]: every token but each document's first is a target once, the rest is
    IGNORED. Documents of like length come together."""
    rising = sorted(documents, key=len)
    for first in range(0, len(rising), batch):
        part = rising[first : first + batch]
        width = max(1, len(part[-1]) - 1)
        inputs, targets = np.zeros((len(part), width), np.int64), np.full((len(part), width), IGNORED)
        for row, document in enumerate(part):
            inputs[row, : len(document) - 1], targets[row, : len(document) - 1] = document[:-1], document[1:]
        yield inputs, targets
