"""A table's Delta log. deltalake opens tables and writes checkpoints; the log entries are ours,
because its commit links `N.json` without an fsync (seen with strace, deltalake 1.6): a power cut
loses an acknowledged commit or leaves an empty entry that no reader gets past. An entry here is
one durable, exclusive put, the same on disk and S3: whoever creates `N.json` has made version N.

Entries follow the Delta protocol (reader 1, writer 2; 3 and 7 with timestampNtz), so any Delta
reader opens the table. Our own part of `commitInfo` is the commit's note and the next row number.
"""

import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, Schema

from actors.ports import ROW
from daemon.storage.data_files import DataFile
from schemas.events.dataset import CommitInfo

CONFIGURATION = {"delta.enableExpiredLogCleanup": "false"}  # every entry is history


class Made(msgspec.Struct, frozen=True):
    """Our part of a log entry."""

    note: CommitInfo
    next_row: int


class Version(msgspec.Struct, frozen=True):
    """One version of a table: its files in ascending _row."""

    version: int
    schema: Any  # pyarrow.Schema with _row first
    files: tuple[DataFile, ...]
    next_row: int
    note: CommitInfo | None  # None: another program made it

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def entry_key(version: int) -> str:
    """Within the table's folder."""
    return f"_delta_log/{version:020d}.json"


def version_of_key(key: str) -> int | None:
    """The version that a file of the log makes; None when it is no entry."""
    name = key.rsplit("/", 1)[-1]
    return int(name[:20]) if re.fullmatch(r"[0-9]{20}\.json", name) else None


def encode_entry(table_id: str, before: Version | None, after: Version, note: CommitInfo) -> bytes:
    """The log entry that turns `before` (None: no table) into `after`. table_id: a UUID."""
    now = int(note.time * 1000)
    actions: list[dict[str, Any]] = [
        {
            "commitInfo": {
                "timestamp": now,
                "operation": note.operation.upper(),
                "engineInfo": "lakehouse",
                "lakehouse": msgspec.to_builtins(Made(note, after.next_row)),
            }
        }
    ]
    if before is None:
        actions.append({"protocol": _protocol(after.schema)})
    if before is None or before.schema != after.schema:
        if before is not None and _protocol(before.schema) != _protocol(after.schema):
            actions.append({"protocol": _protocol(after.schema)})
        actions.append({"metaData": _metadata(after.schema, table_id, now)})
    old = {file.path for file in before.files} if before else set()
    new = {file.path for file in after.files}
    for file in before.files if before else ():
        if file.path not in new:
            removed = {"path": file.path, "deletionTimestamp": now, "dataChange": True, "size": file.bytes}
            actions.append({"remove": {**removed, "extendedFileMetadata": True, "partitionValues": {}}})
    for file in after.files:
        if file.path not in old:
            stats = {"numRecords": file.rows, "minValues": {ROW: file.min_row}, "maxValues": {ROW: file.max_row}}
            added = {"path": file.path, "size": file.bytes, "modificationTime": now, "dataChange": True}
            actions.append({"add": {**added, "partitionValues": {}, "stats": msgspec.json.encode(stats).decode()}})
    actions.append({"txn": {"appId": note.message, "version": after.version, "lastUpdated": now}})
    return b"\n".join(msgspec.json.encode(action) for action in actions) + b"\n"


def decode_entry(entry: bytes) -> Made | None:
    """Our part of an entry; None when another program wrote it."""
    for line in entry.splitlines():
        if line.startswith(b'{"commitInfo"'):
            info = msgspec.json.decode(line)["commitInfo"]
            return msgspec.convert(info["lakehouse"], Made) if "lakehouse" in info else None
    return None


def apply_entry(before: Version, entry: bytes) -> Version:
    """The version after an entry. Raises ValueError for one of another program that added files
    without row numbers."""
    schema = before.schema
    files = {file.path: file for file in before.files}
    for line in entry.splitlines():
        action = msgspec.json.decode(line)
        if "metaData" in action:
            schema = pa.schema(Schema.from_json(action["metaData"]["schemaString"]).to_arrow())
        elif "remove" in action:
            files.pop(action["remove"]["path"], None)
        elif "add" in action:
            add = action["add"]
            stats = msgspec.json.decode(add.get("stats") or "{}")
            first, last = stats.get("minValues", {}).get(ROW), stats.get("maxValues", {}).get(ROW)
            files[add["path"]] = _data_file(add["path"], add["size"], stats.get("numRecords"), first, last)
    made = decode_entry(entry)
    next_row = made.next_row if made else before.next_row
    return Version(before.version + 1, schema, ordered(files.values()), next_row, made.note if made else None)


def open_version(table: DeltaTable, next_row: int, note: CommitInfo | None) -> Version:
    """The version that deltalake has loaded."""
    adds = pa.table(table.get_add_actions(flatten=True)).to_pydict()
    nothing = [None] * len(adds["path"])
    statistics = (adds.get(name, nothing) for name in ("num_records", f"min.{ROW}", f"max.{ROW}"))
    files = [_data_file(*values) for values in zip(adds["path"], adds["size_bytes"], *statistics, strict=True)]
    return Version(table.version(), pa.schema(table.schema().to_arrow()), ordered(files), next_row, note)


def refuse_empty_entries(folder: Path, last: int) -> None:
    """Raises ValueError when an entry up to version `last` is empty. An entry is one durable put,
    so that is damage, and deltalake takes it for a version that changed nothing."""
    with os.scandir(folder / "_delta_log") as files:
        for file in files:
            version = version_of_key(file.name)
            if version is not None and version <= last and not file.stat().st_size:
                raise ValueError(f"its log entry {entry_key(version)} is empty")


def set_aside_torn_checkpoints(folder: Path) -> bool:
    """deltalake doesn't fsync its checkpoints, so a power cut can leave one that nobody can
    read. All entries are kept, so the table needs none. True when one was set aside."""
    torn = False
    for path in (folder / "_delta_log").glob("*.checkpoint*.parquet"):
        try:
            pq.read_metadata(path)
        except (pa.ArrowInvalid, OSError):
            path.rename(path.with_name(f"{path.name}.corrupt-{int(time.time())}"))
            torn = True
    if torn:
        (folder / "_delta_log" / "_last_checkpoint").unlink(missing_ok=True)
    return torn


def _data_file(path: str, size: int, rows: int | None, min_row: int | None, max_row: int | None) -> DataFile:
    if rows is None or min_row is None or max_row is None:
        raise ValueError(f"its file {path} was added by another program and has no row numbers")
    return DataFile(path, size, rows, min_row, max_row)


def ordered(files: Iterable[DataFile]) -> tuple[DataFile, ...]:
    return tuple(sorted(files, key=lambda file: file.min_row))


def _protocol(schema: pa.Schema) -> dict[str, Any]:
    if not any(pa.types.is_timestamp(field.type) and field.type.tz is None for field in _leaves(schema)):
        return {"minReaderVersion": 1, "minWriterVersion": 2}
    features = ["timestampNtz"]
    return {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": features, "writerFeatures": features}


def _leaves(fields: Sequence[pa.Field] | pa.Schema) -> list[pa.Field]:
    found = []
    for field in fields:
        if field.type.num_fields:
            found += _leaves([field.type.field(i) for i in range(field.type.num_fields)])
        else:
            found.append(field)
    return found


def _metadata(schema: pa.Schema, table_id: str, now: int) -> dict[str, Any]:
    return {
        "id": table_id,
        "format": {"provider": "parquet", "options": {}},
        "schemaString": Schema.from_arrow(schema).to_json(),
        "partitionColumns": [],
        "configuration": CONFIGURATION,
        "createdTime": now,
    }
