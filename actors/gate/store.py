"""Where a gate lies in its profile's bucket: `gates/<profile>/<run>/` with `gate.json` (what it was trained on, for and
how), `gate.safetensors` (its weights; a uniform one has none) and `embedder.bin` (the lexical embedder's model). The
last two go when the run is neither live nor the newest. Exports without a folder of their own lie in
`gates/<profile>/exports/`, as long as the gate's document lists them.
"""

from pathlib import Path

import msgspec

from actors.errors import CorruptState
from actors.ports import Artifact, Buckets
from schemas.documents.gate import GateDocument
from schemas.gate import GateFile, GateFiles, GateRun, GateRunId
from schemas.names import BucketName, ProfileName

EXPORTS = "exports"
METADATA, WEIGHTS, EMBEDDER = "gate.json", "gate.safetensors", "embedder.bin"


def folder(profile: ProfileName) -> str:
    return f"gates/{profile}"


class GateStore:
    def __init__(self, buckets: Buckets, bucket: BucketName, profile: ProfileName) -> None:
        self._buckets = buckets
        self._bucket = bucket
        self._folder = folder(profile)

    async def put(self, run: GateRun, weights: Path | None, embedder: bytes | None) -> GateFiles:
        """The metadata last."""
        place = f"{self._folder}/{run.run}"
        stored_weights = stored_embedder = None
        if weights is not None:
            await self._buckets.delete(self._bucket, f"{place}/{WEIGHTS}")  # left by an attempt that was killed
            stored_weights = _file(await self._buckets.upload(self._bucket, f"{place}/{WEIGHTS}", weights))
        if embedder is not None:
            stored = await self._buckets.put(self._bucket, f"{place}/{EMBEDDER}", embedder, overwrite=True)
            stored_embedder = _file(stored)
        raw = msgspec.json.format(msgspec.json.encode(run), indent=1)
        metadata = await self._buckets.put(self._bucket, f"{place}/{METADATA}", raw, overwrite=True)
        return GateFiles(_file(metadata), stored_weights, stored_embedder)

    async def run(self, run: GateRunId) -> GateRun | None:
        """What a training left for ever, its metadata. Raises CorruptState."""
        key = f"{self._folder}/{run}/{METADATA}"
        try:
            return msgspec.json.decode(await self._buckets.get(self._bucket, key), type=GateRun)
        except (FileNotFoundError, KeyError):  # no such training, or no bucket any more
            return None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CorruptState(f"object {key} in bucket {self._bucket} is no gate's metadata: {error}") from None

    async def local(self, file: GateFile) -> Path:
        """A local, read-only file. Raises CorruptState, also where it is gone."""
        try:
            return await self._buckets.fetch(self._bucket, file.key, file.sha256)
        except FileNotFoundError:
            raise CorruptState(
                f"object {file.key} of a gate isn't in bucket {self._bucket} any more: train the gate again"
            ) from None

    async def put_export(self, name: str, files: list[tuple[str, Path]]) -> str:
        """Files by their keys, the manifest last. Returns where they are."""
        prefix = f"{self._folder}/{EXPORTS}/{name}"
        await self._buckets.delete_prefix(self._bucket, prefix)
        for key, path in files:
            await self._buckets.upload(self._bucket, f"{prefix}/{key}", path)
        return f"bucket://{self._bucket}/{prefix}"

    async def drop_export(self, name: str) -> None:
        await self._buckets.delete_prefix(self._bucket, f"{self._folder}/{EXPORTS}/{name}")

    async def forget(self, before: GateDocument, after: GateDocument) -> None:
        """What the document knew and knows no more: what runs that are neither live nor last are used by (their
        metadata stay), and exports that fell off its list."""
        for key in _keys(before) - _keys(after):
            await self._buckets.delete(self._bucket, key)
        here = f"bucket://{self._bucket}/"
        for place in _places(before) - _places(after):
            if place.startswith(f"{here}{self._folder}/{EXPORTS}/"):
                await self._buckets.delete_prefix(self._bucket, place.removeprefix(here))

    async def remove(self) -> None:
        await self._buckets.delete_prefix(self._bucket, self._folder)


def _file(artifact: Artifact) -> GateFile:
    return GateFile(artifact.key, artifact.sha256, artifact.bytes)


def _keys(document: GateDocument) -> set[str]:
    files = [each for of in (document.files, document.last_files) if of for each in (of.weights, of.embedder)]
    return {file.key for file in files if file is not None}


def _places(document: GateDocument) -> set[str]:
    return {export.place for export in document.exports}
