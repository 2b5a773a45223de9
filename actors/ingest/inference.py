"""Types of columns that a text file doesn't declare, from a sample of cells over the whole file.

A column has the narrowest type that all sampled cells fit. If none does, it has the one that
all but a few fit (at most a tenth, or a single cell when more than one fits), and those few
rows are refused later; failing that, it is text. For vectors a majority is enough: arrays of
floats don't come about by chance.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import pyarrow as pa

from actors.ingest.cells import MISSING, bool_of, float_of, int_of
from actors.ingest.core import VECTOR, Column, most_common

Kind = Literal["integer", "float", "boolean", "text", "integers", "floats", "other"]

_PARSERS: tuple[tuple[Kind, Callable[[str], Any]], ...] = (
    ("integer", int_of),
    ("float", float_of),
    ("boolean", bool_of),
)


class Tally:
    """What was seen of one column."""

    def __init__(self) -> None:
        self.kinds: Counter[Kind] = Counter()
        self.lengths: Counter[int] = Counter()  # of arrays of numbers
        self.mixed = False  # JSON values that are neither text nor of one kind may occur

    def see_text(self, cell: str) -> None:
        """Count a CSV cell."""
        text = cell.strip()
        if text.startswith("[") and text.endswith("]"):
            try:
                self._see_array(msgspec.json.decode(text))
                return
            except (msgspec.DecodeError, RecursionError):
                pass
        if text.lower() not in MISSING:
            self.kinds[_kind_of_text(text)] += 1

    def see_json(self, value: Any) -> None:
        """Count a decoded JSON value."""
        self.mixed = True
        if isinstance(value, list):
            self._see_array(value)
        elif isinstance(value, bool):
            self.kinds["boolean"] += 1
        elif isinstance(value, int):
            self.kinds["integer" if -(2**63) <= value < 2**63 else "other"] += 1
        elif isinstance(value, float):
            self.kinds["float"] += 1
        elif value is not None:
            self.kinds["text" if isinstance(value, str) else "other"] += 1

    def _see_array(self, value: list[Any]) -> None:
        types = set(map(type, value))
        if not types <= {int, float}:
            self.kinds["other"] += 1
            return
        self.kinds["floats" if float in types else "integers"] += 1
        self.lengths[len(value)] += 1

    def column(self, name: str, vector_column: str | None, id_column: str | None) -> Column:
        """The decision."""
        seen = self.kinds.total()
        vectors = self.kinds["floats"] + self.kinds["integers"]
        implied = vector_column is None and self.kinds["floats"] and 2 * vectors > seen
        if name == vector_column or implied:
            return Column(name, VECTOR, "vector", most_common(self.lengths))
        if name == id_column:
            whole = _holds(self.kinds["integer"], seen)
            return Column(name, pa.int64() if whole else pa.string(), "id")
        numbers = self.kinds["integer"] + self.kinds["float"]
        fits = (
            (self.kinds["text"], pa.string()),
            (self.kinds["boolean"], pa.bool_()),
            (self.kinds["integer"], pa.int64()),
            (numbers, pa.float64()),
            (self.kinds["integers"], pa.list_(pa.int64()) if self.mixed else pa.string()),
        )
        exact = next((type_ for count, type_ in fits if seen and count == seen), None)
        nearly = next((type_ for count, type_ in fits if _holds(count, seen)), None)
        type_ = exact or nearly or pa.string()
        nested = self.mixed and seen and type_ == pa.string() and nearly is None
        return Column(name, type_, "text" if pa.types.is_string(type_) and not nested else "value")


def _holds(count: int, seen: int) -> bool:
    bad = seen - count
    return bad <= max(1, seen // 10) and count > bad


def _kind_of_text(text: str) -> Kind:
    for kind, parse in _PARSERS:
        try:
            parse(text)
            return kind
        except ValueError:
            continue
    return "text"
