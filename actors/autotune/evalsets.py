"""Eval sets where they are kept: a registry document each, its arrays beside it in the index's
bucket. Makes them, brings their truth up to a snapshot, and finds them. The lab's own part."""

import hashlib
from contextlib import aclosing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actors.autotune import harness
from actors.autotune.builds import Phase, Vectors
from actors.autotune.harness import EvalSet
from actors.autotune.jobs import make_eval_set, merge_eval_set
from actors.autotune.measure import K
from actors.errors import Conflict, Transient
from actors.hnsw import normalise
from actors.ports import Buckets, Clock, Compute, Embedders, QueryLog, Registry, Snapshots
from actors.refusals import no_index
from schemas.documents.harness import HarnessDocument
from schemas.documents.index import IndexDocument
from schemas.events.autotune import BuildHarness, HarnessInfo
from schemas.events.base import Refusal
from schemas.names import HarnessName, IndexName

MIN_QUERIES = 10


class EvalSets:
    """The index's name is the name of its own, automatic eval set."""

    def __init__(
        self,
        registry: Registry,
        snapshots: Snapshots,
        buckets: Buckets,
        compute: Compute,
        query_log: QueryLog,
        embedders: Embedders,
        clock: Clock,
    ) -> None:
        self._registry = registry
        self._snapshots = snapshots
        self._buckets = buckets
        self._compute = compute
        self._query_log = query_log
        self._embedders = embedders
        self._clock = clock

    async def current(
        self, index: IndexDocument, name: HarnessName, vectors: Vectors, queries: int, *, make: bool
    ) -> tuple[HarnessDocument, Path]:
        """The eval set with truth at the snapshot's version, and its file. A missing one is made
        of `queries` sampled rows if `make` says so; else FileNotFoundError."""
        found = await self._registry.load(HarnessDocument, name)
        if found is None or found[0].index != index.index:
            if found is not None or not make:
                raise FileNotFoundError(f"eval set {name!r} of index {index.index!r}")
            eval_set = await self._job(make_eval_set, vectors, None, queries, 42)
            document = await self._save(index, name, eval_set, vectors, "rows", 42, None)
        elif found[0].version == vectors.version:
            document = found[0]
        else:
            path = await self._buckets.fetch(found[0].bucket, found[0].key, found[0].sha256)
            eval_set = await self._job(merge_eval_set, path, vectors)
            document = await self._save(index, name, eval_set, vectors, found[0].source, found[0].seed, found)
        return document, await self._buckets.fetch(document.bucket, document.key, document.sha256)

    async def build(self, command: BuildHarness) -> HarnessInfo | Refusal:
        """Makes or replaces one."""
        found = await self._registry.load(IndexDocument, command.index)
        if found is None:
            return no_index(command.index)
        index, name = found[0], command.harness or command.index
        before = await self._registry.load(HarnessDocument, name)
        if before is not None and before[0].index != index.index:
            return Refusal("conflict", f"eval set {name!r} belongs to index {before[0].index!r}", "choose another name")
        queries = await self._queries(index, command)
        if isinstance(queries, Refusal):
            return queries
        try:
            async with self._snapshots.held(index.index) as snapshot:
                if snapshot.rows < 2:
                    reason = f"index {index.index!r} has {snapshot.rows} rows"
                    return Refusal("invalid", reason, "ingest some rows first")
                vectors = Vectors.of(index, snapshot)
                eval_set = await self._job(make_eval_set, vectors, queries, command.queries, command.seed)
        except FileNotFoundError:
            return Refusal("unavailable", f"index {index.index!r} has no vectors yet", "wait until it is ready")
        document = await self._save(index, name, eval_set, vectors, command.source, command.seed, before)
        return _info(name, document)

    async def all(self, index: IndexName | None) -> list[HarnessInfo]:
        documents = await self._registry.all(HarnessDocument)
        return [_info(name, document) for name, document, _ in documents if index in (None, document.index)]

    async def drop(self, index: IndexName) -> None:
        for name, document, _ in await self._registry.all(HarnessDocument):
            if document.index == index:
                await self._registry.delete(HarnessDocument, name)
                await self._buckets.delete(document.bucket, document.key)

    async def _queries(self, index: IndexDocument, command: BuildHarness) -> NDArray[np.float32] | Refusal | None:
        """(q, d) given or logged queries; None when rows are to be sampled."""
        if command.source == "rows":
            return None
        if command.source == "logged":
            logged = await self._query_log.sample(index.index, command.queries, command.seed)
            if len(logged) < MIN_QUERIES:
                reason = f"index {index.index!r} has {len(logged)} logged queries, {MIN_QUERIES} are needed"
                return Refusal("invalid", reason, "search some more, or use source rows")
            return _prepared(logged, index)
        if (command.vectors is None) == (command.texts is None):
            return Refusal("invalid", "source given needs either vectors or texts", "send one of the two")
        if command.texts is not None:
            if index.embedder.kind == "none":
                return Refusal("invalid", f"index {index.index!r} has no embedder for texts", "send vectors")
            key = index.embedder_key
            model = await self._buckets.fetch(index.bucket, key) if key else None
            embedder = await self._embedders.load(index.embedder, model)
            return _prepared(await embedder.embed(command.texts), index) if command.texts else _too_few(0)
        given = command.vectors or []
        if len(given) < MIN_QUERIES:
            return _too_few(len(given))
        if {len(vector) for vector in given} != {index.dim}:
            return Refusal("invalid", f"a vector hasn't the index's {index.dim} dimensions", "check their length")
        return _prepared(np.array(given, np.float32), index)

    async def _job(self, job, *args) -> EvalSet:  # type: ignore[no-untyped-def]
        made: EvalSet | None = None
        async with aclosing(self._compute.stream(job, *args)) as items:  # type: ignore[type-var]
            async for item in items:
                if not isinstance(item, Phase):
                    made = item
        if made is None:
            raise Transient("an eval set's job ended without a result")
        return made

    async def _save(
        self,
        index: IndexDocument,
        name: HarnessName,
        eval_set: EvalSet,
        vectors: Vectors,
        source: str,
        seed: int,
        before: tuple[HarnessDocument, int] | None,
    ) -> HarnessDocument:
        """Arrays first, then the document. Another that was saved meanwhile wins if it is of
        the same version. Raises Conflict otherwise."""
        data = harness.dump(eval_set)
        digest = hashlib.sha256(data).hexdigest()
        key = f"indexes/{index.index}/harnesses/{name}-{vectors.version}-{digest[:12]}.npz"
        moved = await self._registry.load(IndexDocument, index.index)
        bucket = moved[0].bucket if moved else index.bucket  # another, perhaps, than when the job began
        await self._buckets.put(bucket, key, data, overwrite=True)
        now = self._clock.now()
        document = HarnessDocument(
            harness=name,
            index=index.index,
            bucket=bucket,
            key=key,
            sha256=digest,
            queries=len(eval_set.queries),
            k=eval_set.truth_rows.shape[1],
            source=source,  # type: ignore[arg-type]
            version=vectors.version,
            rows=eval_set.rows,
            seed=seed,
            created=before[0].created if before else now,
            merged=now,
        )
        try:
            await self._registry.save(name, document, expected=before[1] if before else None, bucket=bucket)
        except Conflict:
            found = await self._registry.load(HarnessDocument, name)
            if found is None or found[0].version != vectors.version or found[0].index != index.index:
                raise
            return found[0]
        if before is not None and before[0].key != key:
            await self._buckets.delete(before[0].bucket, before[0].key)
        return document


def _prepared(queries: NDArray[np.float32], index: IndexDocument) -> NDArray[np.float32]:
    return normalise(queries) if index.metric == "cosine" else np.asarray(queries, np.float32)


def _too_few(given: int) -> Refusal:
    return Refusal("invalid", f"{given} queries were given, {MIN_QUERIES} are needed", "send more")


def _info(name: HarnessName, document: HarnessDocument) -> HarnessInfo:
    return HarnessInfo(
        harness=name,
        index=document.index,
        queries=document.queries,
        k=K,
        source=document.source,
        version=document.version,
        rows=document.rows,
        depth=document.k,
    )
