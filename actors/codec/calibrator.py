"""The calibrator (work): takes a job's next step, has it done in the niced worker process, writes what came of it and
orders the step after it. So a worker that is killed loses one tensor, one group of points, or one certification.

What a kind of step takes is in calibrating, sweeping and certifying; what it computes, in the jobs that they run.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from actors.base import Actor, Origin, handles
from actors.codec.base import CodecError
from actors.codec.board import Board
from actors.codec.config import CodecConfig
from actors.codec.steps.calibrating import Calibrating, JobOver
from actors.codec.steps.certifying import Certifying
from actors.codec.steps.decoding import Decoding
from actors.codec.steps.sweeping import Sweeping
from actors.codec.steps.work import Work
from actors.codec.targets import NoTarget, Targets
from actors.codec_ports import CodecJournal
from actors.ports import Buckets, Bus, Clock, Compute, Registry
from schemas.codec import ArtifactName, CodecJobId
from schemas.events.base import Refusal
from schemas.events.codec import (
    CalibrateTensor,
    CodecCalibrated,
    CodecCertified,
    CodecDecoded,
    CodecJobFailed,
    CodecSelfTestFailed,
    DecodeCodec,
    JobKind,
    MeasurePoints,
    RunCertification,
    SweepFinished,
    SweepPointMeasured,
    SweepPointSkipped,
    TensorCalibrated,
)

MAX_DELIVERIES = 3
"""A step that killed its worker so often ends its job."""

FAILURES = (NoTarget, ValueError, RuntimeError, MemoryError, FileNotFoundError, PermissionError)
"""What a step raises that ends its job; CodecError is a ValueError. A dead worker is Transient, so is a full disk."""

log = structlog.get_logger(__name__)


class Calibrator(Actor):
    role = "work"

    def __init__(
        self,
        registry: Registry,
        buckets: Buckets,
        targets: Targets,
        journal: CodecJournal,
        compute: Compute,
        bus: Bus,
        clock: Clock,
        host: str,
        config: CodecConfig,
        cache: Path,
    ) -> None:
        self._board = Board(registry, clock)
        self._work = Work(compute, bus, cache)
        self._calibrating = Calibrating(registry, buckets, targets, self._work, clock)
        self._certifying = Certifying(registry, buckets, targets, self._work, clock, host, config)
        self._decoding = Decoding(registry, buckets, targets, self._work)
        self._sweeping = Sweeping(targets, journal, self._work, clock, host)

    async def start(self) -> Sequence[CodecJobFailed]:
        self._work.sweep_out()
        return ()

    @handles
    async def on_tensor(
        self, command: CalibrateTensor, origin: Origin
    ) -> Sequence[TensorCalibrated | CalibrateTensor | CodecCalibrated | CodecJobFailed]:
        if failed := _given_up(origin, command.job, "calibrate", command.artifact):
            return failed
        if await self._board.find(command.job) is None:  # cancelled, or done
            await self._remove_unfinished(command)
            return ()
        try:
            return await self._calibrating.step(command)
        except JobOver:
            await self._remove_unfinished(command)
            return ()
        except FAILURES as error:
            await self._remove_unfinished(command)
            return [_failed(error, command.job, "calibrate", command.artifact)]

    @handles
    async def on_points(
        self, command: MeasurePoints, origin: Origin
    ) -> Sequence[SweepPointMeasured | SweepPointSkipped | MeasurePoints | SweepFinished | CodecJobFailed]:
        if failed := _given_up(origin, command.job, command.kind, None):
            return failed
        if await self._board.find(command.job) is None:
            return ()
        try:
            return await self._sweeping.step(command)
        except FAILURES as error:
            return [_failed(error, command.job, command.kind, None)]

    @handles
    async def on_certification(
        self, command: RunCertification, origin: Origin
    ) -> Sequence[CodecCertified | CodecSelfTestFailed | CodecJobFailed]:
        artifact = command.order.artifact
        if failed := _given_up(origin, command.job, "certify", artifact):
            return failed
        if await self._board.find(command.job) is None:
            return ()
        try:
            return [await self._certifying.step(command)]
        except FAILURES as error:
            return [_failed(error, command.job, "certify", artifact)]

    @handles
    async def on_decode(self, command: DecodeCodec) -> Sequence[CodecDecoded | Refusal]:
        try:
            return [await self._decoding.decode(command)]
        except NoTarget as error:
            return [error.refusal]
        except CodecError as error:
            return [Refusal("invalid", str(error))]

    async def _remove_unfinished(self, command: CalibrateTensor) -> None:
        """What a step wrote after its job was cancelled, unless the name is an artifact's or another job's by now."""
        if await self._board.taken(command.artifact, command.job) is None:
            with suppress(OSError, KeyError):  # a bucket that is gone keeps no job from ending
                await self._calibrating.remove_unfinished(command)


def _given_up(origin: Origin, job: CodecJobId, kind: JobKind, artifact: ArtifactName | None) -> list[CodecJobFailed]:
    if origin.delivery <= MAX_DELIVERIES:
        return []
    reason = f"one step came to nothing at each of {origin.delivery - 1} attempts: the worker died, or failed"
    return [CodecJobFailed(job, kind, reason, "is there memory enough? The daemon's log says what happened", artifact)]


def _failed(error: Exception, job: CodecJobId, kind: JobKind, artifact: ArtifactName | None) -> CodecJobFailed:
    log.warning("codec job failed", job=job, kind=kind, why=error)
    if isinstance(error, NoTarget):
        return CodecJobFailed(job, kind, error.refusal.reason, error.refusal.hint, artifact)
    words = str(error) if isinstance(error, CodecError) else f"{type(error).__name__}: {error}"
    return CodecJobFailed(job, kind, words, artifact=artifact)
