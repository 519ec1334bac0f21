"""DVC's tables and plots, kept to one recipe: DVC itself shows those of every recipe of the project at once, and draws
in a page that needs the network."""

import base64
import html
import io
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from pipelines.console.progress import say
from pipelines.params import FILENAME
from pipelines.reproduce.dvc_process import Dvc, pipeline
from pipelines.workspace import Workspace
from storage.atomic import write_atomically
from storage.errors import DataError

_LOOKS = {("metrics", "show"), ("metrics", "diff"), ("params", "diff"), ("plots", "show"), ("plots", "diff")}
CURVES = ("plots/train.csv", "plots/val.csv")
_INFERRED = "dvc_inferred_y_value"  # the column in which DVC puts a plot's several y together
_SERIES = "filename::field"  # and what a row of it is of


def is_look(arguments: list[str]) -> bool:
    """Whether a DVC command only shows something: it need not wait for anybody."""
    words = [word for word in arguments if not word.startswith("-")][:2]
    return not words or tuple(words) in _LOOKS


def look(ws: Workspace, arguments: list[str]) -> int:
    """Run a DVC command that shows something, of this recipe alone unless it names others. Returns its exit code."""
    with Dvc(ws, "shardline") as dvc:
        return dvc.run(*arguments, *_targets(ws, arguments))


def _targets(ws: Workspace, arguments: list[str]) -> list[str]:
    """This recipe's files, for a command that shows something and names no files."""
    words = [word for word in arguments if not word.startswith("-")]
    if len(words) < 2 or "--targets" in arguments or any((ws.root / word).exists() for word in words[2:]):
        return []
    found = [path for stage in pipeline(ws).values() for path in _paths(stage.get(words[0], []))]
    found = [path for path in found if (ws.root / path).exists()]
    if words[0] == "params":
        found = [str(ws.root / FILENAME)]  # a relative one DVC looks for in the project's folder
    return found if words[1] == "show" else ["--targets", *found]


def _is_own(ws: Workspace, path: str) -> bool:
    """Whether a path, from the recipe's folder, is the recipe's: others lie above it or in the project's recipes/."""
    return not path.startswith("../") and not (ws.root == ws.project and path.startswith("recipes/"))


def _paths(entries: list[Any]) -> list[str]:
    return [entry if isinstance(entry, str) else str(next(iter(entry))) for entry in entries]


def draw(ws: Workspace, revisions: list[str], out: Path) -> Path:
    """The recipe's plots, of the files that are here or of git `revisions` side by side, in one page that needs no
    network. Returns its file. Raises DataError where nothing has been plotted yet."""
    answer = _answer(ws, *(["plots", "diff", "--json", *revisions] if revisions else ["plots", "show", "--json"]))
    named = {name: some for name, some in sorted(answer["data"].items()) if _is_own(ws, name)}
    if any("::" in name for name in named):  # dvc.yaml says how the curves are drawn; DVC adds each file by itself
        named = {name: some for name, some in named.items() if name not in CURVES}
    figures = [_figure(name.rpartition("::")[2], one) for name, some in named.items() for one in some]
    parts = [figure for figure in figures if figure]
    if not parts:
        raise DataError(f"{ws.root}: nothing has been plotted yet. Train first: `shardline repro`.")
    title = html.escape(f"{ws.params.recipe} {' '.join(revisions)}".strip())
    page = f"<!DOCTYPE html><meta charset='utf-8'><title>{title}</title><h1>{title}</h1>\n" + "\n".join(parts)
    file = write_atomically(out / "index.html", page.encode())
    say(f"{len(parts)} plots in {file}")
    return file


def experiments(ws: Workspace) -> list[dict[str, str]]:
    """What `dvc exp show` knows of this recipe's parameters and metrics: a row for the workspace, HEAD and each
    experiment, with the metric of the gate and the parameters that are not the same in all."""
    states: list[tuple[str, dict[str, Any]]] = []
    for commit in _answer(ws, "exp", "show", "--json"):
        name = commit["rev"] if commit["rev"] == "workspace" else commit["name"] or commit["rev"][:7]
        states.append((name, commit["data"] or {}))
        for one in commit["experiments"] or []:
            states.append((f"  {one['name']}", (one["revs"] or [{}])[0].get("data") or {}))
    metric = ws.params.promote.gate.metric
    params = [_flat(_values(ws, data, "params")) for _, data in states]
    varied = [
        key for key in dict.fromkeys(key for one in params for key in one) if len({str(p.get(key)) for p in params}) > 1
    ]
    return [
        {"experiment": name, metric: str(_flat(_values(ws, data, "metrics")).get(metric, "–"))}
        | {key: str(values.get(key, "–")) for key in varied}
        for (name, data), values in zip(states, params, strict=True)
    ]


def _answer(ws: Workspace, *arguments: str) -> Any:
    with Dvc(ws, "shardline") as dvc:
        return json.loads(dvc(*arguments).splitlines()[-1])


def _values(ws: Workspace, data: dict[str, Any], section: str) -> dict[str, Any]:
    """The values of this recipe's files of a section, together. Here DVC gives paths from the project's folder."""
    found = {os.path.relpath(ws.project / path, ws.root): about for path, about in (data.get(section) or {}).items()}
    files = [about.get("data") or {} for path, about in found.items() if _is_own(ws, path)]
    return {name: value for values in files for name, value in values.items()}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _figure(name: str, one: dict[str, Any]) -> str:
    """A plot as a part of a page: a picture as it is, a table of numbers as lines over its first column."""
    if one["type"] == "image":
        data, kind = base64.b64encode(Path(one["url"]).read_bytes()).decode(), Path(one["url"]).suffix[1:]
        picture = f"<img src='data:image/{kind};base64,{data}'>"
    else:
        picture = _lines(one["content"]["data"]["values"], *(_field(one["content"], axis) for axis in "xy"))
    revisions = ", ".join(one.get("revisions", []))
    return f"<h2>{html.escape(name)}</h2><p>{html.escape(revisions)}</p>{picture}" if picture else ""


def _field(chart: Any, axis: str) -> str:
    """The column that a Vega-Lite chart, or one of its layers, puts on an axis."""
    field = chart.get("encoding", {}).get(axis, {}).get("field")
    return str(field) if field else next(filter(None, (_field(layer, axis) for layer in chart.get("layer", []))), "")


def _lines(rows: list[dict[str, Any]], x: str, y: str) -> str:
    """Columns x and y of DVC's rows as SVG; empty where they aren't numbers."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        try:
            lines[f"{row.get('rev', '')} {row.get(_SERIES, '')}".strip()].append((float(row[x]), float(row[y])))
        except (KeyError, TypeError, ValueError):
            continue
    if not lines:
        return ""
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for label, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), label=label)
    axes.set_xlabel(x)
    axes.set_ylabel("" if y == _INFERRED else y)
    if any(label and not label.startswith("_") for label in lines):
        axes.legend()
    text = io.StringIO()
    figure.savefig(text, format="svg")
    pyplot.close(figure)
    return text.getvalue().split("?>", 1)[-1].split('dtd">', 1)[-1]
