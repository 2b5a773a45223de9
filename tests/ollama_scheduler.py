"""What Ollama's scheduler does with models and a GPU's memory, for the server in tests/ollama_server.py.

Written from server/sched.go: one load at a time; idle runners make room; a model that still
doesn't fit is put on the GPU in part; a runner that works is only stopped when it is done; a load
whose caller hangs up is given up. `Play` says how long things take and what goes wrong.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

MIB = 1 << 20
GIB = 1 << 30
FOR_EVER = float("inf")
DEFAULT_KEEP_ALIVE_S = 300.0


class Model(msgspec.Struct, frozen=True):
    size: int  # bytes of its files
    memory: int | None = None  # bytes in memory; None: as its files
    embedding: bool = False  # embeds only
    context_length: int = 4096

    @property
    def needs(self) -> int:
        return self.size if self.memory is None else self.memory


class Play(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the server has and how it behaves, now. All times are seconds."""

    models: dict[str, Model] = {}
    vram: int = 24 * GIB  # 0: a machine without a GPU
    others: int = 0  # GPU memory that other programs hold
    max_loaded: int = 3
    load_s: float = 0.02
    generate_s: float = 0.0
    embed_s: float = 0.002
    listed_s: float = 0.02  # an unloaded model is listed for so long
    drain_s: float = 0.05  # its memory is free after so long, whether it is listed or not …
    drain_steps: int = 4  # … in so many steps; 1: all at once at the end
    stuck: list[str] = []  # models whose unload never ends ("Stopping…")
    leaks: dict[str, int] = {}  # bytes that an unloaded model leaves behind on the GPU
    partial: dict[str, float] = {}  # share of a model that gets onto the GPU, whatever is free
    broken: dict[str, str] = {}  # models that don't load, and what the server says then
    queue_full: bool = False
    stale_ps: bool = False  # /api/ps goes on saying what it said when this was set
    slow: dict[str, float] = {}  # before any answer, by path: {"/api/ps": 30}


class LoadError(Exception):
    """A runner that didn't start; the server's words."""


@dataclass(eq=False)
class Runner:
    """A process that holds a model."""

    name: str
    size: int
    vram: int  # bytes on the GPU now
    keep_alive_s: float
    size_vram: int = 0  # as reported
    expires_at: float = 0.0  # 0: not known yet, it loads
    users: int = 0
    stopping: bool = False
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    timer: asyncio.TimerHandle | None = None


class Scheduler:
    def __init__(self, play: Play, gpu_file: Path | None = None) -> None:
        self.play = play
        self.listed: dict[str, Runner] = {}
        self._holding: set[Runner] = set()  # with memory, listed or not
        self._leaked = 0
        self._loading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._gpu_file = gpu_file
        self.report()

    def changed(self) -> None:
        """`play` is another one now."""
        self._changed.set()
        self._changed = asyncio.Event()
        self.report()

    @property
    def used(self) -> int:
        """Bytes of the GPU that are taken."""
        return self.play.others + self._leaked + sum(runner.vram for runner in self._holding)

    @property
    def free(self) -> int:
        return self.play.vram - self.used

    @asynccontextmanager
    async def using(self, name: str, keep_alive_s: float | None) -> AsyncIterator[Runner]:
        """A loaded runner, which stays as long as it is used. Raises LoadError."""
        async with self._loading:
            while (runner := self.listed.get(name)) is not None and runner.stopping:
                await runner.gone.wait()
            if runner is None:
                runner = await self._load(name, DEFAULT_KEEP_ALIVE_S if keep_alive_s is None else keep_alive_s)
            elif keep_alive_s is not None:
                runner.keep_alive_s = keep_alive_s
            runner.users += 1
            self._cancel_timer(runner)
        try:
            yield runner
        finally:
            runner.users -= 1
            if runner.users == 0:
                self._idle(runner)

    async def expire(self, name: str) -> None:
        """Unload it when it is idle. Returns before that, but not before a load has ended."""
        runner = self.listed.get(name)
        if runner is None:
            return
        await runner.ready.wait()
        runner.expires_at = time.time()
        runner.keep_alive_s = 0.0
        self._cancel_timer(runner)
        if runner.users == 0:
            self._stop(runner)

    async def aclose(self) -> None:
        for runner in self.listed.values():
            self._cancel_timer(runner)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def report(self) -> None:
        """The GPU file, replaced at once: its reader never sees half of it."""
        if self._gpu_file is not None:
            new = self._gpu_file.with_suffix(".new")
            new.write_text(json.dumps({"total": self.play.vram, "used": min(self.used, self.play.vram)}))
            os.replace(new, self._gpu_file)

    async def _load(self, name: str, keep_alive_s: float) -> Runner:
        model = self.play.models[name]
        share = self.play.partial.get(name, 1.0)
        await self._make_room(int(model.needs * share))
        on_gpu = max(0, min(int(model.needs * share), self.free))
        runner = Runner(name, model.needs, on_gpu, keep_alive_s, size_vram=on_gpu)
        self.listed[name] = runner
        self._holding.add(runner)
        self.report()
        try:
            await asyncio.sleep(self.play.load_s)
            if name in self.play.broken:
                raise LoadError(self.play.broken[name])
        except BaseException:
            self._stop(runner)
            raise
        finally:
            runner.ready.set()
        return runner

    async def _make_room(self, needs: int) -> None:
        while True:
            idle = [runner for runner in self.listed.values() if not runner.users]
            fits = needs <= self.free or not self.play.vram  # into main memory, of which there is enough
            if not idle or (fits and len(self.listed) < self.play.max_loaded):
                return
            victim = min(idle, key=lambda runner: (runner.keep_alive_s, runner.name))
            self._stop(victim)
            await victim.gone.wait()

    def _idle(self, runner: Runner) -> None:
        if runner.keep_alive_s <= 0:
            self._stop(runner)
            return
        runner.expires_at = time.time() + runner.keep_alive_s
        if runner.keep_alive_s < FOR_EVER:
            loop = asyncio.get_running_loop()
            runner.timer = loop.call_later(runner.keep_alive_s, self._stop, runner)

    def _cancel_timer(self, runner: Runner) -> None:
        if runner.timer is not None:
            runner.timer.cancel()
            runner.timer = None

    def _stop(self, runner: Runner) -> None:
        if runner.stopping:
            return
        runner.stopping = True
        self._cancel_timer(runner)
        task = asyncio.create_task(self._end(runner))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self, runner: Runner) -> None:
        while runner.name in self.play.stuck:
            await self._changed.wait()
        await asyncio.gather(self._unlist(runner), self._drain(runner))
        runner.gone.set()

    async def _unlist(self, runner: Runner) -> None:
        await asyncio.sleep(self.play.listed_s)
        del self.listed[runner.name]

    async def _drain(self, runner: Runner) -> None:
        steps = max(1, self.play.drain_steps)
        held = runner.vram
        for step in range(1, steps + 1):
            await asyncio.sleep(self.play.drain_s / steps)
            runner.vram = held - held * step // steps
            self.report()
        self._holding.discard(runner)
        self._leaked += self.play.leaks.get(runner.name, 0)
        self.report()
