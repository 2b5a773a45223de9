"""Commands about the query planner: status, mode, learn, reset, export, import."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from daemon.cli.client import Client, segment
from daemon.cli.connection import Connection
from daemon.cli.errors import CliError
from daemon.cli.output import Json, console, duration, micros, moment, print_facts, print_json, share
from schemas.planner import PlannerMode

app = App(name="planner", help="Learned search parameters: what was learnt of an index, and whether it helps.")

Index = Annotated[str, Parameter(help="The index.")]


@app.command
def status(index: Index, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Show what the planner knows of an index, and what it was measured to gain."""
    _show(Client(to).get(f"/planner/{segment(index)}"), json)


@app.command
def mode(index: Index, mode: PlannerMode, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Have it off, in shadow (it decides and measures and changes nothing), or on.

    Parameters
    ----------
    mode
        off, shadow or on. From shadow it turns itself on once its measurement says that it helps, and back.
    """
    _show(Client(to).put(f"/planner/{segment(index)}", {"mode": mode}), json)


@app.command
def learn(index: Index, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Run a background cycle now, over the queries seen since the last."""
    answer = Client(to).post(f"/planner/{segment(index)}/learn", timeout_s=None)
    if json:
        print_json(answer)
        return
    console.print(
        f"{index}: {answer['patterns']:,} patterns from {answer['trajectories']:,} queries and "
        f"{answer['labels']:,} labels, {answer['took_s']:.1f} s",
        markup=False,
    )


@app.command
def reset(index: Index, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Forget everything that was learnt of an index."""
    answer = Client(to).post(f"/planner/{segment(index)}/reset")
    if json:
        print_json(answer)
    else:
        console.print(f"{index}: forgotten; the planner starts anew, {answer['mode']}", markup=False)


@app.command(name="export")
def export_(index: Index, file: Path, /, *, to: Connection = Connection()) -> None:
    """Write what was learnt to a file.

    Parameters
    ----------
    file
        Where to; overwritten if it is there.
    """
    answer = Client(to).post(f"/planner/{segment(index)}/export")
    try:
        file.write_text(answer["state"], encoding="ascii")  # base64, as it travels
    except OSError as error:
        raise CliError(f"{file} can't be written: {error.strerror}.") from None
    console.print(f"{index}: written to {file}", markup=False)


@app.command(name="import")
def import_(index: Index, file: Path, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Take over what was exported from an index of as many dimensions. It starts in shadow.

    Parameters
    ----------
    file
        What `lakehouse planner export` wrote.
    """
    try:
        state = file.read_text(encoding="ascii")
    except UnicodeDecodeError:
        raise CliError(
            f"{file} is no planner's state: it isn't text.", "what `lakehouse planner export` wrote"
        ) from None
    except OSError as error:
        raise CliError(f"{file} can't be read: {error.strerror}.", "what `lakehouse planner export` wrote") from None
    _show(Client(to).post(f"/planner/{segment(index)}/import", {"state": state.strip()}), json)


def _show(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    gain = answer.get("gain")
    print_facts(
        {
            "planner": answer["mode"] if answer["enabled"] else "disabled",
            "because": answer["why"],
            "queries": answer["queries_processed"],
            "by a pattern": share(answer["pattern_hit_rate"]),
            "mean query": micros(answer["avg_latency_us"]),
            "of which planning": f"{answer['planner_us']:.1f} µs"
            if answer["planner_us"]
            else None,  # none since the start
            "patterns": answer["patterns_stored"],
            "labels": answer["labels"],
            "waiting to be learnt from": answer["trajectories"],
            "dropped": answer["trajectories_dropped"],
            "cycles": answer["background_cycles"],
            "last cycle": _last(answer),
            "earlier kinds of queries": answer["ewc_tasks"],
            "measured gain": None if gain is None else f"{gain['verdict']}, on {gain['pairs']:,} queries run again",
            "times as fast": None if gain is None else _interval(gain["speed"], ".2f"),
            "recall, more": None if gain is None else _interval(gain["recall"], "+.4f"),
            "under target, more": None if gain is None else _interval(gain["missed"], "+.2%"),
        }
    )


def _last(answer: dict[str, Any]) -> str:
    when = answer.get("learned")
    return f"{moment(when)}, {duration(answer['cycle_s'])}" if when is not None else ""


def _interval(of: dict[str, float], form: str) -> str:
    return f"{of['value']:{form}} ({of['low']:{form}} to {of['high']:{form}})"
