"""Codecs (control): takes orders for calibrations, sweeps and certificates, refuses what can't be right before any work
is done, and keeps what is under way (`board`) and what is in use (`uses`).

The work itself, step by step, is the calibrator's, which also writes the documents of artifacts and certificates, so
that an artifact is there when its fact is heard. What is decided here is in core_desk and core_sweep.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Never

import anyio.to_thread

from actors.base import Actor, Origin, concurrent, handles
from actors.codec import core_desk
from actors.codec.base import CodecError
from actors.codec.board import Board, job_id
from actors.codec.checkpoints.source import Source, open_source
from actors.codec.core_sweep import Kind, TooManyPoints, UnknownField, as_sweep, count
from actors.codec.store import ArtifactStore
from actors.codec.sweep import groups
from actors.codec.targets import NoTarget, Targets
from actors.codec.uses import Uses, unknown
from actors.codec_ports import CodecJournal
from actors.errors import Transient
from actors.ports import Buckets, Clock, Registry
from schemas.codec import Checkpoint, CodecJobId, CodecTarget, Override, describe
from schemas.documents.codec import CodecDocument
from schemas.events.base import Refusal
from schemas.events.codec import (
    CalibrateCodec,
    CalibrateTensor,
    CancelCodecJob,
    CertifyCodec,
    CodecCalibrated,
    CodecCertified,
    CodecDropped,
    CodecGraduated,
    CodecInfo,
    CodecJobFailed,
    CodecJobs,
    CodecJobStarted,
    CodecList,
    CodecSelfTestFailed,
    CodecTrials,
    CodecWithdrawn,
    DropCodec,
    Frontier,
    GetCodec,
    GetFrontier,
    GetManifest,
    GraduateCodec,
    ListCodecJobs,
    ListCodecs,
    ListCodecTrials,
    ManifestReply,
    MeasurePoints,
    ProbeRowcount,
    RunCertification,
    SweepCodec,
    SweepFinished,
    WithdrawCodec,
)
from schemas.events.index import IndexDropped
from schemas.events.profile import ProfileDeleted


class Codecs(Actor):
    def __init__(
        self, registry: Registry, buckets: Buckets, targets: Targets, journal: CodecJournal, clock: Clock
    ) -> None:
        self._registry = registry
        self._buckets = buckets
        self._targets = targets
        self._journal = journal
        self._board = Board(registry, clock)
        self._uses = Uses(registry, buckets, clock)

    # --- orders ---------------------------------------------------------------------------------

    @handles
    async def on_calibrate(
        self, command: CalibrateCodec, origin: Origin
    ) -> Sequence[CodecJobStarted | CalibrateTensor | Refusal]:
        job = job_id(origin)
        artifact = command.artifact or f"codec-{job}"
        try:
            await self._check_bucket(command.bucket)
            source = await self._open(command.target, command.overrides)
            if command.activations is not None:
                await self._targets.path(command.activations, "file")
        except NoTarget as error:
            return [error.refusal]
        except CodecError as error:
            return [Refusal("invalid", str(error))]
        routes = (item.route for item in source.items if item.route)
        objection = core_desk.unfit(routes, command.params, command.activations is not None)
        if objection is not None:
            return [Refusal("invalid", objection)]
        if taken := await self._board.taken(artifact, job):
            return [taken]
        started = CodecJobStarted(job, "calibrate", len(source.items), artifact)
        if await self._registry.load(CodecDocument, artifact) is not None:
            return [started]  # this order, come again after its end
        if await self._board.begin(started, describe(command.target), command.asked_by, command.bucket):
            try:
                await ArtifactStore(self._buckets, command.bucket, artifact).remove()  # what an unfinished one left
            except Exception:
                await self._board.end(job)  # nobody would take its first step
                raise
        return [started, CalibrateTensor(job, command, artifact, 0, started.steps)]

    @handles
    async def on_sweep(
        self, command: SweepCodec, origin: Origin
    ) -> Sequence[CodecJobStarted | MeasurePoints | Refusal]:
        return await self._sweep(command, "sweep", origin)

    @handles
    async def on_probe(
        self, command: ProbeRowcount, origin: Origin
    ) -> Sequence[CodecJobStarted | MeasurePoints | Refusal]:
        return await self._sweep(as_sweep(command), "probe", origin)

    @handles
    async def on_certify(
        self, command: CertifyCodec, origin: Origin
    ) -> Sequence[CodecJobStarted | RunCertification | Refusal]:
        found = await self._registry.load(CodecDocument, command.artifact)
        if found is None:
            return [unknown(command.artifact)]
        document = found[0]
        if objection := core_desk.wrong_gate(command, document.target):
            return [Refusal("invalid", objection)]
        if isinstance(document.target, Checkpoint) and command.text is None:
            reason = f"{command.artifact!r} is of a model: its certificate needs held-out text"
            return [
                Refusal("invalid", reason, "name a text file that it wasn't trained on, prompts apart by blank lines")
            ]
        try:
            if command.text is not None:
                await self._targets.path(command.text, "file")
        except NoTarget as error:
            return [error.refusal]
        started = CodecJobStarted(job_id(origin), "certify", 1, command.artifact)
        await self._board.begin(started, command.artifact, command.asked_by)
        return [started, RunCertification(started.job, command, document.manifest_sha256)]

    @handles
    async def on_cancel(self, command: CancelCodecJob) -> Sequence[CodecJobFailed | Refusal]:
        job = await self._board.find(command.job)
        if job is None:
            return [
                Refusal("not_found", f"no codec job {command.job!r} is under way", "lakehouse codec jobs lists them")
            ]
        await self._abandon(job.job)
        return [CodecJobFailed(job.job, job.kind, f"cancelled by {command.asked_by}", artifact=job.artifact)]

    # --- what became of them --------------------------------------------------------------------

    @handles
    async def on_calibrated(self, event: CodecCalibrated) -> Sequence[Never]:
        await self._board.end(event.job)
        return ()

    @handles
    async def on_sweep_finished(self, event: SweepFinished) -> Sequence[Never]:
        await self._board.end(event.job)
        return ()

    @handles
    async def on_certified(self, event: CodecCertified) -> Sequence[Never]:
        await self._board.end(event.job)
        return ()

    @handles
    async def on_self_test_failed(self, event: CodecSelfTestFailed) -> Sequence[Never]:
        await self._board.end(event.job)
        return ()

    @handles
    async def on_failed(self, event: CodecJobFailed) -> Sequence[Never]:
        await self._abandon(event.job)
        return ()

    # --- use ------------------------------------------------------------------------------------

    @handles
    async def on_graduate(self, command: GraduateCodec) -> Sequence[CodecGraduated | Refusal]:
        if (command.index is None) == (command.profile is None):
            return [Refusal("invalid", "an artifact graduates for one index or one profile", "name one of the two")]
        return [await self._uses.graduate(command)]

    @handles
    async def on_withdraw(self, command: WithdrawCodec) -> Sequence[CodecWithdrawn | Refusal]:
        if (command.index is None) == (command.profile is None):
            return [Refusal("invalid", "an artifact is withdrawn from one index or one profile", "name one of the two")]
        withdrawn = await self._uses.withdraw(command.index, command.profile, f"asked by {command.asked_by}")
        what = f"index {command.index!r}" if command.index else f"profile {command.profile!r}"
        return [withdrawn or Refusal("not_found", f"{what} uses no codec", "lakehouse codec list shows which do")]

    @handles
    async def on_drop(self, command: DropCodec) -> Sequence[CodecDropped | Refusal]:
        return [await self._uses.drop(command)]

    @handles
    async def on_index_dropped(self, event: IndexDropped, origin: Origin) -> Sequence[CodecWithdrawn]:
        withdrawn = await self._uses.withdraw(event.index, None, "the index was dropped", origin.time)
        return [withdrawn] if withdrawn else ()

    @handles
    async def on_profile_deleted(self, event: ProfileDeleted, origin: Origin) -> Sequence[CodecWithdrawn]:
        withdrawn = await self._uses.withdraw(None, event.profile, "the profile was deleted", origin.time)
        return [withdrawn] if withdrawn else ()

    # --- questions ------------------------------------------------------------------------------

    @handles
    @concurrent(8)
    async def on_list(self, query: ListCodecs) -> Sequence[CodecList]:
        return [CodecList([core_desk.info(document) for _, document, _ in await self._registry.all(CodecDocument)])]

    @handles
    @concurrent(8)
    async def on_get(self, query: GetCodec) -> Sequence[CodecInfo | Refusal]:
        found = await self._registry.load(CodecDocument, query.artifact)
        return [core_desk.info(found[0]) if found else unknown(query.artifact)]

    @handles
    @concurrent(8)
    async def on_manifest(self, query: GetManifest) -> Sequence[ManifestReply | Refusal]:
        found = await self._registry.load(CodecDocument, query.artifact)
        if found is None:
            return [unknown(query.artifact)]
        try:
            manifest, _ = await ArtifactStore(self._buckets, found[0].bucket, query.artifact).manifest()
        except FileNotFoundError:
            return [Refusal("conflict", f"the files of {query.artifact!r} are gone", "calibrate again")]
        return [ManifestReply(manifest)]

    @handles
    @concurrent(8)
    async def on_jobs(self, query: ListCodecJobs) -> Sequence[CodecJobs]:
        return [CodecJobs(await self._board.all())]

    @handles
    @concurrent(8)
    async def on_trials(self, query: ListCodecTrials) -> Sequence[CodecTrials]:
        trials, total = await self._journal.trials(
            job=query.job, target=query.target, tensor=query.tensor, limit=query.limit
        )
        return [CodecTrials(trials, total)]

    @handles
    @concurrent(8)
    async def on_frontier(self, query: GetFrontier) -> Sequence[Frontier]:
        points, sql = await self._journal.frontier(
            query.measure, target=query.target, tensor=query.tensor, job=query.job
        )
        return [Frontier(query.measure, query.target, points, sql)]

    # --- parts ----------------------------------------------------------------------------------

    async def _sweep(
        self, order: SweepCodec, kind: Kind, origin: Origin
    ) -> Sequence[CodecJobStarted | MeasurePoints | Refusal]:
        try:
            count(order)  # before any point is made, and before the target is looked at
            source = await self._open(order.target)
            if order.activations is not None:
                await self._targets.path(order.activations, "file")
            steps = len(groups(source, order, kind))
        except NoTarget as error:
            return [error.refusal]
        except (TooManyPoints, UnknownField) as error:
            return [Refusal("malformed", str(error))]
        except CodecError as error:
            return [Refusal("invalid", str(error))]
        started = CodecJobStarted(job_id(origin), kind, steps)
        await self._board.begin(started, describe(order.target), order.asked_by)
        return [started, MeasurePoints(started.job, order, kind, 0, steps)]

    async def _abandon(self, job: CodecJobId) -> None:
        """The job is over; what it has of an artifact goes."""
        found = await self._board.find(job)
        await self._board.end(job)
        if found is None or found.bucket is None or found.artifact is None:
            return
        if await self._registry.load(CodecDocument, found.artifact) is None:
            with suppress(
                Transient, OSError
            ):  # the calibrator removes what is left, too; that it is over has to be told
                await ArtifactStore(self._buckets, found.bucket, found.artifact).remove()

    async def _open(self, target: CodecTarget, overrides: Sequence[Override] = ()) -> Source:
        """Headers and routes of a target. Raises NoTarget, CodecError."""
        async with self._targets.held(target) as local:
            path: Path = local.path
            try:
                source = await anyio.to_thread.run_sync(open_source, path, overrides)
            except CodecError as error:  # what was named, not where it lies here
                raise CodecError(str(error).replace(str(path), describe(target))) from None
            except OSError as error:  # beside the shards: config.json
                raise CodecError(f"{describe(target)} can't be read: {error}") from None
        if objection := core_desk.unusable({item.name: item.problem for item in source.items}):
            raise CodecError(f"{describe(target)}: {objection}")
        return source

    async def _check_bucket(self, bucket: str) -> None:
        names = await self._buckets.names()
        if bucket not in names:
            raise NoTarget(f"there is no bucket {bucket!r}", f"there are {', '.join(names)}", "not_found")
