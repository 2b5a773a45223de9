"""The adapter gate: trained, asked, exported; and prompts that it routes to a profile's model."""

from daemon.http.route import Call, Route, message
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
from schemas.http_gate import ExportGateBody, GenerateBody, PromptBody, TrainGateBody
from schemas.http_profile import ProfileParams


async def train(call: Call[ProfileParams, TrainGateBody]) -> GateTrained:
    return await call.ask(message(TrainGate, call.body, profile=call.params.profile), long=True)


async def weigh(call: Call[ProfileParams, PromptBody]) -> PromptWeights:
    return await call.ask(WeighPrompt(call.params.profile, call.body.prompt))


async def export(call: Call[ProfileParams, ExportGateBody]) -> GateExported:
    return await call.ask(message(ExportGate, call.body, profile=call.params.profile), long=True)


async def get_gate(call: Call[ProfileParams, None]) -> GateInfo:
    return await call.ask(GetGate(call.params.profile))


async def generate(call: Call[ProfileParams, GenerateBody]) -> Generated:
    return await call.ask(message(Generate, call.body, profile=call.params.profile), long=True)


ROUTES = [
    Route("POST", "/gate/{profile}/train", train, "Learn from prompts which adapter each wants"),
    Route("POST", "/gate/{profile}/weights", weigh, "What the gate gives a prompt"),
    Route("POST", "/gate/{profile}/export", export, "Freeze a mix of its adapters: peft, ollama, base, llamacpp"),
    Route("GET", "/gate/{profile}", get_gate, "A profile's gate, the weights that it puts in, and its exports"),
    Route(
        "POST", "/vectors/profile/{profile}/generate", generate, "Go on from a prompt, by the adapters that it wants"
    ),
]
