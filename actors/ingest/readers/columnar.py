"""Parquet and Arrow IPC (files and streams): batches of bounded size, whatever the file says.

A few kilobytes of Parquet can unfold to gigabytes: how many rows are read at a time follows from
the longest text in a row group's dictionary, and a file that unfolds out of all proportion is
refused (staging.py). A compressed Arrow record batch has to be unpacked whole; an uncompressed one is mapped, not read.
"""

import mmap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from actors.ingest.cells import from_arrow
from actors.ingest.core import BadFile, Column, column_of, is_vector, most_common
from actors.ingest.readers.base import Chunk, Converted, Opened, Reject, Survey, shown_row

_DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)
_COPIES = 4
"""Times that a batch is in memory on its way: read, cast, hashed, staged."""
_PROBES = 8
"""Batches that the dimension of a vector column is learned from."""


class _Columnar(Opened):
    """What both formats share: a schema, and batches."""

    def __init__(self, path: Path, file: str, batch_rows: int, batch_bytes: int) -> None:
        self.path = path
        self.file = file
        self.size = path.stat().st_size
        self._batch_rows = batch_rows
        self._batch_bytes = batch_bytes // _COPIES

    def _describe(
        self, schema: pa.Schema, samples: Iterator[pa.RecordBatch], vector_column: str | None
    ) -> list[Column]:
        listed = [f.name for f in schema if is_vector(f.type) or f.name == vector_column]
        if vector_column is not None and vector_column not in schema.names:
            raise BadFile(f"there is no column {vector_column!r}", f"columns: {', '.join(schema.names)}")
        lengths: dict[str, Counter[int]] = {name: Counter() for name in listed}
        if listed and len(set(schema.names)) == len(schema.names):
            for batch in samples:
                for name in listed:
                    if pa.types.is_nested(batch.schema.field(name).type):
                        sizes = pc.list_value_length(batch.column(name)).drop_null()
                        lengths[name].update(size for size in sizes.to_pylist() if size)
        return [column_of(f, most_common(lengths.get(f.name, Counter())), vector_column) for f in schema]

    def _chunk(self, batch: pa.RecordBatch, first: int, columns: Sequence[Column], bytes_read: int) -> Chunk:
        converted = Converted(batch.num_rows)
        for column in columns:
            converted.add(column.name, *from_arrow(batch.column(column.name), column))
        lines = np.arange(first, first + batch.num_rows, dtype=np.int64)
        rejects = [
            Reject(int(lines[row]), name, reason, shown_row(batch.slice(row, 1))) for row, name, reason in converted.bad
        ]
        return Chunk(*converted.good(lines), rejects, bytes_read)


class ParquetReader(_Columnar):
    """Raises BadFile when the file is no Parquet."""

    def __init__(self, path: Path, file: str, batch_rows: int, batch_bytes: int) -> None:
        super().__init__(path, file, batch_rows, batch_bytes)
        try:
            self._schema = pq.read_schema(path)
            self._texts = [f.name for f in self._schema if _is_long(f.type)]
            self._file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
            self._folded = pq.ParquetFile(path, read_dictionary=self._texts, pre_buffer=False, buffer_size=1 << 20)
        except _DAMAGED as error:
            raise BadFile(f"not a readable Parquet file: {error}") from None

    def survey(self, vector_column: str | None, id_column: str | None) -> Survey:
        try:
            columns = self._describe(self._schema, self._samples(), vector_column)
        except _DAMAGED as error:
            raise BadFile(f"the Parquet file is damaged: {error}") from None
        return Survey(tuple(columns), self._file.metadata.num_rows, cells_decide=False)

    def chunks(self, columns: Sequence[Column]) -> Iterator[Chunk]:
        row = 1
        total = max(1, self._file.metadata.num_rows)
        try:
            for group in range(self._file.num_row_groups):
                for batch in self._file.iter_batches(self._rows_at_once(group), row_groups=[group]):
                    for part in bounded(batch, self._batch_bytes):
                        yield self._chunk(part, row, columns, self.size * min(row, total) // total)
                        row += part.num_rows
        except _DAMAGED as error:
            raise BadFile(f"the Parquet file is damaged near row {row}: {error}") from None

    def _rows_at_once(self, group: int) -> int:
        """Rows of a row group that stay within the budget, however they unfold: by the schema,
        and by the longest text of each dictionary, all of which comes with its first row."""
        width = sum(_width(field.type) for field in self._schema)
        if self._texts:
            for batch in _first(self._folded.iter_batches(1, row_groups=[group], columns=self._texts)):
                for column in batch.columns:
                    if pa.types.is_dictionary(column.type) and len(column.dictionary):
                        width += pc.max(pc.binary_length(column.dictionary)).as_py() or 0
        return max(1, min(self._batch_rows, self._batch_bytes // max(1, width)))

    def _samples(self) -> Iterator[pa.RecordBatch]:
        groups = self._file.num_row_groups
        for group in range(0, groups, max(1, groups // _PROBES)):
            rows = min(64, self._rows_at_once(group))
            yield from _first(self._file.iter_batches(rows, row_groups=[group]))


class ArrowReader(_Columnar):
    """Raises BadFile when the file is no Arrow IPC file or stream."""

    def __init__(self, path: Path, file: str, batch_rows: int, batch_bytes: int) -> None:
        super().__init__(path, file, batch_rows, batch_bytes)
        self._rows = 0
        with path.open("rb") as opened:
            self._map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self._schema = self._open().schema
        except _DAMAGED as error:
            raise BadFile(f"not a readable Arrow IPC file: {error}") from None

    def survey(self, vector_column: str | None, id_column: str | None) -> Survey:
        rows = 0
        samples: list[pa.RecordBatch] = []
        for batch in self._batches():
            rows += batch.num_rows
            if len(samples) < _PROBES:
                samples.append(batch.slice(0, 64))
        self._rows = rows
        return Survey(tuple(self._describe(self._schema, iter(samples), vector_column)), rows, cells_decide=False)

    def chunks(self, columns: Sequence[Column]) -> Iterator[Chunk]:
        row = 1
        for batch in self._batches():
            for start in range(0, batch.num_rows, self._batch_rows):
                for part in bounded(batch.slice(start, self._batch_rows), self._batch_bytes):
                    yield self._chunk(part, row, columns, self.size * min(row, self._rows) // max(1, self._rows))
                    row += part.num_rows
                    self._map.madvise(mmap.MADV_DONTNEED)  # pages that were read count as our memory otherwise

    def _open(self) -> pa.RecordBatchReader | pa.ipc.RecordBatchFileReader:
        source = pa.BufferReader(pa.py_buffer(self._map))
        is_file = self._map[:6] == b"ARROW1"
        return pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        number = 0
        try:
            opened = self._open()
            indexed = isinstance(opened, pa.ipc.RecordBatchFileReader)
            batches = (opened.get_batch(i) for i in range(opened.num_record_batches)) if indexed else opened
            for number, batch in enumerate(batches, 1):  # noqa: B007
                for column in batch.columns:
                    # Offsets that point outside would crash the process. Text is checked cell
                    # by cell later, so here it is bytes.
                    (column.view(pa.binary()) if pa.types.is_string(column.type) else column).validate(full=True)
                yield batch
        except _DAMAGED as error:
            raise BadFile(f"the Arrow file is damaged after record batch {number}: {error}") from None


def bounded(batch: pa.RecordBatch, limit: int) -> Iterator[pa.RecordBatch]:
    """Consecutive slices that take at most `limit` bytes with dictionaries unfolded, or one row."""
    sizes = _sizes(batch)  # (n,)
    ends = np.cumsum(sizes)
    start = 0
    while start < batch.num_rows:
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + limit, side="right")))
        yield batch.slice(start, stop - start)
        start = stop


def _sizes(batch: pa.RecordBatch) -> NDArray[np.float64]:
    """Bytes of each row, unfolded (n,): exact for text, the mean of the batch for the rest."""
    sizes = np.zeros(batch.num_rows)
    for column in batch.columns:
        values, at = (column.dictionary, column.indices) if pa.types.is_dictionary(column.type) else (column, None)
        if _is_long(values.type):
            lengths = pc.binary_length(values)
            lengths = lengths if at is None else lengths.take(at)
            sizes += pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False)
        else:
            sizes += column.nbytes / max(1, batch.num_rows)
    return sizes


def _is_long(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_binary(type_)
        or pa.types.is_large_binary(type_)
    )


def _width(type_: pa.DataType) -> int:
    """Bytes of a value, a guess of 1 KiB where it varies."""
    if pa.types.is_fixed_size_list(type_):
        return int(type_.list_size) * _width(type_.value_type)
    try:
        return max(1, int(type_.bit_width) // 8)
    except ValueError:
        return 64 if _is_long(type_) else 1024


def _first(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch
        return
