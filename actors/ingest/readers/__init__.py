"""File readers, a module a family of formats; `open_reader` picks."""

from pathlib import Path

from actors.ingest.config import IngestConfig
from actors.ingest.core import BadFile
from actors.ingest.readers.base import Reader
from actors.ingest.readers.columnar import ArrowReader, ParquetReader
from actors.ingest.readers.csv import CsvReader
from actors.ingest.readers.jsonl import JsonLinesReader
from schemas.events.dataset import FileFormat

_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip"}


def open_reader(path: Path, format: FileFormat, file: str, config: IngestConfig) -> Reader:
    """A reader of the file, which rejects call `file`. Raises BadFile."""
    with path.open("rb") as opened:
        head = opened.read(6)
    if not head:
        raise BadFile(f"{file} is empty", "it has 0 bytes: was it written to the end?")
    packed = next((name for magic, name in _PACKED.items() if head.startswith(magic)), None)
    if packed:
        raise BadFile(f"{file} is compressed ({packed}), which ingest does not read", "unpack it first")
    if format == "csv":
        return CsvReader(path, file)
    if format == "jsonl":
        return JsonLinesReader(path, file)
    if format == "parquet":
        return ParquetReader(path, file, config.batch_rows, config.batch_bytes)
    return ArrowReader(path, file, config.batch_rows, config.batch_bytes)


__all__ = ["Reader", "open_reader"]
