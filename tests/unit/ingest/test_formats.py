"""Files that are not what their reader expects: told what they are, and set aside."""

import bz2
import gzip
import io
import lzma
import re
import zipfile
from contextlib import nullcontext

import numpy as np
import pyarrow as pa
import pytest
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


FOREIGN = {
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
