"""JSON lines: one object a line, UTF-8. Arrays of numbers are vectors; nested values are kept
as JSON text. A line that is no object, or is longer than a megabyte or so, is set aside."""

import codecs
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from actors.ingest.core import MAX_COLUMNS, BadFile, Column
from actors.ingest.inference import Tally
from actors.ingest.readers.base import SHOWN, Chunk, Opened, Reject, Survey
from actors.ingest.readers.records import columns_of, see, to_chunk

_BLOCK = 512 * 1024
_LONGEST = 2 * 1024 * 1024
"""Bytes of a line; a longer one is set aside unread."""
_SAMPLED = 128
"""Lines of each block that types are inferred from; names are gathered from all."""

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_objects = msgspec.json.Decoder(dict[str, Any])
_names = msgspec.json.Decoder(dict[str, msgspec.Raw])


class JsonLinesReader(Opened):
    """Raises BadFile for a file that is plainly something else."""

    def __init__(self, path: Path, file: str) -> None:
        self.path = path
        self.file = file
        self.size = path.stat().st_size
        with path.open("rb") as opened:
            head = opened.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
        if head.startswith(b"["):
            raise BadFile(
                "the file is one JSON array, not JSON lines", "write one object a line: jq -c '.[]' in.json > out.jsonl"
            )
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise BadFile("the file is UTF-16", "convert it to UTF-8")

    def survey(self, vector_column: str | None, id_column: str | None) -> Survey:
        tallies: dict[str, Tally] = {}
        rows = 0
        objects, wrong = False, ""
        for first, lines, _, _ in self._blocks():
            rows += len(lines)
            for number, line in enumerate(lines, first):
                try:
                    tallies.update((name, Tally()) for name in _names.decode(line) if name not in tallies)
                    objects = True
                except _UNREADABLE as error:
                    if not objects and not wrong and line.strip():
                        wrong = f"line {number}: {_why(line, error)}"
            if len(tallies) > MAX_COLUMNS:
                raise BadFile(f"the rows have over {MAX_COLUMNS} different names", "put them into one nested object")
            for line in lines[:: max(1, len(lines) // _SAMPLED)]:
                try:
                    see(_objects.decode(line), tallies)
                except _UNREADABLE:
                    continue
        if wrong and not objects:
            raise BadFile(f"no line of the file is a JSON object ({wrong})", "JSON lines: one object a line")
        return Survey(columns_of(tallies, vector_column, id_column), rows, cells_decide=True)

    def chunks(self, columns: Sequence[Column]) -> Iterator[Chunk]:
        for first, lines, overlong, bytes_read in self._blocks():
            rows: list[dict[str, Any]] = []
            numbers: list[int] = []
            rejects = list(overlong)
            for number, line in enumerate(lines, first):
                if not line.strip():
                    continue
                try:
                    rows.append(_objects.decode(line))
                    numbers.append(number)
                except _UNREADABLE as error:
                    rejects.append(Reject(number, "", _why(line, error), line[:SHOWN].decode(errors="replace")))
            yield to_chunk(rows, numbers, columns, rejects, bytes_read)

    def _blocks(self) -> Iterator[tuple[int, list[bytes], list[Reject], int]]:
        """Number of the first line, whole lines, overlong lines, bytes read."""
        number = 1
        rest = b""
        dropping = 0  # bytes of the overlong line in hand
        with self.path.open("rb") as file:
            if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
                file.seek(0)
            while block := file.read(_BLOCK):
                rejects: list[Reject] = []
                if dropping:
                    end = block.find(b"\n")
                    if end < 0:
                        dropping += len(block)
                        continue
                    rejects.append(_overlong(number, rest))
                    block, rest, dropping = block[end + 1 :], b"", 0
                    number += 1
                *lines, rest = (rest + block).split(b"\n")
                yield number, lines, rejects, file.tell()
                number += len(lines)
                if len(rest) > _LONGEST:
                    dropping, rest = len(rest), rest[:SHOWN]
        if dropping:
            yield number, [], [_overlong(number, rest)], self.size
        elif rest:
            yield number, [rest], [], self.size


def _why(line: bytes, error: Exception) -> str:
    if str(error).startswith("Expected `object`"):
        return "expected a JSON object"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    try:
        line.decode()
    except UnicodeDecodeError as wrong:
        return f"not UTF-8: byte 0x{line[wrong.start]:02x} at position {wrong.start}"
    return f"not JSON: {error}"


def _overlong(number: int, start: bytes) -> Reject:
    return Reject(number, "", f"the line is longer than {_LONGEST} bytes", start.decode(errors="replace"))
