"""The GPU's memory as one report: the driver's figures joined with what the model servers claim."""

from collections.abc import Sequence

from schemas.events.profile import GpuReading, ServerReport, SlotInfo, VramReport
from schemas.names import Timestamp

NOISE_BYTES = 64 << 20
NOISE_SHARE = 0.01
"""Used memory that moves by no more than the larger of the two hasn't changed."""


def report(gpus: GpuReading, servers: Sequence[ServerReport], slot: SlotInfo, now: Timestamp) -> VramReport:
    """What is used and in no server's report is `unaccounted`; never below zero, as servers
    estimate and a server's GPU may be another machine's."""
    accounted = sum(model.size_vram or 0 for server in servers for model in server.models)
    used = gpus.used
    return VramReport(
        gpus=gpus.gpus,
        source=gpus.source,
        reason=gpus.reason,
        servers=list(servers),
        slot=slot,
        time=now,
        total=gpus.total,
        used=used,
        free=gpus.free,
        accounted=accounted,
        unaccounted=None if used is None else max(0, used - accounted),
    )


def changed(before: VramReport | None, after: VramReport) -> bool:
    """Whether the difference is worth telling."""
    if before is None or _loaded(before) != _loaded(after) or (before.used is None) != (after.used is None):
        return True
    if before.used is None or after.used is None:
        return False
    return abs(after.used - before.used) > max(NOISE_BYTES, NOISE_SHARE * (after.total or 0))


def _loaded(vram: VramReport) -> set[tuple[str, str, int | None]]:
    return {(model.server, model.model, model.size_vram) for server in vram.servers for model in server.models}
