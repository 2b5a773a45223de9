"""Commands about the GPU's memory: vram, drawn once or live, preload, unload."""

import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from daemon.cli.client import Client
from daemon.cli.connection import Connection
from daemon.cli.errors import CliError
from daemon.cli.output import Json, console, duration, memory, moment, print_json, print_json_line
from daemon.cli.slot import ordered, sentence, took, weight

PERIOD_S = 1.0
PATIENCE_S = 10.0
BAR = 24  # characters

Model = Annotated[str, Parameter(help="Its name, as its server has it.")]
Server = Annotated[Literal["ollama", "llamacpp"] | None, Parameter(help="Default: the one that has the model.")]


def vram(
    *,
    watch: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[Json, Parameter(help="Print the answer as JSON; with --watch, a line a reading.")] = False,
    to: Connection = Connection(),
) -> None:
    """Show the GPU's memory: what the driver says, what the model servers have loaded, who has the slot.

    Parameters
    ----------
    watch
        Draw it once a second until Ctrl-C.
    """
    if watch:
        _watch(to, as_json=json)
        return
    report = Client(to).get("/admin/vram")
    print_json(report) if json else console.print(drawing(report))


def preload(
    model: Model,
    /,
    *,
    keep_alive: str = "5m",
    server: Server = None,
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Load a model beside what is there. Nothing is evicted for it: it is refused when it doesn't fit.

    A model that is loaded already stays as long as is asked, or as it would have stayed, whichever
    is longer.

    Parameters
    ----------
    keep_alive
        How long it stays unused: 30s, 5m, 2h; -1: for ever.
    """
    body = {"model": model, "keep_alive": keep_alive} | ({"server": server} if server else {})
    with ordered(to, f"loading {model}", model) as client:
        report = client.post("/admin/preload", body, timeout_s=None)
    if json:
        print_json(report)
        return
    done = f"is loaded, in {took(report['took_ms'])}" if report["changed"] else "was loaded already"
    left = _leaves(report["expires_at"], time.time())
    console.print(f"{report['server']}/{report['model']} {done}: {weight(report)}; {left}", markup=False)


def unload(model: Model, /, *, server: Server = None, json: Json = False, to: Connection = Connection()) -> None:
    """Take a model out of memory. The profile that needs it is deactivated."""
    body = {"model": model} | ({"server": server} if server else {})
    with ordered(to, f"unloading {model}", model) as client:
        report = client.post("/admin/unload", body, timeout_s=None)
    if json:
        print_json(report)
        return
    done = f"has left the memory, in {took(report['took_ms'])}" if report["changed"] else "wasn't loaded"
    console.print(f"{report['server']}/{report['model']} {done}", markup=False)
    if report.get("deactivated"):
        console.print(f"profile {report['deactivated']}, which needed it, is no longer active", markup=False)


def _watch(to: Connection, *, as_json: bool) -> None:
    """Until Ctrl-C. Without a terminal every reading is printed below the one before."""
    if as_json or not console.is_terminal:
        for report, away in _readings(to):
            if away:
                Console(stderr=True, highlight=False, soft_wrap=True).print(away, style="red", markup=False)
            elif as_json:
                print_json_line(report)
            else:
                console.print(Text(moment(report["time"]), style="dim"), drawing(report), sep="\n")
                sys.stdout.flush()
        return
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live:
        for report, away in _readings(to):
            # the last line is left short: there the terminal echoes ^C without a break of its own
            live.update(Group(drawing(report), Text(away, style="red")), refresh=True)


def _readings(to: Connection) -> Iterator[tuple[dict[str, Any], str]]:
    """The last report, and why there is no newer one; raises CliError when there is none at all.
    A daemon that starts again is found again, at another port too."""
    report = Client(to).get("/admin/vram", timeout_s=PATIENCE_S)
    away = ""
    while True:
        yield report, away
        time.sleep(PERIOD_S)
        try:
            report, away = Client(to).get("/admin/vram", timeout_s=PATIENCE_S), ""
        except CliError as error:
            away = f"{error} Asking again; the last reading is of {moment(report['time'])[11:]}."


def drawing(report: dict[str, Any]) -> Group:
    """A report for people."""
    rows = Table.grid(padding=(0, 2, 0, 0))
    for gpu in report["gpus"]:
        rows.add_row(Text(f"GPU {gpu['index']}", style="bold"), _gpu(gpu))
    if not report["gpus"]:
        rows.add_row(Text("GPU", style="bold"), Text(f"none to be read: {report['reason']}", style="dim"))
    rows.add_row(Text("slot", style="bold"), _slot(report["slot"], report["time"]))
    if (rest := _unaccounted(report)) is not None:
        rows.add_row(Text("memory", style="bold"), rest)
    return Group(rows, Text(""), *_servers(report))


def _gpu(gpu: dict[str, Any]) -> Group:
    share = gpu["used"] / gpu["total"] if gpu["total"] else 0.0
    full = round(share * BAR) if share < 1 else BAR
    bar = Text("█" * full, style="red" if share > 0.9 else "yellow" if share > 0.7 else "green")
    bar.append("░" * (BAR - full), style="dim")
    bar.append(f"  {memory(gpu['used'])} of {memory(gpu['total'])} used, {memory(gpu['free'])} free", style="default")
    if gpu["processes"] is None:
        return Group(bar, Text(f"{gpu['name']}; its processes can't be read", style="dim"))
    return Group(bar, *(Text(line, style="dim") for line in (gpu["name"], *map(_process, gpu["processes"]))))


def _process(process: dict[str, Any]) -> str:
    used = memory(process["used"]) or "?"
    return f"{used:>9}  {process['name'] or 'a process'} (pid {process['pid']})"


def _slot(slot: dict[str, Any], now: float) -> Text:
    text = sentence(slot)
    if slot["since"]:
        text.append(f", for {duration(max(0.0, now - slot['since']))}", style="dim")
    if slot["waiting"]:
        text.append(f", {slot['waiting']} in line", style="yellow")
    return text


def _unaccounted(report: dict[str, Any]) -> Text | None:
    """What of the used memory no model server knows of."""
    if report["unaccounted"] is None:
        return None
    text = Text(f"{memory(report['accounted'])} in models, ")
    text.append(f"{memory(report['unaccounted'])} unaccounted for")
    return text.append(": contexts, other programs", style="dim")


def _servers(report: dict[str, Any]) -> Iterator[Table | Text]:
    """What the model servers have loaded, then those that don't answer."""
    if (table := _models(report)).row_count:
        yield table
    for server in report["servers"]:
        if not server["reachable"]:
            yield Text(f"{server['server']} is away: {server['reason']}", style="red")


def _models(report: dict[str, Any]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("server", "model", "size", "on the GPU", "context", "stays"):
        table.add_column(head, justify="right" if head in ("size", "on the GPU", "context") else "left")
    for server in report["servers"]:
        name = Text(server["server"])
        if server["reachable"] and not server["models"]:
            table.add_row(name, Text("nothing loaded", style="dim"))
        for model in server["models"]:
            context = f"{model['context_length']:,}" if model["context_length"] else ""
            stays = Text(_leaves(model["expires_at"], report["time"]))
            table.add_row(name, Text(model["model"]), memory(model["size"]), _on_gpu(model), context, stays)
    return table


def _on_gpu(model: dict[str, Any]) -> Text:
    size, on_gpu = model["size"], model["size_vram"]
    if not size or on_gpu is None:
        return Text(memory(on_gpu) or "not said", style="" if on_gpu is not None else "dim")
    return Text(f"{min(1.0, on_gpu / size):.0%}", style="" if on_gpu >= size else "yellow")


def _leaves(expires_at: float | None, now: float) -> str:
    if expires_at is None:
        return "for ever"
    return f"for {duration(expires_at - now)} unused" if expires_at > now else "is leaving"
