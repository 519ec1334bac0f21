"""Readers: what becomes rows, what is set aside and why."""

import io

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.whole_files import whole

from pipelines.ingest.readers import detect, jsonl_rows, text
from pipelines.ingest.readers.lines import line_ends
from pipelines.ingest.readers.tables import csv_rows, parquet_rows
from pipelines.params import Curate
from storage.errors import DataError

read_csv = whole(csv_rows.read_csv)
read_jsonl = whole(jsonl_rows.read_jsonl)
read_parquet = whole(parquet_rows.read_parquet)
read_text = whole(text.read_text)
TABLE = Curate(label="y")
AS_WRITTEN = Curate(label="y", null_values=[])


def test_csv_sets_aside_rows_with_a_wrong_number_of_fields_or_no_number() -> None:
    data = b"a,b,y\n1,2,cat\n3,4\n5,six,dog\n7,8,dog\n9,10,11,12\n1,nan,cat\n2,3,\n"
    rows = read_csv("t.csv", data, TABLE)
    assert rows.table.to_pydict() == {"a": [1.0, 7.0], "b": [2.0, 8.0], "label": ["cat", "dog"]}
    assert rows.ids == ["t.csv:2", "t.csv:5"]
    reasons = {entry["name"]: entry["reason"] for entry in rows.quarantined}
    assert reasons == {
        "t.csv:3": "2 fields where the header has 3",
        "t.csv:6": "4 fields where the header has 3",
        "t.csv:4": "column 'b': 'six' is not a finite number",
        "t.csv:7": "column 'b': 'nan' is not a finite number",
        "t.csv:8": "column 'y': no label",
    }


def test_csv_names_a_column_that_is_missing() -> None:
    with pytest.raises(DataError, match=r"curate.label: t.csv has no column 'y'"):
        read_csv("t.csv", b"a,b\n1,2\n", TABLE)
    with pytest.raises(DataError, match=r"curate.label is not set"):
        read_csv("t.csv", b"a,b\n1,2\n", Curate())


def test_csv_chooses_features_and_regresses() -> None:
    rows = read_csv("t.csv", b"a,b,y\n1,2,0.5\n3,4,x\n", Curate(label="y", features=["b"], target="value"))
    assert rows.table.to_pydict() == {"b": [2.0], "label": [0.5]}
    assert rows.quarantined[0]["name"] == "t.csv:3"


def test_tabs_separate_tsv() -> None:
    assert read_csv("t.tsv", b"a\ty\n1\tu\n", TABLE).table.to_pydict() == {"a": [1.0], "label": ["u"]}


@given(st.text("a\n\r\x0b", max_size=12).map(str.encode))
def test_lines_are_those_of_splitlines(data: bytes) -> None:
    ends, after = line_ends(data, 0, len(data))
    assert [data[start:end] for start, end in zip([0, *after], ends, strict=False)] == data.splitlines()


@pytest.mark.parametrize("begin", ["\ufeff", "\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_labels_are_as_they_are_written_whatever_a_file_begins_with(begin: str, end: str) -> None:
    """Excel begins UTF-8 with a byte order mark."""
    rows = read_csv("t.csv", (begin + end.join(["y,a", "01,1", "1.0,2", "true,3", ""])).encode(), TABLE)
    assert rows.table["label"].to_pylist() == ["01", "1", "true"]
    rows = read_csv("t.csv", (begin + end.join(['y,"a,b"', "01,1", "NA,2"])).encode(), AS_WRITTEN)
    assert rows.table.to_pydict() == {"a,b": [1.0, 2.0], "label": ["01", "NA"]}


def test_csv_values_may_hold_line_breaks_wherever_arrow_cuts_the_file() -> None:
    lines = [f'{row},"{"said, and said" + chr(10) * (row % 60)}",cat\n' for row in range(40_000)]
    data = "".join(["a,note,y\n", *lines]).encode()
    assert len(data) > 2 << 20, "it reads 1 MiB at a time"
    rows = read_csv("t.csv", data, TABLE.model_copy(update={"features": ["a"]}))
    assert rows.table["a"].to_pylist() == list(range(40_000))
    assert not rows.quarantined


def test_jsonl_keeps_good_lines() -> None:
    rows = read_jsonl("t.jsonl", b'{"text": "one"}\nnot json\n\n{"other": 1}\n{"text": 5}\n', Curate())
    assert rows.ids == ["t.jsonl:1"]
    assert [entry["name"] for entry in rows.quarantined] == ["t.jsonl:2", "t.jsonl:4", "t.jsonl:5"]


def test_parquet_reads_the_same_columns() -> None:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"a": [1.0, None], "y": ["u", "v"]}), sink)
    rows = read_parquet("t.parquet", sink.getvalue(), TABLE)
    assert rows.table.to_pydict() == {"a": [1.0], "label": ["u"]}
    with pytest.raises(DataError, match=r"bad.parquet: not a Parquet file.*ingest\.exclude"):
        read_parquet("bad.parquet", b"nonsense", TABLE)


def test_of_a_parquet_file_with_a_damaged_page_the_other_row_groups_are_kept() -> None:
    file = io.BytesIO()
    table = pa.table({"a": [number / 7 for number in range(20_000)], "y": [1] * 20_000})
    pyarrow.parquet.write_table(table, file, compression="gzip", use_dictionary=False, row_group_size=12_000)
    data = bytearray(file.getvalue())
    data[1000:1100] = bytes(100)
    rows = read_parquet("t.parquet", bytes(data), TABLE.model_copy(update={"max_quarantined": 12_000}))
    (entry,) = rows.quarantined
    assert (entry["name"], entry["rows"]) == ("t.parquet:1", 12_000)
    assert entry["reason"].startswith("a row group that cannot be read: ")
    assert rows.ids == [f"t.parquet:{row}" for row in range(12_001, 20_001)]
    assert rows.table["a"].to_pylist() == table["a"].to_pylist()[12_000:]
    with pytest.raises(DataError, match=r"unusable samples: 12000, more than curate.max_quarantined=100"):
        read_parquet("t.parquet", bytes(data), TABLE)


def test_a_label_that_names_no_class_is_refused() -> None:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"a": [1.0], "y": [[1, 2]]}), sink)
    with pytest.raises(DataError, match=r"label column 'y' holds list<.*curate\.label"):
        read_parquet("t.parquet", sink.getvalue(), TABLE)


def test_text_is_utf8() -> None:
    assert read_text("a.txt", "né".encode(), Curate()).table.to_pydict() == {"text": ["né"]}
    assert "not UTF-8" in read_text("a.txt", b"\xff", Curate()).quarantined[0]["reason"]


def test_the_reader_is_found_by_suffix() -> None:
    assert detect(["a.py", "b.md"]) == "text"
    assert detect(["x/a.PNG", "y/b.jpeg"]) == "image_folder"
    with pytest.raises(DataError, match=r"mix csv, text.*curate.reader"):
        detect(["a.csv", "b.txt"])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("y", "no column but the label 'y'"),
        ("x,x,y", "has x twice"),
        ("x,label,y", "own columns"),
        ("sample_id,x,y", "own columns"),
    ],
)
def test_columns_that_cannot_be_kept_apart_are_refused(header: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_csv("t.csv", f"{header}\n1,2,a\n".encode(), TABLE)


def test_values_that_no_column_holds_are_set_aside() -> None:
    assert read_csv("t.csv", b"a,y\n1e39,u\n1,u\n", TABLE).ids == ["t.csv:3"]
    rows = read_jsonl("t.jsonl", b'{"text": "\\ud800"}\n{"text": "ok"}\n', Curate())
    assert rows.ids == ["t.jsonl:2"]
    assert len(rows.quarantined) == 1
