"""Domains: sources by name (`ingest.sources`), and the weights by which training mixes them (`stream.mixture`)."""

import re
from collections.abc import Collection, Mapping
from math import isfinite
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationError

from pipelines.params.schema.names import suggestion
from pipelines.params.schema.registry import Named, Registry
from pipelines.params.schema.section import NAME
from storage.redact import mask

SOURCES = Registry("ingest.sources", "pipelines.ingest.sources.members")


def shown(source: str | Named) -> str:
    """For people: without passwords."""
    return mask(source) if isinstance(source, str) else source.name


def _sources(value: Any) -> Any:
    """Raises ValueError that says what is wrong; a union of types would say it once for each of them."""
    lists = value if isinstance(value, dict) else {None: value}
    if not lists:
        raise ValueError("must have at least 1 item")
    for name, sources in lists.items():
        where = "" if name is None else f"{name}: "
        if name is not None and not (isinstance(name, str) and re.match(NAME, name)):
            raise ValueError(f"{name!r} is no name for a domain: letters, digits, '_', '.' and '-', as in code")
        if not isinstance(sources, list):
            raise ValueError(f"{where}must be a list of URLs, globs or folders, or lists by the name of a domain")
        if not sources:
            raise ValueError(f"{where}must have at least 1 item")
        for source in sources:
            _check(source, where)
    return value


def _check(source: Any, where: str) -> None:
    if isinstance(source, dict) and "name" in source:
        try:
            source = Named.model_validate(source)
        except ValidationError as error:
            wrong = ", ".join(".".join(map(str, item["loc"])) for item in error.errors())
            raise ValueError(f"{where}a source is a URL, glob or folder, or {{name, args}}; wrong: {wrong}") from error
    if isinstance(source, Named):
        SOURCES.check(source)
    elif not isinstance(source, str):
        raise ValueError(f"{where}{source!r} is no URL, glob or folder")


def _mixture(value: Any) -> Any:
    """Steps as numbers; raises ValueError that names the domain and the weight."""
    if value is None:
        return None
    if not isinstance(value, dict) or not value:
        raise ValueError("must be weights by the name of a domain: {code: 0.7, prose: {0: 0.1, 1000: 0.3}}")
    weights = {name: _weight(str(name), weight) for name, weight in value.items()}
    steps = sorted({0}.union(*(weight for weight in weights.values() if isinstance(weight, dict))))
    for step in steps:
        if not any(weight_at(weight, step) for weight in weights.values()):
            raise ValueError(f"all weights are 0 at step {step}: one must be larger")
    return weights


def _weight(name: str, weight: Any) -> float | dict[int, float]:
    if isinstance(weight, dict):
        if not weight:
            raise ValueError(f"{name}: no weight. Give one, or step: weight")
        return {_step(name, step): _number(f"{name} at step {step}", one) for step, one in weight.items()}
    return _number(name, weight)


def _step(name: str, step: Any) -> int:
    if isinstance(step, bool) or not re.fullmatch(r"\d+", str(step)):
        raise ValueError(f"{name}: {step!r} is no step: a whole number from 0 on")
    return int(step)


def _number(what: str, weight: Any) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not isfinite(weight) or weight < 0:
        raise ValueError(f"{what}: {weight!r} is no weight: a number from 0 on, or step: number")
    return float(weight)


def weight_at(weight: float | Mapping[int, float], step: int) -> float:
    """The weight at `step`: linear between those given, the first before them and the last after them."""
    if not isinstance(weight, Mapping):
        return weight
    before = max((at for at in weight if at <= step), default=min(weight))
    after = min((at for at in weight if at >= step), default=max(weight))
    way = (step - before) / (after - before) if after > before else 0.0
    return weight[before] + (weight[after] - weight[before]) * way


def check_names(mixture: Collection[str], domains: Collection[str]) -> None:
    """Raises ValueError unless `mixture` has a weight for each of `domains`, and for nothing else."""
    if not domains:
        raise ValueError(
            "stream.mixture mixes domains, and ingest.sources names none. Write them there by name: "
            f"{{{', '.join(f'{name}: […]' for name in mixture)}}}"
        )
    for name in mixture:
        if name not in domains:
            raise ValueError(f"stream.mixture.{name}: unknown domain{suggestion(name, list(domains))}")
    if missing := [name for name in domains if name not in mixture]:
        raise ValueError(
            f"stream.mixture: no weight for {', '.join(missing)}. Give one, or 0 to leave the domain out of training"
        )


#: Sources, or domain → sources.
Sources = Annotated[list[str | Named] | dict[str, list[str | Named]], BeforeValidator(_sources)]
#: Domain → weight, or domain → (step → weight).
Mixture = Annotated[dict[str, float | dict[int, float]] | None, BeforeValidator(_mixture)]
