"""What a stream reads: one split of a dataset, or several datasets mixed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pipelines.params import suggestion
from pipelines.streaming.decode import Decoder
from pipelines.streaming.fields import Blobs, Field, Fixed, Images, Tokens
from pipelines.streaming.mixture import Mixture
from pipelines.streaming.order import Ints, Order
from pipelines.streaming.ramp import RampedOrder
from pipelines.streaming.whole_documents import WholeDocuments
from storage.cache import Tiered
from storage.errors import DataError, ParamsError
from storage.manifest import Manifest
from storage.shards import Column
from storage.shards.schema import IMAGE

#: What a sample of a token dataset is.
Unit = Literal["windows", "documents"]


@dataclass(frozen=True)
class Dataset:
    """One split (or one domain of it) of what `manifest` describes, behind `tiers`; tokens in windows of `seq_len` + 1,
    or as whole documents cut to that, in batches padded to a `multiple`."""

    tiers: Tiered
    manifest: Manifest
    split: str
    seq_len: int | None
    unit: Unit = "windows"
    multiple: int = 1
    domain: str | None = None

    @cached_property
    def table(self) -> pa.Table:
        """The shards of the split. Raises DataError for an unknown domain."""
        if self.domain is not None and self.domain not in (known := self.manifest.domains):
            raise DataError(
                f"The shards (version {self.manifest.digest[:12]}) have no domain {self.domain!r}"
                + (suggestion(self.domain, known) if known else ": their sources name none (ingest.sources).")
            )
        return self.manifest.select(self.split, self.domain)

    @cached_property
    def samples(self) -> Ints:
        """Samples in each shard, int64 [shards]: rows, or windows of seq_len tokens that have a next one."""
        if self.manifest.header["kind"] != "tokens":
            if self.unit == "documents":
                raise ParamsError("These shards hold no documents of tokens: leave stream.samples at windows.")
            return _int64(self.table["rows"])
        if self.seq_len is None:
            raise ParamsError("These shards hold tokens, so the stream needs a sequence length: set stream.seq_len.")
        packs = self.manifest.header["spec"].get("pack_len")
        if packs is not None and self.unit == "documents":
            raise ParamsError(
                f"stream.samples=documents, but these shards hold packs of {packs} tokens (shard.pack_len), of which "
                "only windows are read. Set stream.samples to windows, or shard.pack_len to null."
            )
        if packs not in (None, self.seq_len):
            raise ParamsError(
                f"stream.seq_len={self.seq_len}, but these shards hold packs of {packs} tokens (shard.pack_len), "
                f"the windows too. Set stream.seq_len to {packs}, or shard.pack_len to {self.seq_len} or null."
            )
        if self.unit == "documents":
            return _int64(self.table["rows"])
        return np.maximum(_int64(self.table["tokens"]) - 1, 0) // self.seq_len

    def fields(self, documents: bool) -> tuple[Field, ...]:
        """What the manifest says of the columns that make a batch."""
        spec = self.manifest.header["spec"]
        if self.unit == "documents":
            expected = float(_int64(self.table["tokens"]).sum()) / max(1, int(self.samples.sum()))
            ends = {"multiple": self.multiple, "separator": spec.get("separator"), "expected": expected}
            return (WholeDocuments.of("tokens", spec["dtype"], self.seq_len or 0, **ends),)
        if self.manifest.header["kind"] == "tokens":
            return (Tokens.of("tokens", spec["dtype"], self.seq_len or 0, documents),)
        columns = dict(spec["inputs"])
        if target := spec.get("target"):
            columns[target["name"]] = target
        return tuple(self._field(name, facts) for name, facts in columns.items())

    def _field(self, name: str, facts: Mapping[str, Any]) -> Field:
        shape = tuple(facts.get("shape") or ())
        column = Column(np.dtype(facts["dtype"]), shape, facts.get("codec", "raw"))
        if not column.variable:
            return Fixed(name, column)
        if column.codec == IMAGE and shape:
            return Images(name, column, Decoder(shape))
        return Blobs(name, column, float(_int64(self.table["bytes"]).sum()) / max(1, int(self.samples.sum())))

    def why_empty(self, batch_size: int) -> str:
        """Why there is not one batch."""
        zone, split, rows = self.tiers.zone, self.split, int(self.samples.sum())
        where = f"{zone.describe()} (version {self.manifest.digest[:12]}): split {split!r}"
        where += "" if self.domain is None else f", domain {self.domain!r}"
        if split not in self.manifest.splits:
            known = ", ".join(self.manifest.splits) or "none"
            return f"{where} has no shards; there are: {known}. Raise curate.split.{split}, or add sources."
        if rows:
            return (
                f"{where} has {rows} samples, fewer than one batch of {batch_size}, and last='drop' drops the rest. "
                f"Lower stream.batch_size to {rows} or less, keep the last batch, or raise curate.split.{split}."
            )
        if self.seq_len is not None and self.unit == "windows":
            return (
                f"{where} has no window of {self.seq_len} tokens and the next one. "
                f"Lower stream.seq_len, raise curate.split.{split}, or add sources."
            )
        return f"{where} is empty. Raise curate.split.{split}, or add sources."


def _int64(column: pa.ChunkedArray) -> Ints:
    values: Ints = np.from_dlpack(column.combine_chunks()).astype(np.int64)  # to_numpy would import pandas
    return values


def same_fields(datasets: Mapping[str, Dataset], documents: bool) -> tuple[Field, ...]:
    """The fields of datasets that are mixed. Raises DataError where they differ."""
    described = {name: dataset.fields(documents) for name, dataset in datasets.items()}
    first, fields = next(iter(described.items()))
    for name, others in described.items():
        if [(f.name, f.stored) for f in others] != [(f.name, f.stored) for f in fields]:
            raise DataError(
                f"The datasets {first!r} and {name!r} of the mixture have different columns: "
                f"{_columns(fields)}; {_columns(others)}. Make their shards alike, or leave one out."
            )
    return fields


def _columns(fields: Sequence[Field]) -> str:
    return ", ".join(f"{f.name} {f.stored.codec} {f.stored.dtype} {list(f.stored.shape)}" for f in fields)


class JoinedOrder:
    """A mixture with the shards of all its datasets numbered through, so that it is an order like that of one."""

    def __init__(self, mixture: Mixture, shards: Sequence[int]) -> None:
        self.mixture = mixture
        self.batch_size, self.rows = mixture.batch_size, mixture.rows
        self.epochs = mixture.epochs
        self.steps = self.full_steps = mixture.steps
        self._firsts = np.concatenate([[0], np.cumsum(shards)[:-1]]).astype(np.int64)

    def size(self, step: int) -> int:
        """Samples in the batch at `step` of the first epoch, and of all where the batch doesn't grow."""
        return self.epochs.size(0, step)

    def slots(self, rank: int, world: int, size: int | None = None) -> slice:
        return self.mixture.slots(rank, world, size)

    def batch(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> tuple[Ints, Ints]:
        return self.block(epoch, step, 1, rank, world)

    def block(self, epoch: int, step: int, count: int, rank: int = 0, world: int = 1) -> tuple[Ints, Ints]:
        dataset, shard, row = self.mixture.block(epoch, step, count, rank, world)
        return self._firsts[dataset] + shard, row

    def ahead(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> Iterator[Ints]:
        for dataset, shards in self.mixture.ahead(epoch, step, rank, world):
            yield self._firsts[dataset] + shards

    def shares(self, step: int) -> dict[str, float]:
        """Of each dataset, in the batch at global step `step`, by the weights there."""
        return self.mixture.shares(step)

    def passes(self, steps: int) -> dict[str, float]:
        """How often each dataset has been gone through after so many global steps."""
        return self.mixture.passes(steps)

    def settings(self) -> dict[str, Any]:
        return self.mixture.settings()

    def datasets_of(self, shard: Ints) -> Ints:
        """Which dataset each shard is of, by number, int64 [n]."""
        return np.searchsorted(self._firsts, shard, side="right") - 1


AnyOrder = Order | RampedOrder | JoinedOrder
