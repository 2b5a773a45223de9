"""An artifact written out as the checkpoint that it stands for."""

from pathlib import Path

import anyio.to_thread

from actors.codec.restore import decode_checkpoint
from actors.codec.steps.work import Work
from actors.codec.store import ArtifactStore
from actors.codec.targets import NoTarget, Targets
from actors.ports import Buckets, Registry
from schemas.codec import VectorColumn
from schemas.documents.codec import CodecDocument
from schemas.events.codec import CodecDecoded, DecodeCodec


class Decoding:
    def __init__(self, registry: Registry, buckets: Buckets, targets: Targets, work: Work) -> None:
        self._registry = registry
        self._buckets = buckets
        self._targets = targets
        self._work = work

    async def decode(self, command: DecodeCodec) -> CodecDecoded:
        """Raises NoTarget, CodecError and what the job raises."""
        found = await self._registry.load(CodecDocument, command.artifact)
        if found is None:
            raise NoTarget(f"there is no codec artifact {command.artifact!r}", "lakehouse codec list", "not_found")
        document = found[0]
        if isinstance(document.target, VectorColumn):
            hint = "an index is searched by its codes: lakehouse codec graduate"
            raise NoTarget(f"{command.artifact!r} is of vectors, no checkpoint", hint)
        out = self._targets.new_folder(command.folder)
        artifact = await ArtifactStore(self._buckets, document.bucket, command.artifact).local(self._work.artifacts)
        try:
            await self._work.run(document.job, command.artifact, decode_checkpoint, artifact, out)
        except OSError as error:
            raise NoTarget(f"{command.folder} can't be written: {error.strerror or error}") from error
        files = await anyio.to_thread.run_sync(_files, out)
        return CodecDecoded(command.artifact, str(out), len(files), sum(files))


def _files(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
