"""Domains of one dataset version, mixed: `ingest.sources` names them, `stream.mixture` gives their weights."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipelines.params import check_names
from pipelines.streaming.dataset import Dataset, JoinedOrder
from pipelines.streaming.mixture import Mixture, Weight
from storage.errors import DataError, ParamsError


def mix_domains(
    whole: Dataset, mixture: Mapping[str, Weight], **ordering: Any
) -> tuple[dict[str, Dataset], JoinedOrder]:
    """The domains of `whole` that have a weight at some step, by name, and the order in which they are mixed: the same
    in whatever order `mixture` names them.

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
    order = Mixture({name: part.samples for name, part in parts.items()}, weights, **ordering)
    return parts, JoinedOrder(order, [len(part.samples) for part in parts.values()])


def _counts(weight: Weight) -> bool:
    return any(weight.values()) if isinstance(weight, Mapping) else weight != 0
