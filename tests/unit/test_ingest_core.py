"""What ingest decides, its ids, and its join of repeated ids against a model."""

import tempfile
from collections import Counter
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.ingest import core, keyspill
from actors.ingest.actor import Ingest
from actors.ingest.core import BadFile, Column
from actors.ingest.ids import content_ids, keys_of
from actors.ingest.inference import Tally
from actors.ingest.keyspill import KeySpill, repeats
from schemas.events.dataset import (
    DeleteRows,
    DropDataset,
    GetDataset,
    IngestDatabase,
    IngestFile,
    ListDatasets,
    RejectedRow,
    UpsertRows,
)
from schemas.events.storage import ClearDataset, SwitchDataset


@pytest.mark.parametrize(
    ("path", "source", "given", "expected"),
    [
        ("/x/a.CSV", None, None, "csv"),
        ("/x/a.ndjson", None, None, "jsonl"),
        ("/uploads/123", "mine.parquet", None, "parquet"),
        ("/x/a.csv", None, "arrow", "arrow"),
        ("/x/a.csv.gz", None, "csv", "csv"),  # as told; the reader then sees what it is
    ],
)
def test_format(path: str, source: str | None, given: Any, expected: str) -> None:
    assert core.format_of(path, source, given) == expected


def test_ids_do_not_depend_on_order_or_on_missing_columns() -> None:
    a = {"t": pa.array(["x", "y"]), "n": pa.array([1, 2]), "v": pa.array([[1.0, 2.0], [3.0, 4.0]], core.VECTOR)}
    b = {"v": a["v"], "new": pa.nulls(2, pa.string()), "n": a["n"], "t": a["t"]}
    ids = content_ids(a, 2)
    assert ids.to_pylist() == content_ids(b, 2).to_pylist()
    assert all(len(id) == 32 for id in ids.to_pylist())
    # Stored ids must never change: the form, written out once more.
    row = b"1:n=1:1" + b"1:t=1:x" + b"1:v=8:" + np.array([1, 2], "<f4").tobytes()
    assert ids[0].as_py() == blake2b(row, digest_size=16).hexdigest()


cell = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=3)


@given(rows=st.lists(st.tuples(cell, cell, st.none() | st.integers(0, 3)), min_size=1, max_size=30))
def test_ids_are_equal_exactly_when_rows_are(rows: list[tuple[Any, ...]]) -> None:
    columns = dict(zip(["a", "b", "n"], zip(*rows, strict=True), strict=True))
    types = {"a": pa.string(), "b": pa.string(), "n": pa.int64()}
    ids = content_ids({name: pa.array(values, types[name]) for name, values in columns.items()}, len(rows)).to_pylist()
    assert len(set(ids)) == len(set(rows))
    assert len(set(zip(ids, rows, strict=True))) == len(set(rows))


def test_keys_of_integers_are_exact() -> None:
    ids = pa.array([-1, 0, 2**63 - 1, -(2**63)])
    assert len(set(keys_of(ids).tolist())) == 4
    assert keys_of(pa.array([5], pa.int32())) == keys_of(pa.array([5]))


keys = st.lists(st.integers(0, 12), max_size=40)


@given(staged=keys, stored=st.sets(st.integers(0, 12)), rewrite=st.booleans(), partitions=st.integers(1, 5))
@settings(deadline=None)
def test_repeats_against_a_model(staged: list[int], stored: set[int], rewrite: bool, partitions: int) -> None:
    rows = {key: 1000 + key for key in stored}
    kept: dict[int, int] = {}
    for ordinal, key in enumerate(staged):
        if rewrite or (key not in stored and key not in kept):
            kept[key] = ordinal
    dropped = [ordinal for ordinal, key in enumerate(staged) if kept.get(key) != ordinal]
    with tempfile.TemporaryDirectory() as folder:
        new, old = KeySpill(Path(folder), "new", partitions), KeySpill(Path(folder), "old", partitions)
        for part in np.array_split(np.arange(len(staged)), 3):
            new.add(np.array(staged, np.uint64)[part], part)
        old.add(np.array(list(rows), np.uint64), np.array(list(rows.values()), np.int64))
        found = repeats(new, old, len(staged), rewrite=rewrite, explain=True)
        new.close()
        old.close()
    assert np.flatnonzero(~found.kept).tolist() == dropped
    assert found.dropped == len(dropped)
    assert found.earlier is not None
    assert found.earlier[dropped].tolist() == [kept.get(staged[ordinal], -1) for ordinal in dropped]
    assert found.removed.tolist() == (sorted(rows[key] for key in stored & set(staged)) if rewrite else [])


def test_partitions_stay_bounded() -> None:
    assert keyspill.partitions_for(0) == 1
    assert keyspill.partitions_for(500_000) == 3
    assert keyspill.partitions_for(10**12) == 256


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "2", "3"], "int64"),
        (["1", "2.5", "3"], "double"),
        (["1", "x", "3"], "int64"),  # one bad cell costs its row, not the column its type
        (["1", "x"], "string"),
        (["1", "x", "y", "4", "5"], "string"),
        (["true", "False"], "bool"),
        (["", "n/a", "7"], "int64"),
        (["007", "010"], "string"),
        (["1_000", "2_000"], "string"),
        (["2024-01-05"], "string"),
        (["9223372036854775809"] * 3, "string"),  # as a float it would be another number
        (["[1, 2.5]", "[3, 4]"], str(core.VECTOR)),
        (["[1, 2]", "[3, 4]"], "string"),
        ([], "string"),
    ],
)
def test_inference(cells: list[str], expected: str) -> None:
    tally = Tally()
    for text in cells:
        tally.see_text(text)
    assert str(tally.column("c", None, None).type) == expected


def test_the_dimension_is_the_most_common_one() -> None:
    assert core.most_common(Counter({3: 5, 2: 5, 9: 1})) == 2
    assert core.most_common(Counter()) is None


def test_only_the_named_column_is_a_vector() -> None:
    schema = pa.schema([("a", pa.list_(pa.float64())), ("b", pa.list_(pa.int8(), 3))])
    assert [core.column_of(field, 3, None).role for field in schema] == ["vector", "value"]
    assert [core.column_of(field, 3, "b").role for field in schema] == ["value", "vector"]
    with pytest.raises(BadFile, match="not a list of numbers"):
        core.column_of(pa.field("c", pa.string()), None, "c")


@pytest.mark.parametrize("type_", [pa.duration("s"), pa.time32("s"), pa.month_day_nano_interval()])
def test_types_that_cannot_be_stored(type_: pa.DataType) -> None:
    with pytest.raises(BadFile, match=r"column 'c': type .* cannot be stored"):
        core.column_of(pa.field("c", type_), None, None)


def test_too_many_rejected() -> None:
    first = [RejectedRow("f", 3, "n", "no number")]
    assert core.too_many_rejected(5, 5, 0.5, first) is None
    assert core.too_many_rejected(10, 0, 0.0, []) is None
    refusal = core.too_many_rejected(4, 5, 0.5, first)
    assert refusal is not None
    assert refusal.reason == "5 of 9 rows are bad (line 3, column n: no number)"
    assert "max_rejected_share (now 0.5)" in refusal.hint


def test_a_plan_for_a_new_dataset() -> None:
    found = [Column("k", pa.int64(), "value"), Column("t", pa.string(), "text")]
    plan = core.plan(found, None, "k")
    assert (plan.id_column, plan.generated_id, plan.columns[0].role) == ("k", False, "id")
    plan = core.plan(found, None, None)
    assert (plan.generated_id, plan.schema.names) == (True, [core.GENERATED_ID, "k", "t"])
    with pytest.raises(BadFile, match="at most 1000"):
        core.plan([Column(f"c{n}", pa.int64(), "value") for n in range(1001)], None, None)


def test_its_routes() -> None:
    routes = {route.takes: route for route in Ingest.routes()}
    assert set(routes) == {
        ClearDataset,
        SwitchDataset,
        IngestFile,
        IngestDatabase,
        UpsertRows,
        DeleteRows,
        DropDataset,
        GetDataset,
        ListDatasets,
    }
    assert routes[IngestFile].concurrency == 4
    assert Ingest.role == "control"
