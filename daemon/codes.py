"""The port `VectorCodecs`: artifacts of columns, brought here from their bucket and opened."""

from pathlib import Path

import anyio.to_thread
import numpy as np

from actors.codec.artifact import CodedColumn, open_column
from actors.codec.store import ArtifactStore
from actors.codec_ports import CodedRows
from actors.errors import CorruptState
from actors.ports import Buckets
from schemas.codec import ArtifactName
from schemas.documents.codec import IndexCodecDocument


class ColumnCodec(CodedColumn):
    """The port `VectorCodec`: a column without its codes, which whoever serves them holds."""

    artifact: ArtifactName

    def __init__(self, artifact: ArtifactName, column: CodedColumn) -> None:
        # copies: a view would keep all of the codes in memory
        super().__init__(column.params, column.state, {name: array[:1].copy() for name, array in column.codes.items()})
        self.artifact = artifact


class ArtifactCodecs:
    def __init__(self, buckets: Buckets, cache: Path) -> None:
        self._buckets = buckets
        self._cache = cache

    async def load(self, document: IndexCodecDocument) -> CodedRows:
        store = ArtifactStore(self._buckets, document.bucket, document.artifact)
        try:
            folder = await store.local(self._cache)
            if folder.name != document.manifest_sha256:
                raise CorruptState(f"codec {document.artifact!r} isn't the one that graduated: withdraw it")
            column = await anyio.to_thread.run_sync(open_column, folder)
            rows = await anyio.to_thread.run_sync(np.load, folder / "extra" / "rows.npy")
        except (ValueError, FileNotFoundError) as error:
            raise CorruptState(f"codec {document.artifact!r} can't be read: {error}") from error
        return CodedRows(ColumnCodec(document.artifact, column), rows, column.codes)
