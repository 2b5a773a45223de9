"""Commands about data: files in, datasets listed, shown, dropped."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from daemon.cli.client import Client, segment
from daemon.cli.connection import Connection
from daemon.cli.database import read_database
from daemon.cli.errors import WRONG_USE, CliError
from daemon.cli.output import (
    Json,
    console,
    moment,
    print_facts,
    print_json,
    print_json_line,
    print_moved,
    print_table,
    size,
)

if TYPE_CHECKING:
    from daemon.cli.progress import Steps

app = App(name="datasets", help="List, show, move or drop datasets.")

Name = Annotated[str, Parameter(help="The dataset.")]
_STORED = {"flag": "as it came", "mask": "masked", "drop": "no", "refuse": "as it came"}


def ingest(
    files: Annotated[list[str] | None, Parameter(name="FILE", negative="")] = None,
    /,
    *,
    dataset: str | None = None,
    dsn: Annotated[str | None, Parameter(name="--from")] = None,
    source: str | None = None,
    table: str | None = None,
    query: str | None = None,
    cursor: str | None = None,
    id_column: Annotated[str | None, Parameter(name=["--id", "--id-column"])] = None,
    vector_column: str | None = None,
    mode: Literal["append", "upsert", "replace"] | None = None,
    format: Literal["csv", "jsonl", "parquet", "arrow"] | None = None,
    bucket: str | None = None,
    pii: Literal["flag", "mask", "drop", "refuse"] | None = None,
    on_server: Annotated[bool, Parameter(negative="")] = False,
    follow: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Read files, or a table or query of a database, into a dataset, making it when it is new.

    Parameters
    ----------
    files
        CSV, JSON lines, Parquet or Arrow files.
    dataset
        Where the rows go.
    dsn
        Database to read, instead of files: postgresql://user:password@host/database or mysql://…;
        @FILE reads the DSN from a file, - from standard input, so that no other user sees it.
    source
        One of the [[sources]] of the daemon's lakehouse.toml.
    table
        Table to read.
    query
        Query to read.
    cursor
        A column that only grows: read what came after the last run.
    id_column
        Column that identifies a row; default a hash of its content.
    vector_column
        Column of vectors; default every list of floats.
    mode
        append, upsert (the same id replaces) or replace (all rows before go).
    format
        What the files are; default by their names.
    bucket
        Home of a new dataset; default primary.
    pii
        What becomes of columns with personal data: flag (told), mask (values are masked for good), drop (left out)
        or refuse (the file is refused). Given with a dataset's first file; default [ingest] pii.
    on_server
        FILE is a path on the daemon's machine, inside [ingest] allowed_roots: nothing is uploaded.
    follow
        Afterwards print what the daemon does with the rows, until Ctrl-C.
    """
    from daemon.cli.progress import Steps

    client = Client(to)
    given: dict[str, str | None] = {
        "dataset": dataset,
        "id_column": id_column,
        "vector_column": vector_column,
        "mode": mode,
        "format": format,
        "bucket": bucket,
        "pii": pii,
    }
    fields = {name: value for name, value in given.items() if value is not None}
    if dsn is not None or source is not None:
        if files or format:
            raise CliError("Files and a database are both named.", "read one after the other", WRONG_USE)
        asked = {"source": source, "table": table, "query": query, "cursor": cursor}
        fields.update((name, value) for name, value in asked.items() if value is not None)
        report = read_database(client, fields, dsn, source)
        print_json_line(report) if json else _print_report(table or source or "query", report)
        return
    if not files or dataset is None:
        what = "No file is named." if not files else "Parameter --dataset is missing."
        raise CliError(what, "lakehouse ingest FILE --dataset NAME; or --from DSN --table TABLE", WRONG_USE)
    if table or query or cursor:
        raise CliError("--table, --query and --cursor are of databases.", "name one with --from or --source", WRONG_USE)
    if not on_server:
        for missing in (file for file in files if not Path(file).is_file()):
            raise CliError(f"{missing} is no file.", "--on-server reads a path of the daemon's machine", WRONG_USE)
    steps = Steps()
    steps.listen(client, dataset)
    for file in files:
        report = _read(client, steps, fields, file) if on_server else _upload(client, steps, fields, Path(file))
        if json:
            print_json_line(report)
        else:
            _print_report(file, report)
    if follow:
        from daemon.cli.watching import follow_events

        follow_events(client, ">", as_json=json)


def _read(client: Client, steps: "Steps", fields: dict[str, str], file: str) -> Any:
    with steps.step(file):
        return client.post("/ingest/file", {**fields, "path": file}, timeout_s=None)


def _upload(client: Client, steps: "Steps", fields: dict[str, str], file: Path) -> Any:
    with steps.step(file.name, unit="bytes") as bars:

        def sent(done: int, total: int) -> None:
            if done < total:
                bars.step(done, total)
            else:  # now the daemon's own phases are below
                bars.step(0, None, f"{file.name}: uploaded")

        return client.upload("/ingest/file", fields, file, sent)


def _print_report(file: str, report: dict[str, Any]) -> None:
    rejected = f", {report['rejected']:,} set aside" if report["rejected"] else ""
    console.print(
        f"{file}: {report['rows']:,} rows{rejected}; {report['dataset']} has {report['total_rows']:,} rows "
        f"at version {report['version']}",
        soft_wrap=True,
        markup=False,
    )
    for warning in report.get("warnings", []):
        console.print(f"  {warning}", style="yellow", markup=False)
    for row in report.get("rejects", []):
        where = ", ".join(filter(None, (f"line {row['line']}", row["column"])))
        console.print(f"  {where}: {row['reason']}", style="yellow", markup=False)
    for found in report.get("pii", []):
        done = {"mask": ", masked", "drop": ", left out"}.get(report.get("pii_policy", "flag"), "")
        console.print(f"  personal data in {_told(found)}{done}", style="yellow", markup=False)


def _told(found: dict[str, Any]) -> str:
    """A finding in a line."""
    detail = f" ({found['detail']})" if found.get("detail") else ""
    return (
        f"{found['column']}: {found['kind'].replace('_', ' ')}{detail}, {found['share']:.0%} of "
        f"{found['sampled']:,} values looked at"
    )


@app.default
def datasets(*, json: Json = False, to: Connection = Connection()) -> None:
    """List datasets."""
    answer = Client(to).get("/datasets")
    if json:
        print_json(answer)
        return
    print_table(
        ["dataset", "rows ", "version ", "size ", "bucket", "id", "columns"],
        (
            (
                one["dataset"],
                one["rows"],
                one["version"],
                size(one["bytes"]),
                one["bucket"],
                one["id_column"],
                [column["name"] for column in one["columns"]],
            )
            for one in answer["datasets"]
        ),
        empty="No datasets yet: lakehouse ingest FILE --dataset NAME makes one.",
    )


app.command(datasets, name="list")


@app.command
def show(name: Name, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Show one dataset: its columns and where each version came from."""
    answer = Client(to).get(f"/datasets/{segment(name)}")
    if json:
        print_json(answer)
        return
    print_facts(
        {
            "dataset": answer["dataset"],
            "rows": answer["rows"],
            "version": answer["version"],
            "size": size(answer["bytes"]),
            "bucket": answer["bucket"],
            "id": answer["id_column"],
            "pii": answer.get("pii_policy", "flag"),
        }
    )
    console.print()
    print_table(
        ["column", "type", "role", "dim "],
        ((column["name"], column["type"], column["role"], column.get("dim")) for column in answer["columns"]),
        empty="It has no columns.",
    )
    console.print()
    if answer.get("pii"):
        left_out = answer.get("dropped", [])
        print_table(
            ["personal data in", "kind", "confidence ", "share ", "of values ", "detail", "stored"],
            (
                (
                    found["column"],
                    found["kind"].replace("_", " "),
                    f"{found['confidence']:.2f}",
                    f"{found['share']:.1%}",
                    found["sampled"],
                    found.get("detail", ""),
                    "no" if found["column"] in left_out else _STORED[answer.get("pii_policy", "flag")],
                )
                for found in answer["pii"]
            ),
            empty="",
        )
        console.print()
    print_table(
        ["version ", "time", "operation", "rows ", "rejected ", "source"],
        (
            (
                commit["version"],
                moment(commit["time"]),
                commit["operation"],
                commit["rows"],
                commit.get("rejected", 0),
                commit.get("source", ""),
            )
            for commit in answer["commits"]
        ),
        empty="It has no commits.",
    )


@app.command
def move(
    name: Name,
    /,
    *,
    to_bucket: Annotated[str, Parameter(help="Its new home.")],
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Move a dataset to another bucket, verified. Reads go on meanwhile, writes wait for the switch."""
    answer = Client(to).patch(f"/datasets/{segment(name)}", {"bucket": to_bucket}, timeout_s=None)
    print_moved(name, answer, json)


@app.command
def drop(name: Name, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Drop a dataset and its files. Refused while an index stands on it."""
    answer = Client(to).delete(f"/datasets/{segment(name)}")
    if json:
        print_json(answer)
    else:
        console.print(f"dropped {name}", markup=False)
