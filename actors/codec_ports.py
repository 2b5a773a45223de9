"""What shells need of codecs, beside ports.py: the trials that were measured, and a column's certified codec as an
index serves it. The daemon implements them."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.codec import ArtifactName, CodecJobId
from schemas.documents.codec import IndexCodecDocument
from schemas.documents.codec_trial import CodecTrial
from schemas.events.codec import FrontierPoint, Measure
from schemas.names import Bytes


class CodecJournal(Protocol):
    """The codec trials: every codec measured on a matrix, for ever."""

    async def append(self, trials: Sequence[CodecTrial]) -> None:
        """Durable on return. Trials of a job's group that is there already are not written again."""
        ...

    async def trials(
        self, *, job: CodecJobId | None = None, target: str | None = None, tensor: str | None = None, limit: int = 1000
    ) -> tuple[list[CodecTrial], int]:
        """The newest that fit, newest first, and how many there are."""
        ...

    async def frontier(
        self, measure: Measure, *, target: str | None = None, tensor: str | None = None, job: CodecJobId | None = None
    ) -> tuple[list[FrontierPoint], str]:
        """Every codec that fits, by bits, and the SQL that found which of them are on the frontier."""
        ...


class VectorCodec(Protocol):
    """A certified codec of a column's vectors. Codes are arrays by name, first axis the rows."""

    artifact: ArtifactName

    @property
    def bytes(self) -> Bytes:
        """Of what was learnt, beside the codes."""
        ...

    def encode(self, vectors: NDArray[np.float32]) -> Mapping[str, NDArray[np.generic]]:
        """(n, d) to codes; the same vectors always give the same."""
        ...

    def turn(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """(q, d) as `products` takes them, which may be of another width."""
        ...

    def products(self, turned: NDArray[np.float32], codes: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        """(q, n) inner products of queries with decoded rows."""
        ...

    def squares(self, codes: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        """(n,) squared lengths of decoded rows."""
        ...


class CodedRows(msgspec.Struct, frozen=True):
    """An artifact of a column: its codec, and the codes of the rows that were there when it was made."""

    codec: VectorCodec
    rows: NDArray[np.int64]  # (n,) ascending
    codes: Mapping[str, NDArray[np.generic]]


class VectorCodecs(Protocol):
    async def load(self, document: IndexCodecDocument) -> CodedRows:
        """Raises CorruptState when the artifact can't be used."""
        ...
