"""Commands about buckets: added, listed, shown, removed. Moving things between them is index's and datasets'."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from daemon.cli.client import Client, segment
from daemon.cli.connection import Connection
from daemon.cli.errors import WRONG_USE, CliError
from daemon.cli.output import Json, console, print_facts, print_json, print_table, size

app = App(name="bucket", help="List, add, show or remove buckets.")

Name = Annotated[str, Parameter(help="The bucket.")]


@app.default
def buckets(*, json: Json = False, to: Connection = Connection()) -> None:
    """List buckets: health, size, and what has its home in each."""
    answer = Client(to).get("/storage/buckets")
    if json:
        print_json(answer)
        return
    print_table(
        ["bucket", "health", "objects ", "size ", "waiting ", "home to ", "url"],
        (
            (
                one["bucket"],
                one["health"],
                one.get("objects"),
                size(one.get("bytes")),
                one["waiting"],
                len(one["homes"]),
                one["url"],
            )
            for one in answer["buckets"]
        ),
        empty="No buckets.",
    )
    for one in answer["buckets"]:
        if one["reason"]:
            console.print(f"{one['bucket']} is {one['health']}: {one['reason']}", style="yellow", markup=False)
    for clash in answer["clashes"]:
        counts = (
            f"the one in {clash['home']} counts" if clash["home"] else "none counts: `lakehouse repair` takes it in"
        )
        others = ", ".join(clash["others"])
        console.print(
            f"{clash['kind']} {clash['name']} lies in {others} too; {counts}",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )


app.command(buckets, name="list")


@app.command
def add(
    name: Name,
    url: str = "",
    /,
    *,
    option: Annotated[list[str] | None, Parameter(name=["--option", "-o"], negative="")] = None,
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Add a bucket that every process of the lakehouse knows from then on.

    Parameters
    ----------
    name
        What to call it.
    url
        A folder of the daemon's machine, `file:///folder` or `s3://bucket/prefix`; without, a folder below
        [storage] profile_root.
    option
        KEY=VALUE of the object store: endpoint, region, path_style; credentials by name only: access_key_id_env,
        secret_access_key_env, session_token_env, credentials_file.
    """
    body: dict[str, Any] = {"name": name, "url": Path(url).as_uri() if url.startswith("/") else url}
    for given in option or []:
        key, equals, value = given.partition("=")
        if not equals:
            raise CliError(f"--option {given} says no value.", "--option region=eu-central-1", WRONG_USE)
        body.setdefault("options", {})[key] = value
    _print(Client(to).post("/storage/buckets", body), json)


@app.command
def show(name: Name, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Show one bucket and what has its home there."""
    _print(Client(to).get(f"/storage/buckets/{segment(name)}"), json)


@app.command
def remove(name: Name, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Forget a bucket that is home to nothing. What lies in it stays where it is."""
    answer = Client(to).delete(f"/storage/buckets/{segment(name)}")
    if json:
        print_json(answer)
    else:
        console.print(f"removed {name}; what lies in it was left alone", markup=False)


def _print(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    facts = {
        "bucket": answer["bucket"],
        "url": answer["url"],
        "options": answer["options"],
        "health": " ".join(filter(None, (answer["health"], answer["reason"] and f"({answer['reason']})"))),
        "objects": answer.get("objects"),
        "size": size(answer.get("bytes")),
        "waiting in rescue": answer["waiting"] or None,
        "home to": [f"{home['kind']} {home['name']}" for home in answer["homes"]],
    }
    print_facts(facts)
