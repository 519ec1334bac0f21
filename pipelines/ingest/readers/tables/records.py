"""A delimited file → its records, by the rules of RFC 4180, and the lines that belong to none.

A field that begins with a quote ends at the next quote that isn't doubled, after which comes a delimiter, a line end or
the end of the file; delimiters and line ends within it are part of it. Everywhere else a quote is a character like
others. A line on which a quoted field begins that doesn't end like this is damaged: it alone is set aside, and the next
line begins a record. No record is larger than LARGEST bytes.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from pipelines.ingest.readers.lines import Ints, breaks, line_ends, next_line, whole_crlf
from pipelines.ingest.readers.lookahead import Lookahead

BLOCK = 1 << 20
MOST = 65_536  # records of a block
LARGEST = 16 << 20

Damaged = Callable[[int, str], None]  # line, reason


@dataclass(frozen=True)
class Records:
    """Records, none of them blank, in `data`, which has a line end before each: record i is data[starts[i]:ends[i]],
    begins on line lines[i], counted from 1, and takes up spans[i] lines; int64 [records] each."""

    data: bytes
    starts: Ints
    ends: Ints
    lines: Ints
    spans: Ints


class Grammar:
    """What a record and its fields are, with `delimiter` between fields. A record that is looked for one by one has at
    most `most` fields: else each line of a hostile file might cost the reading of all that follow. None has more than
    `largest` bytes (None: LARGEST)."""

    def __init__(self, delimiter: str, most: int = 1 << 20, largest: int | None = None) -> None:
        self.delimiter, self.most, self.largest = delimiter, most, largest or LARGEST
        end = rb"[%s\r\n]" % delimiter.encode()
        field = rb'(?:"[^"]*+(?:""[^"]*+)*+"(?=%s|\Z)|(?!")[^%s*+)' % (end, end[1:])
        self.record = re.compile(rb"%s(?:%s%s){0,%d}+" % (field, delimiter.encode(), field, most - 1))
        self._more = re.compile(rb"%s%s" % (delimiter.encode(), field))
        self._fields = re.compile(rb"(?:\A|%s)(%s)" % (delimiter.encode(), field))
        self.beside_quotes = np.zeros(256, bool)
        self.beside_quotes[[ord(delimiter), *b'\r\n"']] = True

    def fault(self, data: bytes, end: int, limit: int) -> str:
        """Why no record ends at `end`, up to which it could be read, `limit` being the largest that it may be."""
        if self._more.match(data, end, limit):
            return f"more than {self.most:,} fields"
        return "a quoted field does not end: a quote is missing, or one within it is not doubled"

    def fields(self, record: bytes) -> list[bytes]:
        """The fields as they are written."""
        return self._fields.findall(record)


def text_of(field: bytes) -> bytes:
    """What a field says: without the quotes around it, and doubled ones within it once."""
    return field[1:-1].replace(b'""', b'"') if field.startswith(b'"') else field


def records(
    lookahead: Lookahead, line: int, grammar: Grammar, damaged: Damaged, block: int = BLOCK
) -> Iterator[Records]:
    """All records of what is left in `lookahead`, where `line` begins, about `block` bytes at a time. There must be a
    byte before them. It never holds much more than a block and the largest record."""
    while lookahead.more():
        found = _at_once(lookahead, line, grammar, block) or _one_by_one(lookahead, line, grammar, damaged, block)
        part, line = found
        if len(part.starts):
            yield part


def _at_once(lookahead: Lookahead, line: int, grammar: Grammar, size: int) -> tuple[Records, int] | None:
    """The records of a block, and on which line the next one starts. None where a quote out of place, or a record of
    more than the largest, comes first."""
    while True:
        lookahead.need(size + 2)  # so that `stop` is the end of the data at the end of the file alone
        data, start = lookahead.data, lookahead.start
        stop = whole_crlf(data, start + size)
        at, after = line_ends(data, start, stop)
        outside, in_place = _outside(data, start, stop, at, grammar)
        outside = outside[:MOST]
        if len(outside):
            break
        if stop == len(data) or not in_place or size >= grammar.largest:
            return None
        size = min(4 * size, grammar.largest)
    ends, nexts = at[outside], after[outside]
    starts = np.concatenate([[start], nexts[:-1]])
    spans = np.diff(outside, prepend=-1)
    lines = line + np.concatenate([[0], outside[:-1] + 1])
    filled = ends > starts
    part = Records(data, starts[filled], ends[filled], lines[filled], spans[filled])
    lookahead.start = int(nexts[-1])
    return part, line + int(outside[-1]) + 1


def _outside(data: bytes, start: int, stop: int, at: Ints, grammar: Grammar) -> tuple[Ints, bool]:
    """Which of the line ends `at` are outside quotes and before the first quote that is out of place, and whether none
    is."""
    if data.find(b'"', start, stop) < 0:
        return np.arange(len(at)), True
    text = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(text[start:stop] == ord('"')) + start
    begin, end = quotes[0::2], quotes[1::2]
    misplaced = [
        begin[~grammar.beside_quotes[text[begin - 1]]],
        end[~grammar.beside_quotes[text[np.minimum(end + 1, len(data) - 1)]]],
    ]
    first = min((int(places[0]) for places in misplaced if len(places)), default=stop + 1)
    outside = (np.searchsorted(quotes, at) % 2 == 0) & (at < first)
    return np.flatnonzero(outside), first > stop


def _one_by_one(lookahead: Lookahead, line: int, grammar: Grammar, damaged: Damaged, size: int) -> tuple[Records, int]:
    """As `_at_once`, whatever comes."""
    parts, lines, spans = list[bytes](), list[int](), list[int]()
    lookahead.need(size + grammar.largest + 2)
    data, start = lookahead.data, lookahead.start
    stop = min(start + size, len(data))
    while start < stop:
        limit = min(start + grammar.largest, len(data))
        match = grammar.record.match(data, start, limit)
        end = match.end() if match else start
        if match and (end == len(data) or data[end] in b"\r\n"):
            after, span = next_line(data, end)[1], 1 + breaks(match[0])
            if end > start:
                parts.append(match[0])
                lines.append(line)
                spans.append(span)
        else:
            span, after = 1, next_line(data, start)[1]
            damaged(line, grammar.fault(data, end, limit))
        lookahead.start, start, line = start, after, line + span
    if start == len(data) and not lookahead.ended:
        lookahead.skip_line()  # a damaged one, which may go on
    else:
        lookahead.start = start
    sizes = np.array([len(part) for part in parts], np.int64)
    ends = np.cumsum(sizes + 1)
    joined = b"\n" + b"\n".join(parts)
    return Records(joined, ends - sizes, ends, np.array(lines, np.int64), np.array(spans, np.int64)), line
