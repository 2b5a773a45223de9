"""The heart: consume → decode → handle → publish what the handler returned → ack.

`Runtime` runs the actors whose role this process has, each under the supervisor
(daemon/supervisor.py), and drains them. One actor's loops are in daemon/life.py, asks in
daemon/answers.py, what becomes of errors in daemon/retry.py.
"""

import asyncio
import random
from collections.abc import Collection, Sequence
from functools import partial
from types import TracebackType
from typing import Self

import anyio
import structlog
from anyio.abc import TaskStatus

from actors.base import ROLES, Actor, Role, owners
from actors.ports import Clock
from daemon.bus.base import MessageBus
from daemon.bus.streams import ACK_WAIT_S, durables_of
from daemon.life import Drain, Life, Observe
from daemon.supervisor import CrashedTooOften, first_of, supervise
from daemon.unsettled import Unsettled

log = structlog.get_logger("lakehouse.runtime")

HOLD_S = ACK_WAIT_S / 3
"""While a handler is at work, its message is reported in progress this often. No heartbeat of a
healthy actor is older."""


class Runtime:
    """Runs actors on a bus: `async with Runtime(bus, actors): ...`, or `run` in a task group.

    Ownership is checked over all `actors`; those whose role isn't among `roles` don't run here,
    and asks to them go over the bus. `drain_s` is how long handlers may take to finish at the end;
    `rng` jitters restarts; `observe` hears of every delivery; `unsettled` remembers over restarts
    which messages took the process with them.
    """

    def __init__(
        self,
        bus: MessageBus,
        actors: Sequence[Actor],
        roles: Collection[Role] = ROLES,
        clock: Clock | None = None,
        *,
        drain_s: float = 20.0,
        rng: random.Random | None = None,
        observe: Observe | None = None,
        unsettled: Unsettled | None = None,
    ) -> None:
        kinds = [type(actor) for actor in actors]
        owners(kinds)
        names = [durable.name for durable in durables_of(kinds)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise TypeError(f"two handlers of one actor take the same message: {', '.join(sorted(twice))}")
        self._bus = bus
        self._clock = clock or bus.clock
        self._drain = Drain()
        self._drain_s = drain_s
        self._rng = rng
        self._lives = [
            Life(actor, bus, self._clock, self._drain, observe, unsettled) for actor in actors if actor.role in roles
        ]
        self._task: asyncio.Task[None] | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run until `drain`; `started()` once every actor has. Raises CrashedTooOften."""
        for life in self._lives:
            await life.open()
        try:
            await self._run(task_status)
        except BaseExceptionGroup as group:
            if crashed := group.subgroup(CrashedTooOften):
                raise first_of(crashed) from None  # one sentence, not a tree of groups
            raise

    async def _run(self, task_status: TaskStatus[None]) -> None:
        async with anyio.create_task_group() as around:
            around.start_soon(self._hold)
            async with anyio.create_task_group() as living:
                around.start_soon(self._end, living.cancel_scope)
                for life in self._lives:
                    living.start_soon(partial(supervise, life.name, life.run, self._clock, rng=self._rng))
                for life in self._lives:
                    await self._drain.unless(life.ready.wait())
                task_status.started()
                await self._drain.begun.wait()
                living.start_soon(self._finish_asks)
            around.cancel_scope.cancel()

    def drain(self) -> None:
        """Take nothing new, finish what is in hand or give it back; `run` then returns."""
        self._drain.begin()

    def heartbeats(self) -> dict[str, float]:
        """Per actor, the monotonic time when one of its loops last turned."""
        return {life.name: life.beat for life in self._lives}

    async def __aenter__(self) -> Self:
        started = asyncio.Event()

        class Started(TaskStatus[None]):
            def started(self, value: None = None) -> None:
                started.set()

        self._task = asyncio.create_task(self.run(task_status=Started()))
        self._task.add_done_callback(lambda _: started.set())
        await started.wait()
        if self._task.done():
            await self._task
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drain()
        if self._task:
            await self._task

    async def _end(self, living: anyio.CancelScope) -> None:
        """Give a drain its deadline."""
        await self._drain.begun.wait()
        await self._clock.sleep(self._drain_s)
        log.warning("not all finished in time: the rest is given back", seconds=self._drain_s)
        living.cancel()

    async def _finish_asks(self) -> None:
        async with anyio.create_task_group() as finishing:
            finishing.start_soon(self._bus.stop_answering)
            for life in self._lives:
                finishing.start_soon(life.answers.finish)

    async def _hold(self) -> None:
        """Report every message in hand as in progress, so that nobody else gets it, and keep the
        beat of those at work: a trial takes minutes. A blocked event loop stops both."""
        while True:
            await self._clock.sleep(HOLD_S)
            for life in self._lives:
                for delivery in list(life.in_hand):
                    await delivery.in_progress()
                if life.at_work:
                    life.turn()
