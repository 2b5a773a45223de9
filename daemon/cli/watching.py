"""Commands that look on: status, the live tail of events, dead letters."""

from typing import Annotated, Any

import msgspec
from cyclopts import App, Parameter

from daemon.cli.client import Client
from daemon.cli.connection import Connection
from daemon.cli.output import (
    Json,
    cell,
    console,
    duration,
    moment,
    print_facts,
    print_json,
    print_json_line,
    print_table,
)

dead = App(name="dead", help="List, show, retry or drop dead letters.")

Seq = Annotated[int, Parameter(help="Its number, as `lakehouse dead` lists it.")]


def status(*, json: Json = False, to: Connection = Connection()) -> int:
    """Show what runs and how it is. Exit code 1 when something is down."""
    client = Client(to)
    answer = client.get("/status")
    if json:
        print_json(answer)
    else:
        agent, slot = answer["agent"], answer["slot"]
        print_facts(
            {
                "daemon": f"{client.url}, version {answer['version']}, up {duration(answer['uptime_s'])}",
                "roles": answer["roles"],
                "nats": answer["nats"],
                "datasets": answer["datasets"],
                "indexes": answer["indexes"],
                "agent": agent
                and f"{'enabled' if agent['enabled'] else 'disabled'}, {agent['queued']} queued, "
                f"{agent['running']} running, {agent['trials_this_hour']} trials this hour",
                "slot": slot and " ".join(filter(None, (slot["state"], slot["profile"]))),
                **{f"down: {name}": reason for name, reason in answer["down"].items()},
            }
        )
    return 1 if answer["down"] else 0


def events(
    match: str = ">",
    /,
    *,
    progress: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Print events as they happen, until Ctrl-C.

    Parameters
    ----------
    match
        Which: a tag such as trial.completed, or with wildcards: `dataset.*`, `slot.*,vram.*`, `>`.
    progress
        Also progress of long jobs.
    """
    follow_events(Client(to), match, progress=progress, as_json=json)


def follow_events(client: Client, match: str, *, progress: bool = False, as_json: bool = False) -> None:
    """Prints what comes until the daemon stops or Ctrl-C."""
    for event in client.server_sent("/events", match=match, progress=progress):
        if as_json:
            print_json_line(event)
            continue
        message = event["message"]
        facts = " ".join(
            f"[dim]{name}[/dim]={_value(value)}" for name, value in message.items() if name != "type" and value != ""
        )
        clock = moment(event["time"])[11:]
        console.print(f"[dim]{clock}[/dim] [bold]{message.get('type', '')}[/bold] {facts}", soft_wrap=True)


def _value(value: Any) -> str:
    from rich.markup import escape

    if isinstance(value, float):
        return cell(value).replace(",", "")
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return escape(text if len(text) <= 100 else text[:99] + "…")


@dead.default
def dead_list(
    *,
    limit: Annotated[int, Parameter(help="At most so many, the newest.")] = 100,
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """List messages that could not be handled."""
    answer = Client(to).get("/dead", limit=limit)
    if json:
        print_json(answer)
        return
    print_table(
        ["seq ", "time", "subject", "durable", "deliveries ", "reason"],
        (
            (one["seq"], moment(one["time"]), one["subject"], one["durable"], one["deliveries"], one["reason"])
            for one in answer["letters"]
        ),
        empty="No dead letters.",
    )


dead.command(dead_list, name="list")


@dead.command(name="show")
def dead_show(seq: Seq, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Show one dead letter with its payload."""
    answer = Client(to).get(f"/dead/{seq}")
    if json:
        print_json(answer)
    else:
        print_facts(answer | {"time": moment(answer["time"])})


@dead.command(name="retry")
def dead_retry(seq: Seq, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Hand a dead letter to its handler again."""
    answer = Client(to).post(f"/dead/{seq}/retry")
    print_json(answer) if json else console.print(f"{seq} is on its way again as {answer['message']}", markup=False)


@dead.command(name="drop")
def dead_drop(seq: Seq, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Remove a dead letter for good."""
    answer = Client(to).delete(f"/dead/{seq}")
    print_json(answer) if json else console.print(f"dropped {seq}")
