"""A picture of every schedule with a recipe's settings. Nothing is trained."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.console.progress import say
from pipelines.evaluation.plots import png
from pipelines.params import Train
from pipelines.params.schema.choice import choices
from pipelines.training.optimizers.schedules import learning_rate
from pipelines.workspace import Workspace
from storage.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = 400  # of the picture, where the recipe counts in epochs
NAMES = list(choices(Train.model_fields["schedule"].annotation))


def compare_schedules(ws: Workspace, out: Path | None = None) -> Path:
    """Draw them into `out`/schedules.png (None: the recipe's state folder), which is returned."""

    file = (out or ws.state / "compare") / "schedules.png"
    write_atomically(file, png(draw_schedules(ws.params.train)))
    say(f"plot: {file}")
    return file


def draw_schedules(train: Train) -> "Figure":
    """Learning rate over steps; where the recipe has chosen one of them, with its parameters."""
    from matplotlib.figure import Figure

    steps = train.steps or STEPS
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for name in NAMES:
        chosen = train.schedule if train.schedule.name == name else name
        one = Train.model_validate(train.model_dump() | {"schedule": chosen})
        axes.plot(range(1, steps + 1), [learning_rate(step, steps, one) for step in range(steps)], label=name)
    axes.set(xlabel="step", ylabel="learning rate")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9)
    return figure
