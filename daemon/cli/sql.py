"""`lakehouse sql "SELECT …"`."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from daemon.cli.client import Client
from daemon.cli.connection import Connection
from daemon.cli.errors import WRONG_USE, CliError
from daemon.cli.output import Json, console, print_json, print_table


def sql(
    query: Annotated[str | None, Parameter(help="A SELECT; - or nothing reads it from standard input.")] = None,
    /,
    *,
    limit: int = 1000,
    at: Annotated[list[str] | None, Parameter(name="--at", negative="")] = None,
    format: Literal["table", "json", "csv", "arrow"] = "table",
    out: Path | None = None,
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Ask in SQL over datasets and the tables trials, promotions, rejects, lineage, query_log …

    Parameters
    ----------
    limit
        Rows of the answer.
    at
        A dataset's version instead of its newest: --at docs=3. In the query, "docs@3" means it, too.
    format
        table, json, csv or arrow (an Arrow IPC stream).
    out
        File to write csv or arrow to; default standard output.
    """
    if query in (None, "-"):
        if sys.stdin.isatty():
            raise CliError("There is no query.", 'lakehouse sql "SELECT * FROM catalog"', WRONG_USE)
        query = sys.stdin.read()
    body: dict[str, Any] = {"query": query, "limit": limit, "versions": dict(map(_version, at or []))}
    client = Client(to)
    if format in ("csv", "arrow"):
        data = client.post_raw("/sql", {**body, "format": format})
        if out is not None:
            out.write_bytes(data)
        else:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        return
    answer = client.post("/sql", body, timeout_s=None)
    if json or format == "json":
        print_json(answer)
        return
    names = [column["name"] for column in answer["columns"]]
    numbers = [column["type"].startswith(("int", "uint", "double", "float", "decimal")) for column in answer["columns"]]
    heads = [f"{name} " if number else name for name, number in zip(names, numbers, strict=True)]
    print_table(heads, ([_cell(value) for value in row] for row in answer["rows"]), empty="No rows.")
    if answer["truncated"]:
        console.print(f"the first {limit} rows; --limit shows more", style="dim")


def _version(text: str) -> tuple[str, int]:
    name, _, version = text.partition("=")
    if not version.isdigit():
        raise CliError(f"--at {text} is no dataset=version.", "--at docs=3", WRONG_USE)
    return name, int(version)


def _cell(value: Any) -> Any:
    if isinstance(value, list) and len(value) > 6:
        return f"[{', '.join(map(str, value[:6]))}, … {len(value)}]"
    return value
