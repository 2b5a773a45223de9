"""The ingest actor: files and rows become table versions, and leave them. It owns the datasets'
documents.

A dataset has one writer at a time; different datasets are written at once. What a load does is
in loading.py.
"""

import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import anyio
from anyio import to_thread

from actors.base import Actor, Origin, concurrent, handles
from actors.errors import Conflict
from actors.ingest.config import IngestConfig
from actors.ingest.core import BadFile, format_of
from actors.ingest.idkey import secret_key
from actors.ingest.loading import Job, Loading, Said, rejects_of
from actors.ingest.paths import allowed_file
from actors.ingest.readers import Reader, open_reader
from actors.ingest.readers.records import RecordsReader
from actors.ports import Buckets, Bus, Clock, Registry, TableRef, Tables, TableState
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import IndexDocument
from schemas.events.base import Message, Refusal
from schemas.events.dataset import (
    CommitInfo,
    DatasetAppended,
    DatasetDropped,
    DatasetInfo,
    DatasetList,
    DeleteRows,
    DropDataset,
    GetDataset,
    IngestFile,
    IngestRejected,
    IngestReport,
    ListDatasets,
    RowsDeleted,
    UpsertRows,
)
from schemas.names import BucketName, DatasetName

_ATTEMPTS = 3


class Ingest(Actor):
    """Reads files and rows into datasets."""

    def __init__(
        self,
        tables: Tables,
        registry: Registry,
        buckets: Buckets,
        bus: Bus,
        clock: Clock,
        config: IngestConfig,
        uploads: Path,
        id_key: Path | None = None,
    ) -> None:
        """uploads: a folder whose files may be read besides those under the allowed roots; id_key:
        where the secret of content ids lies, not within it; default beside it."""
        self._tables = tables
        self._registry = registry
        self._buckets = buckets
        self._config = config
        self._uploads = uploads
        self._folder = uploads / ".stages"
        key = id_key or uploads.with_name("ids.key")
        self._loading = Loading(tables, registry, bus, clock, config, self._folder, lambda: secret_key(key))
        self._writers: defaultdict[DatasetName, anyio.Lock] = defaultdict(anyio.Lock)

    async def start(self) -> Sequence[Message]:
        """Removes what a crash has left of unfinished ingests."""
        await to_thread.run_sync(lambda: shutil.rmtree(self._folder, ignore_errors=True))
        self._folder.mkdir(parents=True, mode=0o700)
        return ()

    @handles
    @concurrent(4)
    async def on_file(
        self, command: IngestFile, origin: Origin
    ) -> Sequence[DatasetAppended | IngestRejected | IngestReport | Refusal]:
        buckets = await self._buckets.names() if command.bucket is not None else []
        job = Job(
            dataset=command.dataset,
            mode=command.mode,
            source=command.source or command.path,
            open=lambda: self._open(command, buckets),
            bucket=command.bucket,
            id_column=command.id_column,
            vector_column=command.vector_column,
            pii=command.pii,
        )
        return await self._load(job, origin)

    @handles
    @concurrent(4)
    async def on_upsert(
        self, command: UpsertRows, origin: Origin
    ) -> Sequence[DatasetAppended | IngestRejected | IngestReport | Refusal]:
        if (await self._loading.known(command.dataset)).dataset is None:
            return [_unknown(command.dataset)]
        rows = RecordsReader(command.rows, "rows")
        return await self._load(Job(command.dataset, "upsert", "rows", lambda: rows), origin)

    @handles
    @concurrent(4)
    async def on_delete(self, command: DeleteRows, origin: Origin) -> Sequence[RowsDeleted | Refusal]:
        async with self._writers[command.dataset]:
            known = await self._loading.known(command.dataset)
            if known.dataset is None or known.state is None:
                return [_unknown(command.dataset)]
            document = known.dataset.document
            table = TableRef(document.bucket, document.path)
            done = await self._loading.done(known, origin)
            if done is not None:
                after = await self._tables.state(table, done.version)
                total = after.rows if after else known.rows
                return [RowsDeleted(command.dataset, document.bucket, done.version, done.rows, total)]
            rows = await self._tables.find(table, document.id_column, command.ids, version=known.state.version)
            state = known.state
            if len(rows):
                note = CommitInfo(0, 0, "delete", 0, origin.id, source="delete")
                state = await self._tables.commit(table, (), note, remove=rows, schema=state.schema)
            return [RowsDeleted(command.dataset, document.bucket, state.version, len(rows), state.rows)]

    @handles
    async def on_drop(self, command: DropDataset, origin: Origin) -> Sequence[DatasetDropped | Refusal]:
        name = command.dataset
        async with self._writers[name]:
            found = await self._registry.load(DatasetDocument, name)
            if found is None:
                # Dropped at an earlier delivery, perhaps: then its event may still be missing.
                return [DatasetDropped(name)] if origin.delivery > 1 else [_unknown(name)]
            standing = [
                index for index, document, _ in await self._registry.all(IndexDocument) if document.dataset == name
            ]
            if standing:
                return [
                    Refusal(
                        "conflict",
                        f"{len(standing)} index(es) stand on dataset {name}: {', '.join(standing)}",
                        "drop them first: lakehouse index drop NAME",
                    )
                ]
            document, revision = found
            # Files first: a document without a table is no dataset, a table without one would be a leak.
            await self._tables.drop(TableRef(document.bucket, document.path))
            await self._tables.drop(rejects_of(document.bucket, name))
            await self._registry.delete(DatasetDocument, name, expected=revision)
            return [DatasetDropped(name)]

    @handles
    @concurrent(8)
    async def on_get(self, query: GetDataset) -> Sequence[DatasetInfo | Refusal]:
        known = await self._loading.known(query.dataset)
        if known.dataset is None or known.state is None:
            return [_unknown(query.dataset)]
        document = known.dataset.document
        commits = await self._tables.history(TableRef(document.bucket, document.path))
        return [_info(document, known.state, commits)]

    @handles
    @concurrent(8)
    async def on_list(self, query: ListDatasets) -> Sequence[DatasetList]:
        found = []
        for _, document, _ in await self._registry.all(DatasetDocument):
            state = await self._tables.state(TableRef(document.bucket, document.path))
            if state is not None:
                found.append(_info(document, state, []))
        return [DatasetList(found)]

    async def _load(self, job: Job, origin: Origin) -> Sequence[Said]:
        """Load the job. When another process makes the dataset meanwhile, load it into that one."""
        async with self._writers[job.dataset]:
            for _ in range(_ATTEMPTS - 1):
                try:
                    return await self._loading.load(job, origin)
                except Conflict:
                    continue
            return await self._loading.load(job, origin)

    def _open(self, command: IngestFile, buckets: Sequence[BucketName]) -> Reader:
        if command.bucket is not None and command.bucket not in buckets:
            raise BadFile(f"there is no bucket {command.bucket}", f"buckets: {', '.join(buckets)}", "not_found")
        path = allowed_file(command.path, [*self._config.allowed_roots, self._uploads])
        format = format_of(command.path, command.source, command.format)
        return open_reader(path, format, command.source or command.path, self._config)


def _unknown(name: DatasetName) -> Refusal:
    return Refusal(
        "not_found", f"there is no dataset {name}", "lakehouse datasets lists them; ingest a file to make one"
    )


def _info(document: DatasetDocument, state: TableState, commits: list[CommitInfo]) -> DatasetInfo:
    return DatasetInfo(
        dataset=document.dataset,
        bucket=document.bucket,
        version=state.version,
        rows=state.rows,
        bytes=state.bytes,
        id_column=document.id_column,
        columns=document.columns,
        commits=commits,
        pii=document.pii,
        pii_policy=document.pii_policy,
        dropped=[column.name for column in document.dropped],
    )
