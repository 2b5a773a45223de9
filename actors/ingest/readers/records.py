"""Rows as Python dicts, decoded from JSON: the rows of an UpsertRows, and of JSON lines once
decoded."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from actors.ingest.cells import from_json
from actors.ingest.core import Column
from actors.ingest.inference import Tally
from actors.ingest.readers.base import SHOWN, Chunk, Converted, Opened, Reject, Survey

Row = Mapping[str, Any]


class RecordsReader(Opened):
    """Rows in hand. A row's line is its place in the list, from 1."""

    def __init__(self, rows: Sequence[Row], file: str) -> None:
        self._rows = rows
        self.path = None
        self.file = file
        self.size = len(rows)

    def survey(self, vector_column: str | None, id_column: str | None) -> Survey:
        tallies: dict[str, Tally] = {}
        for row in self._rows:
            see(row, tallies)
        return Survey(columns_of(tallies, vector_column, id_column), len(self._rows), cells_decide=True)

    def chunks(self, columns: Sequence[Column]) -> Iterator[Chunk]:
        for start in range(0, len(self._rows), 1024):
            rows = self._rows[start : start + 1024]
            yield to_chunk(rows, range(start + 1, start + 1 + len(rows)), columns, [], start + len(rows))


def see(row: Row, tallies: dict[str, Tally]) -> None:
    """Count a row's cells."""
    for name, value in row.items():
        tallies.setdefault(name, Tally()).see_json(value)


def columns_of(tallies: Mapping[str, Tally], vector_column: str | None, id_column: str | None) -> tuple[Column, ...]:
    return tuple(tally.column(name, vector_column, id_column) for name, tally in tallies.items())


def to_chunk(
    rows: Sequence[Row], lines: Sequence[int], columns: Sequence[Column], rejects: list[Reject], bytes_read: int
) -> Chunk:
    """Rows in the columns' types; `rejects` are those that were refused before."""
    converted = Converted(len(rows))
    for column in columns:
        converted.add(column.name, *from_json([row.get(column.name) for row in rows], column))
    for row, name, reason in converted.bad:
        content = msgspec.json.encode(rows[row], enc_hook=str).decode(errors="replace")[:SHOWN]
        rejects.append(Reject(lines[row], name, reason, content))
    return Chunk(*converted.good(np.asarray(lines, dtype=np.int64)), rejects, bytes_read)
