"""Lance stores: made, opened, indexed, optimised. pylance is optional, and imported where it is used.

A store is one Lance dataset: the rows' numbers (`_row`), their vectors (`_vector`), and the dataset's
columns under their own names. Several vector indexes lie side by side in it; a search names the one
it wants. Row ids are stable, so an index survives compaction. Whatever is written becomes visible by
one commit, and counts only when the store's head in the registry names it.
"""

import os
import re
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actors.errors import CorruptState, Transient
from schemas.config import LanceBuild
from schemas.names import Bytes, Metric

ROW = "_row"
VECTOR = "_vector"
METRICS: dict[Metric, str] = {"cosine": "dot", "ip": "dot", "l2": "l2"}

RESERVED = {ROW, VECTOR, "_distance", "_score", "_rowid", "_rowaddr", "query_index"}
"""Column names that Lance or this module give."""

MARKS = {".", "`"}
"""That Lance reads as parts of a path to a column, wherever they stand."""

ID_ROWS = 5000
"""Row numbers in one predicate."""

CACHE_BYTES = 1 << 30
"""Of index pages and file metadata that a process keeps in memory, over all stores."""

HNSW_M, HNSW_EF_CONSTRUCTION = 16, 100
"""Of the graphs in the cells of IVF_HNSW_SQ: half of Lance's own effort; nprobes and ef make up for it."""

TRIED_FOR = timedelta(days=1)
"""An index that a trial built may still be promoted for so long."""

POLL_S = 0.25


class Place(msgspec.Struct, frozen=True):
    """Where a store is. Travels to the worker process, credentials and all; prints none."""

    uri: str
    options: Mapping[str, str] = {}  # of the object store
    lance_version: int | None = None  # to be read; None: the newest

    def __repr__(self) -> str:
        return f"Place({self.uri}, version {self.lance_version})"

    __str__ = __repr__


def available() -> bool:
    """Whether pylance is installed."""
    return find_spec("lance") is not None


def library() -> str:
    """ "pylance 14.0.2"; empty where it isn't installed."""
    try:
        return f"pylance {version('pylance')}"
    except PackageNotFoundError:
        return ""


def opened(place: Place) -> Any:
    """The dataset. Raises FileNotFoundError, CorruptState, Transient."""
    with explained(place):
        return _lance().dataset(
            place.uri, version=place.lance_version, storage_options=dict(place.options) or None, session=_session()
        )


def read_through(place: Place) -> None:
    """Reads all of it, past the caches: rows and indexes. Raises FileNotFoundError, CorruptState for what can't be
    read, Transient when the bucket is away."""
    lance = _lance()
    with explained(place):
        dataset = lance.dataset(
            place.uri,
            version=place.lance_version,
            storage_options=dict(place.options) or None,
            session=lance.Session(index_cache_size_bytes=CACHE_BYTES, metadata_cache_size_bytes=0),
        )
        for _ in dataset.to_batches():
            pass
        for one in dataset.describe_indices():
            dataset.prewarm_index(one.name)


def schema_of(columns: pa.Schema, dim: int | None) -> pa.Schema:
    """The store's schema over the dataset's columns; dim None: without vectors. Raises ValueError for a column
    name that a store can't have."""
    for name in unfit_names(columns.names):
        raise ValueError(f"a Lance store can't have a column {name!r}: rename it in the dataset")
    fields = [pa.field(ROW, pa.int64(), nullable=False), *columns]
    if dim is not None:
        fields.append(pa.field(VECTOR, pa.list_(pa.float32(), dim), nullable=False))
    return pa.schema([field.remove_metadata() for field in fields])


def unfit_names(columns: Iterable[str]) -> list[str]:
    """Those that a store can't have."""
    return [name for name in columns if name in RESERVED or not MARKS.isdisjoint(name)]


def batch_of(
    schema: pa.Schema,
    rows: NDArray[np.int64],  # (n,)
    vectors: NDArray[np.float32] | None,  # (n, d); None: the store has none
    columns: Mapping[str, Any],  # n values each, as Arrow arrays; one that is missing is null
) -> pa.RecordBatch:
    """Rows as they lie in a store."""
    arrays = []
    for field in schema:
        if field.name == ROW:
            arrays.append(pa.array(rows, pa.int64()))
        elif field.name == VECTOR:
            assert vectors is not None
            flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, field.type.list_size))
        elif field.name in columns:
            column = columns[field.name]
            column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
            arrays.append(column if column.type == field.type else column.cast(field.type))
        else:
            arrays.append(pa.nulls(len(rows), field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def create(place: Place, schema: pa.Schema) -> int:
    """An empty store. Raises FileExistsError when there is one."""
    with explained(place):
        try:
            dataset = _lance().write_dataset(
                schema.empty_table(),
                place.uri,
                mode="create",
                storage_options=dict(place.options) or None,
                enable_stable_row_ids=True,
                session=_session(),
            )
        except OSError as error:
            if "already exists" in str(error):
                raise FileExistsError(place.uri) from error
            raise
    return int(dataset.version)


def append(place: Place, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """One commit. Returns the store's version."""
    with explained(place):
        dataset = _lance().write_dataset(
            pa.RecordBatchReader.from_batches(schema, batches),
            place.uri,
            mode="append",
            storage_options=dict(place.options) or None,
            session=_session(),
        )
    return int(dataset.version)


def rows_of(place: Place) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(n,) row numbers, ascending, and (n,) the numbers that Lance knows them by."""
    with explained(place):
        table = opened(place).to_table(columns=[ROW], with_row_id=True)
    return numbered(table)


def numbered(table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows = np.asarray(table[ROW].to_numpy(), np.int64)
    order = np.argsort(rows, kind="stable")
    return rows[order], np.asarray(table["_rowid"].to_numpy(), np.int64)[order]


def schema_at(place: Place) -> pa.Schema:
    schema: pa.Schema = opened(place).schema
    return schema


def fragments_of(place: Place) -> tuple[int, int]:
    """(fragments, version) of the newest version."""
    dataset = opened(place)
    return len(dataset.get_fragments()), int(dataset.version)


def delete_rows(place: Place, rows: NDArray[np.int64]) -> int:
    """Takes rows out by their numbers; those that aren't there are no error. Returns the store's version."""
    dataset = opened(place)
    with explained(place):
        delete_from(dataset, rows)
    return int(dataset.version)


def delete_from(dataset: Any, rows: NDArray[np.int64]) -> None:
    for start in range(0, len(rows), ID_ROWS):
        dataset.delete(f"{ROW} IN ({', '.join(map(str, rows[start : start + ID_ROWS].tolist()))})")


def index_columns(place: Place, id_column: str | None, text_column: str | None) -> int:
    """B-trees on row number and id, an inverted index on the text; those that are there stay as they are."""
    dataset = opened(place)
    with explained(place):
        there = {one.name for one in dataset.describe_indices()}
        for column in (ROW, id_column):
            if column and _scalar(column) not in there:
                dataset.create_scalar_index(column, "BTREE", name=_scalar(column))
        if text_column and _scalar(text_column, "text") not in there:
            dataset.create_scalar_index(text_column, "INVERTED", name=_scalar(text_column, "text"), with_position=False)
    return int(dataset.version)


def build_index(place: Place, metric: Metric, build: LanceBuild, name: str) -> Generator[float, None, int]:
    """Trains and builds a vector index over the rows of the place's version, beside those there are. Yields how
    far it is, 0 to 1; returns the store's version that has it. One of the name that is there already is taken as
    it is. Raises ValueError for what can't be built."""
    dataset = opened(place)
    newest = opened(msgspec.structs.replace(place, lance_version=None))
    if any(one.name == name for one in newest.describe_indices()):
        return int(newest.version)
    settings: dict[str, Any] = {"num_partitions": build.partitions}
    if build.sub_vectors:
        settings["num_sub_vectors"] = build.sub_vectors
    if build.index_type == "IVF_HNSW_SQ":
        settings |= {"m": HNSW_M, "ef_construction": HNSW_EF_CONSTRUCTION}
    failure: list[BaseException] = []
    done = [0.0]
    stages: dict[str, float] = {}

    def note(event: Any) -> None:
        share = min(1.0, (event.completed or 0) / event.total) if getattr(event, "total", None) else 0.0
        stages[str(getattr(event, "stage", ""))] = share
        done[0] = max(done[0], min(0.99, sum(stages.values()) / max(4, len(stages))))

    def work() -> None:
        try:
            dataset.create_index(
                VECTOR, build.index_type, name=name, metric=METRICS[metric], progress_callback=note, **settings
            )
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        yield done[0]
    with explained(place):
        if failure:
            raise failure[0]
    return int(dataset.version)


def optimise(place: Place, keep: Sequence[str], merge: Sequence[str], retrain: bool, keep_s: float) -> int:
    """Takes rows outside them into the indexes `merge` and those on columns, drops vector indexes that aren't
    among `keep` and that no trial can need any more, merges small files, and before all that removes versions
    older than `keep_s` seconds. Returns the version."""
    dataset = opened(msgspec.structs.replace(place, lance_version=None))
    with explained(place):
        # First, while the version that is served is the newest, which stays whatever its age.
        dataset.cleanup_old_versions(older_than=timedelta(seconds=keep_s))
        described = dataset.describe_indices()
        for one in described:
            made = max(segment.created_at for segment in one.segments)
            if VECTOR in one.field_names and one.name not in keep and made < datetime.now(UTC) - TRIED_FOR:
                dataset.drop_index(one.name)
        dataset.optimize.compact_files(target_rows_per_fragment=1 << 20)
        columns = [one.name for one in described if VECTOR not in one.field_names]
        if columns:
            dataset.optimize.optimize_indices(index_names=columns)
        names = [one.name for one in described if one.name in merge]
        if names:
            dataset.optimize.optimize_indices(index_names=names, retrain=retrain)
    return int(dataset.version)


def bytes_of(dataset: Any) -> Bytes:
    """Of rows and indexes, as the version has them."""
    files = [file for fragment in dataset.get_fragments() for file in fragment.data_files()]
    indexes = sum(int(one.total_size_bytes or 0) for one in dataset.describe_indices())
    return sum(int(file.file_size_bytes or 0) for file in files) + indexes


def quoted(column: str) -> str:
    return "`" + column.replace("`", "``") + "`"


class explained:
    """Lance's errors as ours: what is missing, what is damaged, what is away. Its own words stay, without the
    lines of its source; a predicate or a build that it can't do stays a ValueError."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if error is None or not isinstance(error, OSError | ValueError | RuntimeError):
            return
        if isinstance(error, FileNotFoundError | FileExistsError | CorruptState | Transient):
            return
        words = said(error)
        if any(sign in words for sign in ("commit conflict", "oncurrent writers", "oncurrent transaction")):
            raise Transient(f"the store {self._place.uri} was changed at the same time: {words}") from error
        if "was not found" in words or "Not found" in words:
            raise FileNotFoundError(f"{self._place.uri}: {words}") from error
        if any(sign in words for sign in ("Generic S3", "error sending request", "timed out", "Connection")):
            raise Transient(f"the bucket of {self._place.uri} can't be reached: {words}") from error
        if isinstance(error, OSError) or "LanceError(IO)" in str(error) or "orrupt" in words:
            raise CorruptState(f"the store {self._place.uri} can't be read: {words}") from error


def said(error: BaseException) -> str:
    """The first sentence of a Lance error, without where in its source it was raised."""
    return re.sub(r"^LanceError\(\w+\): ", "", str(error).split(", /")[0]).strip()


def _scalar(column: str, kind: str = "key") -> str:
    return f"{kind}-{column}"


@lru_cache(maxsize=1)
def _session() -> Any:
    return _lance().Session(index_cache_size_bytes=CACHE_BYTES, metadata_cache_size_bytes=CACHE_BYTES // 8)


def _lance() -> Any:
    """pylance, quiet. Raises ModuleNotFoundError, with what to do, where it isn't installed."""
    os.environ.setdefault("LANCE_LOG", "error")
    os.environ.setdefault("LANCE_INCLUDE_VECTOR_CENTROIDS", "false")
    try:
        import lance
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pylance isn't installed: pip install 'lakehouse[lance]'") from error
    return lance
