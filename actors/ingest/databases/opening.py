"""From a command to a reader: which server, whether it may be asked, what of it."""

import os
from collections.abc import Sequence
from pathlib import Path

from actors.ingest.config import IngestConfig, SourceConfig
from actors.ingest.core import BadFile
from actors.ingest.databases.dsn import Kind, parse
from actors.ingest.databases.hosts import allowed_address
from actors.ingest.databases.request import DatabaseRequest, check
from actors.ingest.readers.base import Reader
from schemas.events.dataset import IngestDatabase
from schemas.secret import Secret


def resolved(command: IngestDatabase, sources: Sequence[SourceConfig]) -> IngestDatabase:
    """The command with what its source says where it is silent itself. Raises BadFile."""
    if command.source is None:
        if command.dsn is None:
            raise BadFile("a DSN or a source is needed", "name `dsn`, or a `source` of lakehouse.toml")
        return command
    if command.dsn is not None:
        raise BadFile("`dsn` and `source` are both given", "name one of them")
    source = source_named(command.source, sources)
    mine = {
        name: getattr(command, name)
        for name in ("table", "query", "dataset", "bucket", "id_column", "vector_column", "mode", "cursor", "pii")
    }
    if mine["table"] is None and mine["query"] is None:
        mine["table"], mine["query"] = source.table, source.query
    for name, value in mine.items():
        if value is None and name not in ("table", "query"):
            mine[name] = getattr(source, name)
    return IngestDatabase(dsn=None, source=command.source, server=command.server, **mine)


def source_named(name: str, sources: Sequence[SourceConfig]) -> SourceConfig:
    """Raises BadFile."""
    for source in sources:
        if source.name == name:
            return source
    known = ", ".join(source.name for source in sources)
    raise BadFile(
        f"there is no source {name}",
        f"sources: {known}" if known else "write [[sources]] in lakehouse.toml",
        "not_found",
    )


def database_request(
    command: IngestDatabase, sources: Sequence[SourceConfig], config: IngestConfig, kind: Kind | None = None
) -> DatabaseRequest:
    """What to ask, of a resolved command; looks the host up. Raises BadFile."""
    check(command.table, command.query, command.cursor, command.mode or "append")
    named = command.source is not None
    secret = dsn_of(source_named(command.source, sources)) if command.source is not None else command.dsn
    assert secret is not None
    dsn = parse(secret.reveal(), kind)
    address = allowed_address(dsn.host, dsn.port, config.database_hosts, named=named)
    return DatabaseRequest(
        dsn=dsn, address=address, table=command.table, query=command.query, cursor=command.cursor,
        batch_bytes=config.batch_bytes,
    )  # fmt: skip


def dsn_of(source: SourceConfig) -> Secret:
    """From the configuration, its file or its environment variable. Raises BadFile."""
    if source.dsn is not None:
        return source.dsn
    if source.dsn_env:
        if not os.environ.get(source.dsn_env):
            raise BadFile(f"source {source.name}: the environment variable {source.dsn_env} isn't set")
        return Secret(os.environ[source.dsn_env])
    try:
        return Secret(Path(source.dsn_file).read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError):
        raise BadFile(f"source {source.name}: {source.dsn_file} can't be read") from None


def open_database(request: DatabaseRequest) -> Reader:
    """A reader of it; nothing is connected before its survey."""
    if request.dsn.kind == "postgresql":
        from actors.ingest.databases.postgres import PostgresReader

        return PostgresReader(request)
    from actors.ingest.databases.mariadb import MariaDbReader

    return MariaDbReader(request)
