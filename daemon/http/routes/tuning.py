"""Tuning: eval sets, trials, the agent, and an autotune whose progress is streamed."""

from aiohttp import web

from daemon.http.jobs import stream_job
from daemon.http.route import Call, Route, message
from schemas.events.autotune import (
    AgentStatus,
    AutotuneStarted,
    BuildHarness,
    EnqueueTuning,
    GetAgentStatus,
    GridPoint,
    HarnessInfo,
    HarnessList,
    LancePoint,
    ListHarnesses,
    ListTrials,
    Replay,
    ReplayReport,
    StartAutotune,
    TrialCompleted,
    TrialFailed,
    TrialList,
    TuningFinished,
)
from schemas.events.base import Message, Progress
from schemas.events.index import GetIndex
from schemas.http import (
    AutotuneBody,
    Enqueued,
    EnqueueParams,
    HarnessBody,
    HarnessParams,
    IndexParams,
    LancePointBody,
    NoParams,
    TrialsParams,
)


async def build_harness(call: Call[NoParams, HarnessBody]) -> HarnessInfo:
    return await call.ask(message(BuildHarness, call.body), long=True)


async def list_harnesses(call: Call[HarnessParams, None]) -> HarnessList:
    return await call.ask(ListHarnesses(call.params.index))


async def list_trials(call: Call[TrialsParams, None]) -> TrialList:
    return await call.ask(ListTrials(call.params.index, call.params.limit))


async def agent_status(call: Call[NoParams, None]) -> AgentStatus:
    return await call.ask(GetAgentStatus())


async def enqueue(call: Call[EnqueueParams, None]) -> Enqueued:
    index = call.params.index
    await call.ask(GetIndex(index))  # who waits for an answer learns at once that there is no such index
    id = await call.services.bus.publish(EnqueueTuning(index, call.params.reason, "http"))
    return Enqueued(index, id)


async def replay(call: Call[IndexParams, None]) -> ReplayReport:
    return await call.ask(Replay(call.params.index))


async def autotune(call: Call[NoParams, AutotuneBody]) -> web.StreamResponse:
    """Lines of JSON: `autotune.started`, then progress and trials, then `autotune.finished`.
    The tuning goes on when the client leaves. A refusal comes before the stream begins."""
    body = call.body
    start = StartAutotune(
        index=body.index_name,
        harness=body.harness,
        min_recall=body.min_recall,
        grid=None if body.grid is None else [GridPoint(p.ef_construction, p.ef_search, p.M) for p in body.grid],
        lance=None
        if body.lance is None
        else [LancePoint(p.index_type, p.partitions, p.sub_vectors) for p in body.lance],
        objective=body.objective,
        agent=body.agent,
    )
    return await stream_job(
        call,
        start,
        ("lakehouse.evt.trial.>", "lakehouse.evt.autotune.>"),
        _belongs,
        lambda said, started: isinstance(said, TuningFinished) and said.campaign == started.campaign,
        lambda started: Progress(started.campaign, started.index, "waiting", 0),
    )


def _plain(point: LancePointBody) -> LancePoint:
    return LancePoint(point.index_type, point.partitions, point.sub_vectors)


def _belongs(said: Message, started: AutotuneStarted) -> bool:
    match said:
        case TrialCompleted() | TrialFailed() | TuningFinished():
            return said.campaign == started.campaign
        case Progress():  # of a trial or of its build: one campaign at a time per index
            return said.about == started.index
    return False


ROUTES = [
    Route("POST", "/vectors/harnesses", build_harness, "Make an eval set, after the trial that runs", status=201),
    Route("GET", "/vectors/harnesses", list_harnesses, "Every eval set, or one index's"),
    Route("GET", "/vectors/trials/{index}", list_trials, "Measured points, newest first"),
    Route(
        "POST",
        "/vectors/hnsw/autotune",
        autotune,
        "Tune now, and stream how it goes",
        media="application/x-ndjson",
        items=AutotuneStarted | Progress | TrialCompleted | TrialFailed | TuningFinished,
    ),
    Route("POST", "/vectors/agent/enqueue/{index}", enqueue, "Tune when its turn comes", status=202),
    Route("GET", "/vectors/agent/status", agent_status, "Queue, running trial, budget, decisions"),
    Route("GET", "/vectors/replay/{index}", replay, "Prove from the journal what was proposed, and what is next"),
]
