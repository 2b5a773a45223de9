"""`lakehouse lineage NAME`: drawn as a tree, what it came from above, what came of it below."""

from typing import Annotated, Any

from cyclopts import Parameter

from daemon.cli.client import Client, segment
from daemon.cli.connection import Connection
from daemon.cli.output import Json, console, moment, print_json

Name = Annotated[str, Parameter(help="A dataset or an index.")]
SHOWN = 5
"""Runs of a node that are drawn."""


def lineage(name: Name, /, *, limit: int = 50, json: Json = False, to: Connection = Connection()) -> None:
    """Show where a dataset or an index came from, and what came of it.

    Parameters
    ----------
    limit
        Runs each way.
    """
    answer = Client(to).get(f"/lineage/{segment(name)}?limit={limit}")
    if json:
        print_json(answer)
        return
    for root in answer["roots"]:
        console.print(_tree(root, answer["up"], "outputs", "inputs", "←"))
        console.print(_tree(root, answer["down"], "inputs", "outputs", "→"))


def _tree(root: str, runs: list[dict[str, Any]], here: str, there: str, arrow: str) -> Any:
    from rich.text import Text
    from rich.tree import Tree

    top = Tree(Text(f"{root} {arrow}", style="bold"))
    pending, drawn = [(root, top)], {root}
    while pending:
        node, branch = pending.pop(0)
        met = [run for run in runs if node in run[here]]
        for run in met[:SHOWN]:
            style = "red" if run["state"] == "FAIL" else ""
            line = branch.add(
                Text(f"{run['kind']} {moment(run['time'])} {run['state'].lower()}: {run['detail']}", style=style)
            )
            for other in run[there]:
                if other in drawn:
                    line.add(Text(f"{other} …", style="dim"))
                else:
                    drawn.add(other)
                    pending.append((other, line.add(Text(other, style="bold"))))
        if len(met) > SHOWN:
            branch.add(Text(f"and {len(met) - SHOWN} more: --json shows them", style="dim"))
    return top
