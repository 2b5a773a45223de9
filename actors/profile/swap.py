"""The effects of one order on the GPU: models leave, models come, each checked by what is listed and
by the driver's readings. Nothing here decides; a failure is returned as `Trouble`, in words for
people, and the order (activation.py, unloading.py, preloading.py) goes on from there.
"""

from collections.abc import Collection, Mapping, Sequence

import anyio
import msgspec

from actors.errors import ModelServerError, Transient, Unavailable, UnknownAdapter
from actors.ports import Bus, Clock, ModelServer
from actors.profile.config import SlotConfig
from actors.profile.core import called, placed
from actors.profile.core_reconcile import Presence, presence, why
from actors.profile.core_settle import BLIND_S, Owed, Sample, awaited, owed
from actors.profile.look import LOOK_S, Lookout, View
from actors.profile.together import Stopwatch, together
from actors.profile.unload_watch import UnloadWatch
from schemas.documents.profile import ModelMeasure
from schemas.events.base import Progress, Refusal, RefusalStatus
from schemas.events.profile import GpuReading, LoadedModel, ModelLoaded, ModelRef, ModelUnloaded
from schemas.names import Bytes, Seconds, ServerName
from schemas.profile import Adapter

ADAPTER_HINT = "start llama-server with --lora FILE, or take the adapter out of the profile"

UNREAD = GpuReading([], "none", "not asked")

FIRST_POLL_S, LAST_POLL_S, POLL_SHARE = 0.004, 0.25, 0.015
"""The pause between polls is a share of the wait so far, within these: what is noticed late stays
about one per cent of what was waited for."""

ASK_S = 5.0
"""An unload that isn't answered is asked for again."""

CHECK_S = 2.0
"""How long a server's list may lag behind its word that a model is loaded."""

BUSY_S = 10.0
"""How long a server may be too busy to load before that is a failure."""


class Trouble(msgspec.Struct, frozen=True):
    """Why an effect didn't come about."""

    reason: str
    status: RefusalStatus = "conflict"
    hint: str = ""
    retry_after_s: float | None = None

    def refusal(self, reason: str = "", hint: str = "") -> Refusal:
        return Refusal(self.status, reason or self.reason, hint or self.hint, self.retry_after_s)


class Terms(msgspec.Struct, frozen=True):
    """How a profile's models are loaded."""

    keep_alive_s: Seconds
    adapters: Sequence[Adapter] = ()
    adapted: ModelRef | None = None  # the model that they go on
    reason: str = ""


class Effects:
    """Of one order. `facts` are what came of it, `touched` what may be in memory because of it."""

    def __init__(
        self,
        servers: Mapping[ServerName, ModelServer],
        lookout: Lookout,
        bus: Bus,
        clock: Clock,
        config: SlotConfig,
        about: str,
    ) -> None:
        self._servers = servers
        self._lookout = lookout
        self._bus = bus
        self._clock = clock
        self._config = config
        self._about = about
        self.watch = Stopwatch(clock)
        self.facts: list[ModelLoaded | ModelUnloaded] = []
        self.measured: list[ModelMeasure] = []
        self.touched: list[ModelRef] = []
        self.renewed: list[ModelRef] = []  # may have other adapters and keep-alives than before
        self.view = View({})  # the last look
        self.baseline: GpuReading | None = None  # before anything was loaded
        self._freeing = False  # this order has unloaded what was on the GPU
        self._drift = 0  # bytes that other models, which left or came, made free during the last unload

    def awaited(self, debt: Owed) -> Bytes | None:
        """Free memory from which on a debt is paid that an unload has left."""
        amount = awaited(debt)
        return None if amount is None else max(0, amount + self._drift)

    async def look(self, needed: Collection[ServerName]) -> View:
        with self.watch:
            self.view = await self._lookout.look(needed=needed)
        return self.view

    async def insist(self, needed: Collection[ServerName]) -> View:
        with self.watch:
            self.view = await self._lookout.insist(self.view, needed)
        return self.view

    async def both(self, needed: Collection[ServerName]) -> tuple[View, GpuReading]:
        with self.watch:
            self.view, gpus = await self._lookout.both(needed=needed)
        return self.view, gpus

    # --- leaving -------------------------------------------------------------------------------

    async def unload(
        self, leaving: Sequence[LoadedModel], debt: Owed, reason: str, awaits_free: Bytes | None = None
    ) -> Trouble | None:
        """Ask for it, then wait until no server lists them and their memory is free; all of that by
        the deadline, also when a request hangs. `awaits_free`: bytes that an earlier order waits for."""
        began = self._clock.monotonic()
        tolerance, just_left = self._config.settle_tolerance_mb << 20, self._lookout.just_left
        watching = UnloadWatch(leaving, debt, tolerance, awaits_free, just_left)
        with self.watch:
            with anyio.move_on_after(self._config.unload_deadline_s) as deadline:
                async with together() as group:
                    asking = [group.create_task(self._ask_out(model, watching)) for model in leaving]
                    await self._until_gone(watching)
                    for task in asking:
                        task.cancel()
            self._drift = watching.drift
            if deadline.cancelled_caught:
                self._gone(watching.left(), watching, began, reason)
                return Trouble(
                    f"models haven't left the memory after {self._config.unload_deadline_s:g} s: {watching.why()}",
                    hint="`lakehouse vram` shows what is there; restart the model server when it doesn't let go",
                )
        self.baseline = watching.reading
        self._freeing = self._freeing or any(model.size_vram for model in leaving)
        self._gone(leaving, watching, began, reason)
        return None

    def _gone(self, left: Sequence[LoadedModel], watching: UnloadWatch, began: Seconds, reason: str) -> None:
        took = self._clock.monotonic() - began
        self._lookout.forget([model.ref for model in left])
        for model in left:
            if model.ref in watching.was_listed:  # otherwise it had left by itself
                freed = watching.freed(model, left)
                self.facts.append(ModelUnloaded(model.server, model.model, freed, took, reason))

    async def _ask_out(self, model: LoadedModel, watching: UnloadWatch) -> None:
        problems = watching.problems
        await self._say("unload", model.ref, 0, 1)
        while True:
            pause = 1.0
            with anyio.move_on_after(ASK_S):
                try:
                    await self._servers[model.server].unload(model.model)
                except (Unavailable, ModelServerError) as error:
                    problems[model.ref] = str(error)
                except Transient as error:
                    problems[model.ref], pause = str(error), min(1.0, error.delay_s)
                else:
                    problems.pop(model.ref, None)
                    watching.answered.add(model.ref)
                    pause = ASK_S  # still listed by then: it hasn't heard, or has forgotten
            await self._clock.sleep(pause)

    async def _until_gone(self, watching: UnloadWatch) -> None:
        began, said = self._clock.monotonic(), False
        while True:
            answered = set(watching.answered)
            if watching.debt.before.gpus:
                view, gpus = await self._lookout.both(watching.servers, LOOK_S)
            else:
                view, gpus = await self._lookout.look(watching.servers, LOOK_S), watching.debt.before
            now = self._clock.monotonic()
            if watching.gone(view, Sample(now, gpus), answered):
                return
            if not watching.listed and not said:
                said = True
                await self._bus.signal(Progress("slot", self._about, "settle", 0, 1, "models"))
            await self._clock.sleep(_pause(now - began))

    # --- coming --------------------------------------------------------------------------------

    async def load(
        self, load: Sequence[ModelRef], renew: Sequence[ModelRef], needs: Sequence[ModelRef], terms: Terms
    ) -> Trouble | None:
        """Load, one after another, and renew the keep-alive of those that are there; then see that
        all of `needs` are listed and whole at the same time."""
        took: dict[ModelRef, Seconds] = {}
        with self.watch:
            for done, ref in enumerate(load):
                await self._say("load", ref, done, len(load))
                self.touched.append(ref)
                began = self._clock.monotonic()
                trouble = await self._load_one(ref, terms)
                if trouble is not None:
                    return trouble
                took[ref] = self._clock.monotonic() - began
            for ref in renew:
                self.renewed.append(ref)
                trouble = await self._load_one(ref, terms)
                if trouble is not None:
                    return trouble
            if load or renew:
                trouble = await self._check(needs)
                if trouble is not None and (early := self._too_early(load, needs)):
                    trouble = await self._once_more(trouble, early, needs, terms, took)
                if trouble is not None:
                    return trouble
        for model in self.view.of(list(took)):
            self.measured.append(ModelMeasure(model.server, model.model, model.size, took[model.ref]))
            self.facts.append(
                ModelLoaded(model.server, model.model, model.size, model.size_vram, took[model.ref], terms.reason)
            )
        return None

    def _too_early(self, load: Sequence[ModelRef], needs: Sequence[ModelRef]) -> list[LoadedModel]:
        """Models that may be partly on the CPU only because nobody could see that the memory of those before them
        wasn't free yet."""
        if not self._freeing or (self.baseline is not None and self.baseline.free is not None):
            return []
        found = self.presences(needs, self.view)
        partial = [ref for ref in needs if found[ref] == "partial"]
        return (
            self.view.of(partial) if set(found.values()) <= {"whole", "partial"} and set(partial) <= set(load) else []
        )

    async def _once_more(
        self,
        trouble: Trouble,
        early: Sequence[LoadedModel],
        needs: Sequence[ModelRef],
        terms: Terms,
        took: dict[ModelRef, Seconds],
    ) -> Trouble | None:
        """They leave, and after a pause come again."""
        stuck = await self.unload(early, owed(UNREAD, early), "came too early")
        if stuck is not None:
            return trouble
        await self._clock.sleep(BLIND_S)
        for model in early:
            began = self._clock.monotonic()
            failed = await self._load_one(model.ref, terms)
            if failed is not None:
                return failed
            took[model.ref] = self._clock.monotonic() - began
        self._freeing = False  # once
        return await self._check(needs)

    async def _load_one(self, ref: ModelRef, terms: Terms) -> Trouble | None:
        adapters = terms.adapters if ref == terms.adapted else ()
        server = self._servers[ref.server]
        began = self._clock.monotonic()
        with anyio.move_on_after(self._config.load_deadline_s):
            while True:
                try:
                    await server.load(ref.model, terms.keep_alive_s, adapters)
                    return None
                except Transient as error:
                    if self._clock.monotonic() - began + error.delay_s > BUSY_S:
                        return Trouble(str(error), "unavailable", retry_after_s=error.delay_s)
                    await self._clock.sleep(error.delay_s)
                except Unavailable as error:
                    return Trouble(str(error), "unavailable", f"see that {ref.server} runs")
                except UnknownAdapter as error:
                    return Trouble(_words(error), "not_found", ADAPTER_HINT)
                except LookupError as error:
                    return Trouble(_words(error), "not_found", unknown_hint(ref))
                except ModelServerError as error:
                    return Trouble(
                        str(error), hint=f"the log of {called(ref.server)} says why it can't load {ref.model}"
                    )
        return Trouble(
            f"model {ref} wasn't loaded within {self._config.load_deadline_s:g} s", hint="raise [slot] load_deadline_s"
        )

    async def _check(self, needs: Sequence[ModelRef]) -> Trouble | None:
        """Listed and whole, all at once; a list that lags behind is looked at again."""
        servers = {ref.server for ref in needs}
        began = self._clock.monotonic()
        while True:
            self.view = await self._lookout.look(servers, LOOK_S)
            found = self.presences(needs, self.view)
            if set(found.values()) <= {"whole"}:
                return None
            waited = self._clock.monotonic() - began
            if waited >= CHECK_S:
                break
            await self._clock.sleep(_pause(waited))
        partial = [model for model in self.view.of(needs) if found[model.ref] == "partial"]
        if partial:
            each = "; ".join(f"{model.ref}: {placed(model)}" for model in partial)
            return Trouble(
                f"loaded, but not wholly on the GPU: {each}",
                hint=_partial_hint(partial),
            )
        status: RefusalStatus = "unavailable" if "unseen" in found.values() else "conflict"
        return Trouble(f"said to be loaded, but {why(found, self.view.seen, self.view.reasons, came=False)}", status)

    def presences(self, refs: Sequence[ModelRef], view: View) -> dict[ModelRef, Presence]:
        now = self._clock.now()
        return {ref: presence(ref, view.seen, now, allow_partial=self._config.allow_partial) for ref in refs}

    async def _say(self, doing: str, ref: ModelRef, done: int, total: int) -> None:
        await self._bus.signal(Progress("slot", self._about, f"{doing} {ref.model}", done, total, "models"))


def _pause(waited: Seconds) -> Seconds:
    return min(LAST_POLL_S, max(FIRST_POLL_S, waited * POLL_SHARE))


def unknown_hint(ref: ModelRef) -> str:
    """How a model gets to its server."""
    if ref.server == "ollama":
        return f"ollama pull {ref.model}"
    return "put its GGUF where llama-server finds it, and name it as llama-server does"


def _partial_hint(partial: Sequence[LoadedModel]) -> str:
    """Where nothing at all is on a GPU, there is none: a smaller model wouldn't help."""
    if not any(model.size_vram for model in partial):
        return "set `[slot] allow_partial = true` when the model server has no GPU; else see that it finds its GPU"
    return "use a smaller model or quantisation, or allow it with `[slot] allow_partial = true`"


def _words(error: LookupError) -> str:
    return str(error.args[0]) if error.args else str(error)
