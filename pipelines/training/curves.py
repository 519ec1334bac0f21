"""Curves that outlive an interruption: points by step, appended to a file as they come."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

from pipelines.training.state import Point
from storage.atomic import write_atomically

VAL = "val_"  # how the names of the val curve begin
#: Columns that dvc.yaml plots, so that they are there whatever a trainer logs.
TRAIN_COLUMNS, VAL_COLUMNS = ("step", "train_loss", "lr"), ("step", "val_loss")


class Curves:
    """A line of JSON a point. Points of one step are one; a point takes the place of those of later steps, which an
    interrupted run had come to."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.points: list[Point] = []
        self._torn = False
        for line in file.read_text().splitlines() if file.is_file() else []:
            try:
                self._take(json.loads(line))
            except ValueError:  # the last line of a killed process
                self._torn = True
                break

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Note `values` after `step` steps."""
        point = {"step": step} | {name: float(value) for name, value in values.items()}
        if self._torn:
            write_atomically(self.file, "".join(json.dumps(point) + "\n" for point in self.points).encode())
            self._torn = False
        self._take(point)
        with self.file.open("a") as file:
            file.write(json.dumps(point) + "\n")

    def _take(self, point: Point) -> None:
        while self.points and self.points[-1]["step"] > point["step"]:
            self.points.pop()
        if self.points and self.points[-1]["step"] == point["step"]:
            self.points[-1] = self.points[-1] | point
        else:
            self.points.append(point)

    def last(self) -> Point:
        """The latest value of each name, without the step."""
        values: Point = {}
        for point in self.points:
            values |= point
        values.pop("step", None)
        return values

    def csv(self, *, val: bool) -> bytes:
        """The val or the train curve."""
        rows = [
            {name: value for name, value in point.items() if name == "step" or name.startswith(VAL) == val}
            for point in self.points
        ]
        rows = [row for row in rows if len(row) > 1]
        names = dict.fromkeys([*(VAL_COLUMNS if val else TRAIN_COLUMNS), *(name for row in rows for name in row)])
        text = io.StringIO()
        writer = csv.DictWriter(text, list(names), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
