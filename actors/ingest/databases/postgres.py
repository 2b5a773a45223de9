"""PostgreSQL, by ADBC: COPY in binary, streamed as Arrow batches, in one read-only snapshot.

What Arrow has no type for is cast by the server: uuid, json, enums, intervals, times, ranges … to
text, pgvector's types to arrays. NUMERIC arrives as text: it becomes a decimal of its declared
precision, or, undeclared, of the precision that the values have, and a float when 38 digits are
too few. Names are quoted by the server (quote_ident).
"""

import contextlib
import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pyarrow as pa

from actors.ingest.core import BadFile
from actors.ingest.databases.reader import DatabaseReader
from actors.ingest.databases.request import DatabaseRequest

_COPY = "adbc.postgresql.use_copy"
_BATCH = "adbc.postgresql.batch_size_hint_bytes"

_AS_THEY_ARE = frozenset(
    ("int2", "int4", "int8", "float4", "float8", "bool", "text", "varchar", "bpchar", "name", "bytea", "numeric",
     "_int2", "_int4", "_int8", "_float4", "_float8", "_text", "_varchar")
)  # fmt: skip
_FINITE = frozenset(("date", "timestamp", "timestamptz"))
_CASTS = {"vector": "real[]", "halfvec": "real[]", "_numeric": "float8[]", "money": "numeric"}


class PostgresReader(DatabaseReader):
    def __init__(self, request: DatabaseRequest) -> None:
        super().__init__(request)
        self._stack = contextlib.ExitStack()
        self._cursor: Any = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._schema = pa.schema([])

    def close(self) -> None:
        self._stack.close()

    def _ask(self) -> tuple[pa.Schema, pa.RecordBatch | None]:
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
        self._cursor.adbc_statement.set_options(**{_BATCH: str(self._request.batch_bytes // 4)})
        self._cursor.execute(query)
        batches = map(self._plain, self._cursor.fetch_record_batch())
        first = next(batches, None)
        self._batches = batches if first is None else chain([first], batches)
        return self._schema, first

    def _next(self) -> pa.RecordBatch | None:
        return next(self._batches, None)

    def _plain(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Without ADBC's extension types: NUMERIC is text in there."""
        arrays = []
        for values, field in zip(batch.columns, self._schema, strict=True):
            values = values.storage if isinstance(values.type, pa.BaseExtensionType) else values
            if pa.types.is_floating(field.type) and pa.types.is_string(values.type):
                values = values.cast(pa.float64())
            arrays.append(values)
        return pa.RecordBatch.from_arrays(arrays, self._schema.names)

    def _told(self, error: Exception) -> tuple[str, bool] | None:
        from adbc_driver_manager import Error

        if not isinstance(error, Error | pa.ArrowException | OSError):
            return None
        said = str(error).split("SQLSTATE")[0].split("Query was:")[0]
        return said, "connect" in said.casefold() or isinstance(error, OSError)

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
        self._refuse_cursor(names)
        cursor = quoted[name]
        where = ""
        if self._request.after is not None:
            where = f" WHERE q.{cursor} > {self._value('SELECT quote_literal($1)', self._request.after)}"
        self._cursor.execute(
            f"SELECT max(q.{cursor})::text, (SELECT count(*) FROM ({source}) q WHERE q.{cursor} IS NULL) "
            f"FROM ({source}) q{where}"
        )
        self._reached(*self._cursor.fetchone())
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


def _conninfo(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
