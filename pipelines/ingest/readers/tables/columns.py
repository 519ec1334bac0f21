"""The columns of a table that become features and label: which they are, and what their cells hold."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute

from pipelines.ingest.curated import OWN
from pipelines.params import Curate, suggestion
from storage.errors import DataError
from storage.number_text import number_of

MOST = 16_384  # features
_LARGEST = 3.4028234e38  # of float32, in which features are stored
_WHOLE = re.compile(r"([+-]?[0-9]+)\.0*")
_TOLD = 20  # columns in a message
_SHOWN = 80  # characters of a cell
_LONGEST = 1000  # characters of a class: a Parquet file of 1 kB may name a text of 1 MB a million times


@dataclass(frozen=True)
class Columns:
    """What is read of a table: `features` are numbers; so is `label`, unless it names `classes`, where what is one of
    `nulls` is no label."""

    features: list[str]
    label: str
    classes: bool
    nulls: frozenset[str]

    @property
    def needed(self) -> list[str]:
        return [*self.features, self.label]

    @property
    def schema(self) -> pa.Schema:
        numbers = [pa.field(name, pa.float64()) for name in self.features]
        return pa.schema([*numbers, pa.field("label", pa.string() if self.classes else pa.float64())])


def chosen(file: str, header: Sequence[str], params: Curate) -> Columns:
    """What the parameters say of a file with such a header. Raises DataError, which names all that is wrong."""
    if params.label is None:
        raise DataError(f"curate.label is not set: which column of {file} is to be predicted? {_some(header)}")
    counts = Counter(header)
    features = params.features or [column for column in header if column != params.label]
    needed = list(dict.fromkeys((params.label, *features)))
    problems = [
        *_missing("curate.label", file, [params.label], header, counts),
        *_missing("curate.features", file, params.features or [], header, counts),
    ]
    if twice := sorted(column for column in needed if counts[column] > 1):
        problems.append(f"{file}: the header has {_some(twice)} twice. Give each column a name of its own.")
    if own := sorted({*OWN, "label"} & set(features)):
        problems.append(
            f"{file}: a feature is named {' or '.join(own)}, which the curated zone uses for its own columns. "
            "Leave it out with curate.features, or rename it."
        )
    if not features:
        problems.append(f"{file}: no column but the label {params.label!r}: there is nothing to learn from.")
    if len(features) > MOST:
        problems.append(
            f"{file}: {len(features):,} features, of which at most {MOST:,} are read. Name those to use in "
            "curate.features."
        )
    if problems:
        raise DataError("\n".join(problems))
    nulls = frozenset({"", *params.null_values})
    return Columns(features, params.label, params.target == "class", nulls)


def _missing(setting: str, file: str, columns: Sequence[str], header: Sequence[str], counts: Counter[str]) -> list[str]:
    missing = [column for column in columns if column not in counts]
    if not missing:
        return []

    named = " and no column ".join(repr(column) for column in missing[:_TOLD])
    near = suggestion(missing[0], header[:1000], [_some(header)]) if len(missing) == 1 else f". It has {_some(header)}."
    return [f"{setting}: {file} has no column {named}{near}"]


def _some(columns: Sequence[str]) -> str:
    more = f" and {len(columns) - _TOLD:,} more" if len(columns) > _TOLD else ""
    return ", ".join(columns[:_TOLD]) + more


def typed(columns: Columns, cells: Sequence[pa.Array]) -> tuple[pa.RecordBatch, dict[int, str]]:
    """Rows with `cells`, an array for each needed column, as `columns.schema` says; and row → why it is no good,
    in which case its cells hold anything."""
    reasons: dict[int, str] = {}
    arrays = list[pa.Array]()
    for name, array in zip(columns.needed, cells, strict=True):
        if columns.classes and len(arrays) == len(columns.features):
            arrays.append(_classes(name, array, columns.nulls, reasons))
            continue
        numbers = _numbers(array)
        arrays.append(numbers)
        for row in np.flatnonzero(~(np.abs(np.asarray(numbers)) <= _LARGEST)).tolist():  # NaN isn't, either
            if row not in reasons:
                reasons[row] = f"column {name!r}: {_shown(array[row])} is not a finite number"
    return pa.RecordBatch.from_arrays(arrays, schema=columns.schema), reasons


def _shown(cell: pa.Scalar) -> str:
    value = cell.as_py()
    if not isinstance(value, bytes | str):
        return repr(value)
    begin = value[:_SHOWN]
    text = repr(begin.decode(errors="replace") if isinstance(begin, bytes) else begin)
    return text if len(value) <= _SHOWN else f"{text}…"


def _numbers(array: pa.Array) -> pa.Array:
    """As float64; NaN where a cell is no number, without nulls."""
    if pa.types.is_dictionary(array.type):  # a long text may be named many times: it is never written out
        return _numbers(array.dictionary).take(array.indices).fill_null(np.nan)
    try:
        text = array.cast(pa.string()) if pa.types.is_binary(array.type) else array
        numbers = text.cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        numbers = pa.array([number_of(value) for value in array.to_pylist()], pa.float64())
    return numbers.fill_null(np.nan) if numbers.null_count else numbers


def _classes(name: str, array: pa.Array, nulls: frozenset[str], reasons: dict[int, str]) -> pa.Array:
    """Labels as strings; notes in `reasons` the rows without one."""
    encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    known = encoded.dictionary
    texts = known if pa.types.is_binary(known.type) else known.cast(pa.string())
    found = [_class(text, nulls) for text in texts.to_pylist()]
    classes = pa.array(found, pa.string()).take(encoded.indices)
    if classes.null_count:
        why = [None if text is not None else _why_none(cell) for text, cell in zip(found, known, strict=True)]
        for row in pyarrow.compute.indices_nonzero(classes.is_null()).to_pylist():
            if row not in reasons:
                place = encoded.indices[row].as_py()
                reasons[row] = f"column {name!r}: {'no label' if place is None else why[place]}"
    return classes


def _class(text: bytes | str | None, nulls: frozenset[str]) -> str | None:
    """The class that a text names: without white space around it, and whole numbers without .0, which programs add to
    all of a column where one is missing."""
    try:
        text = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError:
        return None
    if text is None or (text := text.strip()) in nulls or len(text) > _LONGEST or "\0" in text:
        return None
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def _why_none(cell: pa.Scalar) -> str:
    value = cell.as_py()
    try:
        text = value.decode() if isinstance(value, bytes) else str(value or "")
    except UnicodeDecodeError:
        return f"{_shown(cell)} is not UTF-8"
    if len(text) > _LONGEST:
        return f"{_shown(cell)}: {len(text):,} characters, which are no class"
    if "\0" in text:
        return f"{_shown(cell)} has a NUL byte: was the file written in part?"
    return f"{_shown(cell)} is no label (curate.null_values)" if text.strip() else "no label"
