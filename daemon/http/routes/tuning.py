"""Tuning: eval sets, trials, the agent, and an autotune whose progress is streamed."""

from time import monotonic

from aiohttp import web

from daemon.http.route import Call, Route, message
from daemon.http.streams import HEARTBEAT_S, Ended, Feed, open_stream, write_line
from schemas.events.autotune import (
    AgentStatus,
    AutotuneStarted,
    BuildHarness,
    EnqueueTuning,
    GetAgentStatus,
    GridPoint,
    HarnessInfo,
    HarnessList,
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
        objective=body.objective,
        agent=body.agent,
    )
    services = call.services
    subjects = ("lakehouse.evt.trial.>", "lakehouse.evt.autotune.>", "lakehouse.sig.job.progress")
    async with Feed(services.bus, services.closing, *subjects) as feed:
        started = await call.ask(start, long=True)
        response = await open_stream(call.request, "application/x-ndjson")
        try:
            await write_line(response, started)
            await _follow(feed, started, response, monotonic() + services.config.long_timeout_s)
        except (Ended, ConnectionError):
            return response
        await response.write_eof()
        return response


async def _follow(feed: Feed, started: AutotuneStarted, response: web.StreamResponse, deadline: float) -> None:
    while monotonic() < deadline:
        envelope = await feed.next(HEARTBEAT_S)
        if envelope is None:
            await write_line(response, Progress(started.campaign, started.index, "waiting", 0))
            continue
        if _belongs(envelope.message, started):
            await write_line(response, envelope.message)
        if isinstance(envelope.message, TuningFinished) and envelope.message.campaign == started.campaign:
            return


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
