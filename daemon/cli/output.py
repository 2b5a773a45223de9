"""How answers look: tables for people, JSON for programs. Numbers keep their units."""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print the answer as JSON.", show_default=False)]
"""The `--json` that every reading command has."""


def within(bounds: tuple[int, int]) -> Number:
    """Validates an option whose value has bounds."""
    return Number(gte=bounds[0], lte=bounds[1])


console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def print_json_line(value: Any) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str, title: str | None = None) -> None:
    """A column whose name ends in a space is a number: right-aligned."""
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column.strip(), justify="right" if column.endswith(" ") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell(value)) for value in row))
    if table.row_count:
        console.print(table)
    else:
        console.print(f"[dim]{escape(empty)}[/dim]")


def print_facts(facts: Mapping[str, Any]) -> None:
    """Name and value, one a line; what is None or empty is left out."""
    shown = {name: value for name, value in facts.items() if value not in (None, "", [], {})}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        console.print(f"[dim]{name.ljust(width)}[/dim]  {escape(cell(value))}", soft_wrap=True)


def print_moved(name: str, answer: Mapping[str, Any], as_json: bool) -> None:
    """What became of a move to another bucket."""
    if as_json:
        print_json(answer)
    elif answer["source"] == answer["bucket"]:
        console.print(f"{name} lies in {answer['bucket']} already", markup=False)
    else:
        what = f"{answer['objects']:,} objects, {size(answer['bytes'])}, verified"
        console.print(f"{name}: {answer['source']} → {answer['bucket']}, {what}", markup=False)


def cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
        case int():
            return f"{value:,}"
        case list():
            return ", ".join(map(cell, value))
        case dict():
            return ", ".join(f"{key} {cell(item)}" for key, item in value.items())
    return str(value)


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def micros(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f} µs"


def size(value: float | None) -> str:
    """Bytes, in the largest unit that leaves a digit before the point."""
    if value is None:
        return ""
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def memory(value: float | None) -> str:
    """Bytes of memory, in binary units: `4.7 GiB`, `512 MiB`, `470 KiB`."""
    if value is None:
        return ""
    if 0 < value < 2**20:
        return f"{value / 2**10:.0f} KiB"
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def moment(timestamp: float | None) -> str:
    """Local time of a Unix timestamp."""
    return "" if timestamp is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(timestamp))


def duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def configuration(config: Mapping[str, Any] | None) -> str:
    """`M 16 · efc 100 · ef 50`; on Lance `IVF_RQ · 64 partitions · nprobes 16 · refine 4`"""
    if not config:
        return ""
    if config.get("backend") == "lance":
        return f"{build(config)} · {effort(config)}"
    return f"M {config['M']} · efc {config['ef_construction']} · {effort(config)}"


def build(lance: Mapping[str, Any]) -> str:
    """What a Lance index is built with: `IVF_PQ · 64 partitions · 48 sub-vectors`"""
    parts = [lance["index_type"], f"{lance['partitions']:,} partition{'s' if lance['partitions'] != 1 else ''}"]
    return " · ".join(parts + ([f"{lance['sub_vectors']} sub-vectors"] if lance["sub_vectors"] else []))


def effort(of: Mapping[str, Any]) -> str:
    """How hard a search looks: `ef 50`; on Lance `nprobes 16 · refine 4`"""
    if of.get("backend") == "lance":
        graph = f" · ef {of['ef']}" if of["ef"] else ""
        return f"nprobes {of['nprobes']} · refine {of['refine_factor']}{graph}"
    return f"ef {of['ef_search']}"
