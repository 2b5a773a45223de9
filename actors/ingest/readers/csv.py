"""CSV: comma, tab, semicolon or bar; UTF-8; a header line; quotes doubled, newlines within
quotes (RFC 4180).

pyarrow splits records and cells, as bytes; types are ours (cells.py), so that one bad cell
costs its row and no more. A blank line is skipped, and so is a row of empty cells. An unquoted
empty cell is null, a quoted one is empty text.
"""

import codecs
import csv
import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from actors.ingest.cells import from_text
from actors.ingest.core import BadFile, Column
from actors.ingest.inference import Tally
from actors.ingest.readers.base import SHOWN, Chunk, Converted, Opened, Reject, Survey

_BLOCK = 1024 * 1024
"""Bytes parsed at a time; no record may be longer."""
_HEADER = 1024 * 1024
_SAMPLED = 8192
"""Rows that types are inferred from, as many of each block; at least _LEAST of each."""
_LEAST = 64
_DELIMITERS = ",\t;|"


@dataclass
class _Ragged:
    """A record with a wrong number of cells."""

    ordinal: int  # among all records, blank lines included, from 1
    text: str
    cells: int


@dataclass
class _Place:
    """The next record's ordinal and line."""

    ordinal: int
    line: int


class CsvReader(Opened):
    """Raises BadFile when there is no header to read."""

    def __init__(self, path: Path, file: str) -> None:
        self.path = path
        self.file = file
        self.size = path.stat().st_size
        self._utf8 = _is_utf8(path)
        self._names, self._delimiter, self._start, self._header_lines = _header(path)
        self._labels = [str(n) for n in range(len(self._names))]  # names may repeat until they are checked

    def survey(self, vector_column: str | None, id_column: str | None) -> Survey:
        tallies = [Tally() for _ in self._names]
        rows = 0
        share = max(_LEAST, _SAMPLED // (self.size // _BLOCK + 1))
        for batch, _, rejects, _ in self._records():
            sample = np.arange(0, batch.num_rows, max(1, batch.num_rows // share))
            rows += batch.num_rows + len(rejects)
            for tally, cells in zip(tallies, batch.columns, strict=True):
                for cell in cells.take(pa.array(sample)).to_pylist():
                    if cell is not None:
                        tally.see_text(cell.decode(errors="replace"))
        columns = (t.column(name, vector_column, id_column) for name, t in zip(self._names, tallies, strict=True))
        return Survey(tuple(columns), rows, cells_decide=True)

    def chunks(self, columns: Sequence[Column]) -> Iterator[Chunk]:
        for batch, lines, rejects, bytes_read in self._records():
            converted = Converted(batch.num_rows)
            for column in columns:
                converted.add(column.name, *from_text(batch.column(self._names.index(column.name)), column))
            for row, name, reason in converted.bad:
                content = _as_line([cells[row].as_py() for cells in batch.columns], self._delimiter)
                rejects.append(Reject(int(lines[row]), name, reason, content, self._delimiter))
            yield Chunk(*converted.good(lines), rejects, bytes_read)

    def _records(self) -> Iterator[tuple[pa.RecordBatch, NDArray[np.int64], list[Reject], int]]:
        """Batches of undecoded cells, the line that each record starts on, records with a wrong
        number of cells, and how many bytes are read."""
        ragged: deque[_Ragged] = deque()
        place = _Place(ordinal=1, line=self._header_lines + 1)

        def set_aside(row: Any) -> str:
            text = row.text if self._utf8 else _original(row.text).decode(errors="replace")
            ragged.append(_Ragged(row.number, text, row.actual_columns))
            return "skip"

        with self.path.open("rb") as file:
            file.seek(self._start)
            try:
                for batch in self._parse(file, set_aside):
                    lines, rejects = self._locate(batch, ragged, place)
                    yield *_without_blank(batch, lines), rejects, file.tell()
            except pa.ArrowInvalid as error:
                if "Empty CSV" not in str(error):
                    raise _broken(error, place.line) from None
        if ragged:
            empty = pa.RecordBatch.from_arrays([pa.array([], pa.binary())] * len(self._names), names=self._labels)
            lines, rejects = self._locate(empty, ragged, place)
            yield empty, lines, rejects, self.size

    def _parse(self, file: BinaryIO, set_aside: Callable[[Any], str]) -> Iterator[pa.RecordBatch]:
        batches = pyarrow.csv.open_csv(
            file,
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False,  # otherwise ragged records have no number
                block_size=_BLOCK,
                column_names=self._labels,
                # Every byte is a latin-1 character: pyarrow can't hand over a ragged record
                # that isn't UTF-8 otherwise. _original takes it back.
                encoding="utf8" if self._utf8 else "latin1",
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=self._delimiter,
                newlines_in_values=True,
                ignore_empty_lines=False,  # they count as lines
                invalid_row_handler=set_aside,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(self._labels, pa.binary()),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        for batch in batches:
            if self._utf8:
                yield batch
            else:
                cells = [
                    pa.array([None if c is None else _original(c.decode()) for c in column.to_pylist()], pa.binary())
                    for column in batch.columns
                ]
                yield pa.RecordBatch.from_arrays(cells, names=self._labels)

    def _locate(
        self, batch: pa.RecordBatch, ragged: deque[_Ragged], place: _Place
    ) -> tuple[NDArray[np.int64], list[Reject]]:
        """Lines of the batch's records, and the ragged records among them; `place` moves on."""
        among: list[_Ragged] = []
        while ragged and ragged[0].ordinal <= place.ordinal + batch.num_rows + len(among):
            among.append(ragged.popleft())
        span = batch.num_rows + len(among)
        at = np.array([record.ordinal - place.ordinal for record in among], dtype=np.int64)
        whole = np.ones(span, dtype=bool)
        whole[at] = False
        heights = np.ones(span, dtype=np.int64)  # lines that each record takes
        heights[whole] += _newlines(batch)
        heights[at] += np.array([record.text.count("\n") for record in among], dtype=np.int64)
        starts = place.line + np.cumsum(heights) - heights  # (span,)
        place.ordinal += span
        place.line += int(heights.sum())
        expected = len(self._names)
        return starts[whole], [
            Reject(
                int(line),
                "",
                f"expected {expected} columns, found {record.cells}",
                record.text[:SHOWN],
                self._delimiter,
            )
            for line, record in zip(starts[at], among, strict=True)
        ]


def _header(path: Path) -> tuple[list[str], str, int, int]:
    """Column names, delimiter, byte offset and number of lines of what comes before the rows."""
    with path.open("rb") as file:
        head = file.read(_HEADER)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BadFile("the file is UTF-16", "convert it to UTF-8")
    skipped = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    lines = head[skipped:].splitlines(keepends=True)
    taken: list[bytes] = []

    def feed() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield line.decode()

    try:
        first = next((line for line in lines if line.strip()), b"").decode()
        delimiter = next((d for d in _DELIMITERS if d in first), ",")
        names = next((row for row in csv.reader(feed(), delimiter=delimiter) if any(row)), None)
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadFile(f"the header can't be read: {error}", "the file must be UTF-8 text with a header line") from None
    if names is None:
        raise BadFile("the file is empty", "a CSV file starts with a line of column names")
    start = skipped + sum(map(len, taken))
    if start == _HEADER:
        raise BadFile(f"the header is longer than {_HEADER} bytes", "is a quote left open in the first line?")
    named = [name.strip() or f"column_{n}" for n, name in enumerate(names, 1)]
    return named, delimiter, start, len(taken)


def _is_utf8(path: Path) -> bool:
    decode = codecs.getincrementaldecoder("utf-8")().decode
    with path.open("rb") as file:
        try:
            while block := file.read(_BLOCK):
                decode(block)
            decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def _newlines(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Newlines within each record (n,)."""
    counts = np.zeros(batch.num_rows, dtype=np.int64)
    for cells in batch.columns:
        found = pc.count_substring(cells, "\n")
        if pc.max(found).as_py():
            counts += pc.fill_null(found, 0).to_numpy(zero_copy_only=False)
    return counts


def _without_blank(batch: pa.RecordBatch, lines: NDArray[np.int64]) -> tuple[pa.RecordBatch, NDArray[np.int64]]:
    """Without the rows whose cells are all null."""
    if any(not cells.null_count for cells in batch.columns):
        return batch, lines
    filled = np.zeros(batch.num_rows, dtype=bool)
    for cells in batch.columns:
        filled |= cells.is_valid().to_numpy(zero_copy_only=False)
    return (batch, lines) if filled.all() else (batch.filter(pa.array(filled)), lines[filled])


def _as_line(cells: Sequence[bytes | None], delimiter: str) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerow("" if c is None else c.decode(errors="replace") for c in cells)
    return out.getvalue().rstrip("\r\n")[:SHOWN]


def _original(text: str) -> bytes:
    return text.encode("latin1")


def _broken(error: pa.ArrowInvalid, line: int) -> BadFile:
    if "straddl" in str(error):
        return BadFile(
            f"a record near line {line} is longer than {_BLOCK} bytes",
            "is a quote left open there? Double quotes within text",
        )
    return BadFile(f"the CSV can't be read near line {line}: {error}")
