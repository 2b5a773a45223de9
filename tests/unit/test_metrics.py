"""Facts are counted once each, and a scrape reports what exists now."""

from typing import Any

from actors.errors import Unavailable
from daemon.metrics import Metrics
from schemas.config import HnswConfig
from schemas.events.autotune import TrialFailed, TuningFinished
from schemas.events.base import CommandRefused, DeadLettered
from schemas.events.dataset import DatasetAppended
from schemas.events.index import GenerationSwapped
from schemas.events.profile import (
    GetVram,
    Gpu,
    LoadedModel,
    ProfileActivated,
    ServerReport,
    SlotFailed,
    SlotInfo,
    VramReport,
)


class NobodyAnswers:
    """The Bus port with every owner away."""

    async def ask(self, request: Any, **more: Any) -> Any:
        raise Unavailable("nobody answers")


async def scraped(metrics: Metrics) -> str:
    return (await metrics.scrape(NobodyAnswers())).decode()  # type: ignore[arg-type]


async def test_facts_are_counted() -> None:
    metrics = Metrics()
    for fact in (
        DeadLettered("x.y", "agent__x_y", "broken", 5),
        CommandRefused("index.create", "invalid", "no"),
        DatasetAppended("notes", "primary", 1, 7, 7, ingest="i"),
        DatasetAppended("notes", "primary", 2, 5, 12, ingest="j"),
        TrialFailed("t1", "c1", "docs", "worker died"),
        TuningFinished("c1", "docs", "infeasible", "nothing held it", 3),
        GenerationSwapped("docs", 4, HnswConfig(), "s1", 2.0),
    ):
        metrics.count(fact)
    metrics.handled("agent__x_y", "dead", 0.2)
    text = await scraped(metrics)
    for line in (
        'lakehouse_dead_letters_total{durable="agent__x_y"} 1.0',
        'lakehouse_commands_refused_total{command="index.create"} 1.0',
        'lakehouse_rows_ingested_total{dataset="notes"} 12.0',
        'lakehouse_trials_total{index="docs",outcome="failed"} 1.0',
        'lakehouse_campaigns_total{index="docs",outcome="infeasible"} 1.0',
        'lakehouse_index_generation{index="docs"} 4.0',
        'lakehouse_messages_total{durable="agent__x_y",outcome="dead"} 1.0',
        'lakehouse_message_seconds_count{durable="agent__x_y"} 1.0',
    ):
        assert line in text, line


async def test_two_processes_metrics_do_not_meet() -> None:
    first, second = Metrics(), Metrics()
    first.handled("a", "acked", 0.1)
    assert 'durable="a"' not in await scraped(second)


class Gpus:
    """The Bus port where only GetVram is answered."""

    def __init__(self, report: VramReport) -> None:
        self.report = report

    async def ask(self, request: Any, **more: Any) -> Any:
        if isinstance(request, GetVram):
            return self.report
        raise Unavailable("nobody answers")


def vram(state: Any, profile: str | None, models: list[LoadedModel]) -> VramReport:
    return VramReport(
        gpus=[Gpu(0, "a", "u", total=8000, used=5200, free=2800)], source="nvml", reason="",
        servers=[ServerReport("ollama", "http://x", True, models=models)], slot=SlotInfo(state, profile, None, 1.0),
        time=1.0, total=8000, used=5200, free=2800, accounted=5000, unaccounted=200,
    )  # fmt: skip


async def test_the_gpu_is_read_when_it_is_scraped_and_what_left_is_not_reported() -> None:
    metrics = Metrics()
    metrics.count(ProfileActivated("coder", None, []))
    metrics.count(SlotFailed("coder", "unknown", "stuck"))
    bus = Gpus(vram("ready", "coder", [LoadedModel("ollama", "m:7b", 5000, 5000)]))
    text = (await metrics.scrape(bus)).decode()  # type: ignore[arg-type]
    for line in (
        'lakehouse_activations_total{profile="coder"} 1.0',
        "lakehouse_slot_failures_total 1.0",
        'lakehouse_slot{profile="coder",state="ready"} 1.0',
        'lakehouse_gpu_memory_bytes{gpu="0",kind="used"} 5200.0',
        'lakehouse_model_vram_bytes{model="m:7b",server="ollama"} 5000.0',
        "lakehouse_vram_unaccounted_bytes 200.0",
    ):
        assert line in text, line
    bus.report = vram("empty", None, [])
    text = (await metrics.scrape(bus)).decode()  # type: ignore[arg-type]
    assert "m:7b" not in text
    assert 'lakehouse_slot{profile="",state="empty"} 1.0' in text
