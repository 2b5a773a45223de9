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

from actors.ingest.core import REJECTS
from actors.ports import Registry, TableRef
from daemon.storage import query_log
from daemon.storage.codec_journal import CODEC_TRIALS
from daemon.storage.gate_journal import GATE
from daemon.storage.journal import JOURNAL
from daemon.storage.lineage_log import LINEAGE
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

Source: TypeAlias = Any
"""A pyarrow Dataset or Table."""

_PROMOTIONS = pa.schema(
    [
        ("index", pa.string()),
        ("state", pa.string()),  # current, history, rolled back
        ("trial", pa.string()),
        ("configuration", pa.string()),  # in words
        ("backend", pa.string()),
        ("M", pa.int64()),  # hnsw
        ("ef_construction", pa.int64()),
        ("ef_search", pa.int64()),
        ("index_type", pa.string()),  # lance
        ("partitions", pa.int64()),
        ("sub_vectors", pa.int64()),
        ("nprobes", pa.int64()),
        ("refine_factor", pa.int64()),
        ("ef", pa.int64()),
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


class Labelled(msgspec.Struct, frozen=True):
    """One table for all datasets, or all indexes: `label` is a column that says whose row it is."""

    label: str
    parts: Mapping[str, Source]
    schema: Any  # pyarrow.Schema, of each part


class Unknown(Exception):
    """A version that isn't there."""


class Catalogue:
    """Finds what a query names. Cheap to ask: files are listed by the tables' own caches."""

    def __init__(self, tables: DeltaTables, registry: Registry) -> None:
        self._tables = tables
        self._registry = registry
        self.system: Mapping[str, tuple[str, Callable[[], Awaitable[Source | Labelled]]]] = {
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

    async def named(self, query: str, versions: Mapping[str, int]) -> dict[str, Source | Labelled]:
        """The sources that a query may mean: whatever is named in it, wherever. One too many costs a
        list of files. Raises Unknown for a version that isn't there."""
        datasets = {name: document for name, document, _ in await self._registry.all(DatasetDocument)}
        if strange := versions.keys() - datasets.keys():
            raise Unknown(f"versions: there is no dataset {', '.join(sorted(strange))}")
        found: dict[str, Source | Labelled] = {}
        for name, document in datasets.items():
            for version in _mentioned(name, query):
                if version:
                    found[f"{name}@{version}"] = await self._dataset(document, int(version))
                elif name not in self.system:
                    found[name] = await self._dataset(document, versions.get(name))
        for name, (_, source) in self.system.items():
            if "" in _mentioned(name, query):
                found[name] = await source()
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
        """Columns younger than the table's newest rows are there, and null."""
        if await self._tables.state(table) is None:
            return schema.empty_table()
        found = await self._tables.scan(table)
        missing = [field for field in schema if field.name not in found.schema.names]
        return found.replace_schema(pa.schema([*found.schema, *missing])) if missing else found

    async def _promotions(self) -> Source:
        rows: list[dict[str, Any]] = []
        for index, document, _ in await self._registry.all(PromotionDocument):
            entries = [("current", document.current)] if document.current else []
            entries += [("history", entry) for entry in document.history]
            entries += [("rolled back", entry) for entry in document.rolled_back]
            for state, entry in entries:
                values = msgspec.to_builtins(entry)
                config = {**values.pop("config"), "configuration": str(entry.config)}
                rows.append({"index": index, "state": state, **config, **values})
        return pa.Table.from_pylist(rows, schema=_PROMOTIONS)

    async def _rejects(self) -> Labelled:
        datasets = await self._registry.all(DatasetDocument)
        tables = {name: TableRef(document.bucket, f"datasets/{name}/rejects") for name, document, _ in datasets}
        return await self._labelled("dataset", tables, REJECTS)

    async def _query_log(self) -> Labelled:
        indexes = [name for name, _, _ in await self._registry.all(IndexDocument)]
        return await self._labelled("index", {name: query_log.table_of(name) for name in indexes}, query_log.SCHEMA)

    async def _labelled(self, label: str, tables: Mapping[str, TableRef], schema: pa.Schema) -> Labelled:
        there = {name: ref for name, ref in tables.items() if await self._tables.state(ref) is not None}
        return Labelled(label, {name: await self._tables.scan(ref) for name, ref in there.items()}, schema)

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


def _mentioned(name: str, query: str) -> set[str]:
    """The versions at which a query names something; "" for its newest."""
    return set(re.findall(rf"(?<![a-z0-9_]){re.escape(name)}(?![a-z0-9_])(?:@([0-9]+))?", query, re.IGNORECASE))
