"""The table and the plot of a comparison."""

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.console.tables import print_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, str]  # column → text; every row of a table has the same columns


@dataclass(frozen=True)
class Line:
    """Of a plot: a contender's loss at some steps, and what it had cost by then."""

    name: str
    steps: list[float]
    costs: list[float]
    losses: list[float]


@dataclass(frozen=True)
class Picture:
    """Lines over steps, and over `cost`, which says its unit; `loss` says which one it is."""

    lines: list[Line]
    cost: str
    loss: str


def metric_cells(metrics: dict[str, float], names: list[str]) -> Row:
    """Columns for `names`; a contender that failed has no values."""
    return {name.replace("_", " "): f"{metrics[name]:.4f}" if metrics else "–" for name in names}


def show(rows: list[Row]) -> None:
    """For people."""
    columns = list(rows[0])
    print_table(columns, [list(row.values()) for row in rows], right=columns[1:-1])


def markdown(rows: list[Row]) -> str:
    """For a page."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write_csv(rows: list[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def draw(picture: Picture) -> "Figure":
    """The loss over steps, and over what was paid for it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    over_steps, over_costs = figure.subplots(1, 2, sharey=True)
    for line in sorted(picture.lines, key=lambda line: line.name):
        over_steps.plot(line.steps, line.losses, linewidth=1.3, label=line.name)
        over_costs.plot(line.costs, line.losses, linewidth=1.3, label=line.name)
    over_steps.set(xlabel="step", ylabel=picture.loss, yscale="log")
    over_costs.set(xlabel=picture.cost, xscale="log")
    for axes in (over_steps, over_costs):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    over_steps.legend(fontsize=8, ncols=2)
    return figure
