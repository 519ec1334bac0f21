"""CSV and TSV: a row a record, below a header.

Arrow reads a block of whole records at once, and of it only the columns that are needed. Where that finds anything
wrong, the block is read again record by record, so that each is kept or set aside for itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.csv

from pipelines.ingest.quarantine import Aside
from pipelines.ingest.readers import row_digests
from pipelines.ingest.readers.formats import is_text
from pipelines.ingest.readers.lines import breaks, next_line
from pipelines.ingest.readers.lookahead import AHEAD, Lookahead, skip_mark
from pipelines.ingest.readers.tables.columns import Columns, chosen, typed
from pipelines.ingest.readers.tables.records import BLOCK, LARGEST, Grammar, Records, records, text_of
from pipelines.ingest.readers.tables.table import rows_of_batch
from pipelines.ingest.rows import Rows
from pipelines.params import Curate

_RAGGED = 1000  # fields more than twice those of the header: a record with so many is not told by their number
_WIDE = 32  # rows at least of a block, as long as the header

Wrong = dict[int, tuple[str, int]]  # row → reason, how many lines it takes up


def read_csv(name: str, file: BinaryIO, params: Curate, block: int | None = None) -> Iterator[Rows]:
    """Records as `records.py` defines them, comma- (or, in .tsv, tab-) separated. A record is named by the line on
    which it begins; one that is set aside counts the lines that it takes up: a lost quote may have joined rows.

    A piece has the records of about `block` bytes; None: 1 MiB, or some rows as long as the header where that is more.
    """
    aside, lookahead = Aside(params.max_quarantined), Lookahead(file, block or AHEAD)
    grammar = Grammar("\t" if name.lower().endswith(".tsv") else ",")
    if not is_text(name, lookahead, aside):
        yield Rows.none(aside)
        return
    line = _first_line(lookahead)
    try:
        header, lines = _header(lookahead, grammar)
    except ValueError as error:
        aside.add(name, str(error), max(line - 1 + lookahead.count_lines() - 1, 1))
        yield Rows.none(aside)
        return
    form = _Form.of(grammar.delimiter, header, chosen(name, header, params))
    size = block or max(BLOCK, min(_WIDE * lookahead.place, LARGEST))
    for part in records(lookahead, line + lines, form.grammar, lambda at, why: aside.add(f"{name}:{at}", why), size):
        batch, wrong = _at_once(part, form) or _one_by_one(part, form)
        digests = row_digests.of_spans(part.data, part.starts, part.ends) if params.deduplicate else None
        if digests is not None and params.features:  # else all columns are features, which are compared by name
            digests = row_digests.below(header, digests)
        yield rows_of_batch(name, batch, part.lines, wrong, digests, aside)
    yield Rows.none(aside)


def _first_line(lookahead: Lookahead) -> int:
    """The first line that isn't blank, to which `lookahead` goes."""
    skip_mark(lookahead)
    line = 1
    while lookahead.more() and lookahead.data[lookahead.start] in b"\r\n":
        lookahead.need(2)
        lookahead.start, line = next_line(lookahead.data, lookahead.start)[1], line + 1
    return line


def _header(lookahead: Lookahead, grammar: Grammar) -> tuple[list[str], int]:
    """The names of the columns, and how many lines they take up, after which `lookahead` stands. Raises ValueError;
    then it stands before them."""
    lookahead.need(LARGEST + 2)
    data, start = lookahead.data, lookahead.start
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
    lookahead.start = next_line(data, end)[1]
    return names, breaks(match[0]) + 1


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
