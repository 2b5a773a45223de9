"""Makes an index: checks what is asked, fits the embedder, writes the document."""

from collections.abc import AsyncIterator, Sequence

import msgspec
import numpy as np

from actors.backends import lance_rules
from actors.index import artifacts
from actors.index.fitness import unfit
from actors.index.store_making import column_names
from actors.ports import ROW, Buckets, Bus, Clock, Embedders, Registry, TableRef, Tables
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import IndexDocument
from schemas.events.base import Progress, Refusal
from schemas.events.dataset import ColumnInfo
from schemas.events.index import CreateIndex, EmbedderSpec
from schemas.names import BucketName, DatasetName, IndexName, Rows, Share

FIT_ROWS = 50_000
"""Texts that an embedder is fitted on at most, spread evenly over the dataset."""

FIT_BATCH = 4096

TEXT_TYPES = ("string", "large_string", "string_view")
NO_EMBEDDER = EmbedderSpec(kind="none")


class Creation:
    def __init__(
        self,
        registry: Registry,
        tables: Tables,
        buckets: Buckets,
        embedders: Embedders,
        bus: Bus,
        clock: Clock,
        default_target_recall: Share,
        default_embedder: EmbedderSpec,
    ) -> None:
        self._registry = registry
        self._tables = tables
        self._buckets = buckets
        self._embedders = embedders
        self._bus = bus
        self._clock = clock
        self._default_target_recall = default_target_recall
        self._default_embedder = default_embedder

    async def create(self, command: CreateIndex, again: bool) -> IndexDocument | Refusal:
        """The new index's document. `again`: the command was delivered before, so an index
        that is as asked is the one that it made. Raises Transient when the embedder's server
        is away."""
        existing = await self._registry.load(IndexDocument, command.name)
        if existing is not None:
            document = existing[0]
            if again and (document.dataset, document.column) == (command.dataset, command.column):
                return document
            hint = f"drop it first: lakehouse index drop {command.name}"
            return Refusal("conflict", f"index {command.name!r} exists already", hint)
        found = await self._registry.load(DatasetDocument, command.dataset)
        if found is None:
            hint = "lakehouse datasets lists them; an ingest makes one"
            return Refusal("not_found", f"there is no dataset {command.dataset!r}", hint)
        dataset = found[0]
        if await self._tables.state(TableRef(dataset.bucket, dataset.path)) is None:  # its first ingest broke off
            hint = f"ingest into it again: lakehouse ingest FILE --dataset {dataset.dataset}"
            return Refusal("conflict", f"dataset {dataset.dataset!r} has no table: nothing was ever ingested", hint)
        bucket = command.bucket or dataset.bucket
        buckets = await self._buckets.names()
        if bucket not in buckets:
            return Refusal("invalid", f"there is no bucket {bucket!r}", f"known are {', '.join(buckets)}")
        column = next((column for column in dataset.columns if column.name == command.column), None)
        if column is None:
            known = ", ".join(column.name for column in dataset.columns)
            return Refusal(
                "invalid", f"dataset {dataset.dataset!r} has no column {command.column!r}", f"it has {known}"
            )
        spec = self._embedder_for(column, command.embedder)
        if isinstance(spec, Refusal):
            return spec
        text = _text_column(command, column, dataset)
        if isinstance(text, Refusal):
            return text
        wrong = await unfit(dataset.dataset, column_names(dataset), bucket, self._buckets)
        if wrong is not None and command.backend == "lance":
            return wrong
        # What an index of the name has left there, on its way elsewhere, isn't this one's.
        await self._buckets.delete_prefix(bucket, f"indexes/{command.name}")
        fitted = await self._fit(command.name, spec, dataset, column, bucket)
        if isinstance(fitted, Refusal):
            return fitted
        dim, key = fitted
        if command.lance is not None:
            try:
                lance_rules.check_dim(command.lance.build, dim)
            except ValueError as error:
                return Refusal("invalid", f"index {command.name!r} can't be built so: {error}")
        if spec.kind != "none":
            spec = msgspec.structs.replace(spec, dim=dim)  # a server needn't be asked again at every load
        document = IndexDocument(
            index=command.name,
            dataset=command.dataset,
            column=command.column,
            metric=command.metric,
            backend=command.backend,
            bucket=bucket,
            target_recall=command.target_recall or self._default_target_recall,
            embedder=spec,
            embedder_key=key,
            dim=dim,
            config=command.config,
            lance=command.lance,
            text_column=text,
            companions=["lance"] if command.backend == "auto" and wrong is None else [],
            created=self._clock.now(),
        )
        await self._registry.save(command.name, document, expected=None, bucket=bucket)
        return document

    async def rows(self, document: IndexDocument) -> Rows:
        """Of its dataset."""
        dataset = await self._registry.load(DatasetDocument, document.dataset)
        state = await self._tables.state(TableRef(dataset[0].bucket, dataset[0].path)) if dataset else None
        return state.rows if state else 0

    def _embedder_for(self, column: ColumnInfo, asked: EmbedderSpec | None) -> EmbedderSpec | Refusal:
        if column.role == "vector":
            if asked is not None and asked.kind != "none":
                return Refusal("invalid", f"column {column.name!r} holds vectors: they need no embedder")
            if not column.dim:
                return Refusal("invalid", f"the vectors of column {column.name!r} have no fixed length")
            return NO_EMBEDDER
        if column.type not in TEXT_TYPES:
            hint = "an index stands on a text or a vector column"
            return Refusal("invalid", f"column {column.name!r} holds {column.type}", hint)
        spec = asked or self._default_embedder
        if spec.kind == "none":
            return Refusal("invalid", f"column {column.name!r} holds text: it needs an embedder", "embedder: lexical")
        return spec

    async def _fit(
        self, name: IndexName, spec: EmbedderSpec, dataset: DatasetDocument, column: ColumnInfo, bucket: BucketName
    ) -> tuple[int, str | None] | Refusal:
        """Dimensions, and the key of the fitted model if there is one."""
        if spec.kind == "none":
            return column.dim or 0, None
        try:
            texts = self._texts(name, dataset.dataset, TableRef(dataset.bucket, dataset.path), column.name)
            embedder, model = await self._embedders.fit(spec, texts)
        except ValueError as error:
            return Refusal("invalid", f"the {spec.kind} embedder can't be used: {error}")
        if model is None:
            return embedder.dim, None
        key = artifacts.embedder_key(name)
        await self._buckets.put(bucket, key, model, overwrite=True)
        return embedder.dim, key

    async def _texts(
        self, index: IndexName, dataset: DatasetName, table: TableRef, column: str
    ) -> AsyncIterator[Sequence[str]]:
        """Batches of the column's texts, in row order."""
        state = await self._tables.state(table)
        if state is None:
            return
        rows = np.asarray((await self._tables.read(table, [], version=state.version))[ROW].to_numpy(), np.int64)
        if len(rows) > FIT_ROWS:
            rows = rows[np.linspace(0, len(rows) - 1, FIT_ROWS).astype(np.int64)]
        for start in range(0, len(rows), FIT_BATCH):
            some = rows[start : start + FIT_BATCH]
            read = await self._tables.read(table, [column], version=state.version, rows=some)
            yield [text for text in read[column].to_pylist() if text]
            await self._bus.signal(Progress(f"{index}-fit", index, "fit", start + len(some), len(rows)))


def _text_column(command: CreateIndex, column: ColumnInfo, dataset: DatasetDocument) -> str | Refusal | None:
    """The column that full-text search reads."""
    if command.text_column is None:
        return column.name if column.type in TEXT_TYPES else None
    found = next((one for one in dataset.columns if one.name == command.text_column), None)
    if found is None or found.type not in TEXT_TYPES:
        texts = ", ".join(one.name for one in dataset.columns if one.type in TEXT_TYPES)
        reason = f"dataset {dataset.dataset!r} has no text column {command.text_column!r}"
        return Refusal("invalid", reason, f"it has {texts}" if texts else "none of its columns holds text")
    return found.name
