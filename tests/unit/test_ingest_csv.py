"""The CSV reader against hostile files: what is read, and where exactly it says the bad rows are."""

import csv
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.ingest import core
from actors.ingest.readers import csv as csv_reader
from actors.ingest.readers.base import Reject
from actors.ingest.readers.csv import CsvReader


def read(
    path: Path, content: bytes, vector: str | None = None, id: str | None = None
) -> tuple[dict[str, list[object]], list[int], list[Reject]]:
    """Columns, the lines of their rows, and the rejects."""
    path.write_bytes(content)
    reader = CsvReader(path, "f.csv")
    survey = reader.survey(vector, id)
    columns: dict[str, list[object]] = {column.name: [] for column in survey.columns}
    lines: list[int] = []
    rejects: list[Reject] = []
    for chunk in reader.chunks(survey.columns):
        lines += chunk.lines.tolist()
        rejects += chunk.rejects
        for name, array in chunk.arrays.items():
            columns[name] += array.to_pylist()
    return columns, lines, sorted(rejects, key=lambda reject: reject.line)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "f.csv"


def test_types_come_from_the_cells(file: Path) -> None:
    columns, lines, rejects = read(
        file, b'n,x,ok,t,zip,v\n1,1.5,true,a,007,"[1, 0.5]"\n2,2,FALSE,"b, ""c""",010,"[2, 3]"\n,,,,,"[0.25,1]"\n'
    )
    assert columns == {
        "n": [1, 2, None],
        "x": [1.5, 2.0, None],
        "ok": [True, False, None],
        "t": ["a", 'b, "c"', None],
        "zip": ["007", "010", None],  # leading zeros: a code, not a number
        "v": [[1.0, 0.5], [2.0, 3.0], [0.25, 1.0]],
    }
    assert lines == [2, 3, 4]
    assert rejects == []


def test_quoted_empty_is_text_and_unquoted_is_null(file: Path) -> None:
    columns, _, _ = read(file, b'a,b\n"",1\n,2\n')
    assert columns["a"] == ["", None]


def test_lines_stay_right_after_newlines_in_quotes_blank_lines_and_ragged_rows(file: Path) -> None:
    columns, lines, rejects = read(
        file,
        b"n,t\n"  # 1
        b'1,"two\nlines"\n'  # 2, 3
        b"\n"  # 4
        b"2,b,extra\n"  # 5
        b'"3","x\r\ny\nz"\r\n'  # 6, 7, 8
        b"oops,c\n"  # 9
        b'"only\none"\n'  # 10, 11
        b"4,d\n"  # 12
        b"5\n",  # 13
    )
    assert columns == {"n": [1, 3, 4], "t": ["two\nlines", "x\r\ny\nz", "d"]}
    assert lines == [2, 6, 12]
    assert [(r.line, r.column, r.reason, r.content) for r in rejects] == [
        (5, "", "expected 2 columns, found 3", "2,b,extra"),
        (9, "n", "expected an integer, found 'oops'", "oops,c"),
        (10, "", "expected 2 columns, found 1", '"only\none"'),
        (13, "", "expected 2 columns, found 1", "5"),
    ]


def test_bad_utf8_costs_its_row_even_when_ragged(file: Path) -> None:
    columns, lines, rejects = read(file, "a,b\nü,1\n".encode() + b"\xff\xfe,2\nx,3,\xe9\nz,4\n")
    assert columns == {"a": ["ü", "z"], "b": [1, 4]}
    assert lines == [2, 5]
    assert [(r.line, r.column, r.reason) for r in rejects] == [
        (3, "a", "not UTF-8: byte 0xff at position 0"),
        (4, "", "expected 2 columns, found 3"),
    ]


def test_byte_order_mark_and_other_delimiters(file: Path) -> None:
    assert read(file, b"\xef\xbb\xbfa;b\n1;x,y\n")[0] == {"a": [1], "b": ["x,y"]}
    assert read(file, b"a\tb\n1\tx\n")[0] == {"a": [1], "b": ["x"]}


def test_old_mac_line_ends(file: Path) -> None:
    assert read(file, b"a,b\r1,x\r2,y\r")[:2] == ({"a": [1, 2], "b": ["x", "y"]}, [2, 3])


def test_huge_integers_are_refused_not_rounded(file: Path) -> None:
    rows = b"".join(b"%d,1\n" % n for n in range(20))
    columns, _, rejects = read(file, b"n,m\n" + rows + b"99999999999999999999999,1\n")
    assert columns["n"] == list(range(20))
    assert rejects[0].reason == "integer '99999999999999999999999' does not fit 64 bits"


def test_nan_in_a_number_column_is_null_but_not_in_a_vector(file: Path) -> None:
    columns, _, rejects = read(
        file, b'x,v\n1.5,"[1.5,2]"\nNaN,"[3,4]"\nn/a,"[5,6]"\n2,"[1,NaN]"\n3,"[1e999,0]"\n4,[]\n5,\n6,"[1]"\n'
    )
    assert columns == {"x": [1.5, None, None], "v": [[1.5, 2.0], [3.0, 4.0], [5.0, 6.0]]}
    assert [r.line for r in rejects] == [5, 6, 7, 8, 9]
    assert {r.column for r in rejects} == {"v"}
    assert [rejects[i].reason for i in (2, 3, 4)] == [
        "the vector is empty",
        "the vector is missing",
        "the vector has 1 dimensions, not 2",
    ]


def test_a_column_of_text_and_numbers_is_text(file: Path) -> None:
    columns, _, rejects = read(file, b"code\n12\nA7\n13\nB9\n")
    assert (columns["code"], rejects) == (["12", "A7", "13", "B9"], [])


def test_types_hold_beyond_the_head(file: Path) -> None:
    """The first megabyte has integers only; text further on makes the column text."""
    body = b"".join(b"%d\n" % n for n in range(200_000)) + b"word\n" * 200_000
    columns, _, rejects = read(file, b"a\n" + body)
    assert rejects == []
    assert columns["a"][0] == "0"
    assert len(columns["a"]) == 400_000


def test_lines_stay_right_across_blocks(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_reader, "_BLOCK", 256)
    out = [b"n,t\n"]
    expected: list[int] = []
    line = 2
    for n in range(500):
        if n % 7 == 3:
            out.append(b"ragged\n")
            line += 1
        if n % 11 == 5:
            out.append(b"\n")
            line += 1
        out.append(b'%d,"a\nb"\n' % n if n % 5 == 0 else b"%d,c\n" % n)
        expected.append(line)
        line += 2 if n % 5 == 0 else 1
    columns, lines, rejects = read(file, b"".join(out))
    assert columns["n"] == list(range(500))
    assert lines == expected
    text = b"".join(out).split(b"\n")
    assert [text[r.line - 1] for r in rejects] == [b"ragged"] * len(rejects)
    assert len(rejects) == 71


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\n\n", "the file is empty"),
        (b"\xff\xfea\x00,\x00", "UTF-16"),
        (b"a\xff,b\n1,2\n", "header can't be read"),
    ],
)
def test_refused_as_a_whole(file: Path, content: bytes, reason: str) -> None:
    with pytest.raises(core.BadFile, match=reason):
        read(file, content)


def test_a_quote_left_open_names_the_line(file: Path) -> None:
    with pytest.raises(core.BadFile, match="record near line 3 is longer"):
        read(file, b'a,b\n1,2\n2,"open\n' + b"3,4\n" * 600_000)


def test_header_only_has_no_rows(file: Path) -> None:
    assert read(file, b"a,b\n") == ({"a": [], "b": []}, [], [])
    assert read(file, b"a,b") == ({"a": [], "b": []}, [], [])


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
rows = st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), text, st.floats(allow_nan=False, width=64)), min_size=1)


@given(rows=rows)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_pyarrow_writes_is_read_back(tmp_path: Path, rows: list[tuple[int, str, float]]) -> None:
    table = pa.table({name: list(values) for name, values in zip("nts", zip(*rows, strict=True), strict=True)})
    out = io.BytesIO()
    pyarrow.csv.write_csv(table, out)
    path = tmp_path / "r.csv"
    path.write_bytes(out.getvalue())
    reader = CsvReader(path, "r")
    stored = [
        core.Column("n", pa.int64(), "value"),
        core.Column("t", pa.string(), "text"),
        core.Column("s", pa.float64(), "value"),
    ]
    chunks = list(reader.chunks(stored))
    assert [r for chunk in chunks for r in chunk.rejects] == []
    for name in "nts":
        assert [v for chunk in chunks for v in chunk.arrays[name].to_pylist()] == table[name].to_pylist()


@given(rows=st.lists(st.lists(text, min_size=1, max_size=4), max_size=12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_record_is_read_or_refused(tmp_path: Path, rows: list[list[str]]) -> None:
    """Against the standard library's reader: rows of two cells are read, others refused, blank ones skipped."""
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *rows])
    path = tmp_path / "r.csv"
    path.write_bytes(out.getvalue().encode())
    columns = [core.Column("a", pa.string(), "text"), core.Column("b", pa.string(), "text")]
    chunks = list(CsvReader(path, "r").chunks(columns))
    good = [tuple(row.values()) for chunk in chunks for row in pa.table(chunk.arrays).to_pylist()]
    assert good == [tuple(row) for row in rows if len(row) == 2]
    assert sum(len(chunk.rejects) for chunk in chunks) == sum(len(row) != 2 for row in rows)
