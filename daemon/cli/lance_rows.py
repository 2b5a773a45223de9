"""Commands about the rows of a Lance store: search, doc, append, delete. They belong to `lakehouse lance`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from daemon.cli.client import Client, segment
from daemon.cli.connection import Connection
from daemon.cli.errors import WRONG_USE, CliError
from daemon.cli.index import Name
from daemon.cli.output import Json, console, print_facts, print_json
from daemon.cli.search import Query, show

SHOWN_NUMBERS = 4
"""Of a vector, for people."""
ROWS = 'one object a line, such as {"id": 1, "text": "some words"}; - reads standard input'


def search(
    name: Name,
    text: Annotated[str | None, Parameter(help="What to look for.")] = None,
    /,
    *,
    query: Query = Query(),
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Find the nearest rows in the store, whatever serves the index."""
    body = query.body(text, f"lakehouse lance search {name} 'some words'")
    show(Client(to).post(f"/vectors/lance/search/{segment(name)}", body), as_json=json)


def doc(
    name: Name,
    id: Annotated[str, Parameter(help="The row's id.", allow_leading_hyphen=True)],
    /,
    *,
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Show one row by its id, with its vector."""
    if not id:
        raise CliError("ID is empty.", f"lakehouse lance doc {name} ID", WRONG_USE)
    answer = Client(to).get(f"/vectors/lance/doc/{segment(name)}/{segment(id)}")
    if json:
        print_json(answer)
        return
    vector = answer["vector"]
    first = ", ".join(f"{number:.4g}" for number in vector[:SHOWN_NUMBERS])
    more = f", … ({len(vector)} numbers)" if len(vector) > SHOWN_NUMBERS else ""
    columns = {name: value if value is None else str(value) for name, value in answer["columns"].items()}
    print_facts({"id": str(answer["id"]), **columns, "vector": f"{first}{more}"})


def append(
    name: Name,
    file: Annotated[
        str,
        Parameter(help="JSON lines, or one JSON list of objects; - reads standard input.", allow_leading_hyphen=True),
    ],
    /,
    *,
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Write rows by id into the index's dataset; they are searchable when the command ends."""
    answer = Client(to).post(f"/vectors/lance/append/{segment(name)}", {"rows": _rows(file)}, timeout_s=None)
    _changed(name, answer, "written", as_json=json)


def delete(
    name: Name,
    ids: Annotated[list[str], Parameter(help="Ids of rows.", allow_leading_hyphen=True)],
    /,
    *,
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Delete rows by id from the index's dataset and from the store."""
    answer = Client(to).post(f"/vectors/lance/delete/{segment(name)}", {"ids": ids}, timeout_s=None)
    _changed(name, answer, "deleted", as_json=json)


def _rows(file: str) -> list[dict[str, Any]]:
    """Rows of JSON lines or of one list. Raises CliError."""
    what = "standard input" if file == "-" else file
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise CliError(f"{what} can't be read: {error.strerror}.", ROWS, WRONG_USE) from None
    try:
        if data.lstrip()[:1] == b"[":
            rows = msgspec.json.decode(data, type=list[dict[str, Any]])
        else:
            rows = msgspec.json.Decoder(dict[str, Any]).decode_lines(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CliError(f"{what} is no JSON lines and no list of objects: {error}.", ROWS, WRONG_USE) from None
    if not rows:
        raise CliError(f"{what} has no rows.", ROWS, WRONG_USE)
    return rows


def _changed(name: str, answer: dict[str, Any], done: str, *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        rows = f"{answer['rows']:,} row{'s' if answer['rows'] != 1 else ''}"
        console.print(f"{name}: {rows} {done}, version {answer['version']}", markup=False)
