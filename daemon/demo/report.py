"""What the demo prints at its end. Every figure was measured in this run or lies in the journal."""

import shutil
import sys
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from daemon.cli.client import Client
from daemon.cli.output import configuration, console, micros, print_table, share
from daemon.demo.tuning import Outcome

SEARCHES = (
    "wait for a coroutine to finish with a timeout",
    "least recently used cache decorator",
    "compute the singular values of a matrix",
)

Json = dict[str, Any]


def found(outcome: Outcome, target: float, generation: int) -> None:
    """Before and after, and what was promoted."""
    named = {"before": outcome.before, "same graph, best ef": outcome.ef_only, "after": outcome.after}
    if outcome.ef_only in (outcome.before, outcome.after):
        del named["same graph, best ef"]
    rows = [
        (name, *_figures(point), _ratio(point) if point is outcome.after else "")
        for name, point in named.items()
        if point is not None
    ]
    console.print()
    columns = ["", "configuration", "recall@10 ", "lower bound ", "holds", "p50 ", "p95 ", "p99 ", "vs champion "]
    title = f"What the agent found: target recall@10 ≥ {target:g}, {outcome.points[0]['queries']} questions"
    print_table(columns, rows, empty="The journal holds neither point.", title=title)
    console.print()
    entry = outcome.promoted
    if entry is None:
        console.print(f"Nothing was promoted: generation {generation} serves on.")
        return
    console.print(
        f"[bold]promoted[/bold] {configuration(entry['config'])} by {escape(entry['promoted_by'])}, "
        f"live as generation {generation}, after {outcome.trials} trials with {outcome.build_s:.1f} s of builds",
        soft_wrap=True,
    )
    console.print(f"[dim]why[/dim] {escape(entry['note'])}", soft_wrap=True)


def _figures(point: Json) -> tuple[Any, ...]:
    return (
        configuration(point),
        share(point["recall"]),
        share(point["recall_lower"]),
        "yes" if point["recall_lower"] >= point["target_recall"] else "no",
        micros(point["p50_us"]),
        micros(point["p95_us"]),
        micros(point["p99_us"]),
    )


def _ratio(point: Json) -> str:
    """Latency as a share of the champion's in interleaved runs, with its 95 % interval."""
    if point["champion_ratio"] is None:
        return ""
    low, high = point["champion_ratio_low"], point["champion_ratio_high"]
    return f"{point['champion_ratio']:.2f} × ({low:.2f} to {high:.2f})"


def searches(client: Client, index: str) -> None:
    """Three questions and their answers through HTTP."""
    for text in SEARCHES:
        body = {"index": index, "text": text, "k": 3, "columns": ["qualname", "module", "text"]}
        result = client.post("/vectors/search", body)
        console.print(f"\n[bold]{escape(text)}[/bold]  [dim]{micros(result['took_us'])} in the daemon[/dim]")
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(justify="right")
        table.add_column()
        table.add_column(overflow="ellipsis", no_wrap=True, max_width=80, style="dim")
        for hit in result["queries"][0]:
            columns = hit["columns"]
            says = next(iter(columns["text"].partition("\n")[2].splitlines()), "")
            table.add_row(
                f"{hit['distance']:.3f}", escape(f"{columns['module']}.{columns['qualname']}".strip(".")), escape(says)
            )
        console.print(table)


def places(url: str, index: str, state_dir: str) -> None:
    """Where to go on."""
    console.print()
    for what, path in (
        ("trials", f"/vectors/trials/{index}"),
        ("why", f"/vectors/why/{index}"),
        ("promotion", f"/vectors/hnsw/promoted/{index}"),
        ("agent", "/vectors/agent/status"),
        ("events", "/events"),
        ("API", "/openapi.json"),
    ):
        console.print(f"[dim]{what:>10}[/dim]  {url}{path}", soft_wrap=True)
    command = "lakehouse" if shutil.which("lakehouse") else str(Path(sys.argv[0]).absolute())  # after `make run`
    console.print(
        f'\nfor curl and nats:  eval "$({command} env --state-dir {state_dir})"\n'
        f'search:             {command} search {index} "read a table from a parquet file" --state-dir {state_dir}',
        soft_wrap=True,
        markup=False,
    )
