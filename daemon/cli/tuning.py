"""Commands about tuning: tune now and watch, enqueue, what was tried, what the agent does."""

import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from cyclopts import Parameter
from cyclopts.validators import Number

from daemon.cli.client import Client, segment
from daemon.cli.connection import Connection
from daemon.cli.errors import WRONG_USE, CliError
from daemon.cli.output import (
    Json,
    configuration,
    console,
    duration,
    micros,
    moment,
    print_facts,
    print_json,
    print_json_line,
    print_table,
    share,
)
from daemon.cli.progress import stream_bars
from schemas.config import LanceType

POINT_COLUMNS = ["trial", "configuration", "recall ", "≥ ", "p50 ", "p99 ", "vs champion", "build ", "proposer"]


def tune(
    index: str,
    /,
    *,
    agent: Annotated[bool, Parameter(negative="")] = False,
    min_recall: Annotated[float | None, Parameter(validator=Number(gt=0, lt=1))] = None,
    grid: Annotated[list[str] | None, Parameter(negative="", consume_multiple=True)] = None,
    lance: Annotated[list[str] | None, Parameter(negative="", consume_multiple=True)] = None,
    objective: Literal["cost_first", "recall_first"] = "cost_first",
    harness: str | None = None,
    json: Json = False,
    to: Connection = Connection(),
) -> int:
    """Tune an index now and watch it. Exit code 1 when nothing held the recall. It goes on when you leave.

    Parameters
    ----------
    agent
        Let the ε-greedy rule propose instead of a grid.
    min_recall
        Recall@10 to hold, by its lower bound; default the index's target.
    grid
        Graphs to try as EF_CONSTRUCTION:EF_SEARCH[:M], such as 80:30 160:60:24.
    lance
        Lance indexes to try as TYPE[:PARTITIONS[:SUB_VECTORS]], such as IVF_RQ:64 IVF_PQ:64:96 IVF_FLAT.
    objective
        cost_first: the fastest that holds the recall. recall_first: the highest recall.
    harness
        Eval set; default the index's own.
    json
        Print every message as a line of JSON.
    """
    body: dict[str, Any] = {"index_name": index, "objective": objective, "agent": agent}
    if agent and (grid or lance):
        other = "--grid" if grid else "--lance"
        raise CliError(f"--agent and {other} exclude each other.", "the agent proposes its own points", WRONG_USE)
    points = {"grid": [_point(text) for text in grid or []], "lance": [_lance_point(text) for text in lance or []]}
    optional = {"min_recall": min_recall, "harness": harness, **points}
    body |= {key: value for key, value in optional.items() if value not in (None, [])}
    lines = Client(to).lines("/vectors/hnsw/autotune", body)
    if json:
        finished = None
        for line in lines:
            print_json_line(line)
            finished = line
    else:
        finished = _watch(lines)
    if finished is None or finished.get("type") != "autotune.finished":
        raise CliError("The stream ended before the tuning did.", f"it goes on: lakehouse trials {index}")
    return 0 if finished["outcome"] in ("promoted", "kept") else 1


def _point(text: str) -> dict[str, int]:
    """`80:30` or `80:30:24` as a point of a grid."""
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(part.isdigit() for part in parts):
        raise CliError(f"{text!r} is no point of a grid.", "EF_CONSTRUCTION:EF_SEARCH[:M], such as 80:30", WRONG_USE)
    return dict(zip(("ef_construction", "ef_search", "M"), map(int, parts), strict=False))


def _lance_point(text: str) -> dict[str, str | int]:
    """`IVF_RQ:64` as a build of a grid."""
    index_type, *numbers = text.split(":")
    if index_type not in get_args(LanceType) or len(numbers) > 2 or not all(part.isdigit() for part in numbers):
        types = ", ".join(get_args(LanceType))
        raise CliError(
            f"{text!r} is no Lance index.", f"TYPE[:PARTITIONS[:SUB_VECTORS]], TYPE one of {types}", WRONG_USE
        )
    return {"index_type": index_type, **dict(zip(("partitions", "sub_vectors"), map(int, numbers), strict=False))}


def _watch(lines: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
    """Draws the stream: a bar for the running step, a line for every finished trial, a sentence
    for the end. Returns the last message."""
    message: dict[str, Any] | None = None
    with stream_bars() as bar:
        task = bar.add_task("waiting", total=None)
        for message in lines:
            match message["type"]:
                case "autotune.started":
                    builds = f"{message['trials']} builds" if message["trials"] else "as many builds as it takes"
                    console.print(f"campaign {message['campaign']}: {builds}", markup=False)
                case "job.progress":
                    done, total = message["done"], message.get("total")
                    bar.update(task, description=message["phase"], completed=done, total=total)
                case "trial.completed":
                    _print_trial(message)
                case "trial.failed":
                    console.print(f"trial {message['trial']} failed: {message['reason']}", style="red", markup=False)
                case "autotune.finished":
                    console.print(f"{message['outcome']}: {message['reason']}", style="bold", markup=False)
    return message


def _print_trial(message: dict[str, Any]) -> None:
    best = message["best"]
    mark = "holds" if message["holds_target"] else "misses"
    console.print(
        f"{best['trial']}  {configuration(best)}  recall {share(best['recall'])} (≥ {share(best['recall_lower'])}, "
        f"{mark})  p50 {micros(best['p50_us'])}{_ratio(best, '  × champion ')}  {message['points']} points",
        markup=False,
        soft_wrap=True,
    )


def _ratio(point: dict[str, Any], before: str = "") -> str:
    """Latency against the champion with its confidence interval; below 1 is faster."""
    if point.get("champion_ratio") is None:
        return ""
    low, high = point["champion_ratio_low"], point["champion_ratio_high"]
    return f"{before}{point['champion_ratio']:.2f} ({low:.2f} to {high:.2f})"


def enqueue(index: str, /, *, reason: str = "asked", json: Json = False, to: Connection = Connection()) -> None:
    """Have the agent tune an index when its turn comes."""
    answer = Client(to).post(f"/vectors/agent/enqueue/{segment(index)}", reason=reason)
    if json:
        print_json(answer)
    else:
        console.print(f"{index} is queued; `lakehouse agent` shows the queue", markup=False)


def trials(
    index: str,
    /,
    *,
    limit: Annotated[int, Parameter(validator=Number(gte=1, lte=10_000))] = 100,
    all_points: Annotated[bool, Parameter(name="--points", negative="")] = False,
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """List what was tried on an index, newest first.

    Parameters
    ----------
    limit
        At most so many measured points are read.
    all_points
        Every measured effort, not only the one that each trial chose.
    """
    answer = Client(to).get(f"/vectors/trials/{segment(index)}", limit=limit)
    if json:
        print_json(answer)
        return
    points = [point for point in answer["points"] if all_points or point.get("chosen")]
    print_table(
        POINT_COLUMNS,
        (
            (
                point["trial"],
                configuration(point),
                share(point["recall"]),
                share(point["recall_lower"]),
                micros(point["p50_us"]),
                micros(point["p99_us"]),
                _ratio(point),
                f"{point['build_s']:.1f} s" if point["build_s"] else "cached",
                point["proposer"],
            )
            for point in points
        ),
        empty=f"Nothing was tried on {index} yet: lakehouse tune {index}",
    )
    if answer["total"] > len(answer["points"]):
        console.print(f"[dim]{len(answer['points']):,} of {answer['total']:,} points; --limit reads more[/dim]")


def replay(index: str, /, *, json: Json = False, to: Connection = Connection()) -> int:
    """Prove from the journal alone that the agent's proposals follow from it. Exit code 1 when one doesn't."""
    answer = Client(to).get(f"/vectors/replay/{segment(index)}")
    same = all(proposal["same"] for proposal in answer["proposals"])
    if json:
        print_json(answer)
        return 0 if same else 1
    print_table(
        ["trial", "journal rows ", "proposed", "replayed", "same"],
        (
            (
                one["trial"],
                one["journal_rows"],
                configuration(one["proposed"]),
                configuration(one["replayed"]),
                one["same"],
            )
            for one in answer["proposals"]
        ),
        empty=f"The agent has proposed nothing for {index} yet.",
    )
    if following := answer.get("next"):
        console.print(f"next: {configuration(following['config'])} ({following['rule']})", markup=False)
    return 0 if same else 1


def agent(
    *,
    decisions: Annotated[int, Parameter(validator=Number(gte=0))] = 10,
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Show the agent's queue, running trial, budget, cooldowns and last decisions.

    Parameters
    ----------
    decisions
        How many of the last decisions to print.
    """
    answer = Client(to).get("/vectors/agent/status")
    if json:
        print_json(answer)
        return
    now = time.time()
    print_facts(
        {
            "agent": "enabled" if answer["enabled"] else "disabled",
            "this hour": (
                f"{answer['trials_this_hour']} of {answer['max_trials_per_hour']} trials of its own, "
                f"{answer['budget_left']} left"
            ),
            "queue": [f"{one['index']} ({one['reason']})" for one in answer["queue"]],
            "running": [_running(one, now) for one in answer["running"]],
            "cooldown": [f"{i} {duration(t - now)}" for i, t in answer["cooldown_until"].items() if t > now],
        }
    )
    console.print()
    print_table(
        ["time", "index", "action", "reason"],
        ((moment(one["time"]), one["index"], one["action"], one["reason"]) for one in answer["decisions"][:decisions]),
        empty="It has decided nothing yet.",
    )


def _running(trial: dict[str, Any], now: float) -> str:
    of = f" of {trial['total']:,}" if trial.get("total") else ""
    return (
        f"{trial['index']}: {configuration(trial['proposal']['config'])}, {trial['phase']} {trial['done']:,}{of}, "
        f"for {duration(now - trial['since'])}"
    )
