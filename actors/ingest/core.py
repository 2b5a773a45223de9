"""What ingest decides: which format, which columns, which type and role each has, whether a
file fits a dataset, when too much of it is bad. Values in, values out.

Reading is in readers/, cell conversion in cells.py, ids in ids.py, effects in actor.py.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal, cast, get_args

import msgspec
import pyarrow as pa

from actors.ports import ROW
from schemas.documents.dataset import DatasetDocument
from schemas.events.base import Refusal, RefusalStatus
from schemas.events.dataset import ColumnInfo, FileFormat, IngestMode, RejectedRow
from schemas.names import BucketName, DatasetName, Timestamp

Role = Literal["id", "text", "vector", "value"]

GENERATED_ID = "_id"
"""Name of the id column that ingest makes when the file has none."""
LINE = "_line"
"""Line (or row) of the source file; travels with staged rows, is never stored."""
RESERVED = (ROW, GENERATED_ID, LINE)
MAX_COLUMNS = 1000

VECTOR = pa.list_(pa.float32())
REJECTS = pa.schema(
    [
        ("ingest", pa.string()),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("column", pa.string()),
        ("reason", pa.string()),
        ("content", pa.string()),
    ]
)
"""Schema of every rejects table."""

_SUFFIXES: dict[str, FileFormat] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
_PACKED = {".gz": "gunzip", ".zst": "unzstd", ".bz2": "bunzip2", ".xz": "unxz", ".zip": "unzip"}


class BadFile(Exception):
    """The file as a whole is refused. The actor turns it into its refusal; nothing of the file
    becomes visible."""

    def __init__(self, reason: str, hint: str = "", status: RefusalStatus = "invalid") -> None:
        super().__init__(reason)
        self.refusal = Refusal(status, reason, hint)


class Column(msgspec.Struct, frozen=True):
    """A column as it is, or will be, stored."""

    name: str
    type: Any  # pyarrow.DataType that the table stores
    role: Role
    dim: int | None = None  # of a vector column

    @property
    def info(self) -> ColumnInfo:
        shown = "vector<float32>" if self.role == "vector" else str(self.type)
        return ColumnInfo(self.name, shown, self.role, self.dim)


class Plan(msgspec.Struct, frozen=True):
    """What a file's rows become."""

    id_column: str
    generated_id: bool
    read: tuple[Column, ...]  # the file's columns, in the types that the table stores
    columns: tuple[Column, ...]  # the table's columns, in its order
    hidden: frozenset[str] = frozenset()  # read for the content id only: dropped for their personal data

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([pa.field(column.name, column.type) for column in self.columns])


class Dataset(msgspec.Struct, frozen=True):
    """What is known of an existing dataset: its document, and its table's schema."""

    document: DatasetDocument
    schema: Any  # pyarrow.Schema, without _row

    @property
    def columns(self) -> tuple[Column, ...]:
        roles = {column.name: column for column in self.document.columns}
        return tuple(
            Column(
                field.name,
                field.type if pa.types.is_integer(field.type) else stored_type(field.type),
                roles[field.name].role if field.name in roles else _role(field.type),
                roles[field.name].dim if field.name in roles else None,
            )
            for field in self.schema
        )


def format_of(path: str, source: str | None, given: FileFormat | None) -> FileFormat:
    """The format: as given, or by the suffix of the path, or of what it is called in lineage."""
    if given is not None:
        return given
    for name in (path, source or ""):
        suffix = PurePath(name).suffix.lower()
        if suffix in _PACKED:
            raise BadFile(
                f"{name} is compressed ({suffix}), which ingest does not read",
                f"unpack it first ({_PACKED[suffix]}) and ingest the result; compressed Parquet and Arrow are fine",
            )
        if suffix in _SUFFIXES:
            return _SUFFIXES[suffix]
    raise BadFile(
        f"the format of {source or path} cannot be told from its name",
        f"name one in `format`: {', '.join(get_args(FileFormat))}; or use a suffix: {' '.join(_SUFFIXES)}",
    )


def is_vector(type_: pa.DataType) -> bool:
    """Whether every value is a list of floats."""
    return _is_list(type_) and pa.types.is_floating(type_.value_type)


def stored_type(type_: pa.DataType) -> pa.DataType:
    """The type that a table stores for an Arrow type. Raises BadFile when there is none."""
    if pa.types.is_dictionary(type_):
        return stored_type(type_.value_type)
    if is_vector(type_):
        return VECTOR
    if _is_list(type_):
        return pa.list_(stored_type(type_.value_type))
    if pa.types.is_struct(type_):
        return pa.struct([pa.field(field.name, stored_type(field.type)) for field in type_])
    if pa.types.is_map(type_):
        return pa.map_(stored_type(type_.key_type), stored_type(type_.item_type))
    if _is_text(type_) or pa.types.is_null(type_):
        return pa.string()
    if pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_) or pa.types.is_binary_view(type_):
        return pa.binary()
    if pa.types.is_integer(type_) or pa.types.is_floating(type_):
        return pa.int64() if pa.types.is_integer(type_) else pa.float64()
    if pa.types.is_timestamp(type_):
        return pa.timestamp("us", tz="UTC" if type_.tz else None)
    if pa.types.is_date(type_):
        return pa.date32()
    if pa.types.is_boolean(type_) or pa.types.is_decimal(type_) or pa.types.is_binary(type_):
        return type_
    raise BadFile(f"type {type_} cannot be stored", "cast the column to text or to a number first")


def column_of(field: pa.Field, dim: int | None, vector_column: str | None) -> Column:
    """How a column of a Parquet or Arrow file is stored. With `vector_column`, that one alone
    is a vector, and may be a list of integers."""
    named = field.name == vector_column
    if named and not (is_vector(field.type) or (_is_list(field.type) and pa.types.is_integer(field.type.value_type))):
        raise BadFile(f"column {field.name!r} is {field.type}, not a list of numbers", "name another `vector_column`")
    if named or (vector_column is None and is_vector(field.type)):
        return Column(field.name, VECTOR, "vector", dim)
    try:
        type_ = stored_type(field.type)
    except BadFile as error:
        raise BadFile(f"column {field.name!r}: {error}", error.refusal.hint) from None
    return Column(field.name, type_, _role(field.type) if vector_column is None else _plain_role(type_))


def plan(
    found: Sequence[Column], dataset: Dataset | None, id_column: str | None, *, cells_decide: bool = False
) -> Plan:
    """Columns of the table for a file with the columns `found`. With `cells_decide` (text
    formats) a type clash shows cell by cell, else it refuses the file. Raises BadFile."""
    _check_names([column.name for column in found], allow_id=dataset is not None and dataset.document.generated_id)
    if dataset is None:
        return _new_plan(found, id_column)
    document = dataset.document
    if id_column is not None and id_column != document.id_column:
        raise BadFile(
            f"dataset {document.dataset} has id column {document.id_column!r}, not {id_column!r}",
            "leave `id_column` out, or ingest into another dataset",
            "conflict",
        )
    columns = {column.name: column for column in dataset.columns}
    dropped = {column.name: column for column in document.dropped}
    strange = [column.name for column in found if column.name not in columns and column.name not in dropped]
    if strange:
        raise BadFile(
            f"column {strange[0]!r} is not in dataset {document.dataset} (it has {', '.join(columns)})",
            "remove it from the file, or ingest into another dataset",
            "conflict",
        )
    names = {column.name for column in found}
    for column in columns.values():
        needed = column.role == "vector" or (column.role == "id" and not document.generated_id)
        if needed and column.name not in names:
            raise BadFile(f"the file lacks column {column.name!r}, the {column.role} column of {document.dataset}")
    generated = document.generated_id and document.id_column not in names  # rows may name generated ids
    read = tuple(
        _unseen(column, dropped[column.name], cells_decide)
        if column.name in dropped
        else _fit(column, columns[column.name], cells_decide)
        for column in found
        if generated or column.name not in dropped
    )
    return Plan(document.id_column, generated, read, tuple(columns.values()), frozenset(dropped))


def document_of(plan: Plan, dataset: DatasetName, bucket: BucketName, path: str, now: Timestamp) -> DatasetDocument:
    """The document of a new dataset."""
    return DatasetDocument(
        dataset=dataset,
        bucket=bucket,
        path=path,
        id_column=plan.id_column,
        generated_id=plan.generated_id,
        columns=[column.info for column in plan.columns],
        created=now,
    )


def too_many_rejected(rows: int, rejected: int, allowed: float, first: Sequence[RejectedRow]) -> Refusal | None:
    """A refusal when more than the allowed share of a file's rows is bad."""
    if not rejected or rejected <= allowed * (rows + rejected):
        return None
    shown = "; ".join(f"line {row.line}, column {row.column or '-'}: {row.reason}" for row in first[:3])
    return Refusal(
        "invalid",
        f"{rejected} of {rows + rejected} rows are bad ({shown})",
        f"mend the file, or raise ingest.max_rejected_share (now {allowed:g})",
    )


def rewrites(mode: IngestMode, generated_id: bool) -> bool:
    """Whether a row takes the place of the stored one with its id. A generated id is a hash of
    the content: the stored row is the same row, so it stays."""
    return mode == "upsert" and not generated_id


def most_common(lengths: Counter[int]) -> int | None:
    """The dimension that most vectors have; of equals the smaller. None without any."""
    return min(lengths, key=lambda dim: (-lengths[dim], dim)) if lengths else None


def ordered_batch(plan: Plan, arrays: Mapping[str, pa.Array], rows: int) -> dict[str, pa.Array]:
    """The table's columns in order; those that the file lacks are null."""
    return {
        column.name: arrays[column.name] if column.name in arrays else pa.nulls(rows, column.type)
        for column in plan.columns
    }


def _new_plan(found: Sequence[Column], id_column: str | None) -> Plan:
    if not found:
        raise BadFile("the file has no columns")
    if id_column is None:
        made = Column(GENERATED_ID, pa.string(), "id")
        return Plan(GENERATED_ID, True, tuple(found), (made, *found))
    given = next((column for column in found if column.name == id_column), None)
    if given is None:
        raise BadFile(f"there is no column {id_column!r} to take ids from", f"columns: {', '.join(_names(found))}")
    if given.role == "vector" or not (_is_text(given.type) or pa.types.is_integer(given.type)):
        raise BadFile(
            f"id column {id_column!r} is {given.info.type}: an id is an integer or text",
            "name another `id_column`, or leave it out for a content hash",
        )
    columns = tuple(msgspec.structs.replace(c, role="id") if c.name == id_column else c for c in found)
    return Plan(id_column, False, columns, columns)


def _fit(found: Column, stored: Column, cells_decide: bool) -> Column:
    """The stored column, if what was found may be written into it."""
    if found.dim is not None and stored.dim is not None and found.dim != stored.dim:
        raise BadFile(
            f"column {found.name!r} holds vectors of {found.dim} dimensions, the dataset's have {stored.dim}",
            status="conflict",
        )
    if cells_decide or _kind(found.type) == _kind(stored.type):
        return stored
    if stored.role == "id" and _is_text(stored.type) and pa.types.is_integer(found.type):
        return stored
    raise BadFile(
        f"column {found.name!r} is {found.type}, the dataset's is {stored.info.type}",
        "cast the file's column, or ingest into another dataset",
        "conflict",
    )


def _unseen(found: Column, dropped: ColumnInfo, cells_decide: bool) -> Column:
    """A dropped column in the type that it had at first, so that the same row has the same id."""
    try:
        type_ = stored_type(pa.type_for_alias(dropped.type))
    except (ValueError, BadFile):  # a type with parameters
        type_ = found.type
    same = cells_decide or _kind(found.type) == _kind(type_)
    return Column(found.name, type_ if same else found.type, "value")


def _kind(type_: pa.DataType) -> str:
    """Types of one kind are cast to each other value by value."""
    if pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        return "number"
    if pa.types.is_date(type_) or pa.types.is_timestamp(type_):
        return "time"
    return "vector" if is_vector(type_) else str(type_)


def _check_names(names: Sequence[str], allow_id: bool) -> None:
    if len(names) > MAX_COLUMNS:
        raise BadFile(f"{len(names)} columns: at most {MAX_COLUMNS} are read")
    seen: dict[str, str] = {}
    for name in names:
        if name in RESERVED and not (allow_id and name == GENERATED_ID):
            raise BadFile(f"column name {name!r} is reserved", "rename the column")
        if name.casefold() in seen:
            raise BadFile(f"columns {seen[name.casefold()]!r} and {name!r} have the same name", "rename one of them")
        seen[name.casefold()] = name


def _names(columns: Iterable[Column]) -> list[str]:
    return [column.name for column in columns]


def _role(type_: pa.DataType) -> Role:
    return "vector" if is_vector(type_) else _plain_role(type_)


def _plain_role(type_: pa.DataType) -> Role:
    bare = type_.value_type if pa.types.is_dictionary(type_) else type_
    return "text" if _is_text(bare) else "value"


def _is_text(type_: pa.DataType) -> bool:
    return cast(bool, pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def _is_list(type_: pa.DataType) -> bool:
    return cast(
        bool,
        pa.types.is_list(type_)
        or pa.types.is_large_list(type_)
        or pa.types.is_fixed_size_list(type_)
        or pa.types.is_list_view(type_)
        or pa.types.is_large_list_view(type_),
    )
