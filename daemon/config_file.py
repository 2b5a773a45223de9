"""Renders lakehouse.toml from the configuration's structs: every key, its default commented
out, and its attribute docstring as help. `lakehouse init` writes it; a test keeps the copy in
the repository equal to it.
"""

import ast
import inspect
import json
from functools import cache
from typing import Any, get_args, get_origin

import msgspec

from daemon.config import BucketConfig, Config

HEAD = """\
# lakehouse.toml: every key with its default. Uncomment what you change.
# The environment overrides the file: LAKEHOUSE_AGENT__EPSILON=0.1 (lists as JSON).
# `lakehouse check-config` says what is wrong with it.
"""

EXAMPLE_BUCKETS = (
    BucketConfig(name="primary", url="file:///srv/lakehouse/primary"),
    BucketConfig(name="archive", url="s3://my-bucket/lakehouse", options={"region": "eu-central-1"}),
)


EXAMPLES: dict[str, dict[str, Any]] = {
    "sources": {"name": "shop", "dsn_env": "SHOP_DSN", "dsn": "", "table": "public.products", "dataset": "products"},
    "watch": {"path": "/srv/incoming", "dataset": "docs", "pattern": "*.jsonl"},
}
"""What the examples of arrays of tables say where there is no default."""


def render() -> str:
    """The documented default file. Decoding it as it stands gives the defaults."""
    parts = [HEAD]
    for section in msgspec.structs.fields(Config):
        if get_origin(section.type) is list:
            parts.append("\n".join(_array(section.name, get_args(section.type)[0])) + "\n")
            continue
        lines = [f"[{section.name}]"]
        for field in msgspec.structs.fields(section.type):
            help_text = attribute_help(section.type)[field.name]
            lines.extend(f"# {line}" for line in help_text.splitlines())
            if field.type == list[BucketConfig]:
                lines.extend(f"# {line}" for bucket in EXAMPLE_BUCKETS for line in _table("storage.buckets", bucket))
                continue
            lines.append(f"#{field.name} = {toml_value(_default(field))}")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


@cache
def attribute_help(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The string below each attribute of a struct's source; empty where there is none."""
    (definition,) = ast.parse(inspect.getsource(struct)).body
    assert isinstance(definition, ast.ClassDef)
    found = dict.fromkeys(struct.__struct_fields__, "")
    previous: ast.stmt | None = None
    for statement in definition.body:
        if (
            isinstance(previous, ast.AnnAssign)
            and isinstance(previous.target, ast.Name)
            and isinstance(statement, ast.Expr)
            and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str)
        ):
            found[previous.target.id] = inspect.cleandoc(statement.value.value)
        previous = statement
    return found


def toml_value(value: Any) -> str:
    """A default as TOML writes it. Basic strings and arrays are the same in JSON."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml_value(item)}" for key, item in value.items()) + " }" if value else "{}"
    return json.dumps(msgspec.to_builtins(value))


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def _table(name: str, struct: msgspec.Struct) -> list[str]:
    values = {f: getattr(struct, f) for f in struct.__struct_fields__}
    return [f"[[{name}]]", *(f"{key} = {toml_value(value)}" for key, value in values.items() if value != {})]


def _array(name: str, struct: type[msgspec.Struct]) -> list[str]:
    """An array of tables: an example of each key, all of it commented out."""
    lines = [f"# [[{name}]]"]
    for field in msgspec.structs.fields(struct):
        shown = EXAMPLES[name].get(field.name, field.default)
        lines.append(f"# {field.name} = {toml_value('' if shown is None else shown)}")
        lines.extend(f"#   {line}" for line in attribute_help(struct)[field.name].splitlines())
    return lines
