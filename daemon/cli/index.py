"""Commands about indexes: made, listed, rebuilt, dropped, searched."""

from typing import Annotated, Any, Literal

import msgspec
from cyclopts import App, Parameter
from cyclopts.validators import Number

from daemon.cli.client import Client, segment
from daemon.cli.connection import Connection
from daemon.cli.errors import WRONG_USE, CliError
from daemon.cli.output import (
    Json,
    configuration,
    console,
    micros,
    moment,
    print_facts,
    print_json,
    print_table,
    share,
    size,
)

app = App(name="index", help="Create, show, rebuild or drop one index.")


def indexes(*, json: Json = False, to: Connection = Connection()) -> None:
    """List indexes."""
    answer = Client(to).get("/vectors/indexes")
    if json:
        print_json(answer)
        return
    print_table(
        ["index", "dataset", "column", "rows ", "state", "generation ", "configuration", "target "],
        (
            (
                one["index"],
                one["dataset"],
                one["column"],
                one["rows"],
                one["state"],
                one["generation"],
                configuration(one["config"]),
                share(one["target_recall"]),
            )
            for one in answer["indexes"]
        ),
        empty="No indexes yet: lakehouse index create NAME --dataset DATASET --column COLUMN makes one.",
    )


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
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Make an index over a column of text or of vectors.

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
    """
    body: dict[str, Any] = {"name": name, "dataset": dataset, "column": column, "metric": metric}
    body |= {key: value for key, value in (("bucket", bucket), ("target_recall", target_recall)) if value is not None}
    if model and not embedder:
        raise CliError("--model says nothing without --embedder.", "--embedder ollama or openai", WRONG_USE)
    if embedder:
        body["embedder"] = {"kind": embedder} | ({"model": model} if model else {})
    answer = Client(to).post("/vectors/indexes", body)
    if json:
        print_json(answer)
    else:
        console.print(
            f"{name}: {answer['state']}, {answer['rows']:,} rows × {answer['dim']}; follow it with lakehouse events",
            markup=False,
        )


@app.command(alias="show")
def stats(name: str, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Show an index: configuration, rows, generation, size, live recall."""
    client = Client(to)
    answer = client.get(f"/vectors/indexes/{segment(name)}") | client.get(f"/vectors/indexes/{segment(name)}/stats")
    if json:
        print_json(answer)
        return
    live = answer.get("live_recall")
    facts = {
        "index": answer["index"],
        "over": f"{answer['dataset']}.{answer['column']} ({answer['metric']}, {answer['dim']} dimensions)",
        "state": " ".join(filter(None, (answer["state"], answer.get("reason")))),
        "generation": answer["generation"],
        "configuration": configuration(answer["config"]),
        "rows": answer["rows"],
        "fresh rows": answer["fresh_rows"],
        "deleted": answer["deleted"],
        "size": size(answer["bytes"]),
        "loaded": answer["loaded"],
        "queries": answer["queries"],
        "target recall": share(answer["target_recall"]),
        "live recall": live
        and f"{live['mean']:.4f} ({live['lower']:.4f} to {live['upper']:.4f}) over {live['samples']:,} queries "
        f"since {moment(live['since'])}",
    }
    print_facts(facts)


@app.command
def rebuild(name: str, /, *, reason: str = "asked", json: Json = False, to: Connection = Connection()) -> None:
    """Build the live configuration again over today's rows."""
    answer = Client(to).post(f"/vectors/indexes/{segment(name)}/rebuild", reason=reason)
    if json:
        print_json(answer)
    else:
        console.print(f"{name}: generation {answer['generation']} is being built", markup=False)


@app.command
def drop(name: str, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Drop an index and its files. Its trials stay in the journal."""
    answer = Client(to).delete(f"/vectors/indexes/{segment(name)}")
    if json:
        print_json(answer)
    else:
        console.print(f"dropped {name}", markup=False)


def search(
    index: str,
    text: str | None = None,
    /,
    *,
    vector: str | None = None,
    k: Annotated[int, Parameter(name=["-k", "--k"], validator=Number(gte=1, lte=1000))] = 10,
    ef: Annotated[int | None, Parameter(name=["--ef", "--ef-search"], validator=Number(gte=1, lte=4000))] = None,
    filter: str | None = None,
    columns: Annotated[list[str] | None, Parameter(negative="", consume_multiple=True)] = None,
    explain: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Find the nearest rows to a text, or to a vector given as a JSON array.

    Parameters
    ----------
    index
        Where to look.
    text
        What to look for.
    vector
        JSON array of numbers instead of a text.
    k
        How many rows.
    ef
        ef_search of this query; default the live configuration's.
    filter
        SQL predicate over the dataset's columns: --filter "year > 2020 and lang = 'en'".
    columns
        Columns to show; default all but vectors.
    explain
        Also show the generation, the configuration and the time of each step.
    """
    if (text is None) == (vector is None):
        raise CliError(
            "Exactly one of TEXT and --vector is needed.", f"lakehouse search {index} 'some words'", WRONG_USE
        )
    wanted = [name for group in columns or [] for name in group.split(",") if name]
    body = {"index": index, "k": k, "ef_search": ef, "filter": filter, "columns": wanted or None, "explain": explain}
    body |= {"text": text} if text is not None else {"vector": _vector(vector or "")}
    answer = Client(to).post("/vectors/search", {key: value for key, value in body.items() if value is not None})
    if json:
        print_json(answer)
        return
    hits = answer["queries"][0]
    names = list(dict.fromkeys(name for hit in hits for name in hit.get("columns", {})))
    print_table(
        ["distance ", "id", *names],
        (
            (f"{hit['distance']:.4f}", hit["id"], *(_short(hit.get("columns", {}).get(name)) for name in names))
            for hit in hits
        ),
        empty="Nothing was found.",
    )
    console.print(f"[dim]generation {answer['generation']}, {micros(answer['took_us'])}[/dim]")
    if explained := answer.get("explain"):
        _print_explanation(explained)


def _print_explanation(explained: dict[str, Any]) -> None:
    print_facts(
        {
            "configuration": configuration(explained["config"]),
            "strategy": explained["strategy"],
            "ef_search": explained["ef_search"],
            "rows": explained["rows"],
            "matching": explained.get("matching_rows"),
        }
    )
    print_table(
        ["step", "time ", "note"],
        ((step["name"], micros(step["us"]), step.get("note", "")) for step in explained["steps"]),
        empty="",
    )


def _vector(text: str) -> list[float]:
    try:
        return msgspec.json.decode(text, type=list[float])
    except msgspec.DecodeError as error:
        raise CliError(
            f"--vector is not a JSON array of numbers: {error}.", "--vector '[0.1, 0.2]'", WRONG_USE
        ) from None


def _short(value: Any, width: int = 80) -> str:
    text = "" if value is None else " ".join(str(value).split())
    return text if len(text) <= width else text[: width - 1] + "…"
