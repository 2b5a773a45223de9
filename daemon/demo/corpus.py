"""Real text without a download: the documentation of the Python packages installed here.

Source files are parsed, never imported. The result depends on the files alone: packages, files and
definitions come in a fixed order, and of several definitions with one docstring the first stays.
Rows: id, package, module, qualname, kind, signature, text, file, line.
"""

import ast
import inspect
import os
import random
import re
import sys
import sysconfig
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import msgspec

MIN_CHARS = 40  # of a docstring: shorter ones say nothing that could be searched for
MAX_TEXT = 2000  # characters of text per row
MAX_ROWS = 20_000
MIN_WORDS = 3  # of a question
MAX_FILE = 1_000_000  # bytes: larger sources are generated tables
SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "test", "tests", "testing", "idle_test", "lib2to3", "site-packages", "_vendor"}
)
BATCH_FILES = 64


class Definition(msgspec.Struct, frozen=True):
    """A documented module, class, function or method."""

    id: str  # module:qualname
    package: str
    module: str
    qualname: str
    kind: str  # module, class, function, method
    signature: str
    text: str  # qualified name and signature, then the docstring: what is searched
    file: str  # relative to its root
    line: int


class Root(msgspec.Struct, frozen=True):
    """A folder that modules are found in, as on sys.path."""

    path: str
    package: str | None  # what all of it is called ("python" for the standard library); None: by folder


class Harvest(msgspec.Struct):
    """What was found. The counts are of what was looked at before the limit was reached."""

    rows: list[Definition]
    files: int = 0
    unreadable: int = 0  # files that are no Python of this version, or no text
    duplicates: int = 0  # definitions whose id or docstring stood elsewhere already

    @property
    def packages(self) -> int:
        return len({row.package for row in self.rows})


Progress = Callable[[int, int], None]  # files done, files in all


def harvest(
    limit: int = MAX_ROWS, progress: Progress | None = None, workers: int = 0, among: Sequence[Root] = ()
) -> Harvest:
    """The first `limit` definitions among the roots (default: this machine's), parsed by `workers`
    processes (0: one a core)."""
    batches = [
        (root, files[i : i + BATCH_FILES])
        for root, files in [(root, sources(root)) for root in among or roots()]
        for i in range(0, len(files), BATCH_FILES)
    ]
    total = sum(len(files) for _, files in batches)
    found = Harvest([])
    ids: set[str] = set()
    docs: set[str] = set()
    workers = workers or os.cpu_count() or 1
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        # Few at a time: what is handed in can't be taken back (3.11 may deadlock on cancel_futures).
        coming = iter(batches)
        pending = deque((batch, pool.submit(_parse, batch)) for batch in islice(coming, 2 * workers))
        while pending and len(found.rows) < limit:
            (_, files), parsed = pending.popleft()
            definitions, unreadable = parsed.result()
            pending.extend((batch, pool.submit(_parse, batch)) for batch in islice(coming, 1))
            found.files += len(files)
            found.unreadable += unreadable
            for row in definitions:
                doc = row.text.partition("\n")[2]
                if row.id in ids or doc in docs:
                    found.duplicates += 1
                    continue
                ids.add(row.id)
                docs.add(doc)
                found.rows.append(row)
            if progress is not None:
                progress(found.files, total)
    del found.rows[limit:]
    return found


def question(row: Definition) -> str:
    """What someone might ask who doesn't know the name: the docstring's first sentence without it."""
    paragraph = " ".join(re.split(r"\n\s*\n", row.text.partition("\n")[2].strip(), maxsplit=1)[0].split())
    end = re.search(r"[.!?](?=\s|$)", paragraph)
    sentence = paragraph[: end.end()] if end else paragraph
    name = row.qualname.rpartition(".")[2]
    return re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", " ", sentence, flags=re.IGNORECASE).strip()


def questions(rows: Sequence[Definition], n: int, seed: int) -> list[tuple[int, str]]:
    """Up to n functions, drawn at random, and their questions: (position in rows, text). Those
    with fewer than MIN_WORDS words left ask for nothing and are passed over."""
    functions = [i for i, row in enumerate(rows) if row.kind in ("function", "method")]
    random.Random(seed).shuffle(functions)
    asked = ((i, question(rows[i])) for i in functions)
    return list(islice(((i, text) for i, text in asked if len(re.findall(r"\w+", text)) >= MIN_WORDS), n))


def write(rows: Sequence[Definition], path: Path) -> None:
    """As JSON lines."""
    path.write_bytes(msgspec.json.Encoder().encode_lines(rows))


def _parse(batch: tuple[Root, list[str]]) -> tuple[list[Definition], int]:
    """Definitions of some files of a root, and how many files couldn't be parsed."""
    root, files = batch
    found: list[Definition] = []
    unreadable = 0
    for file in files:
        try:
            found += definitions(root, file)
        except (SyntaxError, ValueError, OSError, RecursionError, MemoryError):
            unreadable += 1
    return found, unreadable


def roots() -> list[Root]:
    """Standard library, then site-packages of this interpreter, then those of the system."""
    found = [Root(sysconfig.get_path("stdlib"), "python")]
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    folders += [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
    folders += ["/usr/lib/python3/dist-packages"]
    for folder in dict.fromkeys(os.path.realpath(f) for f in folders):
        if os.path.isdir(folder):
            found.append(Root(folder, None))
    return found


def sources(root: Root) -> list[str]:
    """Python files under a root, relative, sorted; tests and vendored site-packages left out."""
    found = []
    for folder, folders, files in os.walk(root.path):
        folders[:] = sorted(f for f in folders if f not in SKIPPED_FOLDERS and not f.startswith("."))
        found += [os.path.relpath(os.path.join(folder, f), root.path) for f in files if f.endswith(".py")]
    return sorted(found)


def definitions(root: Root, file: str) -> list[Definition]:
    """Documented definitions of one file in order. Raises SyntaxError, ValueError, OSError."""
    path = Path(root.path, file)
    if path.stat().st_size > MAX_FILE:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's escapes
        tree = ast.parse(path.read_bytes())
    parts = Path(file).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "__init__"
    package = root.package or parts[0]
    return [
        Definition(
            id=f"{module}:{qualname}" if qualname else module,
            package=package,
            module=module,
            qualname=qualname,
            kind=kind,
            signature=signature,
            text=_text(".".join(filter(None, (module, qualname))) + signature, doc),
            file=file,
            line=line,
        )
        for qualname, kind, signature, doc, line in _walk(tree, "", "module")
    ]


def _text(head: str, doc: str) -> str:
    return f"{head}\n{doc}"[:MAX_TEXT]


def _walk(node: ast.AST, prefix: str, kind: str) -> Iterator[tuple[str, str, str, str, int]]:
    """(qualname, kind, signature, docstring, line) of a node and what is defined in it; functions
    inside functions are nobody's interface."""
    signature, line = "", getattr(node, "lineno", 1)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        signature = f"({ast.unparse(node.args)}){returns}"
    doc = ast.get_docstring(node, clean=False)  # type: ignore[arg-type]
    if doc is not None and len(doc := inspect.cleandoc(doc)) >= MIN_CHARS:
        yield prefix, kind, signature, doc, line
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    inside = "method" if isinstance(node, ast.ClassDef) else "function"
    for child in getattr(node, "body", ()):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{prefix}.{child.name}" if prefix else child.name
            yield from _walk(child, name, "class" if isinstance(child, ast.ClassDef) else inside)
