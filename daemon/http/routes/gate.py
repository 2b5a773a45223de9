"""The adapter gate: trained and exported, streamed as it goes; asked; and prompts that it routes to a model."""

from typing import Any

from aiohttp import web

from actors.gate.work import job_of
from daemon.http.jobs import stream_asked
from daemon.http.route import Call, Route, message
from schemas.events.base import Progress, Refusal
from schemas.events.gate import (
    ExportGate,
    GateExported,
    GateInfo,
    GateTrained,
    Generate,
    Generated,
    GetGate,
    PromptWeights,
    TrainGate,
    WeighPrompt,
)
from schemas.http_gate import ExportGateBody, GateJobParams, GenerateBody, PromptBody, TrainGateBody
from schemas.http_profile import ProfileParams


async def train(call: Call[GateJobParams, TrainGateBody]) -> web.StreamResponse:
    order = message(TrainGate, call.body, profile=call.params.profile)
    return await stream_asked(call, order, call.params.profile, job_of, wait=call.params.wait)


async def weigh(call: Call[ProfileParams, PromptBody]) -> PromptWeights:
    return await call.ask(WeighPrompt(call.params.profile, call.body.prompt))


async def export(call: Call[GateJobParams, ExportGateBody]) -> web.StreamResponse:
    order = message(ExportGate, call.body, profile=call.params.profile)
    return await stream_asked(call, order, call.params.profile, job_of, wait=call.params.wait)


async def get_gate(call: Call[ProfileParams, None]) -> GateInfo:
    return await call.ask(GetGate(call.params.profile))


async def generate(call: Call[ProfileParams, GenerateBody]) -> Generated:
    return await call.ask(message(Generate, call.body, profile=call.params.profile), long=True)


def _streamed(path: str, handler: Any, summary: str, last: Any) -> Route:
    items: Any = Progress | last | Refusal
    return Route("POST", path, handler, summary, media="application/x-ndjson", items=items, accepted=Progress)


ROUTES = [
    _streamed("/gate/{profile}/train", train, "Learn from prompts which adapter each wants", GateTrained),
    Route("POST", "/gate/{profile}/weights", weigh, "What the gate gives a prompt"),
    _streamed(
        "/gate/{profile}/export", export, "Freeze a mix of its adapters: peft, ollama, base, llamacpp", GateExported
    ),
    Route("GET", "/gate/{profile}", get_gate, "A profile's gate, the weights that it puts in, and its exports"),
    Route(
        "POST", "/vectors/profile/{profile}/generate", generate, "Go on from a prompt, by the adapters that it wants"
    ),
]
