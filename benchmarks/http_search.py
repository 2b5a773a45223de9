"""Search over HTTP, one query at a time on a kept-alive connection, with the peer beside us.

    python -m benchmarks.http_search [--chroma PYTHON] [--rows 20000] [--queries 1000]

The same vectors (rows × 384, cosine) with the same graph parameters (M 16, ef_construction 100,
ef_search 50, k 10) behind: the whole daemon as users run it; a Chroma server; a bare aiohttp
handler round hnswlib; and hnswlib called in this process. Every query goes to all of them in
turn, so that what else the machine does hits all alike; the bodies are encoded beforehand. All
of them answer with ids and distances only. Chroma is installed into a venv in a temporary
folder unless `--chroma` names a Python that has it.
"""

import argparse
import contextlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
M, EF_CONSTRUCTION, EF_SEARCH, K, DIM = 16, 100, 50, 10, 384
WARM_UP = 200
GOAL = 0.35


class Connection:
    """One kept-alive connection without Nagle's delay."""

    def __init__(self, port: int, headers: dict[str, str] | None = None) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        self._http.connect()
        self._http.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._headers = {"Content-Type": "application/json", **(headers or {})}

    def call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        self._http.request(method, path, body, self._headers)
        response = self._http.getresponse()
        data = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status} {data[:300]!r}")
        return data

    def json(self, method: str, path: str, body: Any = None) -> Any:
        return json.loads(self.call(method, path, None if body is None else json.dumps(body).encode()))


@dataclass
class Contender:
    name: str
    ask: Callable[[int], Any]  # sends query i, returns the raw answer: this is timed
    ids: Callable[[Any], Sequence[int]]  # reads the row numbers out of it: this isn't
    pid: int | None = None  # of its server
    us: list[float] = field(default_factory=list)
    found: list[Sequence[int]] = field(default_factory=list)
    cpu_us: float | None = None  # of the server per query, what it does in the background included


def embeddings(rows: int, queries: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Unit vectors of about 40 intrinsic dimensions in 100 loose clusters, which is hard enough
    that ef 50 misses some neighbours: (rows, DIM), (queries, DIM)."""
    rng = np.random.default_rng(7)
    count = rows + queries
    latent = 0.5 * rng.standard_normal((100, 40))[rng.integers(100, size=count)] + rng.standard_normal((count, 40))
    drawn = latent @ rng.standard_normal((40, DIM)) + 0.3 * rng.standard_normal((count, DIM))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn[:rows].astype(np.float32), drawn[rows:].astype(np.float32)


def graph(vectors: NDArray[np.float32]) -> hnswlib.Index:
    index = hnswlib.Index("cosine", vectors.shape[1])
    index.init_index(len(vectors), M=M, ef_construction=EF_CONSTRUCTION, random_seed=42)
    index.add_items(vectors)
    index.set_ef(EF_SEARCH)
    return index


# --- the contenders ------------------------------------------------------------------------------


def alone(vectors: NDArray[np.float32], queries: NDArray[np.float32]) -> Contender:
    index = graph(vectors)
    return Contender(
        "hnswlib alone",
        lambda i: index.knn_query(queries[i], K, num_threads=1),
        lambda answer: [int(row) for row in answer[0][0]],
    )


def serve_bare(path: str) -> None:
    """The child process: hnswlib behind one aiohttp handler and nothing else."""
    import asyncio

    import msgspec
    from aiohttp import web

    index = graph(np.load(path))

    class Body(msgspec.Struct):
        vector: list[float]

    decode, encode = msgspec.json.Decoder(Body).decode, msgspec.json.Encoder().encode

    async def search(request: web.Request) -> web.Response:
        vector = np.array(decode(await request.read()).vector, dtype=np.float32)
        ids, distances = index.knn_query(vector, K, num_threads=1)
        body = encode({"ids": ids[0].tolist(), "distances": distances[0].tolist()})
        return web.Response(body=body, content_type="application/json")

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/search", search)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(serve())


@contextlib.contextmanager
def bare(folder: Path, vectors: NDArray[np.float32], queries: NDArray[np.float32]) -> Iterator[Contender]:
    np.save(folder / "vectors.npy", vectors)
    command = [sys.executable, "-m", "benchmarks.http_search", "--serve-bare", str(folder / "vectors.npy")]
    with child(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        there = Connection(int(process.stdout.readline()))
        bodies = [json.dumps({"vector": query.tolist()}).encode() for query in queries]
        yield Contender(
            "bare aiohttp + hnswlib",
            lambda i: there.call("POST", "/search", bodies[i]),
            lambda answer: json.loads(answer)["ids"],
            process.pid,
        )


@contextlib.contextmanager
def lakehouse(folder: Path, vectors: NDArray[np.float32], queries: NDArray[np.float32]) -> Iterator[Contender]:
    port = free_port()
    settings = f"""
        [daemon]\nstate_dir = "{folder}/data"
        [http]\nport = {port}
        [ingest]\nallowed_roots = ["{folder}"]
        [agent]\nenabled = false
        [log]\nlevel = "warning"
    """
    (folder / "lakehouse.toml").write_text(settings.replace("        ", ""))
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIM)
    pq.write_table(pa.table({"id": pa.array(range(len(vectors))), "vector": column}), folder / "rows.parquet")
    with child([sys.executable, "-m", "daemon", "run", "--config", str(folder / "lakehouse.toml")]) as process:
        wait_for_port(port)
        token = (folder / "data" / "admin.token").read_text().strip()
        there = Connection(port, {"Authorization": f"Bearer {token}"})
        until(lambda: ready(there), "the daemon is ready")
        file = {"path": str(folder / "rows.parquet"), "dataset": "rows", "id_column": "id"}
        there.json("POST", "/ingest/file", file)
        config = {"M": M, "ef_construction": EF_CONSTRUCTION, "ef_search": EF_SEARCH}
        index = {"name": "docs", "dataset": "rows", "column": "vector", "metric": "cosine", "config": config}
        there.json("POST", "/vectors/indexes", index)
        until(lambda: there.json("GET", "/vectors/indexes/docs/stats")["generation"] > 0, "the index serves", 300)
        bodies = [
            json.dumps({"index": "docs", "vector": query.tolist(), "k": K, "columns": []}).encode() for query in queries
        ]
        yield Contender(
            "lakehouse over HTTP",
            lambda i: there.call("POST", "/vectors/search", bodies[i]),
            lambda answer: [int(hit["id"]) for hit in json.loads(answer)["queries"][0]],
            process.pid,
        )


def ready(there: Connection) -> bool:
    try:
        return bool(there.json("GET", "/ready")["ready"])
    except RuntimeError:
        return False


@contextlib.contextmanager
def chroma(
    folder: Path, python: Path, vectors: NDArray[np.float32], queries: NDArray[np.float32]
) -> Iterator[Contender]:
    port = free_port()
    program = python.with_name("chroma")
    command = [str(program), "run", "--path", str(folder / "chroma"), "--host", "127.0.0.1", "--port", str(port)]
    with child(command, stdout=subprocess.DEVNULL, env={**os.environ, "ANONYMIZED_TELEMETRY": "False"}) as process:
        wait_for_port(port)
        there = Connection(port)
        base = "/api/v2/tenants/default_tenant/databases/default_database/collections"
        hnsw = {"space": "cosine", "max_neighbors": M, "ef_construction": EF_CONSTRUCTION, "ef_search": EF_SEARCH}
        made = there.json("POST", base, {"name": "docs", "configuration": {"hnsw": hnsw}})
        for start in range(0, len(vectors), 1000):
            part = vectors[start : start + 1000]
            ids = [str(row) for row in range(start, start + len(part))]
            there.json("POST", f"{base}/{made['id']}/add", {"ids": ids, "embeddings": part.tolist()})
        path = f"{base}/{made['id']}/query"
        bodies = [
            json.dumps({"query_embeddings": [query.tolist()], "n_results": K, "include": ["distances"]}).encode()
            for query in queries
        ]
        yield Contender(
            "Chroma server",
            lambda i: there.call("POST", path, bodies[i]),
            lambda answer: [int(id) for id in json.loads(answer)["ids"][0]],
            process.pid,
        )


def install_chroma(folder: Path) -> Path:
    """A Python with chromadb in a venv of its own. Raises CalledProcessError."""
    subprocess.run([sys.executable, "-m", "venv", folder / "chroma-venv"], check=True, capture_output=True)
    python = folder / "chroma-venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "chromadb"], check=True, capture_output=True)
    return python


# --- processes -----------------------------------------------------------------------------------


@contextlib.contextmanager
def child(command: list[str], **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, cwd=ROOT, **more)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def wait_for_port(port: int) -> None:
    def open_() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    until(open_, f"port {port} is open")


def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s until {what}")
        time.sleep(0.1)


# --- the measurement -----------------------------------------------------------------------------


def measure(contenders: list[Contender], queries: int) -> None:
    for i in range(WARM_UP):
        for contender in contenders:
            contender.ask(i % queries)
    before = [cpu_s(contender.pid) for contender in contenders]
    for i in range(queries):
        for contender in contenders:
            began = time.perf_counter()
            answer = contender.ask(i)
            contender.us.append((time.perf_counter() - began) * 1e6)
            contender.found.append(contender.ids(answer))
    for contender, began in zip(contenders, before, strict=True):
        if contender.pid is not None:
            contender.cpu_us = (cpu_s(contender.pid) - began) / queries * 1e6


def cpu_s(pid: int | None) -> float:
    """CPU time that a process has used; a busy machine doesn't change it much."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def report(contenders: list[Contender], truth: NDArray[np.int64]) -> None:
    peer = next((statistics.median(c.us) for c in contenders if c.name == "Chroma server"), None)
    print(f"{'':24} {'p50 µs':>8} {'p95 µs':>8} {'CPU µs':>8} {'recall@10':>10} {'× Chroma':>9}")
    for contender in contenders:
        p50, p95 = np.percentile(contender.us, [50, 95])
        recall = np.mean([len(set(ids) & set(true)) / K for ids, true in zip(contender.found, truth, strict=True)])
        ratio = f"{p50 / peer:.2f}" if peer else "-"
        cpu = "-" if contender.cpu_us is None else f"{contender.cpu_us:.0f}"
        print(f"{contender.name:24} {p50:8.0f} {p95:8.0f} {cpu:>8} {recall:10.4f} {ratio:>9}")
    print(f"goal: lakehouse at most {GOAL} × Chroma's p50 at equal recall")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--chroma", type=Path, help="a Python that has chromadb")
    parser.add_argument("--serve-bare", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_bare:
        serve_bare(options.serve_bare)
        return
    vectors, queries = embeddings(options.rows, options.queries)
    truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :K]  # (queries, K)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as running:
        folder = Path(name)
        contenders = [running.enter_context(lakehouse(folder, vectors, queries))]
        try:
            python = options.chroma or install_chroma(folder)
            contenders.append(running.enter_context(chroma(folder, python, vectors, queries)))
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"Chroma is left out: it can't be installed or started here ({error})")
        contenders.append(running.enter_context(bare(folder, vectors, queries)))
        contenders.append(alone(vectors, queries))
        measure(contenders, options.queries)
        report(contenders, truth)


if __name__ == "__main__":
    main()
