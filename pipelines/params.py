"""All parameters of a recipe, in one place: names, types, ranges, defaults and what they do.

`params.yaml` holds them; DVC tracks them by section, and each stage of `dvc.yaml` lists the sections that it reads.
A name that is not here is refused with the nearest one that is.
"""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from storage.errors import ParamsError

FILENAME = "params.yaml"
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers, as DVC reads them: 1e-3 is a number, which YAML 1.1 takes for a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class Section(BaseModel):
    """A section of params.yaml: immutable, strict about types, closed to unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Lake(Section):
    """Where the zones lie."""

    url: str | None = None
    """Root URL of the lake (s3://bucket/prefix, gs://…, a folder). None: beside the manifests, in data/."""
    zones: dict[Literal["raw", "curated", "shards"], str] = {}
    """A URL of its own for a zone (hybrid and multi-cloud): {shards: s3://…}."""


class Ingest(Section):
    """sources → raw."""

    sources: list[str] = Field(min_length=1)
    """fsspec URLs, globs or folders: data/**/*.csv, s3://bucket/prefix/*.jsonl, https://…, {python_stdlib}/**/*.py."""
    exclude: list[str] = []
    """Globs on a source's name (its path below the glob's fixed part) to leave out: **/test/**."""


class Split(Section):
    """Shares of the samples; they must add up to 1."""

    train: float = Field(0.8, ge=0, le=1)
    """What the model learns from."""
    val: float = Field(0.1, ge=0, le=1)
    """What early stopping looks at."""
    test: float = Field(0.1, ge=0, le=1)
    """What the metrics are measured on."""

    @model_validator(mode="after")
    def _sums_to_one(self) -> "Split":
        if abs(self.train + self.val + self.test - 1) > 1e-9:
            raise ValueError(
                f"train + val + test = {self.train} + {self.val} + {self.test} = "
                f"{self.train + self.val + self.test:g}, but must be 1"
            )
        return self


class Curate(Section):
    """raw → curated: typed, validated, deduplicated, split."""

    reader: Literal["auto", "text", "image_folder", "csv", "jsonl", "parquet"] = "auto"
    """What the raw files are. auto: by their suffix (text for source code and prose)."""
    text_field: str = "text"
    """The field of a JSONL line that holds a document."""
    label: str | None = None
    """The column of a table to predict: needed for csv and parquet."""
    features: list[str] | None = None
    """The numeric columns of a table that the model sees. None: all but the label."""
    target: Literal["class", "value"] = "class"
    """Whether the label is a class or a number to regress."""
    split: Split = Split()
    """Shares of train, val and test; a sample's split depends on its name and the seed alone."""
    deduplicate: bool = True
    """Keep one of several files with equal bytes, and one of several equal rows of a table file."""
    files_per_object: int = Field(64, ge=1, le=100_000)
    """How many raw files go into one curated object, on average."""
    max_quarantined: int = Field(100, ge=0)
    """Up to this many undecodable files or rows are set aside in quarantine.jsonl; more are fatal."""


class Shard(Section):
    """curated → shards."""

    target_mb: float = Field(64.0, gt=0, le=4096)
    """MiB of a shard."""
    compression: Literal["auto", "none", "zstd"] = "auto"
    """At rest, where the zone is remote. auto: zstd for each shard of which it saves 10 % or more."""
    shuffle_objects: int = Field(64, ge=1, le=10_000)
    """How many curated objects are mixed into one group of shards, on average (memory: their size)."""
    images: Literal["pixels", "encoded"] = "pixels"
    """What shards hold of images. pixels: decoded, uint8. encoded: the JPEG or PNG files, decoded when streaming."""
    image_size: list[Annotated[int, Field(ge=1, le=65_536)]] | None = Field(None, min_length=2, max_length=2)
    """[height, width] in pixels to which images are resized. None: all images must have one size."""
    image_mode: Literal["L", "RGB"] = "RGB"
    """Grey scale (one channel) or colour (three)."""


class Stream(Section):
    """shards → batches."""

    batch_size: int = Field(64, ge=1)
    """Samples of the global batch, over all ranks."""
    seq_len: int = Field(256, ge=2)
    """Tokens that the model sees at once (token datasets)."""
    lanes: int | None = Field(None, ge=1)
    """Disjoint stripes of an epoch that are read side by side; must divide batch_size. None: chosen."""
    window: int = Field(65_536, ge=1)
    """Samples of a lane within which they are shuffled."""
    first_window: int | None = Field(None, ge=1)
    """Samples of an epoch's first windows, which then double up to window. None: about those of a shard."""
    keep_lanes: bool = False
    """Keep each shard on its lane in all epochs, so that the caches of many nodes stay warm."""


class Model(Section):
    """The model."""

    name: str = "mlp"
    """transformer, mlp, cnn, or an import path package.module:Class of a torch.nn.Module."""
    args: dict[str, Any] = {}
    """Keyword arguments of its constructor."""


class Train(Section):
    """shards → model."""

    lr: float = Field(1e-3, gt=0, le=10)
    """Peak learning rate of AdamW."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises linearly from 0."""
    min_lr: float = Field(0.1, ge=0, le=1)
    """Share of the peak at which the cosine ends."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled weight decay, on matrices only."""
    betas: list[float] = Field([0.9, 0.95], min_length=2, max_length=2)
    """AdamW's decay rates of the first and second moment, each in [0, 1)."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Largest norm of the gradient; None: not clipped."""
    accumulate: int = Field(1, ge=1)
    """Pieces into which a batch is cut to save memory; the step is the same up to rounding."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target spread over the other classes."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps. Give this or epochs."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the train split. Give this or steps."""
    eval_every: int = Field(100, ge=1)
    """Steps between evaluations on the val split."""
    eval_batches: int | None = Field(None, ge=1)
    """Batches of such an evaluation; None: the whole val split."""
    patience: int | None = Field(None, ge=1)
    """Evaluations without a better val loss after which training stops; None: never."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between checkpoints."""
    log_every: int = Field(10, ge=1)
    """Steps between points of the logged curves."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the matrix products. auto: bf16 where the accelerator has it, else fp32."""
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|(cuda|xpu)(:\d+)?)$")
    """auto: the first of cuda, mps, xpu, cpu that is there."""
    ranks: int = Field(1, ge=1, le=4096)
    """Processes on this machine, started by torchrun when more than one."""
    threads: int | None = Field(None, ge=1)
    """Threads of a rank on CPU; None: the cores shared out over the ranks."""

    @model_validator(mode="after")
    def _consistent(self) -> "Train":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of train.steps and train.epochs")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"train.betas={self.betas}: each must be in [0, 1)")
        return self


class Evaluate(Section):
    """model → metrics."""

    split: Literal["val", "test"] = "test"
    """The split that is evaluated."""
    batch_size: int = Field(64, ge=1)
    """Samples at a time."""


class Package(Section):
    """model → MLflow model folder."""

    description: str = ""
    """A paragraph for the model card."""
    license: str = "unknown"
    """Of the weights, for the model card."""


class Gate(Section):
    """One condition of promotion: `metric` must be better than the champion's, or past a fixed bound."""

    metric: str
    """A key of metrics/evaluate.json, with dots: accuracy, bits_per_byte."""
    mode: Literal["min", "max"] = "max"
    """Whether smaller or larger is better."""
    min_gain: float = Field(0.0, ge=0)
    """By how much it must beat the champion on the same data version."""
    bound: float | None = None
    """It must also be at least as good as this."""
    baseline: str | None = None
    """It must also be better than this other metric: baseline.bigram.bits_per_byte."""


class Promote(Section):
    """package → registry."""

    model: str | None = Field(None, pattern=NAME)
    """Name in the registry; None: the recipe's."""
    gate: Gate
    """What the champion alias asks for."""


class Compute(Section):
    """How the stages run. Nothing here changes a result, so no stage depends on it."""

    engine: Literal["auto", "threads", "processes"] = "auto"
    """What the data stages run on. auto: threads for little data, processes for much."""
    workers: int | None = Field(None, ge=1, le=1024)
    """Of the data stages. None: one for each core."""
    lake_timeout: float = Field(60.0, gt=0, le=3600)
    """Seconds without progress, retries included, after which reading from a remote lake or writing to it fails."""
    prefetch: int = Field(2, ge=0, le=64)
    """Batches prepared ahead."""
    ahead_mb: float = Field(256.0, ge=0)
    """MiB of shards fetched ahead of need, where they aren't on this machine."""
    memory_mb: float = Field(4096.0, gt=0)
    """MiB of shards held in memory, where no tier keeps them as files on this machine."""


class NodeCache(Section):
    """Shards as files on this machine's disk, shared by its processes."""

    enabled: bool | None = None
    """None: where the shards zone is remote."""
    folder: str = ".shardline/cache"
    """On a disk of this machine; relative to the project. ${NAME} stands for that environment variable."""
    budget_mb: float | None = Field(None, gt=0)
    """MiB that it may hold. None: half of what is free, and what it holds."""
    ring_mb: float | None = Field(None, ge=0)
    """MiB of these for shards that are replaced first in, first out. None: 1/64, for small budgets up to 1/8."""


class HotCache(Section):
    """Shards in Redis (7 or newer, or Valkey) for the whole cluster."""

    url: str | None = None
    """redis://, rediss://, unix://, redis+cluster://, redis+sentinel://… (docs/cache.md), or embedded: a Valkey of this
    machine that ends with its users. ${NAME} stands for that environment variable. None: off."""
    budget_mb: float = Field(1024, gt=0)
    """MiB of shards; Redis' maxmemory should be 1.3 times that."""
    ring_mb: float | None = Field(None, ge=0)
    """As of the node cache."""
    timeout_ms: int = Field(500, ge=1, le=60_000)
    """After which an exchange with Redis counts as failed, and the lake is read instead."""
    wait_s: float = Field(60.0, gt=0, le=3600)
    """How long to wait for another process' fetch of a shard (in the node cache, too)."""
    lease_s: float = Field(5.0, ge=0.5, le=600)
    """How long the others wait for a process that died while it fetched."""
    prefix: str = Field("shardline", pattern=NAME)
    """Of all keys."""


class Cache(Section):
    """What lies between the lake and the stream. Nothing here changes a result, so no stage depends on it."""

    node: NodeCache = NodeCache()
    """Shards on this machine's disk."""
    hot: HotCache = HotCache()
    """Shards in Redis."""
    idle_hours: float = Field(24.0, gt=0)
    """A shard that nobody has read for so long may give its place to another."""


class Params(Section):
    """A recipe. Each section that dvc.yaml lists must stand in the file, as DVC looks for it: `lake: {}` at least."""

    recipe: str = Field(pattern=NAME)
    """Its name: the MLflow experiment, the registered model, the folder in a shared lake."""
    seed: int = Field(ge=0, lt=2**63)
    """Of splits, orders, weights and dropout."""
    lake: Lake
    ingest: Ingest
    curate: Curate
    shard: Shard
    stream: Stream
    model: Model
    train: Train
    evaluate: Evaluate
    package: Package
    promote: Promote
    compute: Compute = Compute()
    cache: Cache = Cache()


def load_params(file: Path = Path(FILENAME)) -> Params:
    """The parameters in `file`. Raises ParamsError that names the file, the parameter and what it may be."""
    try:
        values = yaml.load(file.read_text(), _Loader)  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        raise ParamsError(
            f"{file.resolve()}: no such file. Run shardline in a folder with a params.yaml, or name a recipe with "
            "--recipe (see `shardline recipes`)."
        ) from None
    except yaml.YAMLError as error:
        raise ParamsError(f"{file}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ParamsError(f"{file}: expected sections such as `train:`, found {type(values).__name__}.")
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise ParamsError(_explain(file, error)) from error


def _explain(file: Path, error: ValidationError) -> str:
    lines = [f"{file}: {error.error_count()} invalid parameter{'s' * (error.error_count() > 1)}"]
    for item in error.errors(include_url=False):
        place = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"  {place}: unknown parameter{suggestion(str(item['loc'][-1]), _siblings(item['loc']))}")
        elif item["type"] == "missing":
            section = _section(item["loc"])
            hint = f"Add `{place}: {{}}` for its defaults" if section and _optional(section) else "It has no default"
            lines.append(f"  {place}: missing. {hint}. {_description(item['loc'])}".rstrip())
        else:
            message = item["msg"].removeprefix("Value error, ")
            given = "" if isinstance(item["input"], dict) else f" (given: {item['input']!r})"
            lines.append(f"  {place}: {message}{given}. {_description(item['loc'])}".rstrip())
    lines.append("Run `shardline params` for all parameters with their defaults and ranges.")
    return "\n".join(lines)


def suggestion(name: str, known: list[str]) -> str:
    """'. Did you mean x?' for the nearest of `known`, else the list of what there is."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f". Did you mean {near[0]!r}?" if near else f". Known here: {', '.join(known)}."


def _section(location: tuple[int | str, ...]) -> type[BaseModel] | None:
    model: type[BaseModel] = Params
    for part in location:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        model = annotation
    return model


def _optional(section: type[BaseModel]) -> bool:
    return not any(field.is_required() for field in section.model_fields.values())


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    section = _section(location[:-1])
    return list(section.model_fields) if section else []


def _description(location: tuple[int | str, ...]) -> str:
    section = _section(location[:-1]) if location else None
    field = section.model_fields.get(str(location[-1])) if section else None
    return (field.description or "") if field else ""


def describe() -> list[tuple[str, str, str, str]]:
    """(name, type, default, description) of every parameter, in order."""
    rows: list[tuple[str, str, str, str]] = []

    def visit(model: type[BaseModel], prefix: str) -> None:
        for name, field in model.model_fields.items():
            annotation = field.annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                visit(annotation, f"{prefix}{name}.")
                continue
            shown = getattr(annotation, "__name__", "") if isinstance(annotation, type) else str(annotation)
            shown = shown.replace("typing.", "").replace("NoneType", "None")
            limits = ", ".join(
                f"{sign} {getattr(meta, attribute)}"
                for meta in field.metadata
                for attribute, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
                if hasattr(meta, attribute)
            )
            default = "required" if field.is_required() else repr(field.get_default(call_default_factory=False))
            rows.append((prefix + name, f"{shown} {limits}".strip(), default, field.description or ""))

    visit(Params, "")
    return rows
