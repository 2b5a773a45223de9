"""Prometheus metrics. Nobody has to know them: facts are counted by a listener on the bus, live
recall and the GPU's memory are asked for when it is scraped, and the HTTP border and the runtime call `request` and
`handled` once per request or message.
"""

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from actors.errors import Refused, Unavailable
from actors.ports import Bus, Envelope
from schemas.events.autotune import TrialCompleted, TrialFailed, TuningFinished
from schemas.events.base import CommandRefused, DeadLettered, Message
from schemas.events.dataset import DatasetAppended
from schemas.events.index import GenerationSwapped, GetIndexStats, ListIndexes, RecallDrifted
from schemas.events.profile import GetVram, ProfileActivated, SlotFailed
from schemas.events.promotion import ConfigPromoted

BUCKETS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)


class Metrics:
    """One process's metrics, in a registry of their own."""

    def __init__(self) -> None:
        r = self._registry = CollectorRegistry()
        self._requests = Counter("lakehouse_http_requests", "HTTP requests", ["method", "route", "status"], registry=r)
        self._latency = Histogram(
            "lakehouse_http_seconds", "HTTP request time", ["method", "route"], buckets=BUCKETS_S, registry=r
        )
        self._messages = Counter("lakehouse_messages", "Messages handled", ["durable", "outcome"], registry=r)
        self._handling = Histogram(
            "lakehouse_message_seconds", "Time in a handler", ["durable"], buckets=BUCKETS_S, registry=r
        )
        self._dead = Counter("lakehouse_dead_letters", "Messages given up", ["durable"], registry=r)
        self._refused = Counter("lakehouse_commands_refused", "Commands refused", ["command"], registry=r)
        self._rows = Counter("lakehouse_rows_ingested", "Rows committed", ["dataset"], registry=r)
        self._trials = Counter("lakehouse_trials", "Trials", ["index", "outcome"], registry=r)
        self._campaigns = Counter("lakehouse_campaigns", "Tuning campaigns", ["index", "outcome"], registry=r)
        self._promotions = Counter("lakehouse_promotions", "Promotions", ["index", "kind"], registry=r)
        self._drifts = Counter("lakehouse_recall_drifts", "Live recall under target", ["index"], registry=r)
        self._generation = Gauge("lakehouse_index_generation", "Generation served", ["index"], registry=r)
        self._recall = Gauge("lakehouse_live_recall", "Sampled live recall@10", ["index", "bound"], registry=r)
        self._queries = Gauge("lakehouse_index_queries", "Queries since start", ["index"], registry=r)
        self._index_rows = Gauge("lakehouse_index_rows", "Rows served", ["index"], registry=r)
        self._activations = Counter("lakehouse_activations", "Profiles activated", ["profile"], registry=r)
        self._slot_failures = Counter("lakehouse_slot_failures", "Swaps that failed, or a slot in doubt", registry=r)
        self._slot = Gauge("lakehouse_slot", "1 for the state that the slot is in", ["state", "profile"], registry=r)
        self._gpu = Gauge("lakehouse_gpu_memory_bytes", "Memory by GPU", ["gpu", "kind"], registry=r)
        self._model = Gauge("lakehouse_model_vram_bytes", "Memory on the GPU", ["server", "model"], registry=r)
        self._unaccounted = Gauge("lakehouse_vram_unaccounted_bytes", "Used and in no server's report", registry=r)
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """One HTTP request was answered. `route` is the path as the table has it."""
        key = (method, route, status)
        if (children := self._children.get(key)) is None:
            # labels() takes a lock and builds strings: once per combination, not per request.
            children = self._requests.labels(method, route, str(status)), self._latency.labels(method, route)
            self._children[key] = children
        children[0].inc()
        children[1].observe(seconds)

    def handled(self, durable: str, outcome: str, seconds: float) -> None:
        """One delivery was dealt with: the runtime's `Observe`."""
        self._messages.labels(durable, outcome).inc()
        self._handling.labels(durable).observe(seconds)

    async def listen(self, bus: Bus) -> None:
        """Counts facts until cancelled."""
        facts = cast(AsyncGenerator[Envelope, None], bus.listen("lakehouse.evt.>"))
        async with aclosing(facts):
            async for envelope in facts:
                self.count(envelope.message)

    def count(self, fact: Message) -> None:
        """One fact."""
        match fact:
            case DeadLettered():
                self._dead.labels(fact.durable).inc()
            case CommandRefused():
                self._refused.labels(fact.command).inc()
            case DatasetAppended():
                self._rows.labels(fact.dataset).inc(fact.rows)
            case TrialCompleted():
                self._trials.labels(fact.index, "holds" if fact.holds_target else "misses").inc()
            case TrialFailed():
                self._trials.labels(fact.index, "failed").inc()
            case TuningFinished():
                self._campaigns.labels(fact.index, fact.outcome).inc()
            case ConfigPromoted():
                self._promotions.labels(fact.index, "rollback" if fact.rolled_back else "promote").inc()
            case RecallDrifted():
                self._drifts.labels(fact.index).inc()
            case ProfileActivated():
                self._activations.labels(fact.profile).inc()
            case SlotFailed():
                self._slot_failures.inc()
            case GenerationSwapped():
                self._generation.labels(fact.index).set(fact.generation)

    async def scrape(self, bus: Bus) -> bytes:
        """The text of a scrape, with every index's and the GPU's figures as they are now."""
        await self._read_indexes(bus)
        await self._read_gpu(bus)
        return generate_latest(self._registry)

    async def _read_indexes(self, bus: Bus) -> None:
        try:
            indexes = (await bus.ask(ListIndexes(), timeout_s=5.0)).indexes
        except (Refused, Unavailable):
            indexes = []
        for gauge in (self._recall, self._queries, self._index_rows):
            gauge.clear()  # a dropped index must not be reported for ever
        for index in indexes:
            try:
                stats = await bus.ask(GetIndexStats(index.index), timeout_s=5.0)
            except (Refused, Unavailable):
                continue
            self._queries.labels(index.index).set(stats.queries)
            self._index_rows.labels(index.index).set(stats.rows)
            if stats.live_recall is not None:
                for bound in ("mean", "lower", "upper"):
                    self._recall.labels(index.index, bound).set(getattr(stats.live_recall, bound))

    async def _read_gpu(self, bus: Bus) -> None:
        for gauge in (self._slot, self._gpu, self._model):
            gauge.clear()
        try:
            vram = await bus.ask(GetVram(), timeout_s=5.0)
        except (Refused, Unavailable):
            return
        self._slot.labels(vram.slot.state, vram.slot.profile or "").set(1)
        self._unaccounted.set(math.nan if vram.unaccounted is None else vram.unaccounted)
        for gpu in vram.gpus:
            for kind in ("total", "used", "free"):
                self._gpu.labels(str(gpu.index), kind).set(getattr(gpu, kind))
        for model in (model for server in vram.servers for model in server.models):
            if model.size_vram is not None:
                self._model.labels(model.server, model.model).set(model.size_vram)
