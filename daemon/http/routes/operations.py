"""The daemon itself: is it alive, is it ready, what runs, what is it wired like."""

import time
from typing import Any

import msgspec
from aiohttp import web

from actors.errors import Refused, Unavailable
from daemon.http import openapi
from daemon.http.route import Call, Route
from schemas.events.autotune import GetAgentStatus
from schemas.events.base import Request
from schemas.events.dataset import ListDatasets
from schemas.events.index import ListIndexes
from schemas.events.profile import GetSlot
from schemas.http import AgentSummary, Health, Links, NoParams, Readiness, SlotSummary, StatusReport


async def root(call: Call[NoParams, None]) -> Links:
    paths = (
        "/status",
        "/datasets",
        "/storage/buckets",
        "/vectors/indexes",
        "/vectors/agent/status",
        "/vectors/profiles",
        "/vectors/profile/active",
        "/codec/artifacts",
        "/codec/frontier",
        "/codec/jobs",
        "/admin/vram",
        "/events",
        "/dead",
        "/topology",
    )
    documents = ("/openapi.json", "/asyncapi.json", "/health", "/ready", "/metrics")
    links = {path.strip("/").rpartition("/")[2].partition(".")[0]: path for path in documents}
    links |= {path.strip("/").replace("/", "_"): path for path in paths}
    return Links("lakehouse", call.services.process.status().version, links)


async def health(_: Call[NoParams, None]) -> Health:
    return Health()


async def ready(call: Call[NoParams, None]) -> web.Response:
    """200, or 503 with what is down."""
    down = call.services.process.down()
    body = msgspec.json.encode(Readiness(not down, down))
    return web.Response(body=body, status=503 if down else 200, content_type="application/json")


async def status(call: Call[NoParams, None]) -> StatusReport:
    process = call.services.process.status()
    datasets = await _maybe(call, ListDatasets())
    indexes = await _maybe(call, ListIndexes())
    agent = await _maybe(call, GetAgentStatus())
    slot = await _maybe(call, GetSlot())
    return StatusReport(
        version=process.version,
        uptime_s=max(0.0, time.time() - process.started),
        roles=process.roles,
        nats=process.nats,
        datasets=len(datasets.datasets) if datasets else None,
        indexes=len(indexes.indexes) if indexes else None,
        agent=AgentSummary(agent.enabled, len(agent.queue), len(agent.running), agent.trials_this_hour)
        if agent
        else None,
        slot=SlotSummary(slot.state, slot.profile) if slot else None,
        down=call.services.process.down(),
    )


async def _maybe(call: Call[NoParams, None], query: Request[Any]) -> Any:
    """An answer within 5 s, or None: a status must come even when its parts are away."""
    try:
        return await call.services.bus.ask(query, timeout_s=5.0)
    except (Refused, Unavailable):
        return None


async def metrics(call: Call[NoParams, None]) -> web.Response:
    text = await call.services.metrics.scrape(call.services.bus)
    return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def topology(call: Call[NoParams, None]) -> web.Response:
    return web.Response(text=call.services.process.topology())


async def asyncapi_document(call: Call[NoParams, None]) -> dict[str, Any]:
    return call.services.process.asyncapi()


async def openapi_document(call: Call[NoParams, None]) -> dict[str, Any]:
    from daemon.http.routes import ROUTES as table  # the whole table, this module's part included

    return openapi.document(table, call.services.process.status().version)


ROUTES = [
    Route("GET", "/", root, "What there is to see"),
    Route("GET", "/health", health, "Whether the process lives; needs no token"),
    Route("GET", "/ready", ready, "Whether it can work, or what is down", items=Readiness),
    Route("GET", "/status", status, "Version, roles, NATS, counts, the agent, the slot"),
    Route("GET", "/metrics", metrics, "Prometheus metrics", media="text/plain"),
    Route("GET", "/topology", topology, "The wiring as a mermaid diagram", media="text/plain"),
    Route("GET", "/asyncapi.json", asyncapi_document, "What travels on the bus"),
    Route("GET", "/openapi.json", openapi_document, "What this server answers"),
]
