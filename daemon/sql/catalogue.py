"""What SQL can name: every dataset, in any bucket, at any version that is kept, and the system's own
tables. A system table is a row of SYSTEM: its name, what is in it, and where its rows come from.

A dataset that bears a system table's name is still there with a version, `"NAME@3"`: with one, a
name always means a dataset.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import msgspec
import pyarrow as pa

from actors.ports import ROW, Registry, TableRef
from daemon.storage.codec_journal import CODEC_TRIALS
from daemon.storage.journal import JOURNAL
from daemon.storage.lineage_log import LINEAGE
from daemon.storage.query_log import table_of as query_log_of
from daemon.storage.seen_files import SEEN
from daemon.storage.struct_table import schema_of
from daemon.storage.tables import DeltaTables
from schemas.documents.codec_trial import CodecTrial
from schemas.documents.dataset import DatasetDocument
from schemas.documents.gate import GateEvent
from schemas.documents.index import IndexDocument
from schemas.documents.lineage import LineageRow
from schemas.documents.promotion import PromotionDocument
from schemas.documents.trial import TrialPoint
from schemas.documents.watch import SeenFile

GATE = TableRef("primary", "system/gate_events")
Source: TypeAlias = Any
"""A pyarrow Dataset or Table."""
NAMES = re.compile(r"([A-Za-z0-9_-]+)(?:@([0-9]+))?")

_PROMOTIONS = pa.schema(
    [
        ("index", pa.string()),
        ("state", pa.string()),  # current, history, rolled back
        ("trial", pa.string()),
        ("M", pa.int64()),
        ("ef_construction", pa.int64()),
        ("ef_search", pa.int64()),
        ("recall", pa.float64()),
        ("recall_lower", pa.float64()),
        ("p50_us", pa.float64()),
        ("promoted_by", pa.string()),
        ("note", pa.string()),
        ("time", pa.float64()),
        ("cause", pa.string()),
        ("generation", pa.int64()),
        ("ended", pa.float64()),
        ("ended_reason", pa.string()),
    ]
)
_REJECTS = pa.schema([(name, pa.string()) for name in ("dataset", "ingest", "file", "column", "reason", "content")])
_REJECTS = _REJECTS.insert(3, pa.field("line", pa.int64()))
_QUERY_LOG = pa.schema([("index", pa.string()), ("time", pa.float64()), ("vector", pa.list_(pa.float32()))])
_TABLES = pa.schema(
    [
        ("name", pa.string()),
        ("kind", pa.string()),
        ("bucket", pa.string()),
        ("rows", pa.int64()),
        ("version", pa.int64()),
        ("about", pa.string()),
    ]
)


class Unknown(Exception):
    """A version that isn't there."""


class Catalogue:
    """Finds what a query names. Cheap to ask: files are listed by the tables' own caches."""

    def __init__(self, tables: DeltaTables, registry: Registry) -> None:
        self._tables = tables
        self._registry = registry
        self.system: Mapping[str, tuple[str, Callable[[], Awaitable[Source]]]] = {
            "catalog": ("what SQL can name", self._listing),
            "trials": ("every measured point of every trial", lambda: self._stored(JOURNAL, schema_of(TrialPoint))),
            "codec_trials": ("codecs measured on matrices", lambda: self._stored(CODEC_TRIALS, schema_of(CodecTrial))),
            "lineage": ("OpenLineage run events", lambda: self._stored(LINEAGE, schema_of(LineageRow))),
            "watched_files": ("files of watched folders", lambda: self._stored(SEEN, schema_of(SeenFile))),
            "gate_events": ("what trainings of adapter gates gave", lambda: self._stored(GATE, schema_of(GateEvent))),
            "promotions": ("configurations that are or were current", self._promotions),
            "rejects": ("rows that ingest set aside", self._rejects),
            "query_log": ("vectors of sampled live queries", self._query_log),
        }

    async def named(self, query: str, versions: Mapping[str, int]) -> dict[str, Source]:
        """The sources that a query may mean: each of its words that is a name, wherever it stands. One
        too many costs a list of files. Raises Unknown, KeyError for a version of no dataset."""
        datasets = {name: document for name, document, _ in await self._registry.all(DatasetDocument)}
        by_word = {name.casefold(): name for name in datasets}
        for name in versions:
            if name not in datasets:
                raise Unknown(f"versions: there is no dataset {name}")
        found: dict[str, Source] = {}
        for word, version in set(NAMES.findall(query)):
            dataset = by_word.get(word.casefold())
            if version:
                if dataset is not None:
                    found[f"{word}@{version}"] = await self._dataset(datasets[dataset], int(version))
            elif word.casefold() in self.system:
                found[word] = await self.system[word.casefold()][1]()
            elif dataset is not None:
                found[word] = await self._dataset(datasets[dataset], versions.get(dataset))
        return found

    async def names(self) -> list[str]:
        datasets = [name for name, _, _ in await self._registry.all(DatasetDocument)]
        return sorted({*datasets, *self.system})

    async def _dataset(self, document: DatasetDocument, version: int | None) -> Source:
        try:
            return await self._tables.scan(TableRef(document.bucket, document.path), version)
        except FileNotFoundError as error:
            if version is None:
                raise
            raise Unknown(f"dataset {document.dataset} has no version {version}: {error}") from error

    async def _stored(self, table: TableRef, schema: pa.Schema) -> Source:
        if await self._tables.state(table) is None:
            return schema.empty_table()
        return await self._tables.scan(table)

    async def _promotions(self) -> Source:
        rows: list[dict[str, Any]] = []
        for index, document, _ in await self._registry.all(PromotionDocument):
            entries = [("current", document.current)] if document.current else []
            entries += [("history", entry) for entry in document.history]
            entries += [("rolled back", entry) for entry in document.rolled_back]
            for state, entry in entries:
                values = msgspec.to_builtins(entry)
                rows.append({"index": index, "state": state, **values.pop("config"), **values})
        return pa.Table.from_pylist(rows, schema=_PROMOTIONS)

    async def _rejects(self) -> Source:
        parts = [_REJECTS.empty_table()]
        for name, document, _ in await self._registry.all(DatasetDocument):
            table = TableRef(document.bucket, f"datasets/{name}/rejects")
            if await self._tables.state(table) is not None:
                parts.append(_labelled(await self._tables.read(table), "dataset", name, _REJECTS))
        return pa.concat_tables(parts)

    async def _query_log(self) -> Source:
        parts = [_QUERY_LOG.empty_table()]
        for name, _, _ in await self._registry.all(IndexDocument):
            table = query_log_of(name)
            if await self._tables.state(table) is not None:
                parts.append(_labelled(await self._tables.read(table), "index", name, _QUERY_LOG))
        return pa.concat_tables(parts)

    async def _listing(self) -> Source:
        rows: list[dict[str, Any]] = [
            {"name": name, "kind": "system", "about": about} for name, (about, _) in self.system.items()
        ]
        for name, document, _ in await self._registry.all(DatasetDocument):
            state = await self._tables.state(TableRef(document.bucket, document.path))
            if state is not None:
                about = ", ".join(column.name for column in document.columns)
                rows.append({"name": name, "kind": "dataset", "bucket": document.bucket, "rows": state.rows,
                             "version": state.version, "about": about})  # fmt: skip
        return pa.Table.from_pylist(rows, schema=_TABLES)


def _labelled(table: pa.Table, column: str, value: str, schema: pa.Schema) -> pa.Table:
    table = table.drop_columns([ROW]).append_column(column, pa.array([value] * table.num_rows, pa.string()))
    return table.select(schema.names).cast(schema)
