"""The slot's document: in memory first, in the registry by compare-and-set. What the servers list
has the last word over both at a start, so an intent is saved while its effect is under way.
"""

import anyio
import msgspec
import structlog

from actors.base import Origin
from actors.errors import Conflict, CorruptState, Transient, Unavailable
from actors.ports import Clock, Registry
from actors.profile.core import SLOT, Happened, step
from schemas.documents.profile import ModelMeasure, SlotDocument
from schemas.events.profile import ModelRef
from schemas.names import Bytes, ProfileName, Seconds

log = structlog.get_logger("lakehouse.slot")

KEEP_MEASURED = 64
KEEP_DONE = 64

INTENT_S = 2.0
"""A registry that hangs must not hold up an order for longer: its effects have deadlines of their own."""


class SlotStore:
    def __init__(self, registry: Registry, clock: Clock) -> None:
        self._registry = registry
        self._clock = clock
        self._saving = anyio.Lock()
        self._saved: SlotDocument | None = None
        self._revision: int | None = None
        self.document = SlotDocument()

    async def open(self) -> str:
        """Take the stored document for what is known. One that is damaged is set aside: the slot is then `unknown`
        until the model servers have been asked, and why is returned; otherwise nothing. Raises Transient."""
        try:
            found = await self._registry.load(SlotDocument, SLOT)
        except CorruptState as error:
            await self._set_aside(error)
            self._saved = self._revision = None
            reason = f"its document is damaged: {error}"
            self.document = SlotDocument(state="unknown", since=self._clock.now(), reason=reason)
            await self.announce()
            return reason
        self._saved, self._revision = found if found is not None else (None, None)
        self.document = found[0] if found is not None else SlotDocument(since=self._clock.now())
        return ""

    def happen(
        self,
        happened: Happened,
        *,
        profile: ProfileName | None,
        models: list[ModelRef],
        target: ProfileName | None = None,
        reason: str = "",
        awaits_free: Bytes | None = None,
    ) -> None:
        """The next state, in memory. Raises Undefined."""
        before = self.document
        self.document = msgspec.structs.replace(
            before,
            state=step(before.state, happened),
            profile=profile,
            target=target,
            models=models,
            since=self._clock.now(),
            reason=reason,
            awaits_free=awaits_free,
        )
        log.info(
            "the slot",
            happened=happened,
            before=before.state,
            state=self.document.state,
            profile=profile,
            target=target,
            reason=reason,
        )

    def note(self, measured: list[ModelMeasure], origin: Origin | None = None) -> None:
        """Figures of models just loaded, and that a command from the stream is done."""
        new = {(each.server, each.model) for each in measured}
        kept = [each for each in self.document.measured if (each.server, each.model) not in new]
        done = self.document.done
        if origin is not None and not origin.asked:
            done = [origin.id, *(id for id in done if id != origin.id)][:KEEP_DONE]
        if measured or done is not self.document.done:
            self.document = msgspec.structs.replace(
                self.document, measured=[*measured, *kept][:KEEP_MEASURED], done=done
            )

    @property
    def sizes(self) -> dict[ModelRef, Bytes]:
        return {ModelRef(m.server, m.model): m.size for m in self.document.measured if m.size is not None}

    @property
    def load_s(self) -> dict[ModelRef, Seconds]:
        return {ModelRef(m.server, m.model): m.load_s for m in self.document.measured}

    async def save(self) -> None:
        """Make what is in memory durable, as it is when its turn comes. Whoever saved meanwhile is
        overwritten: one slot carries out the effects, and this is it. Raises Transient, Unavailable (also
        when the registry itself is damaged), Conflict when others don't stop."""
        async with self._saving:
            for attempt in range(5):
                document = self.document
                if document == self._saved:
                    return
                try:
                    self._revision = await self._registry.save(SLOT, document, expected=self._revision)
                except Conflict:
                    # Also after a save whose answer got lost: it was our own.
                    self._saved, self._revision = await self._reload()
                    if attempt == 4:
                        raise
                except CorruptState as error:
                    raise Unavailable(str(error)) from error
                else:
                    self._saved = document
                    return

    async def announce(self) -> bool:
        """Save an intent. When it can't be saved, or not soon, the effect goes on, as a start asks the servers."""
        reason = f"the registry took longer than {INTENT_S:g} s"
        with anyio.move_on_after(INTENT_S):
            try:
                await self.save()
            except (Transient, Unavailable, Conflict) as error:
                reason = str(error)
            else:
                return True
        log.warning("the slot's document isn't saved yet", reason=reason)
        return False

    async def _reload(self) -> tuple[SlotDocument | None, int | None]:
        try:
            return await self._registry.load(SlotDocument, SLOT) or (None, None)
        except CorruptState as error:
            await self._set_aside(error)
            return None, None

    async def _set_aside(self, error: CorruptState) -> None:
        """The head leaves a damaged object, which stays in its bucket for whoever wants to know what befell it."""
        log.error("the slot's document is damaged and set aside", why=str(error), kept="in registry/slot of its bucket")
        try:
            await self._registry.delete(SlotDocument, SLOT)
        except CorruptState as worse:  # the head too: only a repair can mend that, and until then nothing is saved
            log.error("the slot can't be saved", why=str(worse))
