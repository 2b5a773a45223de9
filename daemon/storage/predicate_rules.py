"""What a predicate may be made of: an allow-list over DuckDB's parse tree. DuckDB's memory_limit
doesn't bound the values that an expression makes (`range`, `repeat`, `lpad` took 20 GB), so what
isn't listed is refused, and so is what would copy texts or lists too often. The parsing and the
answering are predicate.py's.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from actors.ports import ROW

MAX_NODES = 2000
MAX_TEXT = 4000
"""Characters of one constant."""
MAX_COPIES = 32
"""How many times one batch of texts or lists (8 MiB, a row group) may be copied: 256 MiB a thread."""

OPERATORS = {
    "OPERATOR_NOT",
    "OPERATOR_IS_NULL",
    "OPERATOR_IS_NOT_NULL",
    "OPERATOR_COALESCE",
    "COMPARE_IN",
    "COMPARE_NOT_IN",
    "ARRAY_EXTRACT",
    "STRUCT_EXTRACT",
}
TEXT_FUNCTIONS = {
    *[
        "||",
        "concat",
        "lower",
        "upper",
        "lcase",
        "ucase",
        "trim",
        "ltrim",
        "rtrim",
        "substr",
        "substring",
        "left",
        "right",
    ]
}
"""Their result is at most as long as their arguments together."""
CHOICES = {"nullif", "ifnull", "if"}
PATTERNS = {"regexp_matches", "regexp_full_match", "~~", "!~~", "~~*", "!~~*", "~~~", "like_escape", "ilike_escape"}
"""Their second argument is a pattern, which must be a constant: one is compiled, not one a row."""
FUNCTIONS = {
    *[
        "+",
        "-",
        "*",
        "/",
        "//",
        "%",
        "abs",
        "round",
        "floor",
        "ceil",
        "ceiling",
        "trunc",
        "sign",
        "sqrt",
        "ln",
        "log10",
        "log2",
        "log",
        "exp",
        "pow",
        "power",
        "**",
        "^",
        "mod",
        "isnan",
    ],
    *[
        "length",
        "len",
        "strlen",
        "starts_with",
        "ends_with",
        "prefix",
        "suffix",
        "^@",
        "contains",
        "position",
        "strpos",
        "instr",
    ],
    *[
        "list_contains",
        "list_has",
        "array_contains",
        "array_has",
        "array_length",
        "list_extract",
        "array_extract",
        "struct_extract",
    ],
    *[
        "date_part",
        "datepart",
        "date_trunc",
        "datetrunc",
        "date_diff",
        "datediff",
        "year",
        "month",
        "day",
        "hour",
        "minute",
        "second",
    ],
    *["dayofweek", "dayofyear", "isodow", "week", "quarter", "epoch", "strptime", "try_strptime", "make_date"],
    *["to_years", "to_months", "to_weeks", "to_days", "to_hours", "to_minutes", "to_seconds"],
    *TEXT_FUNCTIONS,
    *CHOICES,
    *PATTERNS,
}
TYPES = {
    *[
        "BOOLEAN",
        "BOOL",
        "TINYINT",
        "SMALLINT",
        "INTEGER",
        "INT",
        "BIGINT",
        "HUGEINT",
        "UTINYINT",
        "USMALLINT",
        "UINTEGER",
        "UBIGINT",
    ],
    *[
        "FLOAT",
        "REAL",
        "DOUBLE",
        "DECIMAL",
        "NUMERIC",
        "VARCHAR",
        "TEXT",
        "STRING",
        "DATE",
        "TIME",
        "TIMESTAMP",
        "DATETIME",
        "TIMESTAMPTZ",
    ],
    *["INTERVAL", "INT1", "INT2", "INT4", "INT8", "FLOAT4", "FLOAT8", "SHORT", "LONG", "CHAR", "UUID"],
    "TIMESTAMP WITH TIME ZONE",
    "DOUBLE PRECISION",
}
WIDE_TYPES = {"VARCHAR", "TEXT", "STRING", "CHAR"}
CLOCK = {"current_date", "current_timestamp", "current_time", "localtime", "localtimestamp"}
MAY = (
    "a filter may use AND, OR, NOT, comparisons, IN, BETWEEN, LIKE, IS NULL, CASE, arithmetic, casts to plain types, "
    "coalesce, lower, upper, trim, substr, length, starts_with, ends_with, contains, regexp_matches, "
    "abs, round, floor, ceil, date_part, date_trunc and list_contains"
)


def check(condition: Any, schema: pa.Schema) -> None:
    """Raises ValueError for a condition (json_serialize_sql's tree of it) that holds what isn't
    allowed or a column that `schema` hasn't."""
    for before, node in enumerate(_within(condition)):
        if before >= MAX_NODES:
            raise ValueError(f"the filter is too long: it has more than {MAX_NODES:,} parts")
        _allow(node, schema)
    copies = _Copies(schema)
    copies.of(condition)
    if copies.made > MAX_COPIES:
        raise ValueError(f"the filter makes too many new texts or lists for each row: more than {MAX_COPIES}")


def _within(tree: Any) -> Iterator[dict[str, Any]]:
    """Every expression of a tree, without recursion."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if "class" in node:
                yield node
            waiting.extend(value for key, value in node.items() if key != "literal")
        elif isinstance(node, list):
            waiting.extend(node)


def _allow(node: dict[str, Any], schema: pa.Schema) -> None:
    match node["class"]:
        case "COMPARISON" | "CONJUNCTION" | "BETWEEN" | "CASE" | "CAST":
            pass
        case "CONSTANT":
            if len(str((node.get("literal") or {}).get("text", ""))) > MAX_TEXT:
                raise ValueError(f"a text in the filter has more than {MAX_TEXT:,} characters")
        case "COLUMN_REF":
            _column(node["column_names"], schema)
        case "TYPE":
            if node["type_name"].upper() not in TYPES or node["schema"] or node["catalog"]:
                raise ValueError(f"a filter can't cast to {node['type_name']}; {MAY}")
        case "FUNCTION":
            _function(node)
        case "OPERATOR" if node["type"] in OPERATORS:
            pass
        case "OPERATOR":
            raise ValueError(f"a filter can't use {_plain(node['type'].removeprefix('OPERATOR_'))}; {MAY}")
        case other:
            raise ValueError(f"a filter can't hold a {_plain(other)}; {MAY}")


def _function(node: dict[str, Any]) -> None:
    name = node["function_name"].lower()
    if name not in FUNCTIONS or node["schema"] or node["catalog"]:
        called = ".".join(part for part in (node["catalog"], node["schema"], name) if part)
        raise ValueError(f"a filter can't use {called}; {MAY}")
    if name in PATTERNS and _arguments(node)[1:2] and _arguments(node)[1]["class"] != "CONSTANT":
        raise ValueError("a pattern in a filter must be a constant text")


def _column(names: list[str], schema: pa.Schema) -> None:
    if _field(names, schema) is None:
        if names[0].lower() in CLOCK:
            raise ValueError(f"a filter can't use {names[0].lower()}, as its answers are remembered; write the date")
        has = ", ".join(name for name in schema.names if name != ROW)
        raise ValueError(f"there is no column {'.'.join(names)!r}; the dataset has {has}")


def _field(names: list[str], schema: pa.Schema) -> pa.Field | None:
    """The top-level column of `a`, `a.field` or `t.a`; names are told apart as DuckDB does."""
    fields = {field.name.lower(): field for field in schema}
    found = fields.get(names[0].lower())
    if found is None and names[0].lower() == "t" and len(names) > 1:
        found = fields.get(names[1].lower())
    return found


class _Copies:
    """Counts how often a value of any length is copied: each function that makes a text or list
    counts once for each such value that goes into it."""

    def __init__(self, schema: pa.Schema) -> None:
        self.made = 0
        self._schema = schema

    def of(self, node: Any) -> int:
        """How many values of any length make up the node's own. The parser bounds the depth."""
        if not isinstance(node, dict) or "class" not in node:
            return 0
        match node["class"]:
            case "COLUMN_REF":
                field = _field(node["column_names"], self._schema)
                return 0 if field is None or _fixed(field.type) else 1
            case "CONSTANT":
                return int((node.get("literal") or {}).get("kind") == "STRING")
            case "CAST":
                wide = node["type_expr"]["type_name"].upper() in WIDE_TYPES
                return self._copied(max(1, self.of(node["child"]))) if wide else self._ends([node["child"]])
            case "CASE":
                parts = node["case_checks"]
                self._ends(part["when_expr"] for part in parts)
                return self._copied(sum(self.of(part["then_expr"]) for part in parts) + self.of(node["else_expr"]))
            case "FUNCTION":
                name, arguments = node["function_name"].lower(), _arguments(node)
                if name in TEXT_FUNCTIONS:
                    return self._copied(sum(max(1, self.of(argument)) for argument in arguments))
                if name in CHOICES or name.endswith("_extract"):
                    return self._copied(sum(map(self.of, arguments)))
                return self._ends(arguments)
            case "OPERATOR" if node["type"] == "OPERATOR_COALESCE" or node["type"].endswith("_EXTRACT"):
                return self._copied(sum(map(self.of, node["children"])))
        return self._ends(_children(node))

    def _copied(self, values: int) -> int:
        self.made += values
        return values

    def _ends(self, nodes: Iterable[Any]) -> int:
        """They go into a value of fixed length."""
        for node in nodes:
            self.of(node)
        return 0


def _children(node: dict[str, Any]) -> list[Any]:
    """Of a comparison, a conjunction, BETWEEN, an operator."""
    return [*(node.get(key) for key in ("left", "right", "input", "lower", "upper")), *node.get("children", [])]


def _arguments(node: dict[str, Any]) -> list[Any]:
    return [argument["expression"] for argument in node["arguments"]]


def _fixed(of: pa.DataType) -> bool:
    return bool(pa.types.is_primitive(of) or pa.types.is_null(of))


def _plain(name: str) -> str:
    return name.lower().replace("_", " ")
