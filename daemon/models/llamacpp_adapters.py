"""LoRA adapters of a llama.cpp server: which id a profile's adapter has, what scale each is to have,
and setting them. A server loads its adapters at start; only their scales change while it runs.
"""

import math
from collections.abc import Sequence
from urllib.parse import quote, urlsplit

import msgspec

from actors.errors import ModelServerError, UnknownAdapter
from daemon.models.http import ServerHttp
from daemon.models.llamacpp_listing import Model, adapter_names
from schemas.profile import Adapter


class Lora(msgspec.Struct, frozen=True):
    """An entry of `GET /lora-adapters`."""

    id: int
    path: str
    scale: float


def wanted_scales(have: Sequence[Lora], adapters: Sequence[Adapter]) -> dict[int, float]:
    """Scale by id, for every id, so that nothing hangs on what the server makes of one left out.
    Raises UnknownAdapter for one that isn't there or is there twice."""
    scales = {lora.id: 0.0 for lora in have}
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
    path = "/lora-adapters"
    query = f"?model={quote(model.id, safe='')}&autoload=false" if model.router else ""
    have = await http.ask("GET", path + query, list[Lora])
    scales = wanted_scales(have, adapters)
    if _same(have, scales):
        return
    if own is None:
        raise ModelServerError(
            f"{http.who} can't change the adapters of {model.name}: a router on another machine passes no scales on;"
            " set them in its preset (`lora-scaled = FILE:SCALE`), or run a single-mode server"
        )
    await own.call("POST", path, [{"id": id, "scale": scale} for id, scale in scales.items()])
    have = await http.ask("GET", path + query, list[Lora])
    if not _same(have, scales):
        shown = {lora.id: lora.scale for lora in have}
        raise ModelServerError(f"{http.who} has adapter scales {shown} after they were set to {scales}")


def is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _same(have: Sequence[Lora], scales: dict[int, float]) -> bool:
    """The server computes in float32."""
    return {lora.id for lora in have} == set(scales) and all(
        math.isclose(lora.scale, scales[lora.id], rel_tol=1e-6) for lora in have
    )


def _sentence(name: str, paths: Sequence[str], *, twice: bool) -> str:
    if twice:
        return f"the adapter {name} is there more than once: {', '.join(paths)}; name it by its path"
    has = ", ".join(adapter_names(path)[0] for path in paths) or "none"
    return f"there is no adapter {name}; the server was started with {has}"
