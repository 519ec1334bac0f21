"""`shardline predict`: what a registered model says of image files, or of the rows of CSV files."""

import csv
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipelines.console.formats import json_text
from pipelines.console.progress import track
from pipelines.models.predictor import BATCH, Predictor
from pipelines.release.registry import load_version, resolve_model
from storage.errors import DataError, SourceError

T = TypeVar("T")
Answer = dict[str, Any]  # {"label", "probability"} or {"value"}
TASKS = ("classification", "regression")


def print_predictions(
    recipe: str | None, files: Sequence[Path], alias: str, *, changed_code: bool = False, as_json: bool = False
) -> None:
    """Print a line for each image, or for each row of a CSV file: name, answer, probability, separated by tabs; or all
    of it as one JSON value, which takes memory for all of it.

    Raises SourceError for a missing file, DataError for one that cannot be read, ParamsError when there is no such
    model or version, or its own code has changed since (unless `changed_code`), TrackingError when MLflow cannot be
    reached.
    """
    for file in files:
        if not file.is_file():
            what = "is a folder; name the files in it" if file.is_dir() else "no such file"
            raise SourceError(f"{file}: {what}.")
    model = resolve_model(recipe, TASKS, inputs=_inputs(files))
    predictor, version = load_version(model, alias, changed_code=changed_code)
    print(f"{model.name} version {version.version}", file=sys.stderr)
    if as_json:
        rows = [{"name": name} | answer for name, answer in predictions(predictor, files)]
        print(json_text({"model": model.name, "version": int(version.version), "predictions": rows}))
        return
    for name, answer in predictions(predictor, files):
        print(name, *_texts(answer), sep="\t", flush=True)  # data, as it is


def _inputs(files: Sequence[Path]) -> str:
    """The kind of model that the files are for, by the first one's suffix."""
    return "table" if files[0].suffix.lower() in (".csv", ".tsv") else "image"


def predictions(predictor: Predictor, files: Sequence[Path]) -> Iterator[tuple[str, Answer]]:
    """(file, or file:line of a table; what the model says) one by one, in bounded memory."""
    if predictor.kind == "table":
        for file in files:
            yield from _of_table(predictor, file)
    elif predictor.kind == "image":
        for part in batches(track(files, "predict", len(files), "files"), BATCH):
            images = [predictor.pixels(file.read_bytes(), str(file)) for file in part]
            yield from zip(map(str, part), _each(predictor.answer(np.stack(images))), strict=True)
    else:
        raise DataError(f"A model for {predictor.kind} inputs takes no files; use it from Python (see its model card).")


def _of_table(predictor: Predictor, file: Path) -> Iterator[tuple[str, Answer]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            # strict: a quote without a partner is refused, where it would swallow the rows up to the next one
            reader = csv.reader(text, delimiter="\t" if file.suffix.lower() == ".tsv" else ",", strict=True)
            head, features = next(reader, []), set(predictor.config.spec["features"])
            if twice := sorted(name for name, count in Counter(head).items() if count > 1 and name in features):
                raise DataError(f"{file}: the header has {', '.join(twice)} twice. Give each column a name of its own.")
            if unused := [name for name in head if name not in features]:
                more = f" and {len(unused) - 10} more" if len(unused) > 10 else ""
                print(f"{file}: columns that the model does not take: {', '.join(unused[:10])}{more}", file=sys.stderr)
            for part in batches(_rows(reader, head, file), 1000):
                columns = dict(zip(head, zip(*(row for _, row in part), strict=True), strict=True))
                answers = predictor.answer(predictor.rows(columns, f"{file} from line {part[0][0]}"))
                names = (f"{file}:{line}" for line, _ in part)
                yield from zip(names, _each(answers), strict=True)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{file}: not a CSV file in UTF-8 ({error}). Is a quote missing, or one within a field not doubled?"
        ) from error


def _rows(reader: Any, head: list[str], file: Path) -> Iterator[tuple[int, list[str]]]:
    """(the line on which it begins, fields) of each row that isn't blank."""
    line = reader.line_num + 1
    for row in reader:
        if row and len(row) != len(head):
            raise DataError(f"{file}:{line}: {len(row)} fields where the header has {len(head)}.")
        if row:
            yield line, row
        line = reader.line_num + 1


def _each(answers: dict[str, list[Any]]) -> list[Answer]:
    """Of each answer label and probability, or the value."""
    if "value" in answers:
        return [{"value": value} for value in answers["value"]]
    pairs = zip(answers["label"], answers["probability"], strict=True)
    return [{"label": label, "probability": probability} for label, probability in pairs]


def _texts(answer: Answer) -> list[str]:
    """As it is printed."""
    return [f"{answer['value']:.6g}"] if "value" in answer else [answer["label"], f"{answer['probability']:.4f}"]


def batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    while part := list(islice(items, size)):
        yield part
