"""The Parquet files of a table: written in bounded memory, rewritten without some rows, read by
row number. A file's rows ascend by _row. Files are immutable; which of them make up a version is
the log's business (delta_log.py)."""

import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from actors.ahead import ahead
from actors.ports import ROW
from daemon.storage import durable
from daemon.storage.columns import conform

ROTATE_BYTES = 32 << 20
"""A delete rewrites whole files, so they stay small enough for that to take under a second."""
GROUP_BYTES = 8 << 20
GROUP_ROWS = 16_384
LOOKED_AT = 2_000
"""Rows by which it is seen whether a column's values repeat."""
READ_AHEAD = 256 << 10
"""Rewrites read their groups in pieces of this size, in one thread: whole groups read in several
threads took 50 MB more."""


class DataFile(msgspec.Struct, frozen=True):
    """One file of a table version."""

    path: str  # within the table's folder
    bytes: int
    rows: int
    min_row: int
    max_row: int


class BadDataFile(Exception):
    """A file can't be decoded. tables.py says of which table (CorruptState)."""


class FileWriter:
    """Writes tables one after another into files of about ROTATE_BYTES under `folder`. Not one
    of them belongs to any version until it is committed; `discard` takes them away."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.files: list[DataFile] = []
        self._folder = folder
        self._schema = schema
        leaves = [leaf for field in schema for leaf in _leaves(field.type, field.name)]
        # Floats hardly repeat: compressing a vector costs seconds and saves a few percent.
        self._compression = {path: "none" if pa.types.is_floating(of) else "zstd" for path, of in leaves}
        self._dictionaries = [path for path, of in leaves if pa.types.is_string(of) or pa.types.is_binary(of)]
        self._path: Path | None = None
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[pa.Table] = []
        self._bounds: tuple[int, int, int] = (0, 0, 0)  # rows, first and last row number of the open file

    def write(self, table: pa.Table) -> None:
        """table: rows in ascending _row, above all written before. Raises OSError."""
        step = max(1, min(GROUP_ROWS, GROUP_BYTES * table.num_rows // max(1, table.nbytes)))
        for start in range(0, table.num_rows, step):
            self._pending.append(table.slice(start, step))
            rows = sum(pending.num_rows for pending in self._pending)
            if rows >= GROUP_ROWS or sum(pending.nbytes for pending in self._pending) >= GROUP_BYTES // 2:
                self._flush()

    def close(self) -> list[DataFile]:
        """Finish and sync everything; the files, in order."""
        self._flush()
        self._finish()
        if self.files:
            durable.sync_directory(self._folder)
        return self.files

    def discard(self) -> None:
        if self._writer is not None:
            self._writer.close()
        for path in [self._path, *(self._folder / file.path for file in self.files)]:
            if path is not None:
                path.unlink(missing_ok=True)

    def _flush(self) -> None:
        if not self._pending:
            return
        group = pa.concat_tables(self._pending)
        self._pending = []
        rows = group.column(ROW)
        first, last = rows[0].as_py(), rows[-1].as_py()
        if self._writer is None:
            self._path = self._folder / f"part-{first:012d}-{uuid.uuid4().hex}.parquet"
            self._writer = pq.ParquetWriter(
                self._path,
                self._schema,
                compression=self._compression,
                use_dictionary=[path for path in self._dictionaries if _repeats(group, path)],
                write_statistics=[ROW],
            )
            self._bounds = (0, first, last)
        self._writer.write_table(group, row_group_size=group.num_rows)
        self._bounds = (self._bounds[0] + group.num_rows, self._bounds[1], last)
        assert self._path is not None
        if self._path.stat().st_size >= ROTATE_BYTES:
            self._finish()

    def _finish(self) -> None:
        if self._writer is None or self._path is None:
            return
        self._writer.close()
        durable.sync_file(self._path)
        self.files.append(DataFile(self._path.name, self._path.stat().st_size, *self._bounds))
        self._writer = self._path = None


def _repeats(group: pa.Table, column: str) -> bool:
    """Whether a dictionary pays for a text column: hashing values that are all different takes longer
    than writing them. Nested ones are not looked at."""
    if column not in group.column_names:
        return True
    seen = group.column(column).slice(0, LOOKED_AT)
    return bool(2 * pc.count_distinct(seen).as_py() <= len(seen))


def write_rows(folder: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], first_row: int) -> list[DataFile]:
    """New rows, numbered from `first_row`. Whatever `batches` raises passes through, and no
    file is left."""
    writer = FileWriter(folder, schema)
    try:
        for table in ahead(_numbered(batches, schema, first_row)):
            writer.write(table)
        return writer.close()
    except BaseException:
        writer.discard()
        raise
    finally:
        pa.default_memory_pool().release_unused()


def _numbered(batches: Iterable[pa.RecordBatch], schema: pa.Schema, first_row: int) -> Iterator[pa.Table]:
    for batch in batches:
        table = conform(batch, schema, first_row)
        yield table
        first_row += table.num_rows


def rewrite(
    folder: Path, schema: pa.Schema, paths: Sequence[Path], *, without: NDArray[np.int64] | None = None, shift: int = 0
) -> list[DataFile]:
    """The rows of `paths` (in ascending _row) in new files: without some rows (ascending
    numbers), or with their numbers shifted."""
    writer = FileWriter(folder, schema)
    try:
        for table in _tables(paths, schema):
            if without is not None:
                rows = table.column(ROW).to_numpy()
                table = table.filter(pa.array(~is_member(rows, without)))
            if shift:
                table = table.set_column(0, ROW, pc.add(table.column(ROW), shift))
            writer.write(table)
        return writer.close()
    except BaseException:
        writer.discard()
        raise
    finally:
        pa.default_memory_pool().release_unused()  # the pool would keep what the largest group took


def row_numbers(path: Path) -> NDArray[np.int64]:
    """(n,) int64, ascending."""
    with _open(path) as file:
        numbers: NDArray[np.int64] = file.read(columns=[ROW]).column(ROW).to_numpy()
    return numbers


def read_rows(path: Path, schema: pa.Schema, columns: Sequence[str], wanted: NDArray[np.int64] | None) -> pa.Table:
    """Rows of one file, in ascending _row; with `wanted` (ascending), only those. Row groups
    that hold none of them are not read. A column that the file is too old for is null."""
    with _open(path, memory_map=True) as file:
        there = [name for name in columns if name in file.schema_arrow.names]
        groups = list(range(file.num_row_groups))
        if wanted is not None:
            groups = [group for group in groups if _holds(file.metadata.row_group(group), wanted)]
        table = file.read_row_groups(groups, columns=[ROW, *there])
    if wanted is not None:
        table = table.filter(pa.array(is_member(table.column(ROW).to_numpy(), wanted)))
    for name in columns:
        if name not in there and name != ROW:
            table = table.append_column(name, pa.nulls(table.num_rows, schema.field(name).type))
    return table.select(list(columns)).cast(pa.schema([schema.field(name) for name in columns]))


def dataset(paths: Sequence[Path], schema: pa.Schema) -> ds.Dataset:
    """The files as one Arrow dataset; columns that a file is too old for are null."""
    if not paths:
        return ds.dataset(schema.empty_table())
    return ds.dataset([str(path) for path in paths], schema=schema, format="parquet")


def find_rows(paths: Sequence[Path], schema: pa.Schema, column: str, values: pa.Array) -> NDArray[np.int64]:
    """Row numbers, ascending, of the rows whose column is one of the values. Raises BadDataFile."""
    try:
        found = dataset(paths, schema).to_table(columns=[ROW], filter=pc.field(column).isin(values))
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise BadDataFile(str(error).splitlines()[0].rstrip(".")) from error
    return np.sort(found.column(ROW).to_numpy())


def is_member(rows: NDArray[np.int64], of: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of `rows` are in `of`, which ascends."""
    if len(of) == 0:
        return np.zeros(len(rows), bool)
    at = np.minimum(np.searchsorted(of, rows), len(of) - 1)
    found: NDArray[np.bool_] = of[at] == rows
    return found


@contextmanager
def _open(path: Path, **options: Any) -> Iterator[pq.ParquetFile]:
    """Raises FileNotFoundError, and BadDataFile also for what is found while it is read."""
    try:
        with pq.ParquetFile(path, **options) as file:
            yield file
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's words, not the decoder's
            raise
        raise BadDataFile(f"{path.name}: {str(error).splitlines()[0].rstrip('.')}") from error


def _holds(group: pq.RowGroupMetaData, wanted: NDArray[np.int64]) -> bool:
    statistics = group.column(0).statistics  # _row is the first column
    if statistics is None or not statistics.has_min_max:
        return True
    first, end = np.searchsorted(wanted, [statistics.min, statistics.max + 1])
    return bool(first < end)


def _tables(paths: Sequence[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    for path in paths:
        with _open(path, buffer_size=READ_AHEAD, pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, use_threads=False)
                for index, field in enumerate(schema):
                    if field.name not in table.column_names:
                        table = table.add_column(index, field, pa.nulls(table.num_rows, field.type))
                yield table.select(schema.names).cast(schema)
                pa.default_memory_pool().release_unused()  # it keeps more than a group takes


def _leaves(of: pa.DataType, path: str) -> list[tuple[str, pa.DataType]]:
    """A column's leaves as Parquet names them, with their types."""
    if pa.types.is_list(of):
        return _leaves(of.value_type, f"{path}.list.element")
    if pa.types.is_struct(of):
        return [leaf for field in of for leaf in _leaves(field.type, f"{path}.{field.name}")]
    if pa.types.is_map(of):
        return _leaves(of.key_type, f"{path}.key_value.key") + _leaves(of.item_type, f"{path}.key_value.value")
    return [(path, of)]
