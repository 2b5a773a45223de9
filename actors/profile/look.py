"""Looking: what the model servers list and what the GPU's driver says, all asked at once. A server
that can't answer is a reason, never an error.
"""

import math
from collections.abc import Collection, Mapping, Sequence

import anyio
import msgspec
import structlog

from actors.errors import ModelServerError, Transient, Unavailable
from actors.ports import Clock, Gpus, ModelServer
from actors.profile.core import called
from actors.profile.core_reconcile import find
from actors.profile.together import together
from schemas.events.profile import GpuReading, LoadedModel, ModelRef, ServerReport
from schemas.names import Seconds, ServerName

log = structlog.get_logger("lakehouse.slot")

BELIEVED_S = 60.0
"""A server that listed models and then falls silent may still have them for so long; later it is
taken to have ended, unless the slot itself waits for it."""

LAG_S = 1.0
"""No server's list was seen to lag longer behind."""

LOOK_S = 2.0
"""How long a server is waited for that an order doesn't need; and one poll of many."""

SILENT_S = 0.2
"""As LOOK_S, for a server that didn't answer the last time either: it must not hold up every order."""


class View(msgspec.Struct, frozen=True):
    """What each server listed at a moment; None where it didn't answer, with the reason."""

    seen: Mapping[ServerName, Sequence[LoadedModel] | None]
    reasons: Mapping[ServerName, str] = {}
    hurried: Collection[ServerName] = ()  # of those, whom more time might have made answer

    @property
    def running(self) -> list[LoadedModel]:
        return [model for models in self.seen.values() for model in models or ()]

    def of(self, refs: Sequence[ModelRef]) -> list[LoadedModel]:
        return [model for ref in refs if (model := find(ref, self.seen)) is not None]


class Lookout:
    """Looks, and remembers what it saw last."""

    def __init__(self, servers: Mapping[ServerName, ModelServer], gpus: Gpus, clock: Clock) -> None:
        self._servers = servers
        self._gpus = gpus
        self._clock = clock
        self._last: dict[ServerName, tuple[Seconds, Sequence[LoadedModel]]] = {}  # by when it was asked
        self._listed: dict[ModelRef, tuple[Seconds, LoadedModel]] = {}
        self._left: dict[ModelRef, Seconds] = {}
        self._silent: dict[ServerName, Seconds] = {}  # since which look

    async def look(
        self,
        only: Collection[ServerName] | None = None,
        within_s: Seconds | None = None,
        needed: Collection[ServerName] | None = None,
    ) -> View:
        """Ask the servers (`only` some) what is loaded, each for at most `within_s`. `needed`: what is to be done
        depends on these, which get the time that [models] gives them; as do those that may have something in
        memory. The others' silence means little, and is waited for `within_s`, or less."""
        at = self._clock.monotonic()
        async with together() as group:
            asked = {
                name: group.create_task(self._ask(server, self._patience(name, within_s, needed)))
                for name, server in self._servers.items()
                if only is None or name in only
            }
        answers = {name: task.result() for name, task in asked.items()}
        for name, answer in answers.items():
            self._remember(name, answer, at)
        return View(
            {name: None if isinstance(answer, _Silence) else answer for name, answer in answers.items()},
            {name: answer.reason for name, answer in answers.items() if isinstance(answer, _Silence)},
            {name for name, answer in answers.items() if isinstance(answer, _Silence) and answer.hurried},
        )

    async def insist(self, view: View, needed: Collection[ServerName]) -> View:
        """The same look, once those have had their time which turned out to be needed."""
        again = [name for name in needed if name in view.hurried]
        if not again:
            return view
        more = await self.look(again)
        reasons = {name: reason for name, reason in view.reasons.items() if name not in again}
        return View({**view.seen, **more.seen}, {**reasons, **more.reasons}, set(view.hurried) - set(again))

    async def gpus(self) -> GpuReading:
        return await self._gpus.read()

    async def both(
        self,
        only: Collection[ServerName] | None = None,
        within_s: Seconds | None = None,
        needed: Collection[ServerName] | None = None,
    ) -> tuple[View, GpuReading]:
        """Servers and GPU at the same time."""
        async with together() as group:
            view = group.create_task(self.look(only, within_s, needed))
            gpus = group.create_task(self._gpus.read())
        return view.result(), gpus.result()

    def last(self, refs: Sequence[ModelRef]) -> list[LoadedModel]:
        """These models as they were seen last, without asking."""
        return View({name: models for name, (_, models) in self._last.items()}).of(refs)

    def recent(self, view: View) -> list[LoadedModel]:
        """Models that a look misses and that were listed a moment ago: the list may be an old one."""
        now, here = self._clock.monotonic(), {model.ref for model in view.running}
        return [model for ref, (at, model) in self._listed.items() if now - at < LAG_S and ref not in here]

    def forget(self, refs: Sequence[ModelRef]) -> None:
        """They were seen to leave."""
        for ref in refs:
            self._listed.pop(ref, None)
            self._left[ref] = self._clock.monotonic()

    @property
    def just_left(self) -> set[ModelRef]:
        """What a list that lags may still show."""
        now = self._clock.monotonic()
        return {ref for ref, at in self._left.items() if now - at < LAG_S}

    @property
    def anything(self) -> bool:
        """Whether any server had a model when it was last seen."""
        return any(models for _, models in self._last.values())

    def may_hold(self, server: ServerName) -> Sequence[LoadedModel]:
        """What a silent server may still have in memory."""
        at, models = self._last.get(server, (0.0, ()))
        return models if self._clock.monotonic() - at <= BELIEVED_S else ()

    def ends_in(self, server: ServerName) -> Seconds | None:
        """When a silent server is taken to have ended, for what a person orders: 0 when it is by now; None when
        it answered the last time."""
        since = self._silent.get(server)
        return None if since is None else max(0.0, since + BELIEVED_S - self._clock.monotonic())

    def ended(self, view: View) -> set[ServerName]:
        """Servers that this look misses, as all have for BELIEVED_S."""
        return {name for name, models in view.seen.items() if models is None and self.ends_in(name) == 0}

    def reports(self, view: View) -> list[ServerReport]:
        return [
            ServerReport(
                name, self._servers[name].url, models is not None, view.reasons.get(name, ""), list(models or ())
            )
            for name, models in view.seen.items()
        ]

    def _patience(
        self, name: ServerName, within_s: Seconds | None, needed: Collection[ServerName] | None
    ) -> Seconds | None:
        if needed is None:
            return within_s
        if name in needed or self.may_hold(name):
            return None
        if within_s is not None:
            return within_s
        return SILENT_S if name in self._silent else LOOK_S

    async def _ask(self, server: ModelServer, within_s: Seconds | None) -> "list[LoadedModel] | _Silence":
        with anyio.move_on_after(within_s):
            try:
                return await server.loaded()
            except (Unavailable, Transient, ModelServerError) as error:
                return _Silence(str(error))
        return _Silence(f"{called(server.name)} at {server.url}: no answer within {within_s:g} s", hurried=True)

    def _remember(self, name: ServerName, answer: "list[LoadedModel] | _Silence", asked: Seconds) -> None:
        """Looks may overlap: the one that asked later knows better, whichever is answered first."""
        before, _ = self._last.get(name, (-math.inf, ()))
        if isinstance(answer, _Silence):
            if name not in self._silent:
                log.info("a model server doesn't answer", server=name, reason=answer.reason)
            self._silent.setdefault(name, asked)
            return
        if name in self._silent:
            del self._silent[name]
            log.info("a model server answers again", server=name)
        if asked < before:
            return
        self._last[name] = (asked, answer)
        now = self._clock.monotonic()
        self._left = {ref: at for ref, at in self._left.items() if now - at < BELIEVED_S}
        self._listed |= {model.ref: (now, model) for model in answer if self._left.get(model.ref, -1.0) < asked}


class _Silence(msgspec.Struct, frozen=True):
    """A server's answer that didn't come."""

    reason: str
    hurried: bool = False  # it might have come, had there been more time
