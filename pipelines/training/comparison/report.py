"""The table and the plot of a comparison."""

import csv
import io
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipelines.training.comparison.optimizers import Entry


def _rows(entries: list["Entry"]) -> list[dict[str, str]]:
    names = list(next((entry.metrics for entry in entries if entry.metrics), {}))
    rows = []
    for entry in entries:
        row = {"optimizer": entry.name, "lr": f"{entry.lr:g}", "weight decay": f"{entry.weight_decay:g}"}
        row |= {"train loss": f"{entry.train_loss:.4f}"}
        row |= {name.replace("_", " "): f"{entry.metrics[name]:.4f}" if entry.metrics else "–" for name in names}
        row |= {"passes": str(entry.passes), "seconds": f"{entry.seconds:.1f}"}
        rows.append(row | {"reason of the rate": entry.failed or entry.why})
    return rows


def show(entries: list["Entry"]) -> None:
    """For people."""
    from rich.console import Console
    from rich.table import Table

    rows = _rows(entries)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in rows[0]:
        table.add_column(column, justify="left" if column in ("optimizer", "reason of the rate") else "right")
    for row in rows:
        table.add_row(*row.values())
    Console(width=None if sys.stdout.isatty() else 200, markup=False).print(table)


def markdown(entries: list["Entry"]) -> str:
    """For a page."""
    rows = _rows(entries)
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write_csv(entries: list["Entry"]) -> bytes:
    text = io.StringIO()
    rows = _rows(entries)
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def draw(entries: list["Entry"]) -> "Figure":
    """The train loss over steps, and over passes over a batch, of which a line search takes several a step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    over_steps, over_passes = figure.subplots(1, 2, sharey=True)
    for entry in sorted(entries, key=lambda entry: entry.name):
        steps = [point["step"] for point in entry.curve]
        loss = [point["train_loss"] for point in entry.curve]
        ratio = entry.passes / steps[-1] if steps else 1.0
        over_steps.plot(steps, loss, linewidth=1.3, label=entry.name)
        over_passes.plot([step * ratio for step in steps], loss, linewidth=1.3, label=entry.name)
    over_steps.set(xlabel="step", ylabel="train loss", yscale="log")
    over_passes.set(xlabel="passes over a batch", xscale="log")
    for axes in (over_steps, over_passes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    over_steps.legend(fontsize=8, ncols=2)
    return figure
