"""The graph cache: graphs that trials built, kept as plain files so that a promoted one needs
no second build. Shared by the lab, which fills it, and the builder, which takes from it.

Only graphs of this process's hnswlib build are given out. A graph counts once its sidecar is
there; the sidecar is written last. A cache: losing it costs time, never data.
"""

import contextlib
import os
import shutil
from pathlib import Path

import msgspec

from actors.hnsw import LIBRARY
from schemas.config import GraphConfig
from schemas.names import Bytes, IndexName, Rows, Seconds, Sha256

LIVE = "+live-"
"""Stands in the names, `<index>+live-<sha256>`, under which a generation's graph is kept after
it was brought up to a newer version. No index's own name has a `+`."""


class Sidecar(msgspec.Struct, frozen=True):
    """What lies beside a cached graph as `.json`."""

    rows: Rows
    sha256: Sha256
    library: str
    build_s: Seconds


class CachedGraph(msgspec.Struct, frozen=True):
    path: Path
    sha256: Sha256
    rows: Rows
    version: int  # dataset version that it covers
    build_s: Seconds
    library: str


class GraphCache:
    """Files under `root/<index>/`. Over `limit_bytes`, the least recently used go first."""

    def __init__(self, root: Path, limit_bytes: Bytes) -> None:
        self._root = root
        self._limit_bytes = limit_bytes

    def path_for(self, index: IndexName, graph: GraphConfig, version: int) -> Path:
        """Where the graph belongs; its folder exists afterwards. Write it with `hnsw.save`,
        which replaces atomically, then `add` it."""
        folder = self._root / index
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"v{version}-M{graph.M}-efc{graph.ef_construction}-s{graph.seed}.hnsw"

    def find(self, index: IndexName, graph: GraphConfig, version: int) -> CachedGraph | None:
        """The cached graph, marked as used now; None when there is none that this build of
        hnswlib can read."""
        path = self.path_for(index, graph, version)
        try:
            sidecar = msgspec.json.decode(_sidecar(path).read_bytes(), type=Sidecar)
            os.utime(path)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        if sidecar.library != LIBRARY:
            return None
        return CachedGraph(path, sidecar.sha256, sidecar.rows, version, sidecar.build_s, sidecar.library)

    def add(
        self, index: IndexName, graph: GraphConfig, version: int, *, sha256: Sha256, rows: Rows, build_s: Seconds
    ) -> CachedGraph:
        """Makes the file at `path_for` count, and evicts others when the cache is too large."""
        path = self.path_for(index, graph, version)
        side = _sidecar(path)
        temporary = side.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(msgspec.json.encode(Sidecar(rows, sha256, LIBRARY, build_s)))
        os.replace(temporary, side)
        os.utime(path)
        self._evict(keep=path)
        return CachedGraph(path, sha256, rows, version, build_s, LIBRARY)

    def drop(self, index: IndexName) -> None:
        """Forget an index's graphs, and those that the lab derived from its live ones."""
        for folder in (self._root / index, *self._root.glob(f"{index}{LIVE}*")):
            shutil.rmtree(folder, ignore_errors=True)

    def _evict(self, keep: Path) -> None:
        found = []
        for path in self._root.glob("*/*.hnsw"):
            with contextlib.suppress(FileNotFoundError):  # another process evicts too
                found.append((path.stat().st_mtime, path.stat().st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._limit_bytes:
                return
            if path == keep:
                continue
            _sidecar(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            total -= size


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")
