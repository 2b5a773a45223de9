"""What the shells need from outside, as Protocols. The daemon implements them; tests have
in-memory ones under the same contract suites. No actor sees anything else of the world."""

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actors.base import Origin
from actors.bucket_ports import Artifact as Artifact
from actors.bucket_ports import Buckets as Buckets
from actors.bucket_ports import Entry as Entry
from actors.bucket_ports import Place as Place
from actors.bucket_ports import Waiting as Waiting
from schemas.documents.base import Document
from schemas.documents.trial import TrialPoint
from schemas.events.base import Message, Request
from schemas.events.dataset import CommitInfo
from schemas.events.index import EmbedderKind, EmbedderSpec
from schemas.events.profile import GpuReading, LoadedModel
from schemas.names import (
    BucketName,
    Bytes,
    IndexName,
    MessageId,
    ModelName,
    Rows,
    Seconds,
    ServerName,
    Timestamp,
)
from schemas.profile import Adapter

T = TypeVar("T")
R = TypeVar("R")
D = TypeVar("D", bound=Document)

ROW = "_row"
"""Every table's hidden int64 column: a row's number, given once at commit, never used again.
It is the label of the row in every graph and eval set."""


class Clock(Protocol):
    """Time. Virtual in simulations."""

    def now(self) -> Timestamp: ...
    def monotonic(self) -> float:
        """Seconds since some fixed moment."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class Envelope(msgspec.Struct, frozen=True):
    """A message as a listener sees it."""

    message: Message
    origin: Origin
    subject: str


class Bus(Protocol):
    """Messages between actors. Handlers return messages instead of calling `publish`; `ask`
    and `signal` are what they need within a handler."""

    async def publish(self, message: Message, *, cause: Origin | None = None, id: MessageId | None = None) -> MessageId:
        """Store an event or command; returns its id once it is durable. The same id twice is
        one message. Raises Unavailable when no ack came, Refused (busy) when a command's
        queue is full, ValueError when it is too large."""
        ...

    async def ask(
        self,
        request: Request[R],
        *,
        cause: Origin | None = None,
        timeout_s: float = 60.0,
        id: MessageId | None = None,
    ) -> R:
        """The owner's reply. A direct call when the owner lives in this process, NATS
        request/reply otherwise. Raises Refused, Unavailable, Failed. An asked command goes on
        to its end when the asker stops waiting. `id` is the request's own, for who wants to know
        beforehand what its job will be called."""
        ...

    async def signal(self, message: Message) -> None:
        """Say something that may be lost (progress). Never raises, never waits for an ack."""
        ...

    def listen(self, *subjects: str) -> AsyncIterator[Envelope]:
        """Messages from now on whose subject matches (`lakehouse.evt.>`); an async generator
        to be closed with `aclosing`. What comes faster than it is read is dropped, oldest first."""
        ...


class Lying(msgspec.Struct, frozen=True):
    """A document that lies elsewhere than in its home, or besides."""

    kind: str
    name: str
    home: BucketName | None  # that its head says; None: it has no head
    others: list[BucketName]


class Registry(Protocol):
    """Documents whose heads move by compare-and-set. Kind and name are the key: kind is the
    document class's tag."""

    async def load(self, kind: type[D], name: str) -> tuple[D, int] | None:
        """The document and its revision, or None. Raises CorruptState."""
        ...

    async def save(self, name: str, document: D, *, expected: int | None, bucket: BucketName = "primary") -> int:
        """Write the revision durably, then move the head from `expected` (None: there is none
        yet). Returns the new revision. Raises Conflict."""
        ...

    async def delete(self, kind: type[D], name: str, *, expected: int | None = None) -> None:
        """Remove the head. A missing one is no error."""
        ...

    async def all(self, kind: type[D]) -> list[tuple[str, D, int]]:
        """Every document of a kind: name, value, revision, by name. Damaged ones are logged and
        left out: one of them must not stop the actors from serving the others."""
        ...

    async def homes(self) -> list[tuple[str, str, BucketName]]:
        """Kind, name and bucket of every document, damaged ones too."""
        ...

    async def census(self) -> list[Lying]:
        """Documents that lie elsewhere than in their home; looks through every bucket."""
        ...

    async def rehome(self, kind: type[Document], name: str, source: BucketName, bucket: BucketName) -> None:
        """Bring a document and its head from `source` to `bucket`, if it is in one of the two,
        and leave nothing of it in `source`. May be stopped anywhere and repeated. A missing one
        is no error. Raises CorruptState, Transient."""
        ...


class TableRef(msgspec.Struct, frozen=True):
    bucket: BucketName
    path: str  # within the bucket


class TableState(msgspec.Struct, frozen=True):
    version: int
    rows: Rows
    next_row: int  # the _row that the next appended row gets
    bytes: Bytes
    schema: Any  # pyarrow.Schema, without _row


class Tables(Protocol):
    """Tables of Parquet files with atomic commits, versions and time travel."""

    async def state(self, table: TableRef, version: int | None = None) -> TableState | None:
        """The newest state, or that at `version`; None when there is no such table."""
        ...

    async def commit(
        self,
        table: TableRef,
        batches: Iterable[pa.RecordBatch],
        note: CommitInfo,
        *,
        remove: Collection[int] | NDArray[np.int64] = (),
        replace: bool = False,
        schema: pa.Schema | None = None,
    ) -> TableState:
        """One atomic commit: take rows `remove` (by _row) out, or all of them with `replace`,
        and add `batches`, which get consecutive _row. `batches` is consumed in a thread and in
        bounded memory; if it raises, nothing is visible. A second commit with the same
        `note.message` does nothing and returns the state after the first. `note.version`,
        `note.time` and `note.rows` are filled in here. The table is made when it is missing
        (`schema` is needed when there may be no batch). Raises ValueError when a batch's
        schema doesn't fit the table's, Transient on a full disk."""
        ...

    async def read(
        self,
        table: TableRef,
        columns: Sequence[str] | None = None,
        *,
        version: int | None = None,
        min_row: int | None = None,
        rows: NDArray[np.int64] | None = None,
    ) -> pa.Table:
        """Rows ordered by _row, which is a column of the result. `rows` picks by _row,
        `min_row` takes those from it on. Raises FileNotFoundError for a missing table."""
        ...

    async def match(self, table: TableRef, predicate: str, *, version: int | None = None) -> NDArray[np.int64]:
        """_row of the rows that a SQL predicate over the table's columns holds for, ascending.
        Raises ValueError with the engine's words when it can't be read or isn't a predicate.
        The predicate can reach nothing but the table."""
        ...

    async def find(
        self, table: TableRef, column: str, values: Sequence[str | int], *, version: int | None = None
    ) -> NDArray[np.int64]:
        """_row of the rows whose `column` is one of `values`, ascending. Values are taken as the
        column's type; one that can't be matches nothing. Raises ValueError for an unknown column."""
        ...

    async def history(self, table: TableRef, limit: int = 50, upto: int | None = None) -> list[CommitInfo]:
        """Commits, newest first: the last ones, or those up to version `upto`."""
        ...

    async def drop(self, table: TableRef) -> None: ...


class Journal(Protocol):
    """The trial journal: every measured point, for ever."""

    async def append(self, points: Sequence[TrialPoint]) -> None:
        """Durable on return. Points of a trial that is there already are not written again."""
        ...

    async def points(self, index: IndexName) -> list[TrialPoint]:
        """In the order written."""
        ...

    async def trial(self, index: IndexName, trial: str) -> list[TrialPoint]:
        """One trial's points; empty when unknown."""
        ...


class QueryLog(Protocol):
    """Vectors of sampled live queries, so that an eval set can be made of real ones."""

    async def append(self, index: IndexName, vectors: NDArray[np.float32], times: Sequence[Timestamp]) -> None:
        """vectors: (n, d) float32."""
        ...

    async def sample(self, index: IndexName, n: int, seed: int) -> NDArray[np.float32]:
        """Up to n distinct logged vectors, (m, d) float32, m <= n."""
        ...


class Snapshot(msgspec.Struct, frozen=True):
    """An index's vectors at a dataset version, as files that any process can map.

    rows.npy     (n,)    int64, ascending: the _row of each vector
    vectors.npy  (n, d)  float32, C order; unit length when the metric is cosine
    """

    version: int
    rows: int
    dim: int
    rows_path: Path
    vectors_path: Path


class Snapshots(Protocol):
    def held(self, index: IndexName, version: int | None = None) -> AbstractAsyncContextManager[Snapshot]:
        """The newest version that the index's vectors cover, or `version`; built from the
        tables once, then kept in the cache. Its files stay where they are until the context
        ends, however many versions come meanwhile; whoever has mapped them by then keeps them.
        Raises FileNotFoundError for an unknown index or when the vectors don't cover `version`
        yet."""
        ...

    async def covered(self, index: IndexName) -> int:
        """The newest dataset version that the index's vectors cover; -1 when none."""
        ...

    async def forget(self, index: IndexName) -> None:
        """Remove the cached files of a dropped index."""
        ...


class Compute(Protocol):
    """The niced worker process. A job is an importable generator function with picklable
    arguments: what it yields streams back, so progress needs no second channel."""

    def stream(self, job: Callable[..., Iterator[T]], *args: Any) -> AsyncIterator[T]:
        """Runs the job to its end, one at a time per lane; an async generator to be closed
        with `aclosing`: closing it kills the job. Raises what the job raised; Transient when the worker died."""
        ...


class Embedder(Protocol):
    """Text to vectors."""

    dim: int
    identity: str
    """Changes whenever the same text could give another vector, as far as our side can know; see `revision`."""

    async def revision(self) -> str:
        """What the server that has the model knows it by now, its digest; "": it tells none, or there is no server.
        Raises as `embed`."""
        ...

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dim) float32, unit length, finite. Raises Transient when the server is away,
        ValueError when its answer is unusable."""
        ...


class Embedders(Protocol):
    async def fit(self, spec: EmbedderSpec, texts: AsyncIterator[Sequence[str]]) -> tuple[Embedder, bytes | None]:
        """An embedder for a new index. The lexical one learns its IDF weights from `texts`
        and returns its frozen model to be stored; servers return None."""
        ...

    async def load(self, spec: EmbedderSpec, model: Path | None) -> Embedder:
        """The embedder of an existing index."""
        ...


class ModelServer(Protocol):
    """A server of models on the GPU. Every method raises Unavailable when the server is away or
    doesn't answer in time, Transient when it is too busy to take the request (503, 429), and
    ModelServerError, with its words, when it says no."""

    name: ServerName
    url: str
    default_for: Collection[EmbedderKind]
    """Kinds of embedder that are sent here when they name no URL."""

    def canonical(self, model: ModelName) -> ModelName:
        """The server's full name for a model: `llama3` is `llama3:latest` at Ollama."""
        ...

    async def loaded(self) -> list[LoadedModel]:
        """What is in memory now, by its canonical name."""
        ...

    async def size(self, model: ModelName) -> Bytes | None:
        """Bytes of the model's weights, about what it takes in memory; None when the server
        doesn't tell. Raises LookupError when the server has no such model."""
        ...

    async def load(self, model: ModelName, keep_alive_s: Seconds, adapters: Sequence[Adapter] = ()) -> None:
        """Returns when the server says that it is loaded. `keep_alive_s`: inf for ever. Loading
        what is loaded only renews its keep-alive and its adapters' scales. Raises LookupError
        for an unknown model or adapter."""
        ...

    async def unload(self, model: ModelName) -> None:
        """Ask for it. The answer comes *before* the memory is free. Unloading what isn't loaded
        does nothing."""
        ...

    async def embed(self, model: ModelName, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, d) float32, unit length, finite."""
        ...

    async def generate(
        self, model: ModelName, prompt: str, *, max_tokens: int = 128, adapters: Sequence[Adapter] | None = None
    ) -> str:
        """adapters: scales for this prompt alone, 0 for those not named; None: as the server has
        them. Raises UnknownAdapter, ModelServerError where scales can't go with a request."""
        ...


class Gpus(Protocol):
    async def read(self) -> GpuReading:
        """Within 2 s and without raising: a driver that is absent or stuck is a reason."""
        ...
