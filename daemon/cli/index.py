"""Commands about indexes: made, listed, rebuilt, dropped. Searching them is search.py's."""

import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from daemon.cli.client import Client, segment
from daemon.cli.connection import Connection
from daemon.cli.errors import INTERRUPTED, WRONG_USE, CliError
from daemon.cli.output import (
    Json,
    configuration,
    console,
    moment,
    print_facts,
    print_json,
    print_moved,
    print_table,
    share,
    size,
    within,
)
from schemas.config import EF_CONSTRUCTION_BOUNDS, EF_SEARCH_BOUNDS, M_BOUNDS

POLL_S = 0.3

app = App(name="index", help="Create, show, rebuild, move or drop an index, say what serves it.")

Backend = Literal["hnsw", "lance", "auto"]
Name = Annotated[str, Parameter(help="The index.")]
Reason = Annotated[str, Parameter(help="What lineage says about why.")]
Wait = Annotated[
    bool, Parameter(name="--wait", negative="--no-wait", help="Wait until it is built, or return at once.")
]


def indexes(*, json: Json = False, to: Connection = Connection()) -> None:
    """List indexes."""
    answer = Client(to).get("/vectors/indexes")
    if json:
        print_json(answer)
        return
    print_table(
        ["index", "dataset", "column", "rows ", "state", "generation ", "backend", "configuration", "target "],
        (
            (
                one["index"],
                one["dataset"],
                one["column"],
                one["rows"],
                one["state"],
                one["generation"],
                one["backend"],
                configuration(one["config"]),
                share(one["target_recall"]),
            )
            for one in answer["indexes"]
        ),
        empty="No indexes yet: lakehouse index create NAME --dataset DATASET --column COLUMN makes one.",
    )


app.command(indexes, name="list")


@app.command
def create(
    name: str,
    /,
    *,
    dataset: str,
    column: str,
    metric: Literal["cosine", "ip", "l2"] = "cosine",
    bucket: str | None = None,
    target_recall: Annotated[float | None, Parameter(validator=Number(gt=0, lt=1))] = None,
    embedder: Literal["lexical", "ollama", "openai", "none"] | None = None,
    model: str | None = None,
    backend: Backend = "hnsw",
    text_column: str | None = None,
    m: Annotated[int | None, Parameter(name=["--m", "-M"], validator=within(M_BOUNDS))] = None,
    ef_construction: Annotated[int | None, Parameter(validator=within(EF_CONSTRUCTION_BOUNDS))] = None,
    ef_search: Annotated[int | None, Parameter(validator=within(EF_SEARCH_BOUNDS))] = None,
    wait: Wait = True,
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Make an index over a column of text or of vectors, and wait until it can be searched.

    Parameters
    ----------
    name
        What to call it.
    dataset
        Whose rows it covers.
    column
        Text is embedded, vectors are taken as they are.
    metric
        How near is near.
    bucket
        Home of its files; default the dataset's.
    target_recall
        Recall@10 to hold; default [agent] target_recall.
    embedder
        What turns text into vectors; default [embedding] kind.
    model
        Model name at the embedder's server.
    backend
        What finds the neighbours: a graph in memory, Lance on disk or S3, or the better of them, by
        memory and measured cost.
    text_column
        What --mode text and hybrid read; default COLUMN where it is text.
    m
        Links per node of the graph, 4 to 64; default 16. Tuning finds better values of these three.
    ef_construction
        Candidates while building, 10 to 400; default 100.
    ef_search
        Candidates while searching, 10 to 400; default 50.
    """
    body: dict[str, Any] = {"name": name, "dataset": dataset, "column": column, "metric": metric, "backend": backend}
    more = {"bucket": bucket, "target_recall": target_recall, "text_column": text_column}
    body |= {key: value for key, value in more.items() if value is not None}
    if model and not embedder:
        raise CliError("--model says nothing without --embedder.", "--embedder ollama or openai", WRONG_USE)
    if embedder:
        body["embedder"] = {"kind": embedder} | ({"model": model} if model else {})
    graph = {"M": m, "ef_construction": ef_construction, "ef_search": ef_search}
    if config := {key: value for key, value in graph.items() if value is not None}:
        if backend == "lance":
            hint = "lakehouse lance migrate --type … makes one on Lance as you want it"
            raise CliError("--m, --ef-construction and --ef-search are a graph's.", hint, WRONG_USE)
        body["config"] = config
    from daemon.cli.progress import Steps

    client, steps = Client(to), Steps()
    steps.listen(client, name)
    with steps.step(f"index {name}"):
        answer = client.post("/vectors/indexes", body, timeout_s=None)
        # Without rows nothing is built until some come.
        if wait and answer["state"] != "ready" and client.get(f"/datasets/{segment(dataset)}")["rows"]:
            answer = _served(client, name, 1)
    if json:
        print_json(answer)
    else:
        console.print(
            f"{name}: {answer['state']}, {answer['rows']:,} rows × {answer['dim']}, {configuration(answer['config'])}",
            markup=False,
        )
        if answer["state"] != "ready":
            console.print(f"[dim]lakehouse index show {name} says when it can be searched[/dim]")


def _served(client: Client, name: str, generation: int) -> dict[str, Any]:
    """Waits until the index serves this generation or a later one."""
    return until(client, name, lambda info: info["generation"] >= generation)


def until(client: Client, name: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Waits until something holds of the index. Raises CliError when what was ordered can't be built."""
    try:
        while True:
            info: dict[str, Any] = client.get(f"/vectors/indexes/{segment(name)}")
            if holds(info):
                return info
            if info.get("reason"):
                raise CliError(f"{name} could not be built: {info['reason']}.", "`lakehouse dead` may say more")
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        raise CliError("Not waited for: the daemon goes on.", f"lakehouse index show {name}", INTERRUPTED) from None


@app.command(alias="show")
def stats(name: Name, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Show an index: configuration, rows, generation, size, live recall."""
    client = Client(to)
    wanted = client.get(f"/vectors/indexes/{segment(name)}")
    serves = client.get(f"/vectors/indexes/{segment(name)}/stats")
    answer = wanted | serves | {"backend": wanted["backend"]}  # as asked for; `config` tells what serves
    if json:
        print_json(answer)
        return
    live = answer.get("live_recall")
    facts = {
        "index": answer["index"],
        "over": f"{answer['dataset']}.{answer['column']} ({answer['metric']}, {answer['dim']} dimensions)",
        "state": " ".join(filter(None, (answer["state"], answer.get("reason")))),
        "generation": answer["generation"],
        "backend": _backend(wanted["backend"], serves["config"]["backend"]),
        "because": (serves["why_backend"] or wanted["why_backend"]) if wanted["backend"] == "auto" else "",
        "beside it": answer["companions"],
        "configuration": configuration(answer["config"]),
        "text search": answer["text_column"],
        "searched by": answer.get("codec") and f"the codes of {answer['codec']}, rescored exactly",
        "rows": answer["rows"],
        "fresh rows": answer["fresh_rows"],
        "deleted": answer["deleted"],
        "in memory": size(answer["bytes"]),
        "stored": answer.get("stored_bytes") and size(answer["stored_bytes"]),
        "loaded": answer["loaded"],
        "queries": answer["queries"],
        "target recall": share(answer["target_recall"]),
        "live recall": live
        and f"{live['mean']:.4f} ({live['lower']:.4f} to {live['upper']:.4f}) over {live['samples']:,} queries "
        f"since {moment(live['since'])}",
    }
    print_facts(facts)


def _backend(asked: str, now: str) -> str:
    """Which backend serves an index, and whether that is what was asked for."""
    if asked == "auto":
        return f"{now}, chosen by auto"
    return now if asked == now else f"{now}; {asked} is to serve it when it is built"


@app.command(name="backend")
def set_backend(
    name: Name, backend: Backend, /, *, wait: Wait = True, json: Json = False, to: Connection = Connection()
) -> None:
    """Say what is to serve an index, and wait until it does. Searches go on all the while.

    Parameters
    ----------
    backend
        A graph in memory, Lance on disk or S3, or the better of them, by memory and measured cost.
    """
    from daemon.cli.progress import Steps

    client, steps = Client(to), Steps()
    steps.listen(client, name)
    with steps.step(f"index {name}"):
        answer = client.put(f"/vectors/indexes/{segment(name)}/backend", {"backend": backend})
        if wait and backend != "auto" and answer["generation"]:
            answer = until(client, name, lambda info: info["config"]["backend"] == backend)
    if json:
        print_json(answer)
        return
    now = answer["config"]["backend"]
    why = f" ({answer['why_backend']})" if backend == "auto" and answer["why_backend"] else ""
    to_come = f"; {backend} takes over when it is built" if backend not in ("auto", now) else ""
    console.print(f"{name}: served by {now}, {configuration(answer['config'])}{why}{to_come}", markup=False)


@app.command
def rebuild(
    name: Name, /, *, reason: Reason = "asked", wait: Wait = True, json: Json = False, to: Connection = Connection()
) -> None:
    """Build the live configuration again over today's rows, and wait until it is served."""
    from daemon.cli.progress import Steps

    client, steps = Client(to), Steps()
    steps.listen(client, name)
    with steps.step(f"index {name}"):
        answer = client.post(f"/vectors/indexes/{segment(name)}/rebuild", reason=reason)
        if wait:
            _served(client, name, answer["generation"])
    if json:
        print_json(answer)
    else:
        done = "is served" if wait else "is being built"
        console.print(f"{name}: generation {answer['generation']} {done}", markup=False)


@app.command
def move(
    name: Name,
    /,
    *,
    to_bucket: Annotated[str, Parameter(help="Its new home.")],
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Move an index to another bucket, verified, with its vectors, generations and eval sets. Searches go on."""
    answer = Client(to).patch(f"/vectors/indexes/{segment(name)}", {"bucket": to_bucket}, timeout_s=None)
    print_moved(name, answer, json)


@app.command
def drop(name: Name, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Drop an index and its files. Its trials stay in the journal."""
    answer = Client(to).delete(f"/vectors/indexes/{segment(name)}")
    if json:
        print_json(answer)
    else:
        console.print(f"dropped {name}", markup=False)
