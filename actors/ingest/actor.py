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
import msgspec
from anyio import to_thread

from actors.base import Actor, Origin, concurrent, every, handles
from actors.errors import Conflict
from actors.ingest.config import IngestConfig, SourceConfig
from actors.ingest.core import BadFile, format_of
from actors.ingest.databases.opening import database_request, open_database, resolved
from actors.ingest.idkey import secret_key
from actors.ingest.loading import Job, Loading, Said, marks_of, rejects_of
from actors.ingest.moving import DatasetMoves
from actors.ingest.paths import allowed_file
from actors.ingest.readers import Reader, open_reader
from actors.ingest.readers.records import RecordsReader
from actors.mirror import Mirror
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
    IngestDatabase,
    IngestFile,
    IngestRejected,
    IngestReport,
    ListDatasets,
    RowsDeleted,
    UpsertRows,
)
from schemas.events.storage import ClearDataset, Cleared, SwitchDataset, Switched
from schemas.names import DatasetName

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
        sources: Sequence[SourceConfig] = (),
        mirror: Mirror | None = None,
        id_key: Path | None = None,
    ) -> None:
        """uploads: a folder whose files may be read besides those under the allowed roots.
        mirror: the storage desk's, which knows what its first pass has copied. id_key: where the secret of content ids
        lies, not within `uploads`; default beside it."""
        self._sources = sources
        self._clock = clock
        self._due = {source.name: 0.0 for source in sources if source.every_s}  # when each is read next, monotonic
        self._under_way: set[str] = set()
        self.wake_s = 1.0 if self._due else 0.0
        self._tables = tables
        self._registry = registry
        self._config = config
        self._uploads = uploads
        self._folder = uploads / ".stages"
        key = id_key or uploads.with_name("ids.key")
        self._loading = Loading(tables, registry, buckets, bus, clock, config, self._folder, lambda: secret_key(key))
        self._moves = DatasetMoves(registry, tables, buckets, mirror or Mirror(buckets))
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
        job = Job(
            dataset=command.dataset,
            mode=command.mode,
            source=command.source or command.path,
            open=lambda _: self._open(command),
            bucket=command.bucket,
            id_column=command.id_column,
            vector_column=command.vector_column,
            pii=command.pii,
        )
        return await self._load(job, origin)

    @handles
    @concurrent(2)
    async def on_database(
        self, command: IngestDatabase, origin: Origin
    ) -> Sequence[DatasetAppended | IngestRejected | IngestReport | Refusal]:
        if command.dsn is not None and not origin.asked:
            return [Refusal("forbidden", "a DSN was published: what is published is stored, with its password",
                            "name the server as a [[sources]] of lakehouse.toml and publish its name, "
                            "or POST /ingest/db; and change the password")]  # fmt: skip
        asked = command.bucket
        try:
            command = resolved(command, self._sources)
            dataset = command.dataset
            if dataset is None:
                raise BadFile("a dataset is needed, for the rows to go to", "name `dataset`")
            if asked is None and (await self._loading.known(dataset)).dataset is not None:
                command = msgspec.structs.replace(command, bucket=None)  # a source's bucket is that of a new dataset
            request = await to_thread.run_sync(
                lambda: database_request(command, self._sources, self._config, command.server)
            )
        except BadFile as error:
            return [error.refusal]
        job = Job(
            dataset=dataset,
            mode=command.mode or "append",
            source=request.shown,
            open=lambda mark: open_database(msgspec.structs.replace(request, after=mark)),
            bucket=command.bucket,
            id_column=command.id_column,
            vector_column=command.vector_column,
            mark_key=request.mark_key if command.cursor else None,
            may_be_empty=command.mode != "replace",
            pii=command.pii,
        )
        if command.source is not None:
            self._under_way.add(command.source)
        try:
            return await self._load(job, origin)
        finally:
            self._under_way.discard(command.source or "")

    @every("wake_s")
    async def on_wake(self) -> Sequence[IngestDatabase]:
        """Read the sources whose time has come; one that is still being read is left alone."""
        now = self._clock.monotonic()
        due = [source for source in self._sources if source.name in self._due and self._due[source.name] <= now]
        for source in due:
            self._due[source.name] = now + source.every_s
        return [IngestDatabase(source=source.name) for source in due if source.name not in self._under_way]

    @handles
    @concurrent(4)
    async def on_upsert(
        self, command: UpsertRows, origin: Origin
    ) -> Sequence[DatasetAppended | IngestRejected | IngestReport | Refusal]:
        if (await self._loading.known(command.dataset)).dataset is None:
            return [_unknown(command.dataset)]
        rows = RecordsReader(command.rows, "rows")
        return await self._load(Job(command.dataset, "upsert", "rows", lambda _: rows), origin)

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
                marks = await marks_of(self._tables, known)
                note = CommitInfo(0, 0, "delete", 0, origin.id, source="delete", marks=marks)
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
    @concurrent(4)
    async def on_switch(self, command: SwitchDataset) -> Sequence[Switched | Refusal]:
        async with self._writers[command.dataset]:
            return [await self._moves.switch(command)]

    @handles
    @concurrent(4)
    async def on_clear(self, command: ClearDataset) -> Sequence[Cleared]:
        async with self._writers[command.dataset]:
            return [await self._moves.clear(command)]

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

    def _open(self, command: IngestFile) -> Reader:
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
