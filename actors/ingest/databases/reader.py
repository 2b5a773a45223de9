"""What the readers of database servers have in common: a connection that is opened for the survey,
batches that are fetched one ahead, rows that become chunks. What a server is asked, and what its
answers are, is postgres.py's and mariadb.py's.
"""

import contextlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.ahead import ahead
from actors.ingest.cells import from_arrow, from_text
from actors.ingest.core import VECTOR, BadFile, Column, column_of, is_vector, most_common
from actors.ingest.databases.request import DatabaseRequest
from actors.ingest.readers.base import Chunk, Converted, Opened, Reject, Survey, shown_row

ROWS_AT_ONCE = 16_384
PROBED = 4_096
"""Rows that the dimension of a vector is learned from."""


class DatabaseReader(Opened):
    """One table or query, as it is at the first look. Raises BadFile."""

    unit: Literal["bytes", "rows"] = "rows"
    path = None

    def __init__(self, request: DatabaseRequest) -> None:
        self.file = request.shown
        self.size = 0
        self.mark = request.after
        self._request = request
        self._said: list[str] = []  # warnings

    @property
    def warnings(self) -> Sequence[str]:
        return self._said

    def survey(self, vector_column: str | None, id_column: str | None) -> Survey:
        with self._speaking("can't be read"):
            schema, first = self._ask()
        if vector_column is not None and vector_column not in schema.names:
            self.close()
            raise BadFile(f"there is no column {vector_column!r}", f"columns: {', '.join(schema.names)}")
        columns = tuple(_column(field, first, vector_column) for field in schema)
        return Survey(columns, self.size, cells_decide=False)

    def chunks(self, columns: Sequence[Column]) -> Iterator[Chunk]:
        row = 1
        try:
            for batch in ahead(self._fetched()):
                for start in range(0, batch.num_rows, ROWS_AT_ONCE):
                    part = batch.slice(start, ROWS_AT_ONCE)
                    yield _chunk(part, row, columns)
                    row += part.num_rows
        finally:
            self.close()

    @abstractmethod
    def _ask(self) -> tuple[pa.Schema, pa.RecordBatch | None]:
        """Connect, begin the snapshot, set `size` and `mark`, and send the query: the columns, and the
        first batch, which `_next` gives again. None without any row."""

    @abstractmethod
    def _next(self) -> pa.RecordBatch | None:
        """The next batch, in the types of the schema; None after the last."""

    @abstractmethod
    def _told(self, error: Exception) -> tuple[str, bool] | None:
        """What a driver's error says, and whether the server is away; None for another error."""

    def _fetched(self) -> Iterator[pa.RecordBatch]:
        rows = 0
        while True:
            with self._speaking(f"was lost after {rows:,} rows"):
                batch = self._next()
            if batch is None:
                return
            rows += batch.num_rows
            yield batch

    def _refuse_cursor(self, names: Sequence[str]) -> None:
        """Raises BadFile when there is no such column."""
        name = self._request.cursor
        if name not in names:
            raise BadFile(f"there is no column {name!r} to use as cursor", f"columns: {', '.join(names)}")

    def _reached(self, high: str | None, unset: int) -> None:
        """high: the newest row's cursor, if there is a new one; unset: rows that have none."""
        self.mark = high or self._request.after
        if unset:
            self._said.append(f"{unset:,} rows have no {self._request.cursor}: a cursor passes them by")

    @contextlib.contextmanager
    def _speaking(self, what: str) -> Iterator[None]:
        """The driver's errors in our words, without the password; whatever is raised, nothing stays open."""
        try:
            yield
        except BadFile:
            self.close()
            raise
        except Exception as error:
            self.close()
            told = self._told(error)
            if told is None:
                raise
            said, away = self._request.dsn.scrubbed(told[0]).strip(" .\n"), told[1]
            hint = "nothing of it was kept: run it again when the server is there" if away else ""
            raise BadFile(f"{self.file} {what}: {said}", hint, "unavailable" if away else "invalid") from None


def _column(field: pa.Field, first: pa.RecordBatch | None, vector_column: str | None) -> Column:
    """How a column is stored: as that of a Parquet file, but integers of at most 32 bits stay so. With
    `vector_column`, a text column may hold vectors, as JSON."""
    if pa.types.is_integer(field.type) and field.type.bit_width <= 32 and field.type != pa.uint32():
        return Column(field.name, pa.int32(), "value")
    lengths: Counter[int] = Counter()
    if first is not None and (is_vector(field.type) or field.name == vector_column):
        lengths.update(_vector_lengths(first.column(field.name).slice(0, PROBED)))
    if field.name == vector_column and pa.types.is_string(field.type):
        return Column(field.name, VECTOR, "vector", most_common(lengths))
    return column_of(field, most_common(lengths), vector_column)


def _vector_lengths(values: pa.Array) -> list[int]:
    """Of lists, or of JSON texts of them; without nulls and empty ones."""
    if pa.types.is_string(values.type):
        return [text.count(",") + 1 for text in values.drop_null().to_pylist() if text.strip("[] ")]
    if not pa.types.is_nested(values.type):
        return []
    return [size for size in pc.list_value_length(values).drop_null().to_pylist() if size]


def _chunk(batch: pa.RecordBatch, first: int, columns: Sequence[Column]) -> Chunk:
    converted = Converted(batch.num_rows)
    for column in columns:
        values = batch.column(column.name)
        read = from_text if column.role == "vector" and pa.types.is_string(values.type) else from_arrow
        converted.add(column.name, *read(values, column))
    lines = np.arange(first, first + batch.num_rows, dtype=np.int64)
    rejects = [
        Reject(int(lines[row]), name, reason, shown_row(batch.slice(row, 1))) for row, name, reason in converted.bad
    ]
    return Chunk(*converted.good(lines), rejects, first + batch.num_rows - 1)
