"""Promotion's shell: load, decide (core.py), save by compare-and-set, answer.

A promotion is durable when its handler returns. Of two that start from the same head one wins
and the other is refused as a conflict; a delivery that comes again finds its own entry and
gives the same answer without moving anything.
"""

from collections.abc import Callable, Sequence
from typing import Never

from actors.base import Actor, Origin, concurrent, handles
from actors.errors import Conflict
from actors.ports import Clock, Journal, Registry, Tables
from actors.promoted import own_config
from actors.promotion import core, why
from actors.refusals import no_index
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.documents.promotion import PromotionDocument, PromotionEntry
from schemas.events.base import Refusal
from schemas.events.index import GenerationSwapped, IndexDropped, RecallDrifted
from schemas.events.promotion import (
    ConfigPromoted,
    GetPromoted,
    Promote,
    PromotionCleared,
    PromotionState,
    Rollback,
    Why,
    WhyChain,
)
from schemas.names import IndexName, MessageId

AT_ONCE = 16
"""Promotions don't queue behind each other: who decided on a head that has moved is refused."""

Change = Callable[[PromotionDocument], PromotionDocument | Refusal]


class Promotion(Actor):
    """Keeps, for every index, the current configuration and what was current before."""

    role = "control"

    def __init__(self, registry: Registry, journal: Journal, tables: Tables, clock: Clock) -> None:
        self._registry = registry
        self._journal = journal
        self._tables = tables
        self._clock = clock

    @handles
    @concurrent(AT_ONCE)
    async def on_promote(self, command: Promote, origin: Origin) -> Sequence[ConfigPromoted | Refusal]:
        index = await self._index(command.index)
        if isinstance(index, Refusal):
            return [index]
        points = await self._journal.trial(command.index, command.trial)
        if not points:
            return [
                Refusal(
                    status="not_found",
                    reason=f"the journal of index {command.index} has no trial {command.trial}",
                    hint=f"lakehouse trials {command.index}",
                )
            ]
        asked = {name: getattr(command, name) for name in core.EFFORTS}
        effort = {name: n for name, n in asked.items() if n is not None}
        point = core.pick(points, effort, index.target_recall, command.force)
        if isinstance(point, Refusal):
            return [point]
        entry = core.entry_of(point, command.promoted_by, command.note, self._clock.now(), origin.id)

        def change(document: PromotionDocument) -> PromotionDocument | Refusal:
            done = core.was_promoted(document, origin.id)
            if done is None:
                if command.rollback_known not in (None, core.newest_rollback(document)):
                    return _overtaken(command.index, document)
                return core.promote(document, entry)
            return document if done is document.current else _superseded(command.index, done)

        after = await self._change(command.index, index.bucket, change, origin.id)
        return [after] if isinstance(after, Refusal) else [_promoted(after)]

    @handles
    @concurrent(AT_ONCE)
    async def on_rollback(
        self, command: Rollback, origin: Origin
    ) -> Sequence[ConfigPromoted | PromotionCleared | Refusal]:
        reason = command.reason or "asked"
        return await self._roll_back(
            command.index, f"rolled back by {command.promoted_by}: {reason}", command.generation, origin
        )

    @handles
    async def on_drift(self, event: RecallDrifted, origin: Origin) -> Sequence[ConfigPromoted | PromotionCleared]:
        """Live recall fell: the promotion that serves is taken back. A generation that no
        promotion stands behind is the agent's to re-tune."""
        said = await self._roll_back(event.index, core.drift_reason(event), event.generation, origin)
        return [message for message in said if not isinstance(message, Refusal)]

    @handles
    async def on_swapped(self, event: GenerationSwapped) -> Sequence[Never]:
        """Notes which generation serves the current entry. Raises Conflict while writers race."""
        found = await self._registry.load(PromotionDocument, event.index)
        index = await self._index(event.index)
        if found is None or isinstance(index, Refusal):
            return []
        document, revision = found
        after = core.swapped(document, event)
        if after is not document:
            await self._registry.save(event.index, after, expected=revision, bucket=index.bucket)
        return []

    @handles
    async def on_index_dropped(self, event: IndexDropped, origin: Origin) -> Sequence[Never]:
        """An index made later under the same name starts without a promotion."""
        index = await self._index(event.index)
        if isinstance(index, Refusal) or index.created < origin.time:
            await self._registry.delete(PromotionDocument, event.index)
        return []

    @handles
    async def on_get(self, query: GetPromoted) -> Sequence[PromotionState | Refusal]:
        found = await self._registry.load(PromotionDocument, query.index)
        if found is None:
            index = await self._index(query.index)
            if isinstance(index, Refusal):
                return [index]
            return [PromotionState(query.index, None, [])]
        document, _ = found
        return [PromotionState(query.index, document.current, document.history, document.rolled_back)]

    @handles
    async def on_why(self, query: Why) -> Sequence[WhyChain | Refusal]:
        index = await self._index(query.index)
        if isinstance(index, Refusal):
            return [index]
        return [await why.chain(index, self._registry, self._journal, self._tables)]

    async def _roll_back(
        self, name: IndexName, reason: str, generation: int | None, origin: Origin
    ) -> list[ConfigPromoted | PromotionCleared | Refusal]:
        index = await self._index(name)
        if isinstance(index, Refusal):
            return [index]
        now = self._clock.now()

        def change(document: PromotionDocument) -> PromotionDocument | Refusal:
            if core.was_rolled_back(document, origin.id) is not None:
                return document
            current = document.current
            if current is None:
                return Refusal(
                    status="not_found",
                    reason=f"nothing is promoted for index {name}: there is nothing to roll back",
                    hint=f"lakehouse promoted {name}",
                )
            if generation is not None and current.generation != generation:
                serving = "none yet" if current.generation is None else str(current.generation)
                return Refusal(
                    status="conflict",
                    reason=f"generation {generation} of index {name} is not the current promotion's ({serving})",
                    hint=f"lakehouse promoted {name}",
                )
            return core.rollback(document, reason, now, origin.id)[0]

        after = await self._change(name, index.bucket, change, origin.id)
        if isinstance(after, Refusal):
            return [after]
        if after.current is None:
            live = await self._registry.load(GenerationDocument, name)
            return [PromotionCleared(name, own_config(index, live[0] if live else None), reason)]
        popped = core.was_rolled_back(after, origin.id)
        return [_promoted(after, popped)]

    async def _change(
        self, name: IndexName, bucket: str, change: Change, cause: MessageId
    ) -> PromotionDocument | Refusal:
        """Applies `change` to the head and saves it. When the head moved meanwhile, the change
        is made again only if the same entry is still current (a generation was noted);
        another promotion or rollback has won otherwise, and this one is refused."""
        started_from: MessageId | None = None
        for attempt in range(20):
            found = await self._registry.load(PromotionDocument, name)
            document, revision = found if found is not None else (PromotionDocument(index=name), None)
            current = document.current.cause if document.current else None
            after = change(document)
            if attempt == 0:
                started_from = current
            elif current != started_from and after is not document:
                break
            if after is document or isinstance(after, Refusal):
                return after
            try:
                await self._registry.save(name, after, expected=revision, bucket=bucket)
            except Conflict:
                continue
            return after
        return Refusal(
            status="conflict",
            reason=f"another promotion of index {name} won the race",
            hint=f"look at what is current (lakehouse promoted {name}) and decide again",
        )

    async def _index(self, name: IndexName) -> IndexDocument | Refusal:
        found = await self._registry.load(IndexDocument, name)
        if found is None:
            return no_index(name)
        return found[0]


def _promoted(document: PromotionDocument, popped: PromotionEntry | None = None) -> ConfigPromoted:
    assert document.current is not None
    before = popped or (document.history[0] if document.history else None)
    return ConfigPromoted(document.index, document.current, before.config if before else None, popped is not None)


def _superseded(name: IndexName, done: PromotionEntry) -> Refusal:
    return Refusal(
        status="conflict",
        reason=f"this promotion of trial {done.trial} took effect and is no longer current ({done.ended_reason})",
        hint=f"lakehouse promoted {name}",
    )


def _overtaken(name: IndexName, document: PromotionDocument) -> Refusal:
    newest = document.rolled_back[0]
    return Refusal(
        status="conflict",
        reason=f"trial {newest.trial} of index {name} was taken back ({newest.ended_reason}) since this was decided",
        hint=f"look at what is current (lakehouse promoted {name}) and decide again",
    )
