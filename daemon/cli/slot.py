"""Commands about who has the GPU: activate, deactivate, active. They belong to `lakehouse profile`."""

import contextlib
import time
from collections.abc import Iterator
from typing import Annotated, Any

from cyclopts import Parameter
from rich.text import Text

from daemon.cli.client import Client, segment
from daemon.cli.connection import Connection
from daemon.cli.errors import INTERRUPTED, CliError
from daemon.cli.output import Json, configuration, console, duration, memory, moment, print_facts, print_json

HEARING_S = 0.5
"""How long an order waits for its progress to be heard: the first phase may be over in no time."""

COLOURS = {"ready": "green", "loading": "cyan", "unloading": "cyan", "unknown": "red"}

Wait = Annotated[
    bool,
    Parameter(
        name="--wait", negative="--no-wait", help="Wait for your turn, or fail at once when another order is running."
    ),
]
Profile = Annotated[str, Parameter(help="The profile.")]


def activate(profile: Profile, /, *, wait: Wait = True, json: Json = False, to: Connection = Connection()) -> None:
    """Put a profile's models into the GPU's memory, and take out what must leave for them."""
    with ordered(to, f"activating {profile}", profile) as client:
        answer = client.post(f"/vectors/profile/{segment(profile)}/activate", timeout_s=None, wait=wait)
    if json:
        print_json(answer)
        return
    before = f" instead of {answer['previous']}" if answer["previous"] not in (None, profile) else ""
    spent = f", {took(answer['servers_ms'])} of it in the model servers" if answer["servers_ms"] >= 1 else ""
    console.print(f"[green]●[/green] {profile} is active{before}; took {took(answer['took_ms'])}{spent}")
    sizes = {(model["server"], model["model"]): weight(model) for model in answer["models"]}
    shown = [(word, ref) for word in ("unloaded", "loaded", "kept") for ref in answer[word]]
    lines = [
        (word, f"{ref['server']}/{ref['model']}", sizes.get((ref["server"], ref["model"]), "")) for word, ref in shown
    ]
    lines += [("index", one["index"], _standing(one)) for one in answer["indexes"]]
    lines += [("made", "its bucket", "")] if answer["bucket_made"] else []
    _print_lines(lines)


def deactivate(profile: Profile, /, *, wait: Wait = True, json: Json = False, to: Connection = Connection()) -> None:
    """Take a profile's models out of the GPU's memory."""
    with ordered(to, f"deactivating {profile}", profile) as client:
        answer = client.post(f"/vectors/profile/{segment(profile)}/deactivate", timeout_s=None, wait=wait)
    if json:
        print_json(answer)
    elif answer["type"] == "slot.info":
        console.print(f"{profile} wasn't active; the slot is", sentence(answer))
    else:
        console.print(f"{profile} is no longer active", markup=False)
        _print_lines([("unloaded", f"{ref['server']}/{ref['model']}", "") for ref in answer["unloaded"]])


def active(*, json: Json = False, to: Connection = Connection()) -> int:
    """Show which profile has the GPU, after a look at the model servers. Exit code 1 when that isn't known."""
    slot = Client(to).get("/vectors/profile/active")
    if json:
        print_json(slot)
    else:
        console.print(sentence(slot))
        print_facts(
            {
                "since": f"{moment(slot['since'])}, {duration(max(0.0, time.time() - slot['since']))} ago"
                if slot["since"]
                else None,
                "waiting": f"{slot['waiting']} in line" if slot["waiting"] else None,
            }
        )
        word = "last seen" if slot["state"] == "unknown" else "holds"
        _print_lines([(word, f"{one['server']}/{one['model']}", weight(one)) for one in slot["models"]])
    return 1 if slot["state"] == "unknown" else 0


@contextlib.contextmanager
def ordered(to: Connection, description: str, about: str) -> Iterator[Client]:
    """While an order is carried out: its phases on the terminal, and Ctrl-C as leaving, not as undoing."""
    from daemon.cli.progress import Steps

    client, steps = Client(to), Steps()
    try:
        with steps.step(description):
            steps.listen(client, about, wait_s=HEARING_S)
            yield client
    except KeyboardInterrupt:
        hint = "lakehouse vram --watch shows what comes of it"
        raise CliError("Not waited for: the daemon goes on.", hint, INTERRUPTED) from None


def sentence(slot: dict[str, Any]) -> Text:
    """The slot's state in a line: `ready: coder`, `unknown: chat (llama3 is still listed …)`."""
    text = Text(slot["state"], style=COLOURS.get(slot["state"], ""))
    if slot["profile"]:
        text.append(f": {slot['profile']}", style="bold")
    if slot["target"] and slot["target"] != slot["profile"]:
        text.append(f" for {slot['target']}", style="")
    if slot["reason"]:
        text.append(f" ({slot['reason']})", style="dim" if slot["state"] != "unknown" else "red")
    return text


def weight(model: dict[str, Any]) -> str:
    """How much of a model is where: `4.7 GiB, all of it on the GPU`."""
    size, on_gpu = model.get("size"), model.get("size_vram")
    if size is None or on_gpu is None:
        return memory(size if size is not None else on_gpu) or "its server doesn't say how large"
    where = "all of it" if on_gpu >= size else f"{on_gpu / size:.0%} of it" if on_gpu else "none of it"
    return f"{memory(size)}, {where} on the GPU"


def _standing(index: dict[str, Any]) -> str:
    """Where an index of the profile stands."""
    if index["reason"]:
        return str(index["reason"])
    config = configuration(index["config"])
    serves = f"generation {index['generation']}" if index["generation"] else "no generation yet"
    if index["building"] is None:
        return " · ".join(filter(None, (serves, config)))
    return f"{serves}; generation {index['building']} is being built{config and f' ({config})'}"


def took(ms: float) -> str:
    return f"{ms:.1f} ms" if ms < 100 else f"{ms / 1000:.1f} s"


def _print_lines(lines: list[tuple[str, str, str]]) -> None:
    """What was done, in three columns."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    for word, name, note in lines:
        table.add_row(Text("  " + word, style="dim"), Text(name), Text(note))
    if lines:
        console.print(table)
