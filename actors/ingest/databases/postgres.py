"""PostgreSQL, by ADBC: COPY in binary, streamed as Arrow batches, in one read-only snapshot.

What Arrow has no type for is cast by the server: uuid, json, enums, intervals, times, ranges … to
text, pgvector's types to arrays. NUMERIC arrives as text: it becomes a decimal of its declared
precision, or, undeclared, of the precision that the values have, and a float when 38 digits are
too few. Names are quoted by the server (quote_ident).
"""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from actors.ahead import ahead
from actors.ingest.cells import from_arrow, from_text
from actors.ingest.core import BadFile, Column, is_vector, most_common
from actors.ingest.databases.request import DatabaseRequest, stored_column
from actors.ingest.databases.vectors import vector_lengths
from actors.ingest.readers.base import Chunk, Converted, Opened, Reject, Survey, shown_row

ROWS_AT_ONCE = 16_384
_COPY = "adbc.postgresql.use_copy"
PROBED = 4_096
"""Rows that the dimension of a vector is learned from."""

_AS_THEY_ARE = frozenset(
    [
        "int2",
        "int4",
        "int8",
        "float4",
        "float8",
        "bool",
        "text",
        "varchar",
        "bpchar",
        "name",
        "bytea",
        "numeric",
        "_int2",
        "_int4",
        "_int8",
        "_float4",
        "_float8",
        "_text",
        "_varchar",
    ]
)
_FINITE = frozenset(("date", "timestamp", "timestamptz"))
_CASTS = {"vector": "real[]", "halfvec": "real[]", "_numeric": "float8[]", "money": "numeric"}


class PostgresReader(Opened):
    """One table or query, as it is at the first look. Raises BadFile."""

    unit: Literal["bytes", "rows"] = "rows"
    path = None

    def __init__(self, request: DatabaseRequest) -> None:
        self.file = request.shown
        self.size = 0
        self.mark = request.after
        self._said: list[str] = []
        self._request = request
        self._stack = contextlib.ExitStack()
        self._cursor: Any = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._schema = pa.schema([])

    @property
    def warnings(self) -> Sequence[str]:
        return self._said

    def close(self) -> None:
        self._stack.close()

    def survey(self, vector_column: str | None, id_column: str | None) -> Survey:
        with self._speaking("can't be read"):
            self._open()
            source = self._source()
            found = self._cursor.adbc_execute_schema(source)
            if len(set(found.names)) != len(found.names):
                raise BadFile("two columns of the query have the same name", "name them apart with AS")
            if not found.names:
                raise BadFile("it has no columns")
            quoted = dict(zip(found.names, self._quoted(found.names), strict=True))
            where = self._new_rows(source, found.names, quoted)
            fields = [self._field(field, quoted[field.name], f"({source}) q{where}") for field in found]
            shown = ", ".join(f"{_expression(field, quoted[field.name])} AS {quoted[field.name]}" for field in found)
            query = f"SELECT {shown} FROM ({source}) q{where}"
            self.size = self._estimated(query)
            self._schema = pa.schema(fields)
            self._cursor.adbc_statement.set_options(
                **{"adbc.postgresql.batch_size_hint_bytes": str(self._request.batch_bytes // 4)}
            )
            self._cursor.execute(query)
            stream = iter(self._cursor.fetch_record_batch())
            first = next(stream, None)
            self._batches = stream if first is None else chain([first], stream)
        return Survey(tuple(self._columns(first, vector_column)), self.size, cells_decide=False)

    def chunks(self, columns: Sequence[Column]) -> Iterator[Chunk]:
        row = 1
        try:
            for batch in ahead(self._fetched()):
                for start in range(0, batch.num_rows, ROWS_AT_ONCE):
                    part = batch.slice(start, ROWS_AT_ONCE)
                    yield self._chunk(part, row, columns)
                    row += part.num_rows
        finally:
            self.close()

    def _fetched(self) -> Iterator[pa.RecordBatch]:
        rows = 0
        while True:
            with self._speaking(f"was lost after {rows:,} rows"):
                batch = next(self._batches, None)
            if batch is None:
                return
            rows += batch.num_rows
            yield batch

    def _chunk(self, batch: pa.RecordBatch, first: int, columns: Sequence[Column]) -> Chunk:
        converted = Converted(batch.num_rows)
        for column in columns:
            values = _plain(batch.column(column.name), self._schema.field(column.name).type)
            read = from_text if column.role == "vector" and pa.types.is_string(values.type) else from_arrow
            converted.add(column.name, *read(values, column))
        lines = np.arange(first, first + batch.num_rows, dtype=np.int64)
        rejects = [
            Reject(int(lines[row]), name, reason, shown_row(batch.slice(row, 1))) for row, name, reason in converted.bad
        ]
        return Chunk(*converted.good(lines), rejects, first + batch.num_rows - 1)

    def _columns(self, first: pa.RecordBatch | None, vector_column: str | None) -> list[Column]:
        if vector_column is not None and vector_column not in self._schema.names:
            raise BadFile(f"there is no column {vector_column!r}", f"columns: {', '.join(self._schema.names)}")
        columns = []
        for field in self._schema:
            lengths: Counter[int] = Counter()
            if first is not None and (is_vector(field.type) or field.name == vector_column):
                values = _plain(first.column(field.name), field.type).slice(0, PROBED)
                lengths.update(vector_lengths(values))
            columns.append(stored_column(field, most_common(lengths), vector_column))
        return columns

    def _open(self) -> None:
        from adbc_driver_postgresql import dbapi  # a tenth of a second, and only who asks needs it

        dsn = self._request.dsn
        words = {
            "host": dsn.host,
            "port": str(dsn.port),
            "user": dsn.user,
            "password": dsn.password,
            "dbname": dsn.database,
            "connect_timeout": "10",
            "application_name": "lakehouse",
            **dsn.options,
        }
        if not dsn.host.startswith("/"):
            words["hostaddr"] = self._request.address
        text = " ".join(f"{name}={_conninfo(value)}" for name, value in words.items() if value)
        connection = self._stack.enter_context(contextlib.closing(dbapi.connect(text, autocommit=True)))
        self._cursor = self._stack.enter_context(contextlib.closing(connection.cursor()))
        self._cursor.execute("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def _source(self) -> str:
        """The table or query as one SELECT."""
        if self._request.query is not None:
            return self._request.query.strip().rstrip(";")
        table = self._request.table or ""
        # `schema.name`, `"Odd Name"`, or the name as it is, whatever its letters
        found = self._value("SELECT to_regclass(quote_ident($1))::text", table)
        if found is None:
            with contextlib.suppress(Exception):
                found = self._value("SELECT to_regclass($1)::text", table)
        if found is None:
            self._refuse_table(table)
        return f"SELECT * FROM {found}"

    def _refuse_table(self, table: str) -> None:
        self._cursor.execute("ROLLBACK")
        names = self._value(
            "SELECT string_agg(quote_ident(schemaname) || '.' || quote_ident(tablename), ', ' ORDER BY 1) FROM "
            "(SELECT * FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema') LIMIT 20) t"
        )
        raise BadFile(f"there is no table {table}", f"tables: {names}" if names else "it has no tables", "not_found")

    def _new_rows(self, source: str, names: list[str], quoted: dict[str, str]) -> str:
        """The WHERE that takes what came after the mark; moves the mark to the newest row's."""
        name = self._request.cursor
        if name is None:
            return ""
        if name not in names:
            raise BadFile(f"there is no column {name!r} to use as cursor", f"columns: {', '.join(names)}")
        cursor = quoted[name]
        where = ""
        if self._request.after is not None:
            where = f" WHERE q.{cursor} > {self._value('SELECT quote_literal($1)', self._request.after)}"
        self._cursor.execute(
            f"SELECT max(q.{cursor})::text, (SELECT count(*) FROM ({source}) q WHERE q.{cursor} IS NULL) "
            f"FROM ({source}) q{where}"
        )
        high, unset = self._cursor.fetchone()
        self.mark = high or self._request.after
        if unset:
            self._said.append(f"{unset:,} rows have no {name}: a cursor passes them by")
        return f"{where}{' AND' if where else ' WHERE'} q.{cursor} IS NOT NULL"

    def _field(self, field: pa.Field, quoted: str, source: str) -> pa.Field:
        """The column's type here, of what the server sends."""
        type_ = _type_name(field)
        if type_ in _FINITE or type_ in _AS_THEY_ARE - {"numeric"}:
            return pa.field(field.name, pa.string() if type_ == "name" else field.type)
        if type_ in ("numeric", "money"):
            return pa.field(field.name, self._decimal(field, quoted, source))
        if type_ == "_numeric":
            self._said.append(f"column {field.name!r}: numeric[] became floats")
        kind = {"real[]": pa.list_(pa.float32()), "float8[]": pa.list_(pa.float64())}
        return pa.field(field.name, kind.get(_CASTS.get(type_, ""), pa.string()))

    def _decimal(self, field: pa.Field, quoted: str, source: str) -> pa.DataType:
        modifier = int((field.metadata or {}).get(b"POSTGRESQL:typmod", b"-1"))
        if modifier >= 4 and _type_name(field) == "numeric":
            precision, scale = (modifier - 4) >> 16, ((modifier - 4) & 0x7FF ^ 0x400) - 0x400
            whole = precision - scale
        else:
            self._cursor.execute(
                f"SELECT coalesce(max(scale(v)), 0), coalesce(max(length(trunc(abs(v))::text)), 1), "
                f"coalesce(bool_or(v::text IN ('NaN', 'Infinity', '-Infinity')), false) "
                f"FROM (SELECT q.{quoted}::numeric AS v FROM {source}) v"
            )
            scale, whole, unfit = self._cursor.fetchone()
            whole = 99 if unfit else whole
            precision = 38
        if whole + max(scale, 0) <= 38 and scale >= 0:
            return pa.decimal128(max(precision, scale, 1), scale)
        self._said.append(f"column {field.name!r}: numbers of over 38 digits, or NaN, became floats")
        return pa.float64()

    def _estimated(self, query: str) -> int:
        self._cursor.adbc_statement.set_options(**{_COPY: "false"})  # there is no COPY (EXPLAIN …)
        (plan,) = json.loads(self._value(f"EXPLAIN (FORMAT JSON) {query}"))
        self._cursor.adbc_statement.set_options(**{_COPY: "true"})
        return int(plan["Plan"]["Plan Rows"])

    def _quoted(self, names: list[str]) -> list[str]:
        self._cursor.execute(
            "SELECT quote_ident(value) FROM json_array_elements_text($1::json) WITH ORDINALITY ORDER BY ordinality",
            (json.dumps(names),),
        )
        return [row[0] for row in self._cursor.fetchall()]

    def _value(self, sql: str, *parameters: str) -> Any:
        self._cursor.execute(sql, parameters or None)
        row = self._cursor.fetchone()
        return row[0] if row else None

    @contextlib.contextmanager
    def _speaking(self, what: str) -> Iterator[None]:
        """The driver's errors in our words, without the password."""
        from adbc_driver_manager import Error

        try:
            yield
        except (Error, pa.ArrowException, OSError) as error:
            self.close()
            said = self._request.dsn.scrubbed(str(error)).split("SQLSTATE")[0].split("Query was:")[0].strip(" .\n")
            away = "Failed to connect" in said or "connection" in said.casefold() or isinstance(error, OSError)
            hint = "nothing of it was kept: run it again when the server is there" if away else ""
            raise BadFile(f"{self.file} {what}: {said}", hint, "unavailable" if away else "invalid") from None
        except BadFile:
            self.close()
            raise


def _type_name(field: pa.Field) -> str:
    metadata = field.metadata or {}
    return str(metadata.get(b"POSTGRESQL:type", metadata.get(b"ADBC:postgresql:typname", b"")).decode())


def _expression(field: pa.Field, quoted: str) -> str:
    type_ = _type_name(field)
    if type_ in _FINITE:  # 'infinity' has no place in Arrow
        return f"CASE WHEN isfinite(q.{quoted}) THEN q.{quoted} END"
    if type_ in _AS_THEY_ARE and type_ != "name":
        return f"q.{quoted}"
    return f"q.{quoted}::{_CASTS.get(type_, 'text')}"


def _plain(values: pa.Array, type_: pa.DataType) -> pa.Array:
    """Without ADBC's extension types: NUMERIC is text in there."""
    values = values.storage if isinstance(values.type, pa.BaseExtensionType) else values
    if pa.types.is_floating(type_) and pa.types.is_string(values.type):
        return values.cast(pa.float64())
    return values


def _conninfo(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
