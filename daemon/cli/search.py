"""The command `search`, by a text or by a vector, and how a search is asked and its result shown."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from cyclopts import Parameter
from cyclopts.validators import Number

from daemon.cli.client import Client
from daemon.cli.connection import Connection
from daemon.cli.errors import WRONG_USE, CliError
from daemon.cli.output import (
    Json,
    configuration,
    console,
    effort,
    micros,
    print_facts,
    print_json,
    print_table,
    share,
    within,
)
from schemas.config import PARTITION_BOUNDS, REFINE_BOUNDS


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Query:
    """What a search may ask for, beside its text."""

    vector: str | None = None
    """JSON array of numbers instead of a text."""
    k: Annotated[int, Parameter(name=["-k", "--k"], validator=Number(gte=1, lte=1000))] = 10
    """How many rows."""
    ef: Annotated[int | None, Parameter(name=["--ef", "--ef-search"], validator=Number(gte=1, lte=4000))] = None
    """ef_search of this query; default the live configuration's."""
    filter: str | None = None
    """SQL predicate over the dataset's columns: --filter "year > 2020 and lang = 'en'"."""
    columns: Annotated[list[str] | None, Parameter(negative="", consume_multiple=True)] = None
    """Columns to show; default all but vectors."""
    explain: Annotated[bool, Parameter(negative="")] = False
    """Also show the generation, the configuration and the time of each step."""
    mode: Literal["vector", "text", "hybrid"] = "vector"
    """By meaning, by the words themselves (BM25), or by both, fused by rank; hybrid may have a --vector beside TEXT."""
    backend: Literal["hnsw", "lance"] | None = None
    """What is to find the rows; default what serves the index."""
    nprobes: Annotated[int | None, Parameter(validator=within(PARTITION_BOUNDS))] = None
    """On Lance: how many cells to look into; default the live configuration's."""
    refine_factor: Annotated[int | None, Parameter(validator=within(REFINE_BOUNDS))] = None
    """On Lance: how many candidates to rescore for each row asked for; default likewise."""
    version: Annotated[int | None, Parameter(validator=Number(gte=0))] = None
    """The rows of this version of the dataset, for audits; default the newest."""

    def body(self, text: str | None, example: str, **more: str | None) -> dict[str, Any]:
        """The request's body. Raises CliError when TEXT and --vector aren't what the mode needs."""
        if self.mode == "vector" and (text is None) == (self.vector is None):
            raise CliError("Exactly one of TEXT and --vector is needed.", example, WRONG_USE)
        if self.mode != "vector" and text is None:
            raise CliError(f"--mode {self.mode} needs a TEXT.", example, WRONG_USE)
        if self.mode == "text" and self.vector is not None:
            raise CliError("--mode text takes no --vector.", "--mode hybrid takes both", WRONG_USE)
        if text is not None and not text.strip():
            raise CliError("TEXT is empty.", example, WRONG_USE)
        columns = [name for group in self.columns or [] for name in group.split(",") if name]
        vector = None if self.vector is None else _vector(self.vector)
        body: dict[str, Any] = {
            "text": text,
            "vector": vector,
            "k": self.k,
            "ef_search": self.ef,
            "filter": self.filter,
            **more,
        }
        body |= {"columns": columns or None, "explain": self.explain, "mode": self.mode, "backend": self.backend}
        body |= {"nprobes": self.nprobes, "refine_factor": self.refine_factor, "version": self.version}
        return {key: value for key, value in body.items() if value is not None}


def search(
    index: str,
    text: str | None = None,
    /,
    *,
    query: Query = Query(),
    profile: str | None = None,
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
    profile
        Search with the rights of this model profile.
    """
    body = query.body(text, f"lakehouse search {index} 'some words'", index=index, profile=profile)
    show(Client(to).post("/vectors/search", body), as_json=json)


def show(answer: dict[str, Any], *, as_json: bool) -> None:
    """A search's result, for people or for programs."""
    if as_json:
        print_json(answer)
        return
    hits = answer["queries"][0]
    names = list(dict.fromkeys(name for hit in hits for name in hit.get("columns", {})))
    scored = any(hit.get("score") is not None for hit in hits)
    print_table(
        [*(["score "] if scored else []), "distance ", "id", *names],
        (
            (
                *([share(hit.get("score"))] if scored else []),
                share(hit["distance"]),
                hit["id"],
                *(_short(hit.get("columns", {}).get(name)) for name in names),
            )
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
            "effort": effort(taken) if (taken := explained.get("effort")) else explained["ef_search"] or "",
            "version": version if (version := explained.get("version", -1)) >= 0 else None,
            "rows": explained["rows"],
            "matching": explained.get("matching_rows"),
        }
    )
    if planner := explained.get("planner"):
        _print_planner(planner)
    print_table(
        ["step", "time ", "note"],
        ((step["name"], micros(step["us"]), step.get("note", "")) for step in explained["steps"]),
        empty="",
    )


def _print_planner(planner: dict[str, Any]) -> None:
    """What was chosen, and what would have been without it; the operators that a query waits for."""
    pattern = planner.get("pattern")
    without = f"without it {planner['default_strategy']}, effort {planner['default_effort']}"
    print_facts(
        {
            "planner": f"{planner['mode']}, {'acted' if planner['acted'] else 'only noted'}, {planner['decided']}",
            "planned": f"{planner['strategy']}, effort {planner['effort']}; {without}",
            "pattern": None if pattern is None else f"{pattern}, similarity {planner['similarity']:.2f}",
            "confidence": share(planner["confidence"]) if pattern is not None else None,
            "critical": ", ".join(
                f"{one['operator']} {one['criticality']:.2f}" for one in planner.get("operators", [])
            ),
        }
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
