"""The GPU's memory: what is in it, one model in, one model out. Each can be asked again at will."""

from daemon.http.route import Call, Route
from schemas.events.profile import GetVram, ModelReport, PreloadModel, UnloadModel, VramReport
from schemas.http import NoParams
from schemas.http_profile import PreloadBody, UnloadBody


async def vram(call: Call[NoParams, None]) -> VramReport:
    return await call.ask(GetVram())


async def preload(call: Call[NoParams, PreloadBody]) -> ModelReport:
    body = call.body
    return await call.ask(PreloadModel(body.model, body.keep_alive, body.server), long=True)


async def unload(call: Call[NoParams, UnloadBody]) -> ModelReport:
    return await call.ask(UnloadModel(call.body.model, call.body.server), long=True)


ROUTES = [
    Route("GET", "/admin/vram", vram, "GPUs, what each model server has loaded, the slot, what is unaccounted for"),
    Route("POST", "/admin/preload", preload, "Load a model beside what is there; evicts nothing"),
    Route("POST", "/admin/unload", unload, "Take a model out of memory; the profile that needs it is deactivated"),
]
