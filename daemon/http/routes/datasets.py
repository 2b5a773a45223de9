"""Datasets: files and rows come in, datasets are shown and dropped."""

from actors.ingest.actor import Ingest
from daemon.http import upload
from daemon.http.errors import HttpError
from daemon.http.fields import converted
from daemon.http.route import Call, Route, message
from schemas.events.dataset import (
    DatasetDropped,
    DatasetInfo,
    DatasetList,
    DeleteRows,
    DropDataset,
    GetDataset,
    IngestDatabase,
    IngestFile,
    IngestReport,
    ListDatasets,
    RowsDeleted,
    UpsertRows,
)
from schemas.events.storage import DatasetMoved, MoveDataset
from schemas.http import (
    DatasetParams,
    DeleteRowsBody,
    HomeBody,
    IngestDatabaseBody,
    IngestFileBody,
    NoParams,
    UpsertBody,
)


async def ingest_file(call: Call[NoParams, IngestFileBody]) -> IngestReport:
    return await call.ask(message(IngestFile, call.body), long=True)


async def ingest_upload(call: Call[NoParams, None]) -> IngestReport:
    services = call.services
    if (role := Ingest.role) not in services.process.status().roles:
        # The actor reads uploads from its own process's disk.
        raise HttpError(
            "invalid",
            f"this process takes no uploads: it doesn't have the role {role}",
            "upload to the process that has it, or name a file in its [ingest] allowed_roots",
        )
    async with upload.received(call.request, services.uploads, services.config) as got:
        fields = {"source": got.name, **got.fields, "path": str(got.path)}
        body = converted(fields, IngestFileBody)
        return await call.ask(message(IngestFile, body), long=True)


async def ingest_postgres(call: Call[NoParams, IngestDatabaseBody]) -> IngestReport:
    return await call.ask(message(IngestDatabase, call.body, server="postgresql"), long=True)


async def ingest_mysql(call: Call[NoParams, IngestDatabaseBody]) -> IngestReport:
    return await call.ask(message(IngestDatabase, call.body, server="mysql"), long=True)


async def ingest_source(call: Call[NoParams, IngestDatabaseBody]) -> IngestReport:
    return await call.ask(message(IngestDatabase, call.body), long=True)


async def upsert_rows(call: Call[NoParams, UpsertBody]) -> IngestReport:
    return await call.ask(UpsertRows(call.body.dataset, call.body.rows), long=True)


async def delete_rows(call: Call[DatasetParams, DeleteRowsBody]) -> RowsDeleted:
    return await call.ask(DeleteRows(call.params.dataset, call.body.ids))


async def list_datasets(call: Call[NoParams, None]) -> DatasetList:
    return await call.ask(ListDatasets())


async def get_dataset(call: Call[DatasetParams, None]) -> DatasetInfo:
    return await call.ask(GetDataset(call.params.dataset))


async def drop_dataset(call: Call[DatasetParams, None]) -> DatasetDropped:
    return await call.ask(DropDataset(call.params.dataset))


async def move_dataset(call: Call[DatasetParams, HomeBody]) -> DatasetMoved:
    return await call.ask(MoveDataset(call.params.dataset, call.body.bucket), long=True)


ROUTES = [
    Route(
        "POST",
        "/ingest/file",
        ingest_file,
        "Read a file into a dataset: one on the server, or an uploaded one",
        upload=ingest_upload,
    ),
    Route("POST", "/ingest/db", ingest_postgres, "Read a table or query of a PostgreSQL server into a dataset"),
    Route("POST", "/ingest/mysql", ingest_mysql, "Read a table or query of a MariaDB or MySQL server into a dataset"),
    Route("POST", "/ingest/source", ingest_source, "Read a source that lakehouse.toml names into its dataset"),
    Route("POST", "/ingest/rows", upsert_rows, "Write rows by id"),
    Route("GET", "/datasets", list_datasets, "Every dataset"),
    Route("GET", "/datasets/{dataset}", get_dataset, "One dataset and its commits"),
    Route("PATCH", "/datasets/{dataset}", move_dataset, "Move a dataset to another bucket"),
    Route("DELETE", "/datasets/{dataset}", drop_dataset, "Drop a dataset on which no index stands"),
    Route("DELETE", "/datasets/{dataset}/rows", delete_rows, "Delete rows by id"),
]
