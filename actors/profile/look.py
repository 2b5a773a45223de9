"""Looking: what the model servers list and what the GPU's driver says, all asked at once. A server
that can't answer is a reason, never an error.
"""

from collections.abc import Collection, Mapping, Sequence

import anyio
import msgspec
import structlog

from actors.errors import ModelServerError, Transient, Unavailable
from actors.ports import Clock, Gpus, ModelServer
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


class View(msgspec.Struct, frozen=True):
    """What each server listed at a moment; None where it didn't answer, with the reason."""

    seen: Mapping[ServerName, Sequence[LoadedModel] | None]
    reasons: Mapping[ServerName, str] = {}

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
        self._last: dict[ServerName, tuple[Seconds, Sequence[LoadedModel]]] = {}
        self._listed: dict[ModelRef, tuple[Seconds, LoadedModel]] = {}
        self._left: dict[ModelRef, Seconds] = {}
        self._silent: dict[ServerName, str] = {}

    async def look(self, only: Collection[ServerName] | None = None, within_s: Seconds | None = None) -> View:
        """Ask the servers (`only` some) what is loaded, each for at most `within_s`."""
        async with together() as group:
            asked = {
                name: group.create_task(self._ask(server, within_s))
                for name, server in self._servers.items()
                if only is None or name in only
            }
        answers = {name: task.result() for name, task in asked.items()}
        for name, answer in answers.items():
            self._remember(name, answer)
        return View(
            {name: None if isinstance(answer, str) else answer for name, answer in answers.items()},
            {name: answer for name, answer in answers.items() if isinstance(answer, str)},
        )

    async def gpus(self) -> GpuReading:
        return await self._gpus.read()

    async def both(
        self, only: Collection[ServerName] | None = None, within_s: Seconds | None = None
    ) -> tuple[View, GpuReading]:
        """Servers and GPU at the same time."""
        async with together() as group:
            view, gpus = group.create_task(self.look(only, within_s)), group.create_task(self._gpus.read())
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
        self._left = {ref: at for ref, at in self._left.items() if now - at < LAG_S}
        return set(self._left)

    @property
    def anything(self) -> bool:
        """Whether any server had a model when it was last seen."""
        return any(models for _, models in self._last.values())

    def may_hold(self, server: ServerName) -> Sequence[LoadedModel]:
        """What a silent server may still have in memory."""
        at, models = self._last.get(server, (0.0, ()))
        return models if self._clock.monotonic() - at <= BELIEVED_S else ()

    def reports(self, view: View) -> list[ServerReport]:
        return [
            ServerReport(
                name, self._servers[name].url, models is not None, view.reasons.get(name, ""), list(models or ())
            )
            for name, models in view.seen.items()
        ]

    async def _ask(self, server: ModelServer, within_s: Seconds | None) -> list[LoadedModel] | str:
        with anyio.move_on_after(within_s):
            try:
                return await server.loaded()
            except (Unavailable, Transient, ModelServerError) as error:
                return str(error)
        return f"{server.name} at {server.url}: no answer within {within_s:g} s"

    def _remember(self, name: ServerName, answer: list[LoadedModel] | str) -> None:
        if isinstance(answer, str):
            if name not in self._silent:
                log.info("a model server doesn't answer", server=name, reason=answer)
            self._silent[name] = answer
            return
        if self._silent.pop(name, None) is not None:
            log.info("a model server answers again", server=name)
        now = self._clock.monotonic()
        self._last[name] = (now, answer)
        self._listed |= {model.ref: (now, model) for model in answer}
