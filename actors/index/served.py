"""Everything a searcher keeps of one index, and how it follows the index's versions and
generations. Searches read it between two awaits and never see half a change.
"""

import anyio
import anyio.to_thread
import structlog

from actors.index.coded import CodedVectors
from actors.index.columns import ColumnCache
from actors.index.live import LiveGraph
from actors.index.sampling import RecallWindow
from actors.index.vectors import VectorSet
from actors.ports import Embedder, Snapshots, TableRef
from schemas.config import HnswConfig
from schemas.documents.codec import IndexCodecDocument
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.names import Bytes, Rows, Timestamp

log = structlog.get_logger(__name__)


class ServedIndex:
    """A loaded index. Without a graph (none built yet, or its file is unreadable) it is
    searched exactly."""

    def __init__(
        self,
        document: IndexDocument,
        dataset: TableRef,
        embedder: Embedder | None,
        columns: ColumnCache,
        vectors: VectorSet,
        exact_below_rows: Rows,
    ) -> None:
        self.exact_below_rows = exact_below_rows  # a filter that leaves fewer is answered exactly
        self.document = document
        self.dataset = dataset
        self.embedder = embedder
        self.columns = columns
        self.graph: LiveGraph | None = None
        self.codes: CodedVectors | None = None  # searched in place of the graph, which isn't in memory then
        self.codec: IndexCodecDocument | None = None  # that the codes are of
        self.following = anyio.Lock()  # one at a time brings it in line with what it is to serve
        self.head: GenerationDocument | None = None  # the generation that serves, or would without codes
        self.window = RecallWindow(0, 0.0)
        self.queries = 0
        self._vectors = vectors
        self._changing = anyio.Lock()

    @property
    def vectors(self) -> VectorSet:
        if self.codes:
            return self.codes.vectors
        return self.graph.view.vectors if self.graph else self._vectors

    @property
    def generation(self) -> int:
        return self.head.generation if self.head else 0

    @property
    def config(self) -> HnswConfig:
        return self.head.config if self.head else self.document.config

    @property
    def fresh_rows(self) -> Rows:
        return len(self.graph.view.fresh_rows) if self.graph else 0

    @property
    def bytes(self) -> Bytes:
        """Memory that unloading frees; the mapped vectors belong to the page cache."""
        searched = (self.graph.bytes if self.graph else 0) + (self.codes.bytes if self.codes else 0)
        return self.columns.bytes + self._vectors.rows.nbytes + searched

    async def sync(self, snapshots: Snapshots) -> bool:
        """Follow the newest version that the vectors cover; False when this is it. From the
        return on, its rows and no others are found."""
        async with self._changing:
            if await snapshots.covered(self.document.index) <= self.vectors.version:
                return False
            async with snapshots.held(self.document.index) as snapshot:
                vectors = await anyio.to_thread.run_sync(VectorSet.open, snapshot, self.document.metric)
            await self.columns.sync(vectors.rows, vectors.version)
            if self.graph:
                await self.graph.reconcile(vectors)
            if self.codes:
                try:
                    self.codes = await anyio.to_thread.run_sync(self.codes.at, vectors)
                except ValueError as error:  # a row that the codec can't keep: it must be found all the same
                    log.error("codec can't take a row", index=self.document.index, why=str(error))
                    self.without_codes()
            self._vectors = vectors
            return True

    async def swap(self, document: GenerationDocument, graph: LiveGraph | None, now: Timestamp) -> None:
        """Serve another generation. `graph` None: it is the same file, searched with another
        ef. Searches under way end on the old one."""
        async with self._changing:
            if graph is not None:
                if graph.view.vectors.version != self.vectors.version:
                    await graph.reconcile(self._vectors)
                self.graph, self.codes, self.codec = graph, None, None
            elif self.graph:
                self.graph.document = document
            self.head = document
            self.window = RecallWindow(document.generation, now)

    async def swap_codes(
        self, codes: CodedVectors, codec: IndexCodecDocument, head: GenerationDocument | None, now: Timestamp
    ) -> None:
        """Serve by codes; the graph leaves memory. Searches under way end on what they began with. Raises ValueError
        when the codec can't keep a row that came meanwhile; then nothing has changed."""
        async with self._changing:
            if codes.vectors.version != self._vectors.version:
                codes = await anyio.to_thread.run_sync(codes.at, self._vectors)
            self.codes, self.codec, self.graph, self.head = codes, codec, None, head
            self.window = RecallWindow(self.generation, now, codec.artifact)

    def without_codes(self) -> None:
        """It is searched exactly until there is a graph to go back to."""
        self.codes, self.codec, self.head = None, None, None
        self.window = RecallWindow(0, 0.0)
