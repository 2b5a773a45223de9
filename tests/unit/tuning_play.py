"""The agent played as a state machine: real registry in memory, a journal, a clock that is set by
hand, and a lab that measures the made-up surface. Ids of what is published derive from the cause
and are published once, as the runtime does it."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from actors.autotune.agent import Agent
from actors.autotune.config import AgentConfig
from actors.base import Origin
from actors.ports import Envelope
from actors.promotion import core as promotion
from daemon.bus.heads import MemoryHeads
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.registry import DocumentRegistry
from schemas.config import HnswConfig, IndexConfig
from schemas.documents.agent import AgentDocument
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.documents.promotion import PromotionDocument, PromotionEntry
from schemas.documents.trial import TrialPoint
from schemas.events.autotune import RunTrial, TrialCompleted
from schemas.events.base import Message
from schemas.events.dataset import DatasetAppended
from schemas.events.index import EmbedderSpec, GenerationReady, GenerationSwapped, IndexAppended
from schemas.events.promotion import ConfigPromoted, Promote
from schemas.names import Backend, VectorBackend
from tests.unit import tuning_surface

M = TypeVar("M", bound=Message)

T0 = 1_700_000_000.0


class HandClock:
    def __init__(self) -> None:
        self.time = T0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time - T0

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


class ListJournal:
    """The Journal port over a list."""

    def __init__(self) -> None:
        self.rows: list[TrialPoint] = []

    async def append(self, points: Sequence[TrialPoint]) -> None:
        known = {row.trial for row in self.rows}
        self.rows += [point for point in points if point.trial not in known]

    async def points(self, index: str) -> list[TrialPoint]:
        return [row for row in self.rows if row.index == index]

    async def trial(self, index: str, trial: str) -> list[TrialPoint]:
        return [row for row in self.rows if (row.index, row.trial) == (index, trial)]


class QuietBus:
    """A bus on which nobody speaks: the agent only listens for progress."""

    async def publish(self, message: Message, *, cause: Origin | None = None, id: str | None = None) -> str:
        raise AssertionError("handlers return messages")

    async def ask(self, request: Any, *, cause: Origin | None = None, timeout_s: float = 60.0) -> Any:
        raise AssertionError("the agent asks nobody")

    async def signal(self, message: Message) -> None:
        raise AssertionError("the agent signals nothing")

    async def listen(self, *subjects: str) -> AsyncIterator[Envelope]:
        return
        yield


class Play:
    """`said` is everything published, in order, each message once."""

    def __init__(
        self,
        folder: Path,
        indexes: Sequence[str] = ("docs",),
        backend: VectorBackend = "hnsw",
        companions: Sequence[Backend] = (),
        **config: Any,
    ) -> None:
        self.backend, self.companions = backend, list(companions)
        self.config = AgentConfig(**config)
        self.clock = HandClock()
        self.journal = ListJournal()
        self.registry = DocumentRegistry(ObjectBuckets({"primary": "memory://"}, folder / "cache"), MemoryHeads())
        self.indexes = indexes
        self.said: list[Message] = []
        self.published: set[str] = set()
        self.version = 1
        self.rows = 2000
        self.grown: dict[str, int] = {}  # rows that came since the live graph was built
        self.reboot()

    def reboot(self) -> None:
        """A new process: all that was in memory is gone."""
        self.agent = Agent(self.registry, self.journal, QuietBus(), self.clock, self.config)

    async def open(self) -> None:
        for name in self.indexes:
            document = IndexDocument(
                index=name, dataset=f"{name}-rows", column="v", metric="l2", backend=self.backend, bucket="primary",
                target_recall=0.95, embedder=EmbedderSpec(kind="none"), embedder_key=None, dim=64,
                config=HnswConfig(), created=T0, companions=self.companions,
            )  # fmt: skip
            await self.registry.save(name, document, expected=None)

    async def go_live(self, index: str = "docs", config: IndexConfig | None = None, trial: str | None = None) -> None:
        found = await self.registry.load(GenerationDocument, index)
        document = GenerationDocument(
            index=index, generation=found[0].generation + 1 if found else 1, config=config or HnswConfig(),
            key="k", sha256="0" * 64, bytes=1, version=self.version, rows=self.rows, build_s=1.0, reason="",
            library="hnswlib", built=self.clock.time, trial=trial,
        )  # fmt: skip
        await self.registry.save(index, document, expected=found[1] if found else None)
        head = await self.registry.load(PromotionDocument, index)
        if head is not None:
            swap = GenerationSwapped(index, document.generation, document.config, "s", 1.0)
            served = promotion.swapped(head[0], swap)
            await self.registry.save(index, served, expected=head[1])

    async def deliver(self, message: Message, id: str, delivery: int = 1, crash: bool = False) -> list[Message]:
        """Handles one message and publishes what the handler returns. With `crash`, the process
        dies after the handler has returned and before anything is published."""
        route = next(route for route in Agent.routes() if route.takes is type(message))
        origin = Origin(id=id, cause=id, time=self.clock.time, delivery=delivery)
        args = (message, origin) if route.wants_origin else (message,)
        returned = list(await getattr(self.agent, route.method)(*args))
        if crash:
            self.reboot()
            return []
        return self._publish(id, returned)

    def _publish(self, cause: str, messages: Sequence[Message]) -> list[Message]:
        new = []
        for number, message in enumerate(messages):
            id = f"{cause}>{type(message).__name__}.{number}"
            if id not in self.published:
                self.published.add(id)
                new.append(message)
        self.said += new
        return new

    async def wake(self) -> list[Message]:
        return self._publish(f"wake-{self.clock.time}", list(await self.agent.on_wake()))

    async def append(self, rows: int, index: str = "docs", id: str | None = None) -> list[Message]:
        """Rows are committed to the index's dataset and its vectors cover them."""
        self.version += 1
        self.rows += rows
        self.grown[index] = self.grown.get(index, 0) + rows
        cause = id or f"append-{self.version}"
        event = DatasetAppended(f"{index}-rows", "primary", self.version, rows, self.rows)
        first = await self.deliver(event, cause)
        covered = IndexAppended(index, f"{index}-rows", self.version, rows, self.rows)
        return first + await self.deliver(covered, f"{cause}-covered")

    async def measure(self, order: RunTrial, **changed: Any) -> TrialCompleted:
        """What the lab does: rows into the journal, and the event. Done twice, it is done once."""
        written = await self.journal.trial(order.index, order.trial)
        if not written:
            live = await self.registry.load(GenerationDocument, order.index)
            serving = await self.serving(order.index)
            champion = serving
            if order.champion_trial:
                champion = next(
                    p for p in await self.journal.trial(order.index, order.champion_trial) if p.chosen
                ).config
                changed["champion_recall_lower"] = tuning_surface.recall_of(champion)
            changed.setdefault("champion_recall_lower", tuning_surface.recall_of(serving))
            changed.setdefault("champion_cost", tuning_surface.cost_of(champion))
            if order.proposal.reuse_live:
                changed.setdefault("graph_added", self.grown.get(order.index, 0))
            if live is None and order.champion_trial is None:
                changed |= {"champion_trial": None, "champion_ratio": None, "champion_ratio_high": None}
            written = tuning_surface.run(order, champion, self.version, self.rows, **changed)
            await self.journal.append(written)
        best = next(p for p in written if p.chosen)
        holds = best.recall_lower >= order.target_recall
        return TrialCompleted(order.trial, order.campaign, order.index, best, holds, len(written))

    async def promote(self, order: Promote, live: bool = True) -> ConfigPromoted:
        """What promotion and the index do: the head moves, the configuration goes live. `live`
        False: it is still being built."""
        effort = {name: n for name in promotion.EFFORTS if (n := getattr(order, name)) is not None}
        point = promotion.pick(await self.journal.trial(order.index, order.trial), effort, 0.95, force=True)
        assert isinstance(point, TrialPoint)
        config = point.config
        entry = PromotionEntry(
            config=config, trial=order.trial, recall=point.recall, recall_lower=point.recall_lower,
            p50_us=point.p50_us, promoted_by=order.promoted_by, note=order.note, time=self.clock.time,
            cause=f"p-{order.trial}-{config.effort}",
        )  # fmt: skip
        found = await self.registry.load(PromotionDocument, order.index)
        document, revision = found or (PromotionDocument(index=order.index), None)
        await self.registry.save(order.index, promotion.promote(document, entry), expected=revision)
        if live:
            await self.go_live(order.index, config, order.trial)
        return ConfigPromoted(order.index, entry, None)

    async def roll_back(self, cause: str, index: str = "docs") -> ConfigPromoted:
        """What promotion does: the entry before is current again. It isn't live yet."""
        found = await self.registry.load(PromotionDocument, index)
        assert found is not None
        document, entry = promotion.rollback(found[0], "taken back", self.clock.time, cause)
        assert entry is not None
        await self.registry.save(index, document, expected=found[1])
        return ConfigPromoted(index, entry, None, rolled_back=True)

    async def clear(self, cause: str, index: str = "docs") -> None:
        """A rollback of the only promotion."""
        found = await self.registry.load(PromotionDocument, index)
        assert found is not None
        document, entry = promotion.rollback(found[0], "not wanted", self.clock.time, cause)
        assert entry is None
        await self.registry.save(index, document, expected=found[1])

    async def generation(self, index: str = "docs") -> int:
        live = await self.registry.load(GenerationDocument, index)
        return live[0].generation if live else 0

    async def serving(self, index: str) -> IndexConfig:
        live = await self.registry.load(GenerationDocument, index)
        return live[0].config if live else HnswConfig()

    async def carry_out(self, orders: Sequence[Message], **changed: Any) -> None:
        """Lab and promotion do what was ordered, until nothing is ordered any more."""
        pending = list(orders)
        while pending:
            order = pending.pop(0)
            if isinstance(order, RunTrial):
                pending += await self.deliver(await self.measure(order, **changed), f"done-{order.trial}")
            elif isinstance(order, Promote):
                pending += await self.deliver(await self.promote(order), f"promoted-{order.trial}")
                config = await self.serving(order.index)
                pending += await self.deliver(
                    GenerationReady(order.index, 9, config, "promoted"), f"live-{order.trial}"
                )

    async def state(self) -> AgentDocument:
        found = await self.registry.load(AgentDocument, "agent")
        return found[0] if found else AgentDocument()

    def orders(self) -> list[RunTrial]:
        return [message for message in self.said if isinstance(message, RunTrial)]

    def of(self, kind: type[M]) -> list[M]:
        return [message for message in self.said if isinstance(message, kind)]
