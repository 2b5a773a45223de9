"""Commands about what is current: promoted, promote, rollback, why."""

from typing import Annotated, Any

from cyclopts import Parameter

from daemon.cli.client import Client, segment
from daemon.cli.connection import Connection
from daemon.cli.output import Json, configuration, console, micros, moment, print_json, print_table, share

Index = Annotated[str, Parameter(help="The index.")]
By = Annotated[str, Parameter(name="--by", help="Who stands for it.")]


def promoted(index: Index, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Show the current configuration of an index, what was before, and what was rolled back and why."""
    answer = Client(to).get(f"/vectors/hnsw/promoted/{segment(index)}")
    if json:
        print_json(answer)
        return
    current = [("current", answer["current"])] if answer["current"] else []
    history = [("", entry) for entry in answer["history"]]
    taken_back = [("rolled back", entry) for entry in answer.get("rolled_back", [])]
    print_table(
        ["", "configuration", "recall ", "≥ ", "p50 ", "generation ", "by", "since", "trial", "note"],
        (_entry(entry, mark) for mark, entry in current + history + taken_back),
        empty=f"Nothing is promoted on {index}: its own configuration holds.",
    )


def _entry(entry: dict[str, Any], mark: str) -> tuple[Any, ...]:
    note = "; ".join(filter(None, (entry["note"], entry.get("ended_reason", ""))))
    return (
        mark,
        configuration(entry["config"]),
        share(entry["recall"]),
        share(entry["recall_lower"]),
        micros(entry["p50_us"]),
        entry.get("generation"),
        entry["promoted_by"],
        moment(entry["time"]),
        entry["trial"],
        note,
    )


def promote(
    index: Index,
    trial: str,
    /,
    *,
    ef: Annotated[int | None, Parameter(name=["--ef", "--ef-search"])] = None,
    nprobes: int | None = None,
    refine_factor: int | None = None,
    promoted_by: By = "cli",
    note: str = "",
    force: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Make a trial's configuration current; what was current becomes history.

    Parameters
    ----------
    trial
        Its id, as `lakehouse trials INDEX` lists it.
    ef
        A measured ef_search of the trial, or ef of one of IVF_HNSW_SQ; default the one that it chose.
    nprobes
        Of a trial on Lance: a measured nprobes.
    refine_factor
        And the refine factor that it was measured with.
    note
        Why.
    force
        Even though the trial didn't hold the target recall.
    """
    path = f"/vectors/hnsw/promote/{segment(index)}/{segment(trial)}"
    of = {"ef_search": ef} if nprobes is None and refine_factor is None else {"ef": ef}
    point = {**of, "nprobes": nprobes, "refine_factor": refine_factor}
    answer = Client(to).post(path, promoted_by=promoted_by, note=note, force=force, **point)
    if json:
        print_json(answer)
        return
    entry = answer["entry"]
    console.print(
        f"{index}: {configuration(entry['config'])} is current, recall {share(entry['recall'])}, "
        f"p50 {micros(entry['p50_us'])}",
        markup=False,
    )


def rollback(
    index: Index,
    /,
    *,
    reason: Annotated[str, Parameter(help="Why; the history keeps it.")] = "",
    promoted_by: By = "cli",
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Go back to the configuration before. With no history the index's own one holds again."""
    path = f"/vectors/hnsw/rollback/{segment(index)}"
    answer = Client(to).post(path, reason=reason, promoted_by=promoted_by)
    if json:
        print_json(answer)
        return
    config = answer["entry"]["config"] if "entry" in answer else answer["config"]
    console.print(f"{index}: back to {configuration(config)}", markup=False)


def why(index: Index, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Walk back from the live configuration: promotion, trial, proposal, event, ingest, file."""
    answer = Client(to).get(f"/vectors/why/{segment(index)}")
    if json:
        print_json(answer)
        return
    print_table(
        ["what", "time", "", "id"],
        ((link["what"], moment(link["time"]), link["text"], link["id"]) for link in answer["links"]),
        empty=f"Nothing is promoted on {index}.",
    )
