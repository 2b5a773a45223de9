"""The harvest of documentation: what counts as a definition, and that the result depends on files alone."""

import json
from pathlib import Path

import pytest

from daemon.demo import corpus
from daemon.demo.corpus import Root

MODULE = '''"""A module that shows what the harvest takes and what it leaves."""

import something_that_does_not_exist

@something_that_does_not_exist.decorate
def plain(a, b: int = 1, *rest, key=None) -> str:
    """Return the answer for a and b.

        Indented further.
    """
    def inner():
        """Functions inside functions are nobody's interface, so this is left out."""

def short():
    """Too short."""

class Box:
    """Keeps things in the order that they were put in."""

    async def take(self):
        """Take the oldest thing out, waiting for one if there is none."""

    class Lid:
        """Closes a box, and is itself nothing but a class."""

def again():
    """Keeps things in the order that they were put in."""
'''


@pytest.fixture
def root(tmp_path: Path) -> Root:
    package = tmp_path / "pkg"
    for folder in (package, package / "sub", package / "tests", package / "__pycache__"):
        folder.mkdir()
        (folder / "__init__.py").write_text(f'"""The package {folder.name} with a long enough docstring here."""\n')
    (package / "mod.py").write_text(MODULE)
    (package / "broken.py").write_text("def (:\n")
    (package / "latin.py").write_bytes(b'"""\xff\xfe no utf-8"""\n')
    (package / "nul.py").write_bytes(b"x = '\0'\n")
    (package / "data.txt").write_text("no Python")
    return Root(str(tmp_path), None)


def test_tests_caches_and_other_files_are_left_out(root):
    assert corpus.sources(root) == [
        "pkg/__init__.py",
        "pkg/broken.py",
        "pkg/latin.py",
        "pkg/mod.py",
        "pkg/nul.py",
        "pkg/sub/__init__.py",
    ]


def test_modules_classes_functions_and_methods_are_found_without_importing(root):
    found = corpus.definitions(root, "pkg/mod.py")
    assert [(d.id, d.kind, d.line) for d in found] == [
        ("pkg.mod", "module", 1),
        ("pkg.mod:plain", "function", 6),
        ("pkg.mod:Box", "class", 17),
        ("pkg.mod:Box.take", "method", 20),
        ("pkg.mod:Box.Lid", "class", 23),
        ("pkg.mod:again", "function", 26),
    ]
    plain = found[1]
    assert plain.signature == "(a, b: int=1, *rest, key=None) -> str"
    assert plain.text == (
        "pkg.mod.plain(a, b: int=1, *rest, key=None) -> str\nReturn the answer for a and b.\n\nIndented further."
    )
    assert {d.package for d in found} == {"pkg"}


def test_a_harvest_counts_what_it_could_not_read_and_drops_repeated_docstrings(root):
    found = corpus.harvest(among=[root], workers=1)
    assert [row.id for row in found.rows] == [
        "pkg",
        "pkg.mod",
        "pkg.mod:plain",
        "pkg.mod:Box",
        "pkg.mod:Box.take",
        "pkg.mod:Box.Lid",
        "pkg.sub",
    ]
    assert (found.files, found.unreadable, found.duplicates, found.packages) == (6, 3, 1, 1)


def test_a_harvest_is_the_same_whatever_the_number_of_processes(root, monkeypatch):
    monkeypatch.setattr(corpus, "BATCH_FILES", 1)
    assert corpus.harvest(among=[root], workers=2) == corpus.harvest(among=[root], workers=1)


def test_a_harvest_stops_at_its_limit_and_tells_its_progress(root, monkeypatch):
    monkeypatch.setattr(corpus, "BATCH_FILES", 1)
    seen: list[tuple[int, int]] = []
    found = corpus.harvest(3, lambda done, total: seen.append((done, total)), workers=1, among=[root])
    assert [row.id for row in found.rows] == ["pkg", "pkg.mod", "pkg.mod:plain"]
    assert seen == [(1, 6), (2, 6), (3, 6), (4, 6)]


def test_rows_are_written_as_json_lines(root, tmp_path):
    rows = corpus.definitions(root, "pkg/mod.py")
    corpus.write(rows, tmp_path / "rows.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [row.id for row in rows]
    assert set(lines[0]) == set(corpus.Definition.__struct_fields__)


def test_the_standard_library_comes_first_and_every_root_exists():
    found = corpus.roots()
    assert found[0].package == "python"
    assert all(Path(root.path).is_dir() for root in found)
    assert len({root.path for root in found}) == len(found)
