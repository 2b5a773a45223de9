"""LoRA adapters of a llama.cpp server: which id a profile's adapter has, what scale each is to have,
and setting them. A server loads its adapters at start; only their scales change while it runs.
"""

import math
from collections.abc import Mapping, Sequence
from urllib.parse import quote, urlsplit

import msgspec

from actors.errors import ModelServerError, UnknownAdapter
from daemon.models.http import ServerHttp
from daemon.models.llamacpp_listing import Model, adapter_names
from schemas.profile import Adapter

PATH = "/lora-adapters"


class Scale(msgspec.Struct, frozen=True):
    """An entry of a request's `lora`."""

    id: int
    scale: float


class Lora(msgspec.Struct, frozen=True):
    """An entry of `GET /lora-adapters`."""

    id: int
    path: str
    scale: float


def wanted_scales(have: Sequence[Lora], adapters: Sequence[Adapter]) -> dict[int, float]:
    """Scale by id, for every id, so that nothing hangs on what the server makes of one left out.
    Raises UnknownAdapter for one that isn't there or is there twice, ModelServerError for ids that aren't one's own."""
    scales = {lora.id: 0.0 for lora in have}
    if len(scales) < len(have):
        listed = ", ".join(f"{lora.id}: {lora.path}" for lora in have)
        raise ModelServerError(f"the server lists adapters of one id ({listed}): no scale of either can be set")
    for adapter in adapters:
        found = [lora for lora in have if adapter.name in adapter_names(lora.path)]
        if len(found) != 1:
            raise UnknownAdapter(_sentence(adapter.name, [lora.path for lora in have], twice=len(found) > 1))
        scales[found[0].id] = adapter.scale
    return scales


def check_adapters(model: Model, adapters: Sequence[Adapter]) -> None:
    """Before a router's model is loaded: its process would get these. Raises UnknownAdapter."""
    wanted_scales([Lora(id, path, 0.0) for id, path in enumerate(model.adapters)], adapters)


async def apply_adapters(http: ServerHttp, own: ServerHttp | None, model: Model, adapters: Sequence[Adapter]) -> None:
    """Sets every adapter of a loaded model and reads them back: the server answers 200 to ids that
    it doesn't have. `own` is the process that has the model: a router routes a request by its body's
    `model`, and because this body is a list, it refuses it. Raises UnknownAdapter, and ModelServerError
    when the scales can't be set."""
    have = await _ask(http, model)
    scales = wanted_scales(have, adapters)
    if _same(_shown(have), scales):
        return
    if own is None:
        raise ModelServerError(
            f"{http.who} can't change the adapters of {model.name}: a router on another machine passes no scales on;"
            " set them in its preset (`lora-scaled = FILE:SCALE`), or run a single-mode server"
        )
    await own.call("POST", PATH, [{"id": id, "scale": scale} for id, scale in scales.items()])
    have = await _ask(http, model)
    if not _same(_shown(have), scales):
        raise ModelServerError(f"{http.who} has adapter scales {_shown(have)} after they were set to {scales}")


async def request_scales(http: ServerHttp, model: Model, adapters: Sequence[Adapter]) -> dict[int, float]:
    """Scale by id, for every id that the process has, to go with one request. Raises UnknownAdapter."""
    return wanted_scales(await _ask(http, model), adapters)


def check_request(http: ServerHttp, told: Sequence[Scale] | None, scales: dict[int, float]) -> None:
    """Whether the scales that an answer tells are those that were sent. A server that takes scales with a request tells
    them back (llama.cpp#10994); an older one leaves them out of account, and says nothing. Raises ModelServerError."""
    shown = _shown(told or ())
    if not _same(shown, scales):
        old = "" if told else "; llama.cpp before January 2025 takes none with a request"
        raise ModelServerError(f"{http.who} answered with adapter scales {shown}, and {scales} were asked for{old}")


async def _ask(http: ServerHttp, model: Model) -> list[Lora]:
    query = f"?model={quote(model.id, safe='')}&autoload=false" if model.router else ""
    return await http.ask("GET", PATH + query, list[Lora])


def is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _shown(told: Sequence[Scale | Lora]) -> dict[int, float]:
    return {one.id: one.scale for one in told}


def _same(have: Mapping[int, float], scales: Mapping[int, float]) -> bool:
    """The server computes in float32."""
    return have.keys() == scales.keys() and all(
        math.isclose(scale, scales[id], rel_tol=1e-6) for id, scale in have.items()
    )


def _sentence(name: str, paths: Sequence[str], *, twice: bool) -> str:
    if twice:
        return f"the adapter {name} is there more than once: {', '.join(paths)}; name it by its path"
    has = ", ".join(adapter_names(path)[0] for path in paths) or "none"
    return f"there is no adapter {name}; the server was started with {has}"
