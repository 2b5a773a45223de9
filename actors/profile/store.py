"""The slot's document: in memory first, in the registry by compare-and-set. What the servers list
has the last word over both at a start, so an intent is saved while its effect is under way.
"""

import anyio
import msgspec
import structlog

from actors.base import Origin
from actors.errors import Conflict, Transient, Unavailable
from actors.ports import Clock, Registry
from actors.profile.core import SLOT, Happened, step
from schemas.documents.profile import ModelMeasure, SlotDocument
from schemas.events.profile import ModelRef
from schemas.names import Bytes, ProfileName, Seconds

log = structlog.get_logger("lakehouse.slot")

KEEP_MEASURED = 64
KEEP_DONE = 64


class SlotStore:
    def __init__(self, registry: Registry, clock: Clock) -> None:
        self._registry = registry
        self._clock = clock
        self._saving = anyio.Lock()
        self._saved: SlotDocument | None = None
        self._revision: int | None = None
        self.document = SlotDocument()

    async def open(self) -> None:
        """Take the stored document for what is known. Raises CorruptState, Transient."""
        found = await self._registry.load(SlotDocument, SLOT)
        self._saved, self._revision = found if found is not None else (None, None)
        self.document = found[0] if found is not None else SlotDocument(since=self._clock.now())

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
        overwritten: one slot carries out the effects, and this is it. Raises Transient, Unavailable,
        Conflict when others don't stop."""
        async with self._saving:
            for attempt in range(5):
                document = self.document
                if document == self._saved:
                    return
                try:
                    self._revision = await self._registry.save(SLOT, document, expected=self._revision)
                except Conflict:
                    # Also after a save whose answer got lost: it was our own.
                    found = await self._registry.load(SlotDocument, SLOT)
                    self._saved, self._revision = found if found is not None else (None, None)
                    if attempt == 4:
                        raise
                else:
                    self._saved = document
                    return

    async def announce(self) -> None:
        """Save an intent: when it can't be saved the effect goes on, as a start asks the servers."""
        try:
            await self.save()
        except (Transient, Unavailable, Conflict) as error:
            log.warning("the slot's intent isn't saved", reason=str(error))
