"""What is in deploy/, checked by the programs that will read it; and the pins."""

import os
import re
import runpy
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import missing

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
UNIT = DEPLOY / "lakehouse.service"

needs_systemd = pytest.mark.needs("systemd-analyze")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists here."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/lakehouse/.venv/bin/lakehouse", sys.executable))
    return copy


@needs_systemd
def test_the_unit_is_hardened() -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", str(UNIT)]
    checked = subprocess.run(command, capture_output=True, text=True)
    overall = checked.stdout.splitlines()[-1] if checked.stdout else checked.stderr
    assert checked.returncode == 0, overall  # threshold 20 is exposure 2.0
    assert float(re.findall(r"\d+\.\d+", overall)[-1]) <= 2.0


@needs_systemd
def test_the_unit_is_understood(unit: Path) -> None:
    checked = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr.strip()) == (0, "")


@needs_systemd
def test_the_readmes_transient_unit_names_real_properties(tmp_path: Path) -> None:
    """systemd-run needs a running systemd; its properties are a unit's and can be verified."""
    (line,) = re.findall(r"^systemd-run .*(?:\\\n.*)*", (REPOSITORY / "README.md").read_text(), flags=re.MULTILINE)
    words = line.replace("\\\n", " ").split()
    options = [word for word in words[1:] if word.startswith("-")]
    properties = [word for before, word in pairwise(words) if before == "-p"]
    properties += [word.partition("=")[2] for word in words if word.startswith("--property=")]
    helped = subprocess.run(["systemd-run", "--help"], capture_output=True, text=True, check=True).stdout
    assert [name for name in options if name.partition("=")[0] not in helped] == []
    assert properties
    unit = tmp_path / "transient.service"
    unit.write_text("[Service]\nExecStart=/bin/true\n" + "\n".join(properties) + "\n")
    checked = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr.strip()) == (0, "")


@pytest.mark.slow
def test_the_heavy_libraries_work_without_writable_code_pages() -> None:
    """MemoryDenyWriteExecute=yes, by the kernel's own switch for it."""
    code = """
import ctypes, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0:  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN
    sys.exit(77)
assert ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 7)() == 7  # what libffi needs
import duckdb, hnswlib, numpy as np, pyarrow as pa, pyarrow.compute as pc, obstore, deltalake, msgspec, aiohttp
vectors = np.random.default_rng(0).standard_normal((200, 16), dtype=np.float32)
index = hnswlib.Index("l2", 16)
index.init_index(200)
index.add_items(vectors)
assert index.knn_query(vectors[:1], 1)[0][0][0] == 0
assert (vectors @ vectors.T).shape == (200, 200)
numbers = pa.table({"a": list(range(100)), "b": [str(n) for n in range(100)]})
assert pc.sum(numbers["a"]).as_py() == 4950
assert pc.sum(pc.match_substring_regex(numbers["b"], "^9.$")).as_py() == 10
assert duckdb.sql("select sum(a) from numbers where b like '%5' and a % 3 = 1").fetchall()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode == 77:
        missing("this kernel has no PR_SET_MDWE (Linux 6.3)")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["nats-embedded.conf", "nats-cluster.conf"])
def test_nats_understands_its_configuration(name: str) -> None:
    server = Path(sys.executable).with_name("nats-server")
    secrets = {"NATS_PASSWORD": "x", "ROUTE_PASSWORD": "y", "NAME": "n1"}
    command = [str(server), "-t", "-c", str(DEPLOY / name)]
    checked = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **secrets})
    assert checked.returncode == 0, checked.stderr
    assert "sync_interval: always" in (DEPLOY / name).read_text()


def test_what_is_drawn_from_the_code_is_up_to_date() -> None:
    outputs = runpy.run_path(str(DEPLOY / "generate.py"))["outputs"]()
    assert len(outputs) == 4
    assert [path.name for path, text in outputs.items() if path.read_text() != text] == [], "run `make docs`"
    assert "flowchart" in (REPOSITORY / "README.md").read_text()


@pytest.mark.parametrize("script", sorted([*DEPLOY.glob("*.sh"), REPOSITORY / ".ci/run"]), ids=lambda path: path.name)
def test_scripts_are_executable_and_parse(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_pins_have_hashes_and_no_addresses() -> None:
    for file in REPOSITORY.glob("requirements*.txt"):
        text = file.read_text()
        assert re.findall(r"://|--(?:extra-)?index|--find-links|@ ", text) == []
        for requirement in re.sub(r"\s*\\\n\s*", " ", text).strip().splitlines():
            assert re.match(r"^[a-z0-9-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", requirement), requirement


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    pinned = {
        name: set(re.findall(r"^([a-z0-9-]+)==", (REPOSITORY / f"requirements{name}.txt").read_text(), re.MULTILINE))
        for name in ("", "-dev", "-hnswlib", "-build")
    }

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[<>=!\[; ]", requirement)[0] for requirement in requirements}

    runtime = names(project["project"]["dependencies"])
    assert runtime <= pinned[""] | pinned["-hnswlib"]
    assert runtime | names(project["dependency-groups"]["dev"]) <= pinned["-dev"] | pinned["-hnswlib"]
    assert "hnswlib" not in pinned[""] | pinned["-dev"]  # always compiled here, for this CPU
    assert pinned["-build"] == {"setuptools", "pybind11"}
