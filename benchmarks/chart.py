"""Plots of results, drawn from their JSON objects alone."""

from pathlib import Path
from typing import Any

OURS, PEER, LIMIT = "#1b6ca8", "#b8b8b8", "#e0a030"


def draw(result: dict[str, Any], file: Path) -> None:
    """Write `file` (PNG): lines where the result has `plot`, else a bar for each contender."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), dpi=130, layout="constrained")
    axes = figure.subplots()
    if "plot" in result:
        _lines(axes, result["plot"])
    else:
        _bars(axes, result)
    axes.spines[["top", "right"]].set_visible(False)
    machine = result["machine"]
    axes.set_title(
        f"{result['name']}    {machine['processor']}, {machine['cores']} cores, {result['date']}",
        fontsize=8,
        loc="left",
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Software": None})


def _bars(axes: Any, result: dict[str, Any]) -> None:
    """Horizontal bars, the fastest on top, on a logarithmic scale with the values written out."""
    values = {**result["peers"], "Shardline": result["ours"]}
    if result["limit"] is not None:
        values["limit"] = result["limit"]
    ordered = sorted((value, name) for name, value in values.items())
    colours = [{"Shardline": OURS, "limit": LIMIT}.get(name, PEER) for _, name in ordered]
    bars = axes.barh([name for _, name in ordered], [value for value, _ in ordered], color=colours)
    axes.bar_label(bars, [f" {value:,.0f}" if value >= 100 else f" {value:,.2f}" for value, _ in ordered], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel(f"{result['unit']} (logarithmic)", fontsize=8)
    axes.margins(x=0.12)


def _lines(axes: Any, plot: dict[str, Any]) -> None:
    """`plot` has `x` and `y`, the axes' names, and `lines`: name → [[x, y], …]; `log` names logarithmic axes."""
    for name, points in plot["lines"].items():
        style = {"linestyle": "--"} if name.startswith("ideal") else {"marker": "o", "markersize": 4}
        axes.plot(*zip(*points, strict=True), label=name, **style)
    for axis in plot.get("log", ""):
        getattr(axes, f"set_{axis}scale")("log", base=2)
    axes.set_xlabel(plot["x"], fontsize=8)
    axes.set_ylabel(plot["y"], fontsize=8)
    axes.legend(fontsize=7, frameon=False)
