"""Files that are not what their reader expects: told what they are, and set aside."""

import bz2
import gzip
import io
import lzma
import pickle
import re
import sqlite3
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet
import pytest
from PIL import Image
from support.whole_files import whole

from pipelines.ingest.readers import detect
from pipelines.params import Curate, data
from storage.errors import DataError

TEXT = b"a,y\n" + b"1,u\n" * 50
PARAMS = Curate(label="y")
READERS = {name: whole(member().read) for name, member in data.READERS.members.items()}


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("t.csv", TEXT)
    return file.getvalue()


def written(columns: dict[str, list[float]], writer: Callable[..., object]) -> bytes:
    file = io.BytesIO()
    writer(pa.table(columns), file)
    return file.getvalue()


def arrow(table: pa.Table, file: io.BytesIO, new: Callable[..., pa.RecordBatchFileWriter] = pa.ipc.new_file) -> None:
    with new(file, table.schema) as writer:
        writer.write_table(table)


def tarred(form: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        archive.addfile(tarfile.TarInfo("t.csv"))
    return file.getvalue()


def spreadsheet() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
    return file.getvalue()


def database(folder: Path) -> bytes:
    with closing(sqlite3.connect(folder / "t.db")) as connection:
        connection.execute("create table t (a)")
    return (folder / "t.db").read_bytes()


def picture(form: str) -> bytes:
    file = io.BytesIO()
    Image.new("L", (9, 9)).save(file, form)
    return file.getvalue()


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(9))
    return file.getvalue()


COLUMNS = {"a": [1.0, 2.0]}
with TemporaryDirectory() as made:
    DATABASE = database(Path(made))
FOREIGN = {
    "compressed by zlib": zlib.compress(TEXT),
    "compressed by zlib: ": zlib.compress(TEXT, 9),
    "compressed by lz4": pa.compress(TEXT, "lz4", asbytes=True),
    "compressed by lzma": lzma.compress(TEXT, lzma.FORMAT_ALONE),
    "a 7z archive": b"7z\xbc\xaf\x27\x1c\0\4" + bytes(24),
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(88),
    "a NetCDF file": b"CDF\x02" + bytes(28),
    "a NumPy array": array(),
    "a pickle, which is never read": pickle.dumps(COLUMNS),
    "a pickle, which is never read: ": pickle.dumps(COLUMNS, 2),
    "an SQLite database": DATABASE,
    "a Parquet file: set curate.reader": written(COLUMNS, pyarrow.parquet.write_table),
    "an ORC file": written(COLUMNS, pyarrow.orc.write_table),
    "an Arrow file": written(COLUMNS, arrow),
    "an Arrow stream": written(COLUMNS, partial(arrow, new=pa.ipc.new_stream)),
    "an Office document (.xlsx, .docx): export": spreadsheet(),
    "a tar archive": tarred(tarfile.USTAR_FORMAT),
    "a tar archive: ": tarred(tarfile.GNU_FORMAT),
    **{f"{form}, a picture": picture(form) for form in ("PNG", "JPEG", "GIF", "TIFF", "BMP")},
    "RIFF (WebP": picture("WEBP"),
    "gzip: unpack it first (gunzip)": gzip.compress(TEXT),
    "bzip2: unpack it first (bunzip2)": bz2.compress(TEXT),
    "zstd: unpack it first (unzstd)": pa.Codec("zstd").compress(TEXT, asbytes=True),
    "xz: unpack it first (unxz)": lzma.compress(TEXT),
    "a ZIP archive: name what is in it in ingest.sources": zipped(),
    "UTF-16 or UTF-32: convert it (iconv": TEXT.decode().encode("utf-16"),
    "not UTF-8 but UTF-16": TEXT.decode().encode("utf-16-le"),
    "but UTF-16 or UTF-32": TEXT.decode().encode("utf-16-be"),
    "UTF-32: convert": TEXT.decode().encode("utf-32"),
    "a PDF": b"%PDF-1.7\n" + TEXT,
}


@pytest.mark.parametrize("reason", FOREIGN)
def test_a_file_that_is_no_text_is_set_aside_with_the_way_out(reason: str) -> None:
    rows = READERS["text"]("t.dat", FOREIGN[reason], PARAMS)
    (entry,) = rows.quarantined
    assert (rows.ids, entry["name"], "rows" in entry) == ([], "t.dat", False)
    assert reason in entry["reason"]


@pytest.mark.parametrize("reader", ["csv", "jsonl"])
@pytest.mark.parametrize("reason", FOREIGN)
def test_rows_that_are_no_text_are_counted_or_refused(reader: str, reason: str) -> None:
    """Set aside as one, a file would take any number of rows with it."""
    if "UTF" in reason:
        (entry,) = READERS[reader]("t.dat", FOREIGN[reason], PARAMS).quarantined
        assert reason in entry["reason"]
        assert entry["rows"] == 51
    else:
        with pytest.raises(DataError, match=rf"t\.dat: .*{re.escape(reason)}.*ingest\.exclude"):
            READERS[reader]("t.dat", FOREIGN[reason], PARAMS)


@pytest.mark.parametrize(
    "text",
    [
        "x^2 + 1 = 0",
        "xچهارم",
        "ORC and elf",
        "BM is a mark",
        "RIFF raff",
        "BZh",
        "GIF87",
        "]",
        "7z x t.7z",
        "CDF of x",
        "",
    ],
)
def test_text_that_begins_as_other_formats_do_is_text(text: str) -> None:
    data = f"{text}\n".encode() * 300
    assert READERS["text"]("t.txt", data, PARAMS).table["text"].to_pylist() == [data.decode()]


@pytest.mark.parametrize("reader", READERS)
def test_no_bytes_are_too_strange_for_a_reader(reader: str) -> None:
    random = np.random.default_rng(0)
    for size in (0, 1, 7, 300):
        with nullcontext() if reader != "parquet" else pytest.raises(DataError, match="not a Parquet file"):
            rows = READERS[reader]("class/t.dat", random.bytes(size), PARAMS)
            assert rows.ids == ([] if size or reader != "text" else ["class/t.dat"])
            assert bool(rows.quarantined) == (size > 0 or reader not in ("text", "jsonl"))


def test_binary_data_is_no_text() -> None:
    (entry,) = READERS["text"]("t.bin", b"looks like text\n" * 400 + b"\0\1", PARAMS).quarantined
    assert entry["reason"] == "binary: a zero at byte 6400"
    assert READERS["csv"]("t.csv", b"a\0,y\n1,u\n", PARAMS).quarantined[0]["reason"].startswith("binary")


def test_json_arrays_are_told_from_json_lines() -> None:
    data = b'[\n{"text": "one"},\n{"text": "two"}\n]\n'
    rows = READERS["jsonl"]("t.jsonl", data, PARAMS)
    assert rows.quarantined[0]["reason"].endswith("convert it (jq -c '.[]')")
    assert (rows.ids, len(rows.quarantined)) == (["t.jsonl:3"], 3)
    with pytest.raises(DataError, match=r"\.json files.*set curate\.reader to text.*jq -c '\.\[\]'"):
        detect(["a.json", "b.JSON"])
    assert detect(["a.json", "b.py"]) == "text"
