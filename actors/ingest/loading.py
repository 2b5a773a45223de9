"""One load, from rows in a file to a commit: stage → settle repeated ids → decide → commit.

The order of effects makes a crash harmless: the document of a new dataset first (a document
without a table is no dataset yet), then the refused rows, then the one commit that shows
everything.
"""

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import msgspec
import numpy as np
from anyio import to_thread
from numpy.typing import NDArray

from actors.base import Origin
from actors.ingest import core, leftovers
from actors.ingest.config import IngestConfig
from actors.ingest.core import REJECTS, BadFile, Dataset
from actors.ingest.idkey import dataset_key
from actors.ingest.pii.policy import policy_for, protection_of, with_protection
from actors.ingest.readers import Reader
from actors.ingest.readers.base import Survey
from actors.ingest.staging import FIRST, Meter, Stage, Stopped
from actors.ports import ROW, Buckets, Bus, Clock, Registry, TableRef, Tables, TableState
from schemas.documents.dataset import DatasetDocument
from schemas.events.base import Progress, Refusal
from schemas.events.dataset import (
    CommitInfo,
    DatasetAppended,
    IngestMode,
    IngestRejected,
    IngestReport,
    PiiPolicy,
    RejectedRow,
)
from schemas.names import BucketName, DatasetName, Sha256

Said = DatasetAppended | IngestRejected | IngestReport | Refusal

FEW = 500
"""Ids that are looked up by name instead of scanning the table's id column."""
_WINDOW = 32_768
"""Row numbers of a table scanned at a time."""
_PROGRESS_S = 0.25


class Job(msgspec.Struct, frozen=True):
    """What to load."""

    dataset: DatasetName
    mode: IngestMode
    source: str  # what lineage and rejects call it
    open: Callable[[str | None], Reader]  # takes the mark; called in a thread; raises BadFile
    bucket: BucketName | None = None
    id_column: str | None = None
    vector_column: str | None = None
    mark_key: str | None = None  # under which the source's high-water mark is kept; None: it has none
    may_be_empty: bool = False  # nothing new is no mistake
    pii: PiiPolicy | None = None


class Known(msgspec.Struct, frozen=True):
    """An existing dataset with its table; `dataset` and `state` are None together. `revision`
    is that of the document, which may be left from an ingest that never committed."""

    dataset: Dataset | None
    state: TableState | None
    revision: int | None

    @property
    def rows(self) -> int:
        return self.state.rows if self.state else 0


def table_of(bucket: BucketName, dataset: DatasetName) -> TableRef:
    return TableRef(bucket, f"datasets/{dataset}/table")


def rejects_of(bucket: BucketName, dataset: DatasetName) -> TableRef:
    return TableRef(bucket, f"datasets/{dataset}/rejects")


async def marks_of(tables: Tables, known: Known) -> dict[str, str]:
    """How far the cursors over sources have come: each commit carries all of them on."""
    if known.dataset is None:
        return {}
    document = known.dataset.document
    commits = await tables.history(TableRef(document.bucket, document.path), 1)
    return commits[0].marks if commits else {}


class Loading:
    """Loads jobs. The caller sees to it that a dataset has one writer."""

    def __init__(
        self,
        tables: Tables,
        registry: Registry,
        buckets: Buckets,
        bus: Bus,
        clock: Clock,
        config: IngestConfig,
        folder: Path,
        id_key: Callable[[], bytes],
    ) -> None:
        """folder: where stages lie while they are needed; id_key: reads the secret that content
        ids are made with where personal data isn't kept."""
        self._tables = tables
        self._registry = registry
        self._buckets = buckets
        self._bus = bus
        self._clock = clock
        self._config = config
        self._folder = folder
        self._id_key = id_key

    async def load(self, job: Job, origin: Origin) -> list[Said]:
        """What to say about it: events, then the reply. Raises Conflict, Transient."""
        known = await self.known(job.dataset)
        done = await self.done(known, origin)
        if done is not None:
            return await self._appended(job, origin, known, done)
        try:
            if known.dataset is not None and job.bucket not in (None, known.dataset.document.bucket):
                raise BadFile(
                    f"dataset {job.dataset} lives in bucket {known.dataset.document.bucket}, not {job.bucket}",
                    "leave `bucket` out",
                    "conflict",
                )
            if job.bucket is not None and job.bucket not in (names := await self._buckets.names()):
                raise BadFile(f"there is no bucket {job.bucket}", f"buckets: {', '.join(names)}", "not_found")
            return await self._load(job, origin, known)
        except BadFile as error:
            return [self._rejected(job, origin, 0, str(error), refused=True), error.refusal]
        except Stopped:
            await anyio.lowlevel.checkpoint()  # raises the cancellation that stopped the thread
            raise

    async def known(self, name: DatasetName) -> Known:
        """The dataset as it is."""
        found = await self._registry.load(DatasetDocument, name)
        if found is None:
            return Known(None, None, None)
        document, revision = found
        state = await self._tables.state(TableRef(document.bucket, document.path))
        if state is None:
            return Known(None, None, revision)
        return Known(Dataset(document, state.schema), state, revision)

    async def done(self, known: Known, origin: Origin) -> CommitInfo | None:
        """The commit that this very message made at an earlier delivery."""
        if known.dataset is None:
            return None
        document = known.dataset.document
        commits = await self._tables.history(TableRef(document.bucket, document.path))
        return next((commit for commit in commits if commit.message == origin.id), None)

    async def _load(self, job: Job, origin: Origin, known: Known) -> list[Said]:
        meter = Meter()
        async with self._reporting(job, origin, meter):
            dataset = known.dataset
            id_column = dataset.document.id_column if dataset else job.id_column
            marks = await marks_of(self._tables, known)
            look = await to_thread.run_sync(_look, job, id_column, marks.get(job.mark_key or ""))
            try:
                plan = core.plan(look.survey.columns, dataset, job.id_column, cells_decide=look.survey.cells_decide)
                policy = policy_for(dataset.document if dataset else None, job.pii, job.mode, self._config.pii)
                scanned = 0 if job.mode == "replace" else known.rows
                keyed = policy in ("mask", "drop")
                key = dataset_key(await to_thread.run_sync(self._id_key), job.dataset) if keyed else b""
                cells = [column.name for column in look.survey.columns]
                stage = Stage(self._folder, plan, origin.id, job.source, look.survey.rows + scanned, cells, key)
                try:
                    await to_thread.run_sync(stage.fill, look.reader, meter)
                    if look.stamp != _stamp(look.reader.path):
                        raise BadFile(f"{job.source} changed while it was read", "ingest it again", "conflict")
                    found = await to_thread.run_sync(stage.inspect, meter)
                    stage.protect(
                        protection_of(known.dataset, stage.plan, policy, found, job.mode, job.source, origin.id)
                    )
                    if scanned:
                        await self._scan(stage, known)
                    rewrite = core.rewrites(job.mode, plan.generated_id)
                    allowed = self._config.max_rejected_share
                    await to_thread.run_sync(lambda: stage.settle(rewrite=rewrite, allowed=allowed))
                    if job.mark_key is not None and look.reader.mark is not None:
                        marks = {**marks, job.mark_key: look.reader.mark}
                    return await self._commit(job, origin, known, stage, look, marks, meter)
                finally:
                    with anyio.CancelScope(shield=True):
                        await to_thread.run_sync(stage.close)
            finally:
                with anyio.CancelScope(shield=True):
                    await to_thread.run_sync(look.reader.close)

    async def _commit(
        self, job: Job, origin: Origin, known: Known, stage: Stage, look: "_Look", marks: dict[str, str], meter: Meter
    ) -> list[Said]:
        assert stage.repeats is not None
        added = stage.stored_rows
        warnings = list(look.reader.warnings)
        if stage.seen == 0 and job.may_be_empty and known.state is not None:
            report = IngestReport(origin.id, job.dataset, known.state.version, 0, known.rows, 0, [], warnings)
            assert known.dataset is not None
            return [_with_pii(report, known.dataset.document)]
        refusal = core.too_many_rejected(
            stage.seen - stage.rejected, stage.rejected, self._config.max_rejected_share, stage.first
        )
        if stage.seen == 0 or (added == 0 and known.state is None):
            refusal = refusal or Refusal("invalid", f"{job.source} holds no rows", "is it complete?")
        if refusal is not None:
            return [self._rejected(job, origin, stage.rejected, refusal.reason, refused=True), refusal]
        bucket = known.dataset.document.bucket if known.dataset else job.bucket or "primary"
        table = table_of(bucket, job.dataset)
        if known.revision is None:
            await leftovers.clear(self._registry, self._tables, job.dataset, table, rejects_of(bucket, job.dataset))
        before = known.dataset.document if known.dataset else None
        document = before or core.document_of(stage.plan, job.dataset, bucket, table.path, self._clock.now())
        document = with_protection(document, stage.plan, stage.protection, origin.id)
        # What is known of personal data is kept before the rows are: never a row that it isn't known of.
        if document != before:
            await self._registry.save(job.dataset, document, expected=known.revision)
        note = CommitInfo(
            version=0,
            time=0,
            operation=job.mode,
            rows=0,
            message=origin.id,
            source=job.source,
            sha256=look.digest,
            rejected=stage.rejected,
            marks=marks,
        )
        if stage.rejected:
            await self._tables.commit(
                rejects_of(bucket, job.dataset),
                stage.refused(),
                msgspec.structs.replace(note, message=f"{origin.id}/rejects", operation="append", rejected=0, marks={}),
                schema=REJECTS,
            )
        replaced = 0
        state = known.state
        if added or state is None:
            replaced = known.rows if job.mode == "replace" else len(stage.repeats.removed)
            state = await self._tables.commit(
                table,
                stage.batches(meter),
                note,
                remove=stage.repeats.removed,
                replace=job.mode == "replace",
                schema=stage.schema,
            )
        report = IngestReport(
            origin.id, job.dataset, state.version, added, state.rows, stage.rejected, stage.first, warnings
        )
        report = _with_pii(report, document)
        return self._say(job, origin, bucket, report, replaced, changed=added > 0)

    async def _appended(self, job: Job, origin: Origin, known: Known, done: CommitInfo) -> list[Said]:
        """As `_commit` said it the first time."""
        assert known.dataset is not None
        bucket = known.dataset.document.bucket
        table = table_of(bucket, job.dataset)
        after = await self._tables.state(table, done.version)
        before = await self._tables.state(table, done.version - 1) if done.version else None
        total = after.rows if after else done.rows
        first = await self._first_rejects(bucket, job.dataset, origin) if done.rejected else []
        report = IngestReport(origin.id, job.dataset, done.version, done.rows, total, done.rejected, first)
        report = _with_pii(report, known.dataset.document)
        replaced = (before.rows if before else 0) + done.rows - total
        return self._say(job, origin, bucket, report, replaced, changed=done.rows > 0)

    def _say(
        self, job: Job, origin: Origin, bucket: BucketName, report: IngestReport, replaced: int, *, changed: bool
    ) -> list[Said]:
        said: list[Said] = []
        if changed or replaced:
            said.append(
                DatasetAppended(
                    dataset=job.dataset,
                    bucket=bucket,
                    version=report.version,
                    rows=report.rows,
                    total_rows=report.total_rows,
                    replaced=replaced,
                    ingest=origin.id,
                    source=job.source,
                    started=origin.time,
                )
            )
        if report.rejected:
            first = report.rejects[0].reason if report.rejects else ""
            said.append(self._rejected(job, origin, report.rejected, f"rows set aside; the first: {first}"))
        return [*said, report]

    def _rejected(
        self, job: Job, origin: Origin, rejected: int, reason: str, *, refused: bool = False
    ) -> IngestRejected:
        return IngestRejected(origin.id, job.dataset, job.source, rejected, reason, refused, origin.time)

    async def _first_rejects(self, bucket: BucketName, dataset: DatasetName, origin: Origin) -> list[RejectedRow]:
        table = rejects_of(bucket, dataset)
        rows = await self._tables.find(table, "ingest", [origin.id])
        found = await self._tables.read(table, ["file", "line", "column", "reason"], rows=rows[:FIRST])
        return [RejectedRow(r["file"], r["line"], r["column"], r["reason"]) for r in found.to_pylist()]

    async def _scan(self, stage: Stage, known: Known) -> None:
        """Tell the stage which ids the table has."""
        assert known.dataset is not None
        assert known.state is not None
        table = TableRef(known.dataset.document.bucket, known.dataset.document.path)
        column = stage.plan.id_column
        version, next_row = known.state.version, known.state.next_row
        windows: Iterable[NDArray[np.int64]]
        if stage.rows <= FEW:
            ids = await to_thread.run_sync(stage.ids)
            windows = [await self._tables.find(table, column, ids.to_pylist(), version=version)]
        else:
            windows = (np.arange(at, min(at + _WINDOW, next_row)) for at in range(0, next_row, _WINDOW))
        for window in windows:
            found = await self._tables.read(table, [column, ROW], version=version, rows=window)
            for batch in found.to_batches():
                rows = batch.column(ROW).to_numpy()
                await to_thread.run_sync(stage.add_stored, batch.column(column), rows)

    @asynccontextmanager
    async def _reporting(self, job: Job, origin: Origin, meter: Meter) -> AsyncIterator[None]:
        """Signals progress until left. Cancelled, it stops the thread that moves the meter."""

        async def report() -> None:
            try:
                while True:
                    await self._clock.sleep(_PROGRESS_S)
                    await self._bus.signal(
                        Progress(origin.id, job.dataset, meter.phase, meter.done, meter.total, meter.unit)
                    )
            finally:
                meter.stopped = True

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(report)
                yield
                group.cancel_scope.cancel()
        except BaseExceptionGroup as raised:
            # The group wraps what the body raised; `report` raises nothing.
            if len(raised.exceptions) == 1:
                raise raised.exceptions[0] from None
            raise


def _with_pii(report: IngestReport, document: DatasetDocument) -> IngestReport:
    return msgspec.structs.replace(report, pii=document.pii, pii_policy=document.pii_policy)


class _Look(msgspec.Struct, frozen=True):
    """What is known of a file before its rows are staged."""

    reader: Reader
    survey: Survey
    digest: Sha256 | None
    stamp: tuple[int, ...]


def _look(job: Job, id_column: str | None, mark: str | None) -> _Look:
    reader = job.open(mark)
    stamp = _stamp(reader.path)
    survey = reader.survey(job.vector_column, id_column)  # closes what it opened when it raises
    digest = None
    if reader.path is not None:
        with reader.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return _Look(reader, survey, digest, stamp)


def _stamp(path: Path | None) -> tuple[int, ...]:
    """Changes when the file does."""
    if path is None:
        return ()
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
