"""The model card: README.md of a package, after Mitchell et al., "Model Cards for Model Reporting" (2019)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.models.predictor import Kind
from pipelines.params import Params
from pipelines.params.schema.flat import flat
from storage.redact import mask_value

WHAT = {
    ("language", "text"): "Writes on from a text, byte by byte",
    ("classification", "image"): "Classifies an image",
    ("classification", "table"): "Classifies a row of numbers",
    ("classification", "array"): "Classifies an array",
    ("regression", "image"): "Estimates a number from an image",
    ("regression", "table"): "Estimates a number from a row of numbers",
    ("regression", "array"): "Estimates a number from an array",
}
LIMITS = {
    "text": "It repeats patterns of its training text: what it writes can be wrong, and can quote that text.",
    "image": "Any image is brought to the size above and given some answer, also one that shows something else.",
    "table": "Any row is given some answer, also one with values far from those it was trained on.",
    "array": "Any input is given some answer, also one far from those it was trained on.",
}


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The data that the model has learnt from: its version, what it counts, and what a sample is."""

    manifest: str
    counts: Mapping[str, Any]
    spec: Mapping[str, Any]
    seq_len: int | None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came of it, as flat names: on held-out data, and at the end of training."""

    metrics: Mapping[str, float]
    train_metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """The MLflow run that it came from, and that run's tags."""

    run: str
    tags: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that a card states; `example` is the answer to the model's input example."""

    params: Params
    task: str
    kind: Kind
    parameters: int
    data: Trained
    measured: Measured
    lineage: Lineage
    example: str


def model_card(facts: Facts) -> str:
    """The card as Markdown, with the YAML head that model hubs read."""
    p = facts.params
    parts = [
        f"---\nlicense: {p.package.license}\ntags: [shardline, {facts.task}, {p.recipe}]\n---",
        f"# {p.promote.model or p.recipe}",
        p.package.description,
        _what(facts),
        "## Metrics",
        f"On the `{p.evaluate.split}` split of data version `{facts.data.manifest[:12]}`, "
        + ("which training did not see." if p.evaluate.split == "test" else "which also decided when to stop."),
        _metrics_table(facts.measured.metrics),
        "## Data and lineage",
        _lineage_table(facts),
        "## Training",
        _training(facts),
        "## Use",
        _use(facts),
        "## Limits",
        f"- {LIMITS[facts.kind]}\n- The metrics hold for data like that of the split they were measured on.\n"
        + ("- The probabilities are not calibrated." if facts.task == "classification" else ""),
        "## License",
        f"{p.package.license}" + (" (set `package.license`)" if p.package.license == "unknown" else ""),
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _what(facts: Facts) -> str:
    model = f"`{facts.params.model.name}` with {facts.parameters:,} parameters"
    lines = [f"- **What it does**: {WHAT[facts.task, facts.kind].lower()}", f"- **Model**: {model}"]
    lines.append(f"- **Input**: {_input(facts)}")
    if classes := facts.data.spec.get("classes"):
        shown = ", ".join(classes[:20]) + (f", … ({len(classes)} in all)" if len(classes) > 20 else "")
        lines.append(f"- **Classes**: {shown}")
    return "\n".join(lines)


def _input(facts: Facts) -> str:
    if facts.kind == "text":
        return f"text as UTF-8 bytes; the model sees the last {facts.data.seq_len} of them"
    shape = facts.data.spec["inputs"]["x"]["shape"]
    if facts.kind == "image":
        colours = "grey scale" if shape[2] == 1 else "colour"
        return f"an image file (PNG, JPEG, …), brought to {shape[0]} x {shape[1]} pixels, {colours}"
    if facts.kind == "table":
        names = facts.data.spec["features"]
        return f"{len(names)} numeric columns: {', '.join(names)}"
    return f"an array of shape {shape}"


def _metrics_table(metrics: Mapping[str, float]) -> str:
    """A row a metric, a column for the model, for each baseline (`baseline.bigram.loss` is bigram's) and for each
    domain (`domains.code.loss`)."""
    own = [name for name in metrics if "." not in name]
    others = [name.rpartition(".") for name in metrics if "." in name and name.rpartition(".")[2] in own]
    places = list(dict.fromkeys(place for place, _, _ in others))
    baselines = [place for place in places if not (place.startswith("domains.") and ".baseline." in place)]
    head = ["metric", "model", *(re.sub(r"^(baseline|domains)\.", "", baseline) for baseline in baselines)]
    rows = [
        [
            name,
            _figure(metrics[name]),
            *(_figure(metrics.get(f"{baseline}.{name}")) for baseline in baselines),
        ]
        for name in own
    ]
    return _table(head, rows)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else f"{value:,}"


def _lineage_table(facts: Facts) -> str:
    names = {
        "data.raw": "raw data", "data.curated": "curated data", "data.shards": "shards", "git.commit": "git commit",
        "git.dirty": "uncommitted changes", "dvc.lock": "dvc.lock", "dvc.experiment": "DVC experiment",
        "prefect.flow_run_id": "Prefect flow run",
    }  # fmt: skip
    rows = [[label, f"`{facts.lineage.tags[tag]}`"] for tag, label in names.items() if tag in facts.lineage.tags]
    sources = ", ".join(f"`{source}`" for source in facts.params.ingest.listed)
    counts = ", ".join(f"{name} {value:,}" for name, value in facts.data.counts.items() if isinstance(value, int))
    head = [["sources", sources], ["trained on", f"`{facts.data.manifest}`"], ["MLflow run", facts.lineage.run]]
    return _table(["", ""], [*head, *([["counts", counts]] if counts else []), *rows])


def _training(facts: Facts) -> str:
    p = facts.params
    sections = {"model.args": p.model.args, "train": p.train.model_dump(exclude_none=True)}
    stream = p.stream.model_dump(include={"batch_size", "seq_len"} if facts.kind == "text" else {"batch_size"})
    values = flat({"seed": p.seed, "stream": stream, **sections})
    rows = [[f"`{name}`", f"`{mask_value(name, str(value))}`"] for name, value in values.items()]
    results = ", ".join(f"{name} {_figure(value)}" for name, value in facts.measured.train_metrics.items())
    return _table(["parameter", "value"], rows) + (f"\n\nOutcome: {results}." if results else "")


def _use(facts: Facts) -> str:
    p = facts.params
    name = p.promote.model or p.recipe
    command = 'generate --prompt "…"' if facts.kind == "text" else "predict FILE…"
    return f"""From the registry, in the project: `shardline {command} --recipe {p.recipe}`.

As an MLflow model, in any environment with what `requirements.txt` lists:

```python
import pathlib

import mlflow
import pandas

model = mlflow.pyfunc.load_model("models:/{name}@champion")  # or the path of this folder
model.predict({_call(facts)})
```

As a server: `mlflow models serve -m FOLDER --env-manager local`; `serving_input_example.json` is a request to its
`/invocations`.

Its input example is answered so:

```
{facts.example.strip()}
```"""


def _call(facts: Facts) -> str:
    if facts.kind == "text":
        return 'pandas.DataFrame({"prompt": ["…"]}), params={"tokens": 100, "temperature": 0.8, "seed": 0}'
    if facts.kind == "image":
        return 'pandas.DataFrame({"image": [pathlib.Path("image.png").read_bytes()]})'
    return 'pandas.read_csv("rows.csv")' if facts.kind == "table" else "array"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def write_card(folder: Path, facts: Facts) -> Path:
    file = folder / "README.md"
    file.write_text(model_card(facts))
    return file
