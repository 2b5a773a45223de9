"""The direction of imports and the shape of modules, read from the source itself.

schemas  <-  actors/<name>/core  <-  actors/<name>  <-  daemon
"""

import ast
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("schemas", "actors", "daemon")
MODULES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
SHARED = {path.stem for path in (REPOSITORY / "actors").glob("*.py")} | {"backends", "tensors"}
"""Modules of `actors` that are no actor's own: base, ports, errors, hnsw …"""
DECIDES = ("decide", "proposer", "bounds", "spaces", "sweep", "grid", "facts", "ending", "surrogate")
CORES = sorted(
    path
    for pattern in ("*/core*.py", *(f"autotune/{name}.py" for name in DECIDES))
    for path in (REPOSITORY / "actors").glob(pattern)
)
"""What decides: values in, values out."""

FORBIDDEN_IN_A_CORE = {
    "asyncio", "anyio", "time", "datetime", "random", "secrets", "uuid", "os", "pathlib", "io", "tempfile", "shutil",
    "socket", "threading", "multiprocessing", "subprocess", "logging", "structlog", "nats", "aiohttp", "obstore",
}  # fmt: skip
"""Clock, chance, files, network, threads, logs: what a core is told, never asks."""

MAX_LINES = 400


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth of its code."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(package: str) -> list[Path]:
    return [path for path in MODULES if path.is_relative_to(REPOSITORY / package)]


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("path", within("schemas"), ids=name_of)
def test_schemas_import_only_msgspec_and_the_standard_library(path: Path) -> None:
    allowed = sys.stdlib_module_names | {"msgspec", "schemas"}
    assert {name for name in imports(path) if name.partition(".")[0] not in allowed} == set()


@pytest.mark.parametrize("path", within("actors"), ids=name_of)
def test_actors_know_neither_the_daemon_nor_each_other(path: Path) -> None:
    own = path.relative_to(REPOSITORY / "actors").parts[0].removesuffix(".py")
    for name in imports(path):
        top, _, rest = name.partition(".")
        assert top != "daemon", f"{name_of(path)} imports {name}"
        if top == "actors" and rest:
            other = rest.partition(".")[0]
            assert other in SHARED or other == own, f"{name_of(path)} imports {name}"


@pytest.mark.parametrize("path", CORES, ids=name_of)
def test_cores_are_pure(path: Path) -> None:
    names = set(imports(path))
    if "pathlib.PurePath" in names:  # a way to read names, no way to a file
        names -= {"pathlib", "pathlib.PurePath"}
    assert {name for name in names if name.partition(".")[0] in FORBIDDEN_IN_A_CORE} == set()
    functions = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    assert [node.name for node in functions if isinstance(node, ast.AsyncFunctionDef)] == []


def test_there_are_cores() -> None:
    """Guards the test above against looking at nothing."""
    assert {path.parent.name for path in CORES} >= {"ingest", "index", "autotune", "promotion"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_are_short_named_for_what_they_hold_and_open_with_why(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "types", "common", "misc", "tools"}
    source = path.read_text(encoding="utf-8")
    lines = len(source.splitlines())
    assert lines <= MAX_LINES, f"{lines} lines"
    if lines > 20:
        assert ast.get_docstring(ast.parse(source)), "a module opens by saying what lives in it"


def test_only_this_distribution_owns_its_top_level_names() -> None:
    """`daemon` is python-daemon's name too: together in one environment, one shadows the other."""
    owners = packages_distributions()
    for name in PACKAGES:
        assert set(owners.get(name, ["lakehouse"])) == {"lakehouse"}
        assert Path(str(__import__(name).__file__)).parents[1] == REPOSITORY
