"""What a manifest must be before anything in it is believed, whoever made it: its header, its columns, every row.

A row's path is joined to the zone's place, and its digest to the node cache's, so both have one form only:
`[0-9a-f]{64}`, and `objects/<digest><suffix>` with the suffix of a file's name. Rows are checked by columns and in
pieces, by NumPy: a million take some tens of milliseconds, little memory of a mapped file, and none of Arrow's
functions, which take longer to load.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.arrow_files import Malformed, validated
from storage.digest import DIGEST_LENGTH, is_digest

_PREFIX = np.frombuffer(b"objects/", np.uint64)[0]  # eight bytes
_NAMED = _PREFIX.nbytes + DIGEST_LENGTH  # bytes of a path before its suffix
_HEX = b"0123456789abcdef"
_PIECE = 1 << 12  # rows looked at at a time: they stay in the processor's cache
_DONE = 16 * _PIECE
_MOST = 1 << 62  # bytes, rows, tokens of a whole dataset: sums stay within 64 bits
_MAY_BE_NULL = ("after", "stats", "tokens", "left_out")
_ASCII = ("digest", "path")  # nearly always, and looked at byte by byte: text is checked where it isn't
_HEADER = {"kind": str, "spec": dict, "counts": dict, "parents": dict}

Text = npt.NDArray[np.uint8]


def check_header(header: dict[str, Any]) -> None:
    """Raise Malformed unless the values that every zone's header may have are of their kinds. `zone` and `format` are
    known by now."""
    for name, kind in _HEADER.items():
        if name in header and not isinstance(header[name], kind):
            raise Malformed(f"its {name} is {header[name]!r:.80}")
    for zone, digest in header.get("parents", {}).items():
        if not is_digest(digest):
            raise Malformed(f"its parent {zone} is {digest!r:.80}, no digest")


def check_rows(
    schema: pa.Schema, expected: pa.Schema, batches: list[pa.RecordBatch], done: Callable[[], object]
) -> None:
    """Raise Malformed unless columns and rows are such as a zone's manifest has. `done()` is called now and
    then, when what was looked at isn't needed any more."""
    if list(zip(schema.names, schema.types, strict=True)) != list(zip(expected.names, expected.types, strict=True)):
        raise Malformed(f"its columns are {_listed(schema)}, not {_listed(expected)}")
    numbers = [field.name for field in expected if field.type == pa.int64()]
    totals = dict.fromkeys(numbers, 0.0)
    for batch in batches:
        for first in range(0, max(1, batch.num_rows), _PIECE):
            piece = batch.slice(first, _PIECE)
            for name in piece.schema.names:
                validated(_bytes(piece[name]) if name in _ASCII else piece[name])
                if piece[name].null_count and name not in _MAY_BE_NULL:
                    raise Malformed(f"{piece[name].null_count} rows have no {name}")
            for name in numbers:
                totals[name] += _total(name, piece[name])
            _check_names(piece["digest"], piece["path"])
            if not first % _DONE:
                done()
        done()
    if most := [name for name, total in totals.items() if total >= _MOST]:
        raise Malformed(f"{', '.join(most)}: more in all than any dataset has")


def _listed(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _bytes(column: pa.StringArray) -> pa.BinaryArray:
    """The same without the claim that it is text. Raises Malformed."""
    try:
        return pa.Array.from_buffers(pa.binary(), len(column), column.buffers(), column.null_count, column.offset)
    except pa.ArrowException as error:  # it looks at the offsets
        raise Malformed(str(error)) from error


def _total(name: str, column: pa.Int64Array) -> float:
    """The sum of numbers, none of which may be negative."""
    validity, data = column.buffers()
    if not len(column) or data is None:
        return 0.0
    values = np.frombuffer(data, np.int64, len(column), 8 * column.offset)
    if column.null_count:
        valid = np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little").astype(bool)
        values = values[valid[column.offset : column.offset + len(column)]]
    if values.size and values.min() < 0:
        raise Malformed(f"a row's {name} is {values.min()}")
    return float(values.sum(dtype=np.float64))


def _check_names(digests: pa.StringArray, paths: pa.StringArray) -> None:
    """Raise Malformed unless each digest and path has its form."""
    if not len(digests):
        return
    named, _, lengths = _text(digests)
    text, begins, all_lengths = _text(paths)
    if (lengths != DIGEST_LENGTH).any() or (all_lengths < _NAMED).any() or named.tobytes().translate(None, _HEX):
        raise _odd(digests, paths)
    heads = np.lib.stride_tricks.sliding_window_view(text, _NAMED)[begins].view(np.uint64)  # [rows, words of _NAMED]
    same = heads[:, 0] == _PREFIX, heads[:, 1:] == named.view(np.uint64).reshape(len(digests), -1)
    dots = text[begins[all_lengths > _NAMED] + _NAMED] == ord(".")
    one_folder = np.count_nonzero(text == ord("/")) == len(paths) and text.min() > 0  # the prefix's slash, and no NUL
    if not (same[0].all() and same[1].all() and dots.all() and one_folder):
        raise _odd(digests, paths)
    if text.max() >= 128:  # in a suffix
        validated(paths)


def _text(column: pa.StringArray) -> tuple[Text, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(the rows' bytes end to end, where in them each begins, its length) of a validated column without nulls."""
    _, offsets, data = column.buffers()
    bounds = np.frombuffer(offsets, np.int32, len(column) + 1, 4 * column.offset).astype(np.int64)
    text = np.frombuffer(b"" if data is None else data, np.uint8)[bounds[0] : bounds[-1]]
    return text, bounds[:-1] - bounds[0], np.diff(bounds)


def _odd(digests: pa.StringArray, paths: pa.StringArray) -> Malformed:
    """What to say of the first row that hasn't the form."""
    texts = ([text.decode(errors="replace") for text in _bytes(column).to_pylist()] for column in (digests, paths))
    for digest, path in zip(*texts, strict=True):
        rest = path.removeprefix(f"objects/{digest}")
        if not is_digest(digest) or rest == path or "/" in rest or "\0" in rest or rest[:1] not in ("", "."):
            break
    return Malformed(
        f"an object has the digest {digest!r:.80} and the path {path!r:.160}; a digest is 64 hexadecimal characters, "
        "a path objects/<digest><suffix>"
    )
