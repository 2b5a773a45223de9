"""MariaDB and MySQL, by asyncmy, streamed in one read-only snapshot.

The server writes each row as one line of CSV (CONCAT), which Arrow parses: a Python object a row
instead of one a cell, 1.4 times as fast (benchmarks/databases.py, "read alone").
NULL is an unquoted nothing, text is in quotes, bytes are hexadecimal, floats are DOUBLE, whose text
reads back exactly. Zero dates, which no calendar has, become NULL and are counted.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from actors.ingest.core import BadFile
from actors.ingest.databases.mariadb_link import ConnectionLoop, tls_of
from actors.ingest.databases.reader import ROWS_AT_ONCE, DatabaseReader
from actors.ingest.databases.request import DatabaseRequest

FETCHED = 2_048
"""Rows taken from the driver at a time."""
LINE = b"\n"

# https://mariadb.com/kb/en/result-set-packets/#field-types and its flags
_DECIMAL, _TINY, _SHORT, _LONG, _FLOAT, _DOUBLE, _TIMESTAMP, _BIG, _MEDIUM = 246, 1, 2, 3, 4, 5, 7, 8, 9
_DATE, _TIME, _DATETIME, _YEAR, _BIT = 10, 11, 12, 13, 16
_UNSIGNED, _ENUM, _BINARY_CHARSET = 32, 256, 63
_INTEGERS = {_TINY: 8, _SHORT: 16, _MEDIUM: 24, _LONG: 32, _BIG: 64}
_BYTES = frozenset((249, 250, 251, 252, 253, 254))  # blobs and strings, when their charset is binary


class _Read(msgspec.Struct, frozen=True):
    """A column: what the server is asked for, what its text is, and how that becomes the value."""

    field: Any  # pa.Field of the value
    expression: str
    text: Any  # pa.DataType that the CSV reader makes of it
    convert: Callable[[pa.Array], pa.Array] | None = None


class MariaDbReader(DatabaseReader):
    def __init__(self, request: DatabaseRequest) -> None:
        super().__init__(request)
        self._zero: Counter[str] = Counter()
        self._columns: list[_Read] = []
        self._large: set[str] = set()
        self._loop: ConnectionLoop | None = None
        self._connection: Any = None
        self._cursor: Any = None
        self._first: pa.RecordBatch | None = None

    @property
    def warnings(self) -> Sequence[str]:
        return self._said + [f"column {name!r}: {n:,} zero dates became NULL" for name, n in self._zero.items()]

    def close(self) -> None:
        """The connection is dropped, not ended: ending it would read the rest of the rows."""
        if self._loop is None:
            return
        self._connection = self._cursor = None
        self._loop.drop()
        self._loop.close()
        self._loop = None

    def _ask(self) -> tuple[pa.Schema, pa.RecordBatch | None]:
        self._loop = ConnectionLoop(self._request.address)
        self._do(self._open())
        source = self._source()
        fields = self._do(self._described(source))
        names = [field.name for field in fields]
        if len({name.casefold() for name in names}) != len(names):
            raise BadFile("two columns of the query have the same name", "name them apart with AS")
        self._large = self._too_large(source, fields)
        self._columns = [self._read(field) for field in fields]
        where = self._new_rows(source, names)
        line = ", ',', ".join(column.expression for column in self._columns)
        query = f"SELECT CAST(CONCAT({line}) AS BINARY) FROM ({source}) q{where}"
        self.size = self._do(self._estimated(query))
        self._do(self._cursor.execute(query))
        self._first = self._read_batch()
        return pa.schema([column.field for column in self._columns]), self._first

    def _next(self) -> pa.RecordBatch | None:
        first, self._first = self._first, None
        return first if first is not None else self._read_batch()

    def _told(self, error: Exception) -> tuple[str, bool] | None:
        from asyncmy.errors import Error, OperationalError

        if not isinstance(error, Error | pa.ArrowException | OSError | TimeoutError | asyncio.IncompleteReadError):
            return None
        away = isinstance(error, OperationalError | OSError | TimeoutError | asyncio.IncompleteReadError)
        return str(error.args[-1] if error.args else error), away

    def _read_batch(self) -> pa.RecordBatch | None:
        lines = self._do(self._lines())
        if not lines:
            return None
        if len(self._columns) == 1:  # an empty line would be passed over
            lines = [line or b'""' if self._columns[0].text == pa.string() else line for line in lines]
        names = [column.field.name for column in self._columns]
        table = pyarrow.csv.read_csv(
            pa.py_buffer(LINE.join(lines) + LINE),
            pyarrow.csv.ReadOptions(
                use_threads=False, column_names=names, block_size=sum(map(len, lines)) + len(lines) + 1
            ),
            pyarrow.csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
            pyarrow.csv.ConvertOptions(
                check_utf8=True,
                column_types={column.field.name: column.text for column in self._columns},
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        ).combine_chunks()
        arrays = []
        for column in self._columns:
            (values,) = table.column(column.field.name).chunks
            arrays.append(column.convert(values) if column.convert else values)
        return pa.RecordBatch.from_arrays(arrays, names)

    async def _lines(self) -> list[bytes]:
        lines: list[bytes] = []
        size = 0
        while len(lines) < ROWS_AT_ONCE and size < self._request.batch_bytes // 4:
            rows = await self._cursor.fetchmany(min(FETCHED, ROWS_AT_ONCE - len(lines)))
            if not rows:
                break
            for (line,) in rows:
                if line is None:
                    raise BadFile("a row is longer than the server's max_allowed_packet", "raise it on the server")
                size += len(line)
                lines.append(line)
        return lines

    async def _open(self) -> None:
        import asyncmy
        from asyncmy.cursors import SSCursor

        dsn = self._request.dsn
        where = {"unix_socket": dsn.host} if dsn.host.startswith("/") else {"host": dsn.host, "port": dsn.port}
        self._connection = await asyncmy.connect(
            user=dsn.user, password=dsn.password, db=dsn.database, charset="utf8mb4", ssl=tls_of(dsn.options),
            connect_timeout=int(dsn.options.get("connect_timeout", "10")), **where,
        )  # fmt: skip
        self._cursor = SSCursor(self._connection)
        for setting in (
            "SET SESSION time_zone = '+00:00', net_write_timeout = 600",
            "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
            "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
        ):
            await self._cursor.execute(setting)

    def _source(self) -> str:
        if self._request.query is not None:
            return self._request.query.strip().rstrip(";")
        table = self._request.table or ""
        sql = (
            "SELECT table_schema, table_name FROM information_schema.tables WHERE table_schema = DATABASE() AND "
            "table_name = %s OR CONCAT(table_schema, '.', table_name) = %s"
        )
        found = self._do(self._all(sql, (table, table)))
        if not found:
            names = self._do(
                self._all("SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE() LIMIT 20")
            )
            shown = ", ".join(sorted(name for (name,) in names))
            raise BadFile(
                f"there is no table {table}", f"tables: {shown}" if shown else "it has no tables", "not_found"
            )
        return f"SELECT * FROM {_quoted(found[0][0])}.{_quoted(found[0][1])}"

    async def _all(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        await self._cursor.execute(sql, parameters or None)
        return list(await self._cursor.fetchall())

    async def _described(self, source: str) -> list[Any]:
        await self._cursor.execute(f"SELECT * FROM ({source}) q LIMIT 0")
        fields = list(self._cursor._result.fields)  # PEP 249's description lacks sign, width and charset
        await self._cursor.fetchall()
        return fields

    def _too_large(self, source: str, fields: Sequence[Any]) -> set[str]:
        """Columns of unsigned 64-bit integers that hold one beyond int64: the usual ones are ids and do not."""
        names = [f.name for f in fields if f.type_code == _BIG and f.flags & _UNSIGNED]
        if not names:
            return set()
        shown = ", ".join(f"MAX(q.{_quoted(name)}) > {2**63 - 1}" for name in names)
        (row,) = self._do(self._all(f"SELECT {shown} FROM ({source}) q"))
        return {name for name, large in zip(names, row, strict=True) if large}

    def _new_rows(self, source: str, names: list[str]) -> str:
        """The WHERE that takes what came after the mark; moves the mark to the newest row's."""
        name, after = self._request.cursor, self._request.after
        if name is None:
            return ""
        self._refuse_cursor(names)
        cursor = _quoted(name)
        where = f" WHERE q.{cursor} > {self._connection.escape(after)}" if after is not None else ""
        ((high,),) = self._do(self._all(f"SELECT CAST(MAX(q.{cursor}) AS CHAR) FROM ({source}) q{where}"))
        ((unset,),) = self._do(self._all(f"SELECT COUNT(*) FROM ({source}) q WHERE q.{cursor} IS NULL"))
        self._reached(high, unset)
        return f"{where}{' AND' if where else ' WHERE'} q.{cursor} IS NOT NULL"

    async def _estimated(self, query: str) -> int:
        """Rows, as the planner thinks."""
        rows = await self._all(f"EXPLAIN {query}")
        names = [column[0] for column in self._cursor.description]
        return max((int(row[names.index("rows")] or 0) for row in rows), default=0)

    def _read(self, field: Any) -> _Read:
        name, code, unsigned = field.name, field.type_code, bool(field.flags & _UNSIGNED)
        column = f"q.{_quoted(name)}"
        plain = f"IFNULL({column}, '')"
        if code == _BIT:
            if field.length == 1:
                return _Read(pa.field(name, pa.bool_()), f"IFNULL({column} + 0, '')", pa.bool_())
            wide = pa.decimal128(20, 0) if field.length > 63 else pa.int64()
            return _Read(pa.field(name, wide), f"IFNULL({column} + 0, '')", wide)
        if code == _TINY and field.length == 1:
            return _Read(pa.field(name, pa.bool_()), f"IFNULL({column} <> 0, '')", pa.bool_())
        if code == _YEAR or code in _INTEGERS:
            bits = _INTEGERS.get(code, 16) * (1 + unsigned)
            type_ = pa.decimal128(20, 0) if name in self._large else pa.int64() if bits > 32 else pa.int32()
            return _Read(pa.field(name, type_), plain, type_)
        if code in (0, _DECIMAL):
            precision = field.length - (field.scale > 0) - (not unsigned)
            if precision <= 38:
                return _Read(pa.field(name, pa.decimal128(max(1, precision), field.scale)), plain,
                             pa.decimal128(max(1, precision), field.scale))  # fmt: skip
            self._said.append(f"column {name!r}: decimals of {precision} digits became floats")
            return _Read(pa.field(name, pa.float64()), plain, pa.float64())
        if code in (_FLOAT, _DOUBLE):
            return _Read(pa.field(name, pa.float64()), f"IFNULL(CAST({column} AS DOUBLE), '')", pa.float64())
        if code in (_DATE, _DATETIME, _TIMESTAMP):
            type_ = {_DATE: pa.date32(), _DATETIME: pa.timestamp("us")}.get(code, pa.timestamp("us", "UTC"))
            return _Read(pa.field(name, type_), plain, pa.string(), lambda values: self._dates(name, values, type_))
        if code in _BYTES and field.charsetnr == _BINARY_CHARSET:
            quoted = f"IFNULL(CONCAT('\"', HEX({column}), '\"'), '')"
            return _Read(pa.field(name, pa.binary()), quoted, pa.string(), _from_hex)
        text = f"CONVERT({column} USING utf8mb4)"
        return _Read(
            pa.field(name, pa.string()), f"IFNULL(CONCAT('\"', REPLACE({text}, '\"', '\"\"'), '\"'), '')", pa.string()
        )

    def _dates(self, name: str, values: pa.Array, type_: pa.DataType) -> pa.Array:
        # '0000-00-00', '2020-00-00', '2020-05-00'
        zero = pc.fill_null(pc.match_substring_regex(values, "^0000|-00[- ]|-00$"), False)
        count = pc.sum(zero).as_py() or 0
        if count:
            self._zero[name] += count
            values = pc.if_else(zero, pa.scalar(None, pa.string()), values)
        if pa.types.is_date(type_):
            return values.cast(type_)
        return values.cast(pa.timestamp("us")).cast(type_)

    def _do(self, work: Any) -> Any:
        assert self._loop is not None
        return self._loop.run_until_complete(work)


def _quoted(name: str) -> str:
    """An identifier between backticks, as the manual says (Identifier Names): asyncmy has no way to
    bind one. Names come from the server's own catalogue."""
    return "`" + name.replace("`", "``") + "`"


def _from_hex(values: pa.Array) -> pa.Array:
    """Hexadecimal text as bytes."""
    lengths = pc.fill_null(pc.binary_length(values), 0).to_numpy().astype(np.int64) // 2
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    data = bytes.fromhex("".join(text for text in values.to_pylist() if text))
    valid = None if not values.null_count else pc.is_valid(values).buffers()[1]
    return pa.BinaryArray.from_buffers(pa.binary(), len(values), [valid, pa.py_buffer(offsets), pa.py_buffer(data)])
