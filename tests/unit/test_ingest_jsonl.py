"""The JSON lines reader: types, nested values, vectors, and lines that are no rows."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.ingest import core
from actors.ingest.readers import jsonl
from actors.ingest.readers.base import Reject
from actors.ingest.readers.jsonl import JsonLinesReader


def read(
    path: Path, content: bytes | str, vector: str | None = None, id: str | None = None
) -> tuple[list[dict[str, object]], list[int], list[Reject]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    reader = JsonLinesReader(path, "f.jsonl")
    survey = reader.survey(vector, id)
    rows: list[dict[str, object]] = []
    lines: list[int] = []
    rejects: list[Reject] = []
    for chunk in reader.chunks(survey.columns):
        lines += chunk.lines.tolist()
        rejects += chunk.rejects
        names = list(chunk.arrays)
        rows += [
            dict(zip(names, values, strict=True))
            for values in zip(*(array.to_pylist() for array in chunk.arrays.values()), strict=True)
        ]
    return rows, lines, sorted(rejects, key=lambda reject: reject.line)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "f.jsonl"


def test_types(file: Path) -> None:
    rows, lines, rejects = read(
        file,
        '{"n":1,"x":1,"t":"ü","ok":true,"v":[1,0.5],"tags":[1,2],"o":{"a":[1]}}\n'
        '{"n":2,"x":2.5,"t":"b","ok":null,"v":[1,2],"tags":[],"o":{"b":null}}\n',
    )
    assert rows == [
        {"n": 1, "x": 1.0, "t": "ü", "ok": True, "v": [1.0, 0.5], "tags": [1, 2], "o": '{"a":[1]}'},
        {"n": 2, "x": 2.5, "t": "b", "ok": None, "v": [1.0, 2.0], "tags": [], "o": '{"b":null}'},
    ]
    assert (lines, rejects) == ([1, 2], [])


def test_bad_lines_have_numbers_and_reasons(file: Path) -> None:
    rows, lines, rejects = read(
        file,
        b'\xef\xbb\xbf{"n":1}\n\n[1]\n{"n":\n{"n":2}\r\n{"n":"\xff"}\n{"n":"three"}\n{"n":4}\n{"n":true}\n'
        + b"".join(b'{"n":%d}\n' % n for n in range(40))
        + b'{"n":18446744073709551616}',
    )
    assert rows[:3] == [{"n": 1}, {"n": 2}, {"n": 4}]
    assert lines[:4] == [1, 5, 8, 10]
    assert [(r.line, r.column) for r in rejects] == [(3, ""), (4, ""), (6, ""), (7, "n"), (9, "n"), (50, "n")]
    assert rejects[0].reason == "expected a JSON object"
    assert rejects[1].reason.startswith("not JSON")
    assert rejects[2].reason == "not UTF-8: byte 0xff at position 6"
    assert rejects[3].reason == "expected a 64-bit integer, found '\"three\"'"
    assert rejects[3].content == '{"n":"three"}'


def test_hostile_json(file: Path) -> None:
    rows, _, rejects = read(
        file,
        '{"n":1.5}\n' * 40 + '{"n":1e999}\n{"n":NaN}\n{"n":"\\ud800"}\n{"n":' + "[" * 5000 + "]" * 5000 + "}\n{}",
    )
    assert [row["n"] for row in rows] == [1.5] * 40 + [None]
    assert [r.line for r in rejects] == [41, 42, 43, 44]
    assert rejects[0].reason == "not JSON: Number out of range - at `$[...]`"
    assert rejects[3].reason == "nested too deeply"


def test_vectors_of_mixed_lengths_and_kinds(file: Path) -> None:
    _, lines, rejects = read(
        file,
        '{"v":[1.5,2]}\n{"v":[3,4]}\n{"v":[3,4,5]}\n{"v":[]}\n{"v":null}\n{"v":[1,"x"]}\n{}\n{"v":[1e39,0]}\n'
        + '{"v":[5,6]}\n' * 20,
    )
    assert lines[:3] == [1, 2, 9]
    assert [r.line for r in rejects] == [3, 4, 5, 6, 7, 8]
    assert rejects[0].reason == "the vector has 3 dimensions, not 2"
    assert "array of numbers" in rejects[3].reason
    assert "not finite" in rejects[5].reason


def test_integers_are_a_vector_when_named(file: Path) -> None:
    rows, _, _ = read(file, '{"v":[1,0]}\n{"v":[0,1]}\n', vector="v")
    assert rows == [{"v": [1.0, 0.0]}, {"v": [0.0, 1.0]}]


def test_ids_of_both_kinds_are_text(file: Path) -> None:
    rows, _, _ = read(file, '{"id":1}\n{"id":"a"}\n', id="id")
    assert rows == [{"id": "1"}, {"id": "a"}]


def test_mixed_values_are_kept_as_json(file: Path) -> None:
    rows, _, rejects = read(file, '{"a":1}\n{"a":"x"}\n{"a":{"b":1}}\n{"a":[null]}\n')
    assert [row["a"] for row in rows] == ["1", "x", '{"b":1}', "[null]"]
    assert rejects == []


def test_a_late_name_is_a_column(file: Path) -> None:
    rows, _, _ = read(file, '{"a":1}\n' * 50_000 + '{"a":1,"late":"x"}\n')
    assert rows[0] == {"a": 1, "late": None}
    assert rows[-1] == {"a": 1, "late": "x"}


def test_overlong_line(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "_BLOCK", 64)
    monkeypatch.setattr(jsonl, "_LONGEST", 500)
    rows, lines, rejects = read(file, '{"a":1}\n{"a":"' + "x" * 3000 + '"}\n{"a":3}\n{"a":4}\n{"a":"' + "y" * 900)
    assert rows == [{"a": 1}, {"a": 3}, {"a": 4}]
    assert lines == [1, 3, 4]
    assert [(r.line, r.reason) for r in rejects] == [(n, "the line is longer than 500 bytes") for n in (2, 5)]


def test_a_json_array_is_told_how_to_become_lines(file: Path) -> None:
    with pytest.raises(core.BadFile, match="one JSON array") as raised:
        read(file, '[{"a":1}]')
    assert "jq" in raised.value.refusal.hint


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("not", r"no line of the file is a JSON object \(line 1: not JSON: "),
        ("\n3\nid,text\n", r"\(line 2: expected a JSON object\)"),
    ],
)
def test_a_file_without_any_object_is_something_else(file: Path, content: bytes | str, says: str) -> None:
    with pytest.raises(core.BadFile, match=says):
        read(file, content)


def test_too_many_names(file: Path) -> None:
    with pytest.raises(core.BadFile, match="over 1000 different names"):
        read(file, "".join(f'{{"c{n}":1}}\n' for n in range(1001)))


values = st.fixed_dictionaries(
    {
        "n": st.integers(-(2**63), 2**63 - 1),
        "x": st.floats(allow_nan=False, allow_infinity=False),
        "t": st.text(st.characters(exclude_categories=["Cs"])),
        "b": st.none() | st.booleans(),
        "v": st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
    }
)


@given(rows=st.lists(values, min_size=1, max_size=20))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_are_read_back(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    found, _, rejects = read(tmp_path / "r.jsonl", msgspec.json.Encoder().encode_lines(rows), vector="v")
    assert rejects == []
    if all(row["b"] is None for row in rows):
        assert all(row.pop("b") is None for row in found)
        rows = [{name: value for name, value in row.items() if name != "b"} for row in rows]
    assert found == rows
