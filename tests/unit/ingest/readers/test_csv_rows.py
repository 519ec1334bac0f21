"""CSV: what a record is, what of it is read, and what a damaged or hostile file costs."""

import tracemalloc

import pytest
from support.whole_files import whole

from pipelines.ingest.quarantine import GATHERED
from pipelines.ingest.readers.tables import csv_rows, records
from pipelines.params import Curate
from storage.errors import DataError

read_csv = whole(csv_rows.read_csv)
TABLE = Curate(label="y", features=["a"])
NO_END = "a quoted field does not end: a quote is missing, or one within it is not doubled"


@pytest.mark.parametrize("damaged", ['2,"x,u', '2,"x"y,u', '2,x,"u', '2,"x",u"', '"2,x,u'])
def test_a_quote_without_its_partner_costs_one_row(damaged: str) -> None:
    rows = read_csv("t.csv", f'a,note,y\n1,x,u\n{damaged}\n3,5" pipe,v\n4,"a, b",u\n'.encode(), TABLE)
    kept = {"t.csv:2": (1.0, "u"), "t.csv:4": (3.0, "v"), "t.csv:5": (4.0, "u")}
    if damaged.endswith('u"'):  # which is a character here
        kept["t.csv:3"] = (2.0, 'u"')
    else:
        assert rows.quarantined == [{"name": "t.csv:3", "reason": NO_END}]
    found = zip(rows.ids, zip(rows.table["a"].to_pylist(), rows.table["label"].to_pylist(), strict=True), strict=True)
    assert dict(found) == kept


def test_rows_that_a_lost_quote_joins_are_counted() -> None:
    rows = read_csv("t.csv", b'a,note,y\n1,"x,u\n2,x,u\n3,x",y,u\n4,x,u\n', TABLE)
    assert rows.ids == ["t.csv:5"]
    reason = "4 fields where the header has 3, on 3 lines: is a quote missing?"
    assert rows.quarantined == [{"name": "t.csv:2", "reason": reason, "rows": 3}]


def test_rows_are_named_by_the_line_on_which_they_begin() -> None:
    data = b'\n\na,note,y\r\n\r\n1,"two\r\nlines",u\r2,x,v\n\n\n3,"three\n\nlines",bad,u\n4,x,u'
    rows = read_csv("t.csv", data, TABLE)
    assert rows.ids == ["t.csv:5", "t.csv:7", "t.csv:13"]
    assert [entry["name"] for entry in rows.quarantined] == ["t.csv:10"]


def test_a_line_break_in_a_value_is_kept_wherever_blocks_are_cut() -> None:
    """Arrow drops the \\n of a \\r\\n within quotes that its own blocks cut in two (apache/arrow#51368)."""
    begin, row = b"y,a\n", b'"u\r\nv",1\n'
    filler = b"w,1\n" * ((records.BLOCK - len(begin) - len(row)) // 4)
    for shift in range(8):
        first = b"w" + b" " * shift + b",1\n"
        data = begin + filler + first + row * 4
        assert any(data[at : at + 2] == b"\r\n" for at in range(records.BLOCK - 9, records.BLOCK + 9))
        assert {*read_csv("t.csv", data, TABLE).table["label"].to_pylist()} == {"w", "u\r\nv"}


def test_bytes_that_look_like_a_mark_are_kept_wherever_blocks_are_cut() -> None:
    """Arrow takes a byte order mark away from the beginning of whatever it reads."""
    data = b"\xef\xbb\xbfy,a\n" + b"\xef\xbb\xbfu,1\n" * 5
    for block in (1, 12, 1000):
        assert read_csv("t.csv", data, TABLE, block).table["label"].to_pylist() == ["\ufeffu"] * 5


def test_only_the_columns_that_are_needed_are_decoded() -> None:
    rows = read_csv("t.csv", b"a,note,y\n1,caf\xe9,u\n2,x,caf\xe9\n3,\0,v\n\xff,\xff\n", TABLE)
    assert rows.ids == ["t.csv:2", "t.csv:4"]
    assert rows.quarantined == [
        {"name": "t.csv:3", "reason": "column 'y': 'caf�' is not UTF-8"},
        {"name": "t.csv:5", "reason": "2 fields where the header has 3"},
    ]


@pytest.mark.parametrize("cell", ["\0", "u\0", "u\0u", '"\0,u"', " \0 "])
def test_a_row_with_a_nul_byte_is_set_aside_and_costs_no_other(cell: str) -> None:
    """In a label it would be a class of its own, which nobody sees is one; a number has none anyhow."""
    rows = read_csv("t.csv", f"a,y\n1,u\n2,{cell}\n3\0,v\n4,v\n".encode(), TABLE)
    assert rows.ids == ["t.csv:2", "t.csv:5"]
    assert rows.table["label"].to_pylist() == ["u", "v"]
    first, second = rows.quarantined
    assert first["name"] == "t.csv:3"
    assert first["reason"].endswith("has a NUL byte: was the file written in part?")
    assert second["reason"] == r"column 'a': '3\x00' is not a finite number"


def test_a_file_that_cannot_be_read_counts_its_rows() -> None:
    rows = read_csv("t.csv", b"a,b,caf\xe9\n1,2,3\n4,5,6\n", TABLE)
    assert rows.quarantined[0]["rows"] == 2
    assert "the header is not UTF-8" in rows.quarantined[0]["reason"]
    assert read_csv("t.csv", b'"a,b\n1,2\n3,4\n', TABLE).quarantined[0]["rows"] == 2
    assert read_csv("t.csv", b"", TABLE).quarantined == [{"name": "t.csv", "reason": "empty: without a header"}]
    with pytest.raises(DataError, match=r"unusable samples: 5000, more than curate.max_quarantined=100.*\n.*5000 rows"):
        read_csv("t.csv", b"a,\xff\n" + b"1,2\n" * 5000, TABLE)


def test_all_that_is_wrong_with_the_columns_is_told_at_once() -> None:
    params = Curate(label="class", features=["a", "b", "wdth", "c", "sample_id", "twice"])
    with pytest.raises(DataError) as raised:
        read_csv("t.csv", b"a,width,sample_id,twice,twice\n1,2,3,4,5\n", params)
    message = str(raised.value)
    assert "curate.label: t.csv has no column 'class'" in message
    assert "curate.features: t.csv has no column 'b' and no column 'wdth' and no column 'c'" in message
    assert "the header has twice twice" in message
    assert "a feature is named sample_id" in message


@pytest.mark.parametrize(
    ("written", "label"),
    [(["1", "1.0", " 1", '" 1 "', "1."], "1"), (["01"], "01"), (["1.5"], "1.5"), (["-2.00"], "-2"), (["v1.0"], "v1.0")],
)
def test_one_class_may_be_written_in_several_ways(written: list[str], label: str) -> None:
    data = "a,y\n" + "".join(f"{row},{text}\n" for row, text in enumerate(written))
    assert {*read_csv("t.csv", data.encode(), TABLE).table["label"].to_pylist()} == {label}


def test_what_stands_for_no_value_is_no_class_unless_one_says_so() -> None:
    data = b"a,y\n1,NA\n2,null\n3,None\n4, NaN\n5,u\n6,\n7,none\n"
    rows = read_csv("t.csv", data, TABLE)
    assert rows.ids == ["t.csv:6", "t.csv:8"]
    assert rows.quarantined[0]["reason"] == "column 'y': b'NA' is no label (curate.null_values)".replace("b'", "'")
    rows = read_csv("t.csv", data, TABLE.model_copy(update={"null_values": ["none"]}))
    assert rows.table["label"].to_pylist() == ["NA", "null", "None", "NaN", "u"]


@pytest.mark.parametrize(
    "number", ["1_000", "１", "0x10", "1e", "inf", "nan", "1,5", "--1", "1 2", "", "1e999", "\x0b1"]
)
def test_what_only_python_calls_a_number_is_none(number: str) -> None:
    rows = read_csv("t.csv", f'a,y\n"{number}",u\n+1,u\n .5e-1 ,u\n'.encode(), TABLE)
    assert rows.table["a"].to_pylist() == [1.0, 0.05]
    assert [entry["reason"] for entry in rows.quarantined] == [f"column 'a': {number!r} is not a finite number"]


def test_reading_stops_where_far_too_much_is_unusable() -> None:
    data = b"a,y\n" + b"1\n" * 1_000_000
    tracemalloc.start()
    try:
        with pytest.raises(
            DataError, match=rf"unusable samples: {GATHERED + 6}, more than curate.max_quarantined=5 .*"
        ):
            read_csv("t.csv", data, TABLE.model_copy(update={"max_quarantined": 5}), block=20_000)
        assert tracemalloc.get_traced_memory()[1] < len(data) * 5, "of a block, not of the file"
    finally:
        tracemalloc.stop()


def test_a_hundred_thousand_columns_are_refused_or_those_that_are_needed_read() -> None:
    names = ",".join(f"c{number}" for number in range(100_000))
    data = f"{names},y\n{'1,' * 100_000}u\n".encode()
    with pytest.raises(DataError, match=r"100,000 features, of which at most 16,384 are read.*curate\.features"):
        read_csv("t.csv", data, Curate(label="y"))
    with pytest.raises(DataError, match=r"no column 'z'"):
        read_csv("t.csv", data, Curate(label="z"))
    assert read_csv("t.csv", data, Curate(label="y", features=["c5"])).table.to_pydict() == {
        "c5": [1.0],
        "label": ["u"],
    }


def test_lines_that_each_look_like_the_begin_of_an_endless_record_are_read_on_a_little() -> None:
    """To the end of the file, from each of them, would be quadratic."""
    data = b"a,note,y\n" + b'",a","\n' * 3000 + b"1,x,u\n"
    rows = read_csv("t.csv", data, TABLE.model_copy(update={"max_quarantined": 3000}), block=1000)
    reasons = [entry["reason"] for entry in rows.quarantined]
    assert {*reasons[:2000]} == {"more than 1,006 fields"}
    assert (rows.ids, len(reasons)) == (["t.csv:3002"], 3000)


def test_a_record_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LARGEST", 1000)
    data = b'a,note,y\n1,"' + b"x" * 2000 + b'",u\n2,x,u\n'
    rows = read_csv("t.csv", data, TABLE, block=100)
    assert (rows.ids, rows.quarantined) == (["t.csv:3"], [{"name": "t.csv:2", "reason": NO_END}])


def test_rows_have_the_same_digest_in_every_file_that_holds_their_bytes() -> None:
    one = read_csv("t.csv", b"a,note,y\n1,x,u\n2,x,u\n1,x,u\n", TABLE)
    other = read_csv("s.csv", b'a,note,y\r\n2,"x",u\r\n\r\n1,x,u', TABLE)
    assert one.content is not None
    assert other.content is not None
    first, second, third = one.content.to_pylist()
    assert first == third != second
    assert first == other.content.to_pylist()[1]
    assert second != other.content.to_pylist()[0], "they are written differently"
    assert read_csv("t.csv", b"a,y\n1,u\n", TABLE.model_copy(update={"deduplicate": False})).content is None
