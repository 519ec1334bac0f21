"""Reading of shards. A mapped shard costs no memory of its own, and its columns are the file's bytes."""

from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from typing_extensions import Buffer

from storage.arrow_files import Malformed, read_batches, validated
from storage.digest import digest_bytes
from storage.errors import DataError, DigestError, FormatError
from storage.mapped import map_file
from storage.shards.blobs import rising
from storage.shards.schema import IDS, TOKENS, Column, Kind, decode_metadata, item


class Shard:
    """One open shard: `kind`, `rows` and `columns` (without `id`). Its arrays are read-only views of the file."""

    def __init__(self, buffer: pa.Buffer, what: str) -> None:
        self.what = what
        self.buffer = buffer
        self._batch = _read_batch(buffer, what)
        self.kind: Kind
        self.columns: dict[str, Column]
        self.kind, self.columns = decode_metadata(self._batch.schema, what)
        self._arrays = {name: self._view(name, col) for name, col in self.columns.items() if not col.variable}
        self._blobs = {name: self._bytes(name) for name, column in self.columns.items() if column.variable}
        if self.kind == "tokens":
            self._offsets = self._checked_offsets(TOKENS, len(self._arrays[TOKENS]))

    @classmethod
    def open(cls, source: Path | Buffer, what: str | None = None, digest: str | None = None) -> Self:
        """Map the file `source`, or view the bytes `source`; `what` names it in errors.

        With `digest`, the bytes are checked against it before anything is read from them. Raises DataError when the
        file cannot be read, DigestError, or FormatError when it isn't a shard, is cut off, or has a format or codec
        that this version doesn't know.
        """
        if isinstance(source, Path):
            what = what or str(source)
            buffer = _map_file(source, what)
        else:
            what = what or "a shard in memory"
            buffer = pa.py_buffer(source)
        if digest is not None and (found := digest_bytes(buffer)) != digest:
            raise DigestError(what, digest, found)
        return cls(buffer, what)

    @property
    def rows(self) -> int:
        """Samples, or documents of a token shard."""
        return int(self._batch.num_rows)

    @cached_property
    def ids(self) -> pa.LargeStringArray:
        """The rows' names, [rows]; checked when first asked for. Raises FormatError."""
        stored = self._batch.column(IDS)
        try:
            if stored.type != pa.large_string() or stored.null_count:
                raise Malformed(f"it holds {stored.type} and {stored.null_count} nulls, not large_string")
            validated(stored)
        except Malformed as error:
            raise FormatError(self._malformed(IDS, error)) from error
        return stored

    def column(self, name: str) -> npt.NDArray[Any]:
        """Column `name` as an array [rows, *shape]; for `tokens`, the flat stream. Raises DataError when missing, or
        when its rows are of variable width."""
        self._has(name)
        if name not in self._arrays:
            codec = self.columns[name].codec
            raise DataError(f"{self.what}: column {name!r} has codec {codec!r}, so it is no array. Read its blobs.")
        return self._arrays[name]

    def blobs(self, name: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """The variable-width column `name` as (values uint8 [bytes], offsets int64 [rows + 1]), without a copy: row i
        is values[offsets[i]:offsets[i + 1]]. The offsets are within the values and never fall. Raises DataError."""
        self._has(name)
        if name not in self._blobs:
            raise DataError(f"{self.what}: column {name!r} is of fixed width, so it has no blobs. Read it as a column.")
        return self._blobs[name]

    def _has(self, name: str) -> None:
        if name not in self.columns:
            raise DataError(f"{self.what}: no column {name!r}, but {', '.join(self.columns)}.")

    @property
    def tokens(self) -> npt.NDArray[Any]:
        """The token stream, [tokens]."""
        return self.column(TOKENS)

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Where each document begins and, last, where the stream ends: int64 [rows + 1]."""
        self.column(TOKENS)
        return self._offsets

    def _view(self, name: str, column: Column) -> npt.NDArray[Any]:
        """The column's values without a copy, after checking that they are what the metadata says."""
        element = pa.from_numpy_dtype(column.dtype)
        shape: tuple[int, ...] = (self.rows, *column.shape)
        if self.kind == "tokens":
            expected, shape = pa.large_list(item(element)), (-1,)
        elif column.shape:
            expected = pa.list_(item(element), column.elements)
        else:
            expected = element
        try:
            stored = self._batch.column(name)
            if stored.type != expected or stored.null_count:
                raise ValueError(f"it holds {stored.type} and {stored.null_count} nulls, not {expected}")
            values = stored if expected == element else stored.values
            array: npt.NDArray[Any] = np.from_dlpack(values).reshape(shape)  # to_numpy would import pandas
            return array
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise FormatError(self._malformed(name, error)) from error

    def _bytes(self, name: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """The blobs of a variable-width column, after checking that each lies within the column's bytes."""
        try:
            stored = self._batch.column(name)
            if stored.type != pa.large_binary() or stored.null_count:
                raise ValueError(f"it holds {stored.type} and {stored.null_count} nulls, not large_binary")
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise FormatError(self._malformed(name, error)) from error
        data = stored.buffers()[2]
        values = np.frombuffer(data if data is not None else b"", np.uint8)
        offsets = self._checked_offsets(name, len(values))
        return values[: offsets[-1]], offsets

    def _checked_offsets(self, name: str, limit: int) -> npt.NDArray[np.int64]:
        """The offsets of a column: everything that follows takes them for addresses. Raises FormatError unless they
        rise from 0 to at most `limit`."""
        stored = self._batch.column(name).buffers()[1]
        if stored is None or not stored.size:  # as Arrow allows where there are no rows
            offsets = np.zeros(1, np.int64)
        else:
            offsets = np.frombuffer(stored, np.int64, stored.size // 8)[: self.rows + 1]
        if len(offsets) != self.rows + 1 or offsets[0] != 0 or offsets[-1] > limit or not rising(offsets):
            cause = f"its {len(offsets)} offsets don't rise from 0 to at most {limit} for {self.rows} rows"
            raise FormatError(self._malformed(name, cause))
        return offsets

    def _malformed(self, name: str, cause: object) -> str:
        return f"{self.what}: column {name!r} is malformed: {cause}."


def _map_file(file: Path, what: str) -> pa.Buffer:
    try:
        return map_file(file)
    except FileNotFoundError as error:
        raise DataError(f"{what}: no such shard. Restore it with `dvc pull` or `dvc checkout`.") from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{what}: the shard cannot be read ({error}). Check its permissions, or restore it with `dvc checkout`."
        ) from error


def _read_batch(buffer: pa.Buffer, what: str) -> pa.RecordBatch:
    try:
        _, batches = read_batches(buffer)
        if len(batches) != 1:
            raise Malformed(f"{len(batches)} record batches where a shard has one")
        validated(batches[0], full=False)
        return batches[0]
    except Malformed as error:
        raise FormatError(
            f"{what}: not a shard, or cut off ({error}). Restore it with `dvc checkout` or `dvc pull`, or make "
            "the shards again with `dvc repro --force shard`."
        ) from error
