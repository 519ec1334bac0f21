"""Which figures metrics/evaluate.json will hold, before there is a model: so that a misspelt gate ends a job in its
first second, not in its last."""

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pipelines.params import Metric, Params, suggestion
from storage.errors import ParamsError


def metric_key(entry: str | Metric) -> str:
    """Its key where it has one, else the name of its class as snake case."""
    metric = Metric(name=entry) if isinstance(entry, str) else entry
    return metric.key or snake(metric.name.rpartition(":")[2])


def snake(name: str) -> str:
    """F1Score → f1_score, MulticlassAUROC → multiclass_auroc."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


TaskName = Literal["language", "classification", "regression"]
TASKS: tuple[TaskName, ...] = ("language", "classification", "regression")
#: Figures of which less is better, and of which more is, by the last part of their names.
LESS = ("bits_per_byte", "bits_per_byte_by_file", "loss", "perplexity", "rmse", "mae")
MORE = ("accuracy", "macro_f1", "r2")
#: What else stands in metrics/evaluate.json, so that no metric may be called so.
RESERVED = ("task", "split", "manifest", "samples", "baseline", "domains", "f1")


@dataclass(frozen=True)
class Names:
    """Figures by dotted name, and the beginnings of those that there are one of for each class."""

    exact: tuple[str, ...]
    families: tuple[str, ...] = ()

    def __contains__(self, name: object) -> bool:
        return name in self.exact or any(str(name).startswith(family) and name != family for family in self.families)

    def __add__(self, other: "Names") -> "Names":
        return Names((*self.exact, *other.exact), (*self.families, *other.families))


def check_gate(
    params: Params, tasks: Iterable[TaskName], spec: Mapping[str, Any] | None, domains: Sequence[str]
) -> None:
    """Raises ParamsError for a gate on a figure that evaluate doesn't measure for any of these tasks, or in the wrong
    direction. `spec` of the shards: None before there are any."""
    gate = params.promote.gate
    names = Names(())
    for task in tasks:
        names += names_of(task, params, spec, domains)
    for setting, name in (("promote.gate.metric", gate.metric), ("promote.gate.baseline", gate.baseline)):
        if name is not None and name not in names:
            top = [one for one in names.exact if "." not in one]
            near = suggestion(name, names.exact, top)
            raise ParamsError(f"{setting}={name!r}: evaluate measures no such figure{near}{_why(name, spec)}")
    last = gate.metric.rpartition(".")[2]
    if last in (LESS if gate.mode == "max" else MORE):
        more, other = ("more", "min") if gate.mode == "max" else ("less", "max")
        raise ParamsError(f"promote.gate.mode={gate.mode}: of {gate.metric} {more} is worse. Set it to {other}.")


def _why(name: str, spec: Mapping[str, Any] | None) -> str:
    if spec is None or "vocab_size" not in spec or "byte" not in name:
        return ""
    from pipelines.models.tokens import why_no_bytes

    why = why_no_bytes(spec)
    return f" These shards hold tokens whose bytes nobody knows: {why}." if why else ""


def names_of(task: TaskName, params: Params, spec: Mapping[str, Any] | None, domains: Sequence[str]) -> Names:
    """What an evaluation of `task` measures: figures and baselines, those of each domain, and `evaluate.metrics`."""
    own, whole, families = _of_task(task, params, spec)
    keys = [metric_key(entry) for entry in params.evaluate.metrics]
    inside = [f"domains.{domain}.{name}" for domain in domains for name in own]
    return Names((*own, *whole, *keys, *inside), (*families, *(f"{key}." for key in keys)))


def own_figures(task: TaskName, params: Params, spec: Mapping[str, Any] | None) -> list[str]:
    """What a task measures by itself, by dotted name."""
    own, whole, _ = _of_task(task, params, spec)
    return [*own, *whole]


def _of_task(task: TaskName, params: Params, spec: Mapping[str, Any] | None) -> tuple[list[str], list[str], list[str]]:
    """Names of figures that the whole split and each domain have, that only the whole has, and families of such."""
    if task == "classification":
        own = ["accuracy", "loss", "macro_f1", "samples"]
        classes = (spec or {}).get("classes")
        exact, families = ([f"f1.{name}" for name in classes], []) if classes else ([], ["f1."])
        return [*own, "baseline.majority.accuracy", "baseline.majority.loss"], exact, families
    if task == "regression":
        errors = ["rmse", "mae", "r2"]
        return [*errors, "samples", *(f"baseline.mean.{name}" for name in errors)], [], []
    return *_of_text(params, spec), []


def _of_text(params: Params, spec: Mapping[str, Any] | None) -> tuple[list[str], list[str]]:
    samples = params.evaluate.samples
    whole = "documents" in (samples, params.stream.samples if samples == "auto" else None)
    own = ["loss", "perplexity", "documents"]
    if spec is not None:
        from pipelines.evaluation.baselines import PAIRED
        from pipelines.models.tokens import why_no_bytes

        if why_no_bytes(spec):
            table = "bigram" if spec["vocab_size"] <= PAIRED else "unigram"
            return [*own, "tokens", *(["cut_tokens"] if whole else []), f"baseline.{table}.loss"], []
    own = ["bits_per_byte", *own, "bytes", *(["cut_bytes"] if whole else []), "baseline.bigram.bits_per_byte"]
    figures = ("bits_per_byte", "bits_per_byte_by_file", "bytes")
    return own, [f"baseline.{compressor}.{figure}" for compressor in ("zlib", "xz") for figure in figures]


def check_metric_names(params: Params) -> None:
    """Raises ParamsError for a metric of `evaluate.metrics` that torchmetrics hasn't. Nothing heavy is imported."""
    for entry in params.evaluate.metrics:
        name = entry if isinstance(entry, str) else entry.name
        if ":" not in name and name not in torchmetrics_names():
            raise no_such_metric(name, torchmetrics_names())


def no_such_metric(name: str, known: Sequence[str]) -> ParamsError:
    return ParamsError(
        f"evaluate.metrics: torchmetrics has no {name!r}{suggestion(name, known)} "
        "A metric of your own is named by its import path, package.module:Class."
    )


@cache
def torchmetrics_names() -> tuple[str, ...]:
    """The names that torchmetrics exports, read from its files: importing it takes seconds."""
    spec = find_spec("torchmetrics")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    names: list[str] = []
    for part in ("", "classification", "regression", "text"):
        for node in ast.parse((folder / part / "__init__.py").read_text()).body:
            names += _exported(node)
    return tuple(dict.fromkeys(names))


def _exported(node: ast.stmt) -> list[str]:
    """Texts that a statement, or one inside it, adds to `__all__`."""
    found = []
    for inner in ast.walk(node):
        targets = inner.targets if isinstance(inner, ast.Assign) else []
        targets = [inner.target] if isinstance(inner, ast.AugAssign) else targets
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            found += [c.value for c in ast.walk(inner) if isinstance(c, ast.Constant) and isinstance(c.value, str)]
    return found
