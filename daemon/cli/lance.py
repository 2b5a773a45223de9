"""Commands about the Lance store of an index: made, indexed, searched, changed, optimised."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from daemon.cli import lance_rows
from daemon.cli.client import Client, segment
from daemon.cli.connection import Connection
from daemon.cli.errors import INTERRUPTED, WRONG_USE, CliError
from daemon.cli.index import Name, Wait, until
from daemon.cli.output import (
    Json,
    build,
    configuration,
    console,
    print_facts,
    print_json,
    print_table,
    size,
    within,
)
from schemas.config import PARTITION_BOUNDS

app = App(name="lance", help="Keep an index on disk or S3 with Lance: migrate, search, append, optimise.")

SHOWN_VERSIONS = 5
OPTIMISED = "lance.optimized,message.deadlettered"
"""The facts that end an optimising."""
NOT_FOUND = 404

IndexType = Annotated[
    Literal["auto", "IVF_RQ", "IVF_FLAT", "IVF_PQ", "IVF_HNSW_SQ"],
    Parameter(name="--type", help="What to build; auto: by rule, from rows and dimensions."),
]
Partitions = Annotated[
    int | None, Parameter(validator=within(PARTITION_BOUNDS), help="Cells to divide the vectors into; default by rule.")
]
SubVectors = Annotated[
    int | None, Parameter(validator=Number(gte=1, lte=4096), help="Bytes a vector, of IVF_PQ; default by rule.")
]


@app.command
def migrate(
    name: Name,
    /,
    *,
    dataset: str | None = None,
    column: str | None = None,
    metric: Literal["cosine", "ip", "l2"] | None = None,
    embedder: Literal["lexical", "ollama", "openai", "none"] | None = None,
    model: str | None = None,
    target_recall: Annotated[float | None, Parameter(validator=Number(gt=0, lt=1))] = None,
    index_type: IndexType = "auto",
    partitions: Partitions = None,
    sub_vectors: SubVectors = None,
    wait: Wait = True,
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Copy an index's rows and vectors into a Lance store and index them, and wait until they can be searched there.
    What serves the index goes on doing so; `lakehouse index backend` changes that. An index that isn't there is
    made, with Lance to serve it.

    Parameters
    ----------
    dataset
        For an index that isn't there: whose rows it covers.
    column
        Likewise: text is embedded, vectors are taken as they are.
    metric
        Likewise: how near is near; default cosine.
    embedder
        Likewise: what turns text into vectors; default [embedding] kind.
    model
        Likewise: model name at the embedder's server.
    target_recall
        Likewise: recall@10 to hold; default [agent] target_recall.
    """
    if (dataset is None) != (column is None):
        raise CliError("--dataset and --column go together.", "leave both out for an index there is", WRONG_USE)
    if model and not embedder:
        raise CliError("--model says nothing without --embedder.", "--embedder ollama or openai", WRONG_USE)
    new = {"metric": metric, "embedder": embedder, "target_recall": target_recall}
    if dataset is None and (given := [f"--{key.replace('_', '-')}" for key, value in new.items() if value is not None]):
        hint = "an index there is keeps its own; with --dataset and --column one is made"
        raise CliError(f"{given[0]} says nothing without --dataset.", hint, WRONG_USE)
    spec = embedder and {"kind": embedder} | ({"model": model} if model else {})
    body = _build(index_type, partitions, sub_vectors) | {"dataset": dataset, "column": column, **new, "embedder": spec}
    _ordered(to, name, "migrate", body, wait=wait, as_json=json)


@app.command(name="index")
def index_store(
    name: Name,
    /,
    *,
    index_type: IndexType = "auto",
    partitions: Partitions = None,
    sub_vectors: SubVectors = None,
    wait: Wait = True,
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Build another vector index in the store, and wait until it is searched in the place of the one before."""
    _ordered(to, name, "index", _build(index_type, partitions, sub_vectors), wait=wait, as_json=json)


app.command(lance_rows.search)
app.command(lance_rows.doc)
app.command(lance_rows.append)
app.command(lance_rows.delete)


@app.command(alias="optimise")
def optimize(
    name: Name,
    /,
    *,
    retrain: Annotated[bool, Parameter(negative="")] = False,
    reason: Annotated[str, Parameter(help="What is told about why.")] = "asked",
    wait: Wait = True,
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Take rows that came since into the store's indexes and merge small files, and wait until that is done. It is
    done by itself where enough of them came.

    Parameters
    ----------
    retrain
        Train the indexes again, over today's rows.
    """
    from daemon.cli.progress import Steps

    client, steps = Client(to), Steps()

    def order() -> Any:
        return client.post(f"/vectors/lance/optimize/{segment(name)}", retrain=retrain, reason=reason)

    steps.listen(client, name)
    with steps.step(f"optimising {name}"):
        answer = _optimized(client, name, order) if wait else order()
    if json:
        print_json(answer)
    elif not wait:
        console.print(f"{name}: {answer['unindexed_rows']:,} rows are being taken in", markup=False)
    else:
        trained = ", trained again" if answer["retrained"] else ""
        done = f"{answer['indexed_rows']:,} rows taken in{trained}, took {answer['seconds']:.1f} s"
        console.print(f"{name}: {done}; the store is at version {answer['lance_version']}", markup=False)


def _optimized(client: Client, name: str, order: Callable[[], Any]) -> dict[str, Any]:
    """Orders it once its end would be heard, and waits for that."""
    try:
        for event in client.server_sent("/events", opened=order, match=OPTIMISED):
            message: dict[str, Any] = event["message"]
            if message["type"] == "lance.optimized" and message["index"] == name:
                return message
            if message["type"] == "message.deadlettered" and message["message"] == "lance.run_optimize":
                raise CliError(
                    f"A store could not be optimised: {message['reason']}.", "`lakehouse dead` has the order"
                )
    except KeyboardInterrupt:
        hint = f"lakehouse lance stats {name}"
        raise CliError("Not waited for: the daemon goes on.", hint, INTERRUPTED) from None
    raise CliError("The daemon stopped before the store was optimised.", "it goes on when the daemon is back")


@app.command(alias="show")
def stats(name: Name, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Show the store: rows, files, vector indexes and how much of it they cover, versions that can be searched."""
    answer = Client(to).get(f"/vectors/lance/stats/{segment(name)}")
    if json:
        print_json(answer)
        return
    outside = answer["unindexed_share"] if answer["vectors"] else 0
    versions = [one["version"] for one in answer["versions"]]
    older = f", … ({len(versions)} versions)" if len(versions) > SHOWN_VERSIONS else ""
    print_facts(
        {
            "store": f"{answer['key']} in bucket {answer['bucket']}, {answer['library']}",
            "holds": "rows, columns and vectors" if answer["vectors"] else "texts only, beside a graph",
            "rows": answer["rows"],
            "deleted": answer["deleted"] or None,
            "files": answer["fragments"],
            "size": size(answer["bytes"]),
            "version": f"{answer['version']} of the dataset (Lance's {answer['lance_version']})",
            "searchable at": ", ".join(map(str, versions[:SHOWN_VERSIONS])) + older,
            "text search": answer["text_column"],
            "unindexed": f"{outside:.1%} of the rows, which are scanned" if outside else None,
        }
    )
    if answer["indexes"]:
        print_table(
            ["", "vector index", "build", "trained at ", "indexed ", "not yet "],
            (
                (
                    "●" if one["serves"] else "",
                    one["name"],
                    build(one["build"]),
                    one["trained_version"],
                    one["indexed_rows"],
                    one["unindexed_rows"],
                )
                for one in answer["indexes"]
            ),
            empty="",
        )


@app.command
def drop(name: Name, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Remove the store; the index and its dataset stay. Refused while Lance serves the index."""
    answer = Client(to).delete(f"/vectors/lance/{segment(name)}")
    print_json(answer) if json else console.print(f"dropped the Lance store of {name}", markup=False)


def _build(index_type: str, partitions: int | None, sub_vectors: int | None) -> dict[str, Any]:
    if sub_vectors is not None and index_type not in ("auto", "IVF_PQ"):
        raise CliError(f"--sub-vectors is of IVF_PQ; {index_type} has none.", "--type IVF_PQ", WRONG_USE)
    return {"index_type": index_type, "partitions": partitions, "sub_vectors": sub_vectors}


def _ordered(to: Connection, name: str, verb: str, body: dict[str, Any], *, wait: bool, as_json: bool) -> None:
    """Orders a build in the store, and waits until searches on Lance go through it."""
    from daemon.cli.progress import Steps

    client, steps = Client(to), Steps()
    given = {key: value for key, value in body.items() if value is not None}
    steps.listen(client, name)
    with steps.step(f"Lance store of {name}"):
        answer = client.post(f"/vectors/lance/{verb}/{segment(name)}", given, timeout_s=None)
        if wait:
            until(client, name, lambda _: _searched(client, name, answer["config"]))
    if as_json:
        print_json(answer)
    else:
        done = "can be searched" if wait else "is being built"
        console.print(f"{name}: {configuration(answer['config'])} {done}", markup=False)
        if not wait:
            console.print(f"[dim]lakehouse lance stats {name} says when it can be searched[/dim]")


def _searched(client: Client, name: str, config: dict[str, Any]) -> bool:
    """Whether searches on Lance go through an index that was built so."""
    try:
        there = client.get(f"/vectors/lance/stats/{segment(name)}")["indexes"]
    except CliError as error:
        if error.status == NOT_FOUND:  # there is no store yet
            return False
        raise
    return any(one["serves"] and all(config[key] == value for key, value in one["build"].items()) for one in there)
