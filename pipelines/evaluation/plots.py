"""Figures that are the same bytes for the same numbers: no clock, no version, no screen."""

import io
from typing import TYPE_CHECKING, Any

from pipelines.evaluation.baselines import Counts

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def bars(rows: list[dict[str, Any]], name: str, value: str, title: str) -> "Figure":
    """A horizontal bar for each row, the first on top and highlighted."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.6 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    colours = ["#1f77b4"] + ["#b0b0b0"] * (len(rows) - 1)
    drawn = axes.barh([row[name] for row in rows], [row[value] for row in rows], color=colours)
    axes.bar_label(drawn, fmt="%.3f", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def matrix(confusion: Counts, classes: list[str]) -> "Figure":
    """A confusion matrix, shaded by the share of each row; counts are written in while they can be read."""
    from matplotlib.figure import Figure

    size = min(12.0, 2.5 + 0.45 * len(classes))
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    share = confusion / confusion.sum(1, keepdims=True).clip(1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual")
    if len(classes) <= 30:
        axes.set_xticks(range(len(classes)), classes, rotation=90 if max(map(len, classes)) > 3 else 0)
        axes.set_yticks(range(len(classes)), classes)
        for row, column in zip(*confusion.nonzero(), strict=True):
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", color=colour, fontsize=9)
    return figure


def scatter(points: list[dict[str, float]]) -> "Figure":
    """Predicted against actual values."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    actual = [point["actual"] for point in points]
    axes.scatter(actual, [point["predicted"] for point in points], s=8, alpha=0.6)
    axes.axline((actual[0], actual[0]), slope=1, color="#b0b0b0", linewidth=1)
    axes.set_xlabel("actual")
    axes.set_ylabel("predicted")
    return figure


def png(figure: "Figure") -> bytes:
    """The picture, without matplotlib's name and version."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100, metadata={"Software": None})
    return drawn.getvalue()
