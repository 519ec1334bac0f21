"""CSV and TSV: a row a record, below a header.

Arrow reads a block of whole records at once, and of it only the columns that are needed. Where that finds anything
wrong, the block is read again record by record, so that each is kept or set aside for itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.csv

from pipelines.ingest.quarantine import Aside, uncountable
from pipelines.ingest.readers import row_digests
from pipelines.ingest.readers.columns import Columns, chosen, typed
from pipelines.ingest.readers.formats import foreign
from pipelines.ingest.readers.lines import BOM, breaks, count_lines, next_line
from pipelines.ingest.readers.records import BLOCK, LARGEST, Grammar, Records, records, text_of
from pipelines.ingest.readers.table import Table
from pipelines.ingest.rows import Rows
from pipelines.params import Curate

_RAGGED = 1000  # fields more than twice those of the header: a record with so many is not told by their number
_WIDE = 32  # rows at least of a block, as long as the header

Wrong = dict[int, tuple[str, int]]  # row → reason, how many lines it takes up


def read_csv(name: str, data: bytes, params: Curate, block: int = BLOCK) -> Rows:
    """Records as `records.py` defines them, comma- (or, in .tsv, tab-) separated. A record is named by the line on
    which it begins; one that is set aside counts the lines that it takes up: a lost quote may have joined rows."""
    aside = Aside(params.max_quarantined)
    grammar = Grammar("\t" if name.lower().endswith(".tsv") else ",")
    if found := foreign(data):
        reason, lines = found
        if lines is None:
            raise uncountable(name, reason)
        aside.add(name, reason, lines)
        return _nothing(aside)
    try:
        header, start, line = _header(data, grammar)
    except ValueError as error:
        aside.add(name, str(error), max(count_lines(data) - 1, 1))
        return _nothing(aside)
    form = _Form.of(grammar.delimiter, header, chosen(name, header, params))
    table = Table(name, form.columns, aside)
    size = max(block, min(_WIDE * start, LARGEST))
    for part in records(data, start, line, form.grammar, lambda at, why: aside.add(f"{name}:{at}", why), size):
        batch, wrong = _at_once(part, form) or _one_by_one(part, form)
        digests = row_digests.of_spans(part.data, part.starts, part.ends) if params.deduplicate else None
        if digests is not None and params.features:  # else all columns are features, which are compared by name
            digests = row_digests.below(header, digests)
        table.add(batch, part.lines, wrong, digests)
    return table.rows(params.deduplicate)


def _nothing(aside: Aside) -> Rows:
    return Rows([], pa.table({}), aside.entries)


def _header(data: bytes, grammar: Grammar) -> tuple[list[str], int, int]:
    """The names of the columns, where the next line begins and which it is. Raises ValueError."""
    start, line = len(BOM) if data.startswith(BOM) else 0, 1
    while start < len(data) and data[start] in b"\r\n":
        start, line = next_line(data, start)[1], line + 1
    match = grammar.record.match(data, start, start + LARGEST)
    end = match.end() if match else start
    if end == start and end == len(data):
        raise ValueError("empty: without a header")
    if match is None or (end < len(data) and data[end] not in b"\r\n"):
        raise ValueError("the header is damaged: a quoted field does not end")
    if b"\0" in match[0]:
        raise ValueError("binary: a zero byte in the header")
    try:
        names = [text_of(field).decode() for field in grammar.fields(match[0])]
    except UnicodeDecodeError as error:
        raise ValueError(f"the header is not UTF-8 ({error.reason}): convert the file to UTF-8") from error
    return names, next_line(data, end)[1], line + breaks(match[0]) + 1


@dataclass(frozen=True)
class _Form:
    """How the records of a file are read: which of their fields, and Arrow's options for that."""

    grammar: Grammar
    columns: Columns
    width: int
    at: list[int]
    read: pyarrow.csv.ReadOptions
    parse: pyarrow.csv.ParseOptions
    convert: pyarrow.csv.ConvertOptions

    @classmethod
    def of(cls, delimiter: str, header: Sequence[str], columns: Columns) -> "_Form":
        places = {name: place for place, name in enumerate(header)}
        at = [places[name] for name in columns.needed]
        names = [str(place) for place in range(len(header))]  # the header's need not differ
        kinds = [pa.float64()] * len(columns.features)
        kinds.append(pa.dictionary(pa.int32(), pa.string()) if columns.classes else pa.float64())
        return cls(
            Grammar(delimiter, 2 * len(header) + _RAGGED),
            columns,
            len(header),
            at,
            pyarrow.csv.ReadOptions(use_threads=False, column_names=names, block_size=(1 << 31) - 1),
            pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            pyarrow.csv.ConvertOptions(
                column_types={str(place): kind for place, kind in zip(at, kinds, strict=True)},
                include_columns=[str(place) for place in at],
                null_values=[""],
                strings_can_be_null=False,
            ),
        )


def _at_once(part: Records, form: _Form) -> tuple[pa.RecordBatch, Wrong] | None:
    """The rows of records that are all good; None where one isn't."""
    first, last = int(part.starts[0]) - 1, int(part.ends[-1])
    # From the line end before them on: Arrow would take bytes that look like a byte order mark away from the first.
    buffer = pa.py_buffer(part.data).slice(first, last - first)
    try:
        table = pyarrow.csv.read_csv(pa.BufferReader(buffer), form.read, form.parse, form.convert)
    except pa.ArrowInvalid:
        return None
    if len(table) != len(part.starts):
        return None
    batch, reasons = typed(form.columns, [column.combine_chunks() for column in table.columns])
    return None if reasons else (batch, {})


def _one_by_one(part: Records, form: _Form) -> tuple[pa.RecordBatch, Wrong]:
    wrong: Wrong = {}
    cells: list[list[bytes | None]] = [[] for _ in form.at]
    for row, (start, end) in enumerate(zip(part.starts.tolist(), part.ends.tolist(), strict=True)):
        fields = form.grammar.fields(part.data[start:end])
        if len(fields) != form.width:
            wrong[row] = _ragged(len(fields), form.width, int(part.spans[row]))
        for column, place in zip(cells, form.at, strict=True):
            column.append(None if row in wrong else text_of(fields[place]))
    batch, reasons = typed(form.columns, [pa.array(column, pa.binary()) for column in cells])
    for row, reason in reasons.items():
        wrong.setdefault(row, (reason, int(part.spans[row])))
    return batch, wrong


def _ragged(fields: int, width: int, span: int) -> tuple[str, int]:
    reason = f"{fields} fields where the header has {width}"
    return (reason if span == 1 else f"{reason}, on {span} lines: is a quote missing?"), span
