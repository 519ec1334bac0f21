"""What a stream reads: one split of a dataset, or several datasets mixed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.params import check_names, suggestion
from pipelines.streaming.arrays import Ints, int64
from pipelines.streaming.gather.decode import Decoder
from pipelines.streaming.gather.fields import Blobs, Field, Fixed, Images, Tokens
from pipelines.streaming.gather.whole_documents import WholeDocuments
from pipelines.streaming.options import Mixing, Text
from pipelines.streaming.order import Mixture, Order, Ordering, Ramp, Rest, Weight
from storage.cache import Tiered
from storage.digest import digest_json
from storage.errors import DataError, ParamsError
from storage.lake import Zone
from storage.manifest import Manifest
from storage.shards import Column
from storage.shards.schema import IMAGE


@dataclass(frozen=True)
class Dataset:
    """One split (or one domain of it) of what `manifest` describes, behind `tiers`."""

    tiers: Tiered
    manifest: Manifest
    split: str
    text: Text
    domain: str | None = None

    def __post_init__(self) -> None:
        if self.text.document_mask and self.text.samples == "documents":
            raise ParamsError("document_mask=True is for samples='sequences': a whole document is alone in its sample.")

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
        """Samples in each shard, int64 [shards]: rows, or sequences of seq_len tokens that have a next one."""
        if self.manifest.header["kind"] != "tokens":
            if self.text.samples == "documents":
                raise ParamsError("These shards hold no documents of tokens: leave stream.samples at sequences.")
            if self.text.document_mask:
                raise ParamsError("These shards hold no documents of tokens: leave stream.document_mask at false.")
            return int64(self.table["rows"])
        if self.text.seq_len is None:
            raise ParamsError("These shards hold tokens, so the stream needs a sequence length: set stream.seq_len.")
        packs = self.manifest.header["spec"].get("pack_len")
        if packs is not None and self.text.samples == "documents":
            raise ParamsError(
                f"stream.samples=documents, but these shards hold packs of {packs} tokens (shard.pack_len), of which "
                "only sequences are read. Set stream.samples to sequences, or shard.pack_len to null."
            )
        if packs not in (None, self.text.seq_len):
            raise ParamsError(
                f"stream.seq_len={self.text.seq_len}, but these shards hold packs of {packs} tokens (shard.pack_len), "
                f"the sequences too. Set stream.seq_len to {packs}, or shard.pack_len to {self.text.seq_len} or null."
            )
        if self.text.samples == "documents":
            return int64(self.table["rows"])
        return np.maximum(int64(self.table["tokens"]) - 1, 0) // self.text.seq_len

    @property
    def separator(self) -> int | None:
        """The token that ends a sample that is a whole document, where the data has one."""
        return self.manifest.header["spec"].get("separator") if self.text.samples == "documents" else None

    def fields(self) -> tuple[Field, ...]:
        """What the manifest says of the columns that make a batch."""
        spec = self.manifest.header["spec"]
        if self.text.samples == "documents":
            column, expected = Column(np.dtype(spec["dtype"])), self._mean("tokens")
            return (
                WholeDocuments(
                    "tokens", column, self.text.seq_len or 0, self.text.pad_multiple, self.separator, expected
                ),
            )
        if self.manifest.header["kind"] == "tokens":
            return (Tokens.of("tokens", spec["dtype"], self.text.seq_len or 0, self.text.document_mask),)
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
        return Blobs(name, column, self._mean("bytes"))

    def _mean(self, column: str) -> float:
        """Of what the shards have of it, a sample's share."""
        return float(int64(self.table[column]).sum()) / max(1, int(self.samples.sum()))

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
        if self.text.seq_len is not None and self.text.samples == "sequences":
            return (
                f"{where} has no sequence of {self.text.seq_len} tokens and the next one. "
                f"Lower stream.seq_len, raise curate.split.{split}, or add sources."
            )
        return f"{where} is empty. Raise curate.split.{split}, or add sources."


def chosen(
    zone: Zone | Mapping[str, Zone],
    manifest: Manifest | Mapping[str, Manifest],
    tiers: Tiered | Mapping[str, Tiered] | None,
    *,
    split: str,
    text: Text,
    mixing: Mixing,
) -> tuple[dict[str, Dataset], Mapping[str, Weight] | None]:
    """What a `Stream` with these parameters reads: datasets by name, and the weights by which they are mixed. One that
    isn't mixed has the name "", and None."""
    if isinstance(manifest, Manifest):
        if mixing.weights is not None or mixing.steps is not None or isinstance(zone, Mapping):
            raise ValueError("weights and steps are for a mixture: give zones and manifests by name")
        through = tiers if isinstance(tiers, Tiered) else Tiered(zone)
        whole = Dataset(through, manifest, split, text, mixing.domain)
        return ({"": whole}, None) if mixing.mixture is None else _domains(whole, mixing.mixture)
    if not isinstance(zone, Mapping) or set(zone) != set(manifest):
        raise ValueError(f"a mixture of {', '.join(manifest)} needs a zone for each, by the same names")
    if mixing.mixture is not None or mixing.domain is not None:
        raise ValueError("mixture and domain are for one dataset: give weights for several")
    behind = tiers if isinstance(tiers, Mapping) else {name: Tiered(zone[name]) for name in zone}
    datasets = {name: Dataset(behind[name], manifest[name], split, text) for name in sorted(manifest)}
    return datasets, mixing.weights or dict.fromkeys(datasets, 1.0)


def _domains(whole: Dataset, mixture: Mapping[str, Weight]) -> tuple[dict[str, Dataset], Mapping[str, Weight]]:
    """The domains of `whole` that have a weight at some step, by name, and those weights: the same in whatever order
    `mixture` names them.

    Raises ParamsError where `mixture` doesn't name the manifest's domains, DataError for one without a sample. One of
    which the shards have nothing may have the weight 0.
    """
    domains = whole.manifest.domains
    try:
        check_names([name for name, weight in mixture.items() if name in domains or _counts(weight)], domains)
    except ValueError as error:
        raise ParamsError(
            f"{str(error).rstrip('.')}. (The shards are of version {whole.manifest.digest[:12]}. Of a domain that "
            "ingest.sources names they have nothing where all its files are duplicates of another domain's, or were "
            "set aside: then its weight must be 0.)"
        ) from None
    weights = {name: mixture[name] for name in domains if _counts(mixture[name])}
    parts = {name: replace(whole, domain=name) for name in weights}
    for name, part in parts.items():
        if not part.samples.sum():
            raise DataError(f"{part.why_empty(1)} Or set stream.mixture.{name} to 0.")
    return parts, weights


def _counts(weight: Weight) -> bool:
    return any(weight.values()) if isinstance(weight, Mapping) else weight != 0


def digest_of(manifest: Manifest | Mapping[str, Manifest]) -> str:
    """The version of the data."""
    if isinstance(manifest, Manifest):
        return manifest.digest
    return digest_json({name: part.digest for name, part in manifest.items()})


def same_fields(datasets: Mapping[str, Dataset]) -> tuple[Field, ...]:
    """The fields of datasets that are mixed. Raises DataError where they differ, or what ends a document does."""
    described = {name: dataset.fields() for name, dataset in datasets.items()}
    first, fields = next(iter(described.items()))
    for name, others in described.items():
        if [(f.name, f.stored) for f in others] != [(f.name, f.stored) for f in fields]:
            raise DataError(
                f"The datasets {first!r} and {name!r} of the mixture have different columns: "
                f"{_columns(fields)}; {_columns(others)}. Make their shards alike, or leave one out."
            )
        ends, other = datasets[first].separator, datasets[name].separator
        if ends != other:
            raise DataError(
                f"The datasets {first!r} and {name!r} of the mixture have the separators {ends} and {other}, but whole "
                "documents (stream.samples) are all ended by one. Make their shards alike, leave one out, or set "
                "stream.samples to sequences."
            )
    return fields


def _columns(fields: Sequence[Field]) -> str:
    return ", ".join(f"{f.name} {f.stored.codec} {f.stored.dtype} {list(f.stored.shape)}" for f in fields)


def order_of(
    datasets: Mapping[str, Dataset],
    weights: Mapping[str, Weight] | None,
    steps: int | None,
    rest: Rest,
    *,
    batch: Ramp,
    seed: int,
    ordering: Ordering,
) -> Order | Mixture:
    """The order of one dataset, or of several that are mixed. Raises DataError where it hasn't one batch."""
    rows = {name: dataset.samples for name, dataset in datasets.items()}
    if weights is not None:
        return Mixture(rows, weights, batch=batch, seed=seed, ordering=ordering, steps=steps)
    (dataset,) = datasets.values()
    order = Order(dataset.samples, batch=batch, seed=seed, ordering=ordering, rest=rest)
    if not order.epochs.complete:
        raise DataError(dataset.why_empty(order.batch_size))
    return order
