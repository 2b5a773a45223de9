"""What every reader is: a survey of the file first, then its rows in bounded chunks, each with
the lines they came from and the rows that had to be set aside."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actors.ingest.cells import Bad
from actors.ingest.core import Column

SHOWN = 2000
"""Characters of a refused row that are kept."""


class Survey(msgspec.Struct, frozen=True):
    columns: tuple[Column, ...]
    rows: int  # in the file, about
    cells_decide: bool  # a text format: types show cell by cell


class Reject(msgspec.Struct, frozen=True):
    line: int  # 1-based line of a text file, 1-based row of a columnar one
    column: str
    reason: str
    content: str  # the row, at most SHOWN characters
    delimiter: str = ""  # of its cells, in the order of the survey's columns; else it is a JSON object


class Chunk(msgspec.Struct, frozen=True):
    """Rows in the types of the columns asked for, without the refused ones."""

    arrays: dict[str, pa.Array]  # each (n,)
    lines: NDArray[np.int64]  # (n,)
    rejects: list[Reject]
    read: int  # of the source, so far, in the reader's unit


class Reader(Protocol):
    size: int  # bytes of the file, or rows of the query, about
    unit: Literal["bytes", "rows"]  # of `size` and of a chunk's `read`
    file: str  # what rejects call it
    mark: str | None  # how far a cursor has come, once surveyed

    @property
    def path(self) -> Path | None:
        """Of the file, if it is one."""
        ...

    @property
    def warnings(self) -> Sequence[str]:
        """What was changed on the way, for the report."""
        ...

    def close(self) -> None:
        """Let go of what is open; called once or more."""
        ...

    def survey(self, vector_column: str | None, id_column: str | None) -> Survey:
        """Look over the whole file. Raises BadFile."""
        ...

    def chunks(self, columns: Sequence[Column]) -> Iterator[Chunk]:
        """Its rows, in order. Raises BadFile."""
        ...


class Opened:
    """What most readers are."""

    unit: Literal["bytes", "rows"] = "bytes"
    mark: str | None = None

    @property
    def warnings(self) -> Sequence[str]:
        return ()

    def close(self) -> None:
        pass


def shown_row(row: pa.RecordBatch) -> str:
    """One row as JSON, at most SHOWN characters."""
    try:
        (values,) = row.to_pylist()
        return msgspec.json.encode(values, enc_hook=str).decode(errors="replace")[:SHOWN]
    except UnicodeDecodeError:
        return ""


class Converted:
    """Columns of one batch as they are converted; rows that fail are taken out at the end."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._arrays: dict[str, pa.Array] = {}
        self._bad: dict[int, tuple[str, str]] = {}  # row → column, reason

    def add(self, column: str, array: pa.Array, bad: Mapping[int, str] | Bad) -> None:
        self._arrays[column] = array
        for row, reason in bad.items():
            self._bad.setdefault(row, (column, reason))

    @property
    def bad(self) -> list[tuple[int, str, str]]:
        """Refused rows, ascending, each with the first column that failed and why."""
        return [(row, *self._bad[row]) for row in sorted(self._bad)]

    def good(self, lines: NDArray[np.int64]) -> tuple[dict[str, pa.Array], NDArray[np.int64]]:
        """The other rows' arrays, and their lines."""
        if not self._bad:
            return self._arrays, lines
        keep = np.ones(self._rows, dtype=bool)
        keep[list(self._bad)] = False
        mask = pa.array(keep)
        return {name: array.filter(mask) for name, array in self._arrays.items()}, lines[keep]
