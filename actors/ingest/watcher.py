"""The folder watcher: files that appear or grow in a watched folder are asked to be ingested, once
each. When one is ready is decided in core_watch.py.

It looks at the folders every half second or so instead of being told by the kernel: it has to wait
for files to settle anyway, and network file systems tell nothing. What was dealt with is kept by
path and content, so that neither a restart nor a `touch` ingests a file again.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Never, Protocol

import structlog
from anyio import to_thread

from actors.base import Actor, every
from actors.errors import Refused, Unavailable
from actors.ingest.config import WatchConfig
from actors.ingest.core_watch import REASON, REJECTED, Sighting, Stamp, ready, wanted, watched
from actors.ports import Bus, Clock
from schemas.documents.watch import SeenFile
from schemas.events.base import Message, Refusal
from schemas.events.dataset import DatasetInfo, GetDataset, IngestFile, IngestReport

log = structlog.get_logger(__name__)

LATER = ("unavailable", "busy")
"""Refusals that are not about the file; a conflict is when it changed while it was read."""


class SeenFiles(Protocol):
    """What was dealt with, for ever."""

    async def all(self) -> list[SeenFile]: ...
    async def append(self, seen: Sequence[SeenFile]) -> None:
        """Durable on return."""
        ...


class Watcher(Actor):
    """Has files ingested that land in folders."""

    def __init__(self, seen: SeenFiles, bus: Bus, clock: Clock, watches: Sequence[WatchConfig]) -> None:
        self._seen = seen
        self._bus = bus
        self._clock = clock
        self._watches = watches
        self.wake_s = min((max(0.2, min(watch.settle_s / 2, 1.0)) for watch in watches), default=0.0)
        self._known: set[tuple[str, str, str]] = set()  # dataset, path, sha256
        self._sightings: dict[int, dict[str, Sighting]] = {}  # by watch
        self._done: dict[int, dict[str, Stamp]] = {}
        self._missing: set[str] = set()  # folders that aren't there, told once

    async def start(self) -> Sequence[Message]:
        if self._watches:
            self._known = {(one.dataset, one.path, one.sha256) for one in await self._seen.all()}
        return ()

    @every("wake_s")
    async def on_wake(self) -> Sequence[Never]:
        """Look at every folder, and read what is ready."""
        for number, watch in enumerate(self._watches):
            found = await to_thread.run_sync(_look, watch)
            if found is None:
                if watch.path not in self._missing:
                    log.error("a watched folder can't be read", path=watch.path)
                self._missing.add(watch.path)
                continue
            self._missing.discard(watch.path)
            now = self._clock.monotonic()
            sightings = watched(self._sightings.get(number, {}), found, now)
            done = {path: stamp for path, stamp in self._done.get(number, {}).items() if path in found}
            self._sightings[number], self._done[number] = sightings, done
            for path in ready(sightings, done, now, watch.settle_s):
                if await self._read(watch, path):
                    done[path] = sightings[path].stamp
        return ()

    async def _read(self, watch: WatchConfig, relative: str) -> bool:
        """Deal with one file; False when it has to wait."""
        path = Path(watch.path) / relative
        try:
            sha256 = await to_thread.run_sync(_digest, path)
        except OSError as error:
            log.warning("a watched file can't be read yet", path=str(path), reason=str(error))
            return False
        key = (watch.dataset, str(path), sha256)
        if key in self._known:
            return True
        there = await self._dataset(watch)
        if there is not None and any(each.source == str(path) and each.sha256 == sha256 for each in there.commits):
            await self._remember(key, 0, "", "")  # a crash came between the commit and our own note of it
            return True
        command = IngestFile(
            path=str(path), dataset=watch.dataset, bucket=None if there else watch.bucket, format=watch.format,
            mode=watch.mode, id_column=watch.id_column, vector_column=watch.vector_column, pii=watch.pii,
        )  # fmt: skip
        try:
            report: IngestReport = await self._bus.ask(command, timeout_s=24 * 3600)
        except Refused as error:
            return await self._refused(watch, relative, key, error.refusal)
        except Unavailable as error:
            log.warning("a watched file waits", path=str(path), reason=str(error))
            return False
        await self._remember(key, report.rows, report.ingest, "")
        return True

    async def _refused(self, watch: WatchConfig, relative: str, key: tuple[str, str, str], refusal: Refusal) -> bool:
        changed = refusal.status == "conflict" and "changed while it was read" in refusal.reason
        if refusal.status in LATER or changed:
            return False
        try:
            await to_thread.run_sync(_reject, Path(watch.path), relative, refusal)
        except OSError as error:
            log.error("a bad file can't be set aside", path=key[1], reason=str(error))
        await self._remember(key, 0, "", refusal.reason)
        return True

    async def _dataset(self, watch: WatchConfig) -> DatasetInfo | None:
        """The dataset, wherever it has its home by now; None when there is none yet."""
        try:
            return await self._bus.ask(GetDataset(watch.dataset))
        except (Refused, Unavailable):
            return None

    async def _remember(self, key: tuple[str, str, str], rows: int, ingest: str, rejected: str) -> None:
        if key in self._known:
            return
        await self._seen.append([SeenFile(*key, rows, ingest or "unknown", rejected, self._clock.now())])
        self._known.add(key)


def _look(watch: WatchConfig) -> dict[str, Stamp] | None:
    """Files to ingest by path within the folder; None when it can't be read."""
    found: dict[str, Stamp] = {}
    root = Path(watch.path)
    if not root.is_dir():
        return None
    for folder, folders, files in os.walk(root):
        folders[:] = [
            name for name in folders if not name.startswith(".") and not (folder == watch.path and name == REJECTED)
        ]
        for name in files:
            path = Path(folder) / name
            relative = path.relative_to(root).as_posix()
            if not wanted(relative, watch.pattern):
                continue
            try:
                stat = path.stat()
            except OSError:  # gone meanwhile, or a link to nowhere
                continue
            found[relative] = Stamp(stat.st_size, stat.st_mtime_ns, stat.st_ino)
    return found


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reject(root: Path, relative: str, refusal: Refusal) -> None:
    """Move a file out of the way, with the reason beside it. The reason first: a file without one
    would leave its owner guessing."""
    target = root / REJECTED / relative
    target.parent.mkdir(parents=True, exist_ok=True)
    base, count = target, 0
    while target.exists():
        count += 1
        target = base.with_name(f"{base.stem}.{count}{base.suffix}")
    text = refusal.reason + (f"\n{refusal.hint}" if refusal.hint else "") + "\n"
    target.with_name(target.name + REASON).write_text(text, encoding="utf-8")
    shutil.move(root / relative, target)
