"""Parquet and Arrow files: types, vectors, damage, and files that unfold."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.ingest import core
from actors.ingest.config import IngestConfig
from actors.ingest.readers import open_reader
from actors.ingest.readers.base import Reject
from actors.ingest.readers.columnar import bounded
from schemas.events.dataset import FileFormat

FORMATS: tuple[FileFormat, ...] = ("parquet", "arrow")
CONFIG = IngestConfig(batch_rows=64)


def write(path: Path, table: pa.Table, format: FileFormat, stream: bool = False) -> None:
    if format == "parquet":
        pq.write_table(table, path, row_group_size=100)
    else:
        with (
            pa.OSFile(str(path), "wb") as out,
            (pa.ipc.new_stream if stream else pa.ipc.new_file)(out, table.schema) as w,
        ):
            w.write_table(table, max_chunksize=150)


def read(
    path: Path, format: FileFormat, vector: str | None = None
) -> tuple[pa.Table, list[int], list[Reject], tuple[core.Column, ...]]:
    reader = open_reader(path, format, "f", CONFIG)
    columns = reader.survey(vector, None).columns
    chunks = list(reader.chunks(columns))
    schema = pa.schema([pa.field(c.name, c.type) for c in columns])
    table = pa.Table.from_batches([pa.record_batch(chunk.arrays, schema) for chunk in chunks], schema)
    lines = [line for chunk in chunks for line in chunk.lines.tolist()]
    return table, lines, [reject for chunk in chunks for reject in chunk.rejects], columns


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("stream", [False, True])
def test_types_are_stored_as_documented(tmp_path: Path, format: FileFormat, stream: bool) -> None:
    n = 300
    table = pa.table(
        {
            "small": pa.array(range(n), pa.int16()),
            "big": pa.array(range(n), pa.uint64()),
            "f": pa.array(np.linspace(0, 1, n), pa.float32()),
            "word": pa.array(["a", "b", None] * 100).dictionary_encode(),
            "when": pa.array(range(n), pa.timestamp("ns")),
            "half": pa.array([[0.5, i] for i in range(n)], pa.list_(pa.float16(), 2)),
            "double": pa.array([[0.25, i] for i in range(n)], pa.large_list(pa.float64())),
            "tags": pa.array([["x"]] * n),
        }
    )
    path = tmp_path / "f"
    write(path, table, format, stream)
    found, lines, rejects, columns = read(path, format)
    assert rejects == []
    assert lines == list(range(1, n + 1))
    assert [str(column.type) for column in columns[:5]] == ["int64", "int64", "double", "string", "timestamp[us]"]
    assert [(c.role, c.dim) for c in columns] == [
        ("value", None),
        ("value", None),
        ("value", None),
        ("text", None),
        ("value", None),
        ("vector", 2),
        ("vector", 2),
        ("value", None),
    ]
    for name in ("small", "big", "word", "half", "double", "tags"):
        assert found[name].to_pylist() == table[name].to_pylist()


@pytest.mark.parametrize("format", FORMATS)
def test_bad_vectors_cost_their_rows(tmp_path: Path, format: FileFormat) -> None:
    vectors = [[1.0, 2.0]] * 10
    vectors[2:7] = [[1.0], None, [], [1.0, float("nan")], [float("inf"), 0.0]]  # type: ignore[list-item]
    vectors[8] = [1e300, 0.0]  # no float32
    path = tmp_path / "f"
    write(path, pa.table({"t": [str(i) for i in range(10)], "v": vectors}), format)
    found, lines, rejects, _ = read(path, format)
    assert lines == [1, 2, 8, 10]
    assert found["t"].to_pylist() == ["0", "1", "7", "9"]
    assert [(r.line, r.column) for r in rejects] == [(n, "v") for n in (3, 4, 5, 6, 7, 9)]
    assert rejects[1].reason == "the vector is missing"
    assert '"t":"2"' in rejects[0].content


@pytest.mark.parametrize("format", FORMATS)
def test_bad_utf8_and_numbers_that_do_not_fit(tmp_path: Path, format: FileFormat) -> None:
    bad_text = pa.array([b"ok", b"\xff", b"fine"], pa.binary()).view(pa.string())
    path = tmp_path / "f"
    write(path, pa.table({"t": bad_text, "n": pa.array([1, 2, 2**64 - 1], pa.uint64())}), format)
    found, _, rejects, _ = read(path, format)
    assert found.to_pylist() == [{"t": "ok", "n": 1}]
    assert [(r.line, r.column) for r in rejects] == [(2, "t"), (3, "n")]
    assert rejects[1].reason == "'18446744073709551615' does not fit int64"


@pytest.mark.parametrize("format", FORMATS)
def test_no_file_of_that_format(tmp_path: Path, format: FileFormat) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"certainly not columnar" * 10)
    with pytest.raises(core.BadFile, match="not a readable"):
        read(path, format)


@pytest.mark.parametrize("format", FORMATS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_refused_and_never_crashes(tmp_path: Path, format: FileFormat, seed: int) -> None:
    path = tmp_path / "f"
    write(path, pa.table({"t": ["word"] * 500, "v": [[0.5, 1.5]] * 500}), format)
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    for at in rng.integers(0, len(content), 8):
        content[at] = rng.integers(0, 256)
    path.write_bytes(content[: rng.integers(len(content) // 2, len(content) + 1)])
    try:
        found, _, rejects, _ = read(path, format)
    except core.BadFile:
        return
    assert found.num_rows + len(rejects) <= 10**6
    found.validate(full=True)


def test_packed_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_bytes(b"\x1f\x8b\x08\x00rest")
    with pytest.raises(core.BadFile, match=r"compressed \(gzip\)"):
        open_reader(path, "csv", "f.csv", CONFIG)
    path.write_bytes(b"")
    with pytest.raises(core.BadFile, match="is empty"):
        open_reader(path, "csv", "f.csv", CONFIG)


def test_slices_stay_within_the_budget() -> None:
    words = pa.array(["x" * 1000, "y"]).dictionary_encode()
    batch = pa.record_batch({"w": words.take(pa.array([0, 1] * 50)), "n": list(range(100))})
    parts = list(bounded(batch, 5000))
    assert sum(part.num_rows for part in parts) == 100
    assert all(sum(len(w) for w in part.column("w").to_pylist()) <= 5000 for part in parts)
    assert len(list(bounded(batch, 10))) >= 50  # a row above the budget goes alone


_BOMB = """
import sys
from pathlib import Path
from actors.ingest.config import IngestConfig
from actors.ingest.readers import open_reader
reader = open_reader(Path(sys.argv[1]), "parquet", "bomb", IngestConfig())
columns = reader.survey(None, None).columns
rows = sum(len(chunk.lines) for chunk in reader.chunks(columns))
print(rows, int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("store_schema", [True, False])
def test_a_parquet_bomb_does_not_fill_memory(tmp_path: Path, store_schema: bool) -> None:
    """1 MB of text once in the dictionary, 2,000 times in the column: 2 GB unfolded. Small at
    the head, so that its first rows tell nothing."""
    path = tmp_path / "bomb.parquet"
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 500 + [1] * 2000, pa.int32()), ["a", "x" * 1_000_000])
    pq.write_table(pa.table({"t": text}), path, store_schema=store_schema)
    assert path.stat().st_size < 300_000
    done = subprocess.run([sys.executable, "-c", _BOMB, str(path)], capture_output=True, text=True, check=True)
    rows, peak_mb = map(int, done.stdout.split())
    assert rows == 2500
    assert peak_mb < 250
