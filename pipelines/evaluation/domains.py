"""The figures of each domain of a split beside those of the whole, where the shards have domains."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pipelines.evaluation.plots import bars
from pipelines.evaluation.result import Evaluation
from pipelines.params.schema.flat import numbers
from storage.manifest import Manifest

Domain = str | None  # None: the shards have none


def domains_of(manifest: Manifest, split: str) -> list[Domain]:
    """The domains that have samples in `split`, by name; [None] where there are none."""
    table = manifest.select(split)
    if "domain" not in table.column_names or not table.num_rows:
        return [None]
    return sorted(set(table["domain"].to_pylist()))


def with_domains(result: Evaluation, own: Mapping[Domain, dict[str, Any]], metric: str, title: str) -> Evaluation:
    """`result` with the metrics of each domain in `own`: as `domains`, as a table, and a bar for its `metric`.

    Without domains, it is `result` as it is.
    """
    found = {domain: metrics for domain, metrics in own.items() if domain is not None}
    if not found:
        return result
    table = [{"domain": domain, **numbers(metrics)} for domain, metrics in found.items()]
    shown = {"all of them": result.metrics, **found}  # no domain has a space in its name
    drawn = [{"name": name, metric: metrics[metric]} for name, metrics in shown.items()]
    return replace(
        result,
        metrics=result.metrics | {"domains": found},
        tables=result.tables | {"domains": table},
        figures=result.figures | {"domains": partial(bars, drawn, "name", metric, title)},
    )
