"""SQL predicates over one table, answered by DuckDB. A predicate is whatever may stand in
`WHERE (…)` over that table alone: DuckDB's own parser says what it is, and predicate_rules.py what
it may be made of. The engine itself has no access to files either.
"""

import contextlib
import json
import os
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from actors.ports import ROW
from daemon.storage import predicate_rules
from daemon.storage.data_files import BadDataFile

MAX_LENGTH = 20_000
"""Characters of a predicate. DuckDB's parser takes 10 KB for each."""
MAX_DEPTH = 100
"""Expressions within expressions; DuckDB's own limit of 1000 is more than json.loads reads."""
TOO_DEEP = f"the filter is nested too deeply: more than {MAX_DEPTH} levels"
UNREADABLE = "reading the stream registered as 't' failed"
"""How DuckDB says that the fault is the data's, not the predicate's."""


class PredicateEngine:
    """One locked-down DuckDB. Each match runs in a cursor of its own, so threads may share it."""

    def __init__(self) -> None:
        self._connection = duckdb.connect(":memory:", config={"threads": 2, "memory_limit": "512MB"})
        for setting in (
            "SET enable_external_access = false",
            "SET python_enable_replacements = false",
            f"SET max_expression_depth = {MAX_DEPTH}",
            "SET lock_configuration = true",
        ):
            self._connection.execute(setting)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        return self._connection.cursor()

    def check(self, predicate: str, schema: pa.Schema) -> None:
        """Raises ValueError for what is no predicate over a table of this schema, or isn't
        allowed in one."""
        if len(predicate) > MAX_LENGTH:
            raise ValueError(f"the filter is too long: it has more than {MAX_LENGTH:,} characters")
        parsed = self._parse(_query(predicate))
        plain = self._parse(_query("true"))
        condition = parsed["node"].pop("where_clause", None)
        del plain["node"]["where_clause"]
        if _shape(parsed) != _shape(plain) or condition is None:
            raise ValueError("this is no predicate: it must be what stands in a WHERE clause, without further clauses")
        predicate_rules.check(condition, schema)

    def _parse(self, query: str) -> Any:
        with self._connection.cursor() as cursor:
            (text,) = cursor.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchone() or ("{}",)
        try:
            parsed = json.loads(text)
        except RecursionError as error:
            raise ValueError(TOO_DEEP) from error
        if "Max expression depth" in parsed.get("error_message", ""):
            raise ValueError(TOO_DEEP)
        if parsed.get("error", True) or len(parsed["statements"]) != 1:
            raise ValueError(f"this is no predicate: {parsed.get('error_message', 'it is more than one statement')}")
        return parsed["statements"][0]


class Query:
    """One match: `run` in a thread, `interrupt` from anywhere, at any time."""

    def __init__(self, engine: PredicateEngine, predicate: str, data: ds.Dataset) -> None:
        self._engine = engine
        self._predicate = predicate
        self._data = data
        self._cursor: duckdb.DuckDBPyConnection | None = engine.cursor()

    def run(self) -> NDArray[np.int64]:
        """Row numbers where the predicate holds, ascending. Raises ValueError with DuckDB's
        words, BadDataFile, FileNotFoundError."""
        cursor = self._cursor
        if cursor is None:
            return np.zeros(0, np.int64)  # interrupted before it began: nobody waits for this
        with cursor:
            self._engine.check(self._predicate, self._data.schema)
            cursor.register("t", self._data)
            try:
                found = cursor.execute(_query(self._predicate)).fetchnumpy()[ROW]
            except duckdb.Error as error:
                if UNREADABLE in str(error):
                    missing = [path for path in self._data.files if not os.path.exists(path)]
                    why = " ".join(str(error).split(UNREADABLE)[-1].split()).strip(" :.")
                    raise (FileNotFoundError(f"{missing[0]} is missing") if missing else BadDataFile(why)) from error
                raise ValueError(_words(error)) from error
            finally:
                self._cursor = None
                cursor.unregister("t")
        rows: NDArray[np.int64] = np.sort(np.asarray(found, np.int64))
        return rows

    def interrupt(self) -> None:
        """Stop it; nothing when it has ended."""
        cursor, self._cursor = self._cursor, None
        if cursor is not None:
            with contextlib.suppress(duckdb.Error):  # it ends just now
                cursor.interrupt()


def _query(predicate: str) -> str:
    # the line break keeps a trailing comment from swallowing the bracket
    return f"SELECT {ROW} FROM t WHERE (\n{predicate}\n)"


def _shape(node: Any) -> Any:
    """A parsed statement without the positions in its text."""
    if isinstance(node, dict):
        return {key: _shape(value) for key, value in node.items() if not key.startswith("query_location")}
    return [_shape(item) for item in node] if isinstance(node, list) else node


def _words(error: duckdb.Error) -> str:
    """DuckDB's sentence, without the query that we built around the predicate."""
    return str(error).split("\nLINE ")[0].split("\n\nLINE ")[0].strip()
