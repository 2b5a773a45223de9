"""Where an artifact's files lie in its bucket: `codecs/<artifact>/` with a file a tensor, what a loader needs beside
them, and the manifest, which is written last: an artifact counts only when it is whole.

While a calibration runs, each tensor's row lies beside its file, so that whoever goes on knows what is done.
"""

import hashlib
import os
import shutil
from pathlib import Path

import anyio.to_thread
import msgspec

from actors.ports import Buckets
from schemas.codec import ArtifactName, CodecJobId, Manifest, StoredFile, TensorRow
from schemas.names import BucketName, Sha256

MANIFEST = "manifest.json"


def folder(artifact: ArtifactName) -> str:
    return f"codecs/{artifact}"


def tensor_key(number: int) -> str:
    """Below the artifact's folder."""
    return f"tensors/{number:06d}.safetensors"


class ArtifactStore:
    """One artifact's objects."""

    def __init__(self, buckets: Buckets, bucket: BucketName, artifact: ArtifactName) -> None:
        self._buckets = buckets
        self._bucket = bucket
        self._folder = folder(artifact)

    async def row(self, job: CodecJobId, number: int) -> TensorRow | None:
        """What a job's earlier attempt wrote of a tensor; the row is written after its file."""
        try:
            raw = await self._buckets.get(self._bucket, self._row(job, number))
        except FileNotFoundError:
            return None
        return msgspec.json.decode(raw, type=TensorRow)

    async def rows(self, job: CodecJobId, tensors: int) -> list[TensorRow]:
        """All of them, by number. Raises FileNotFoundError for one that is gone."""
        return [
            msgspec.json.decode(await self._buckets.get(self._bucket, self._row(job, number)), type=TensorRow)
            for number in range(tensors)
        ]

    async def put_row(self, job: CodecJobId, row: TensorRow) -> None:
        await self._buckets.put(self._bucket, self._row(job, row.number), msgspec.json.encode(row), overwrite=True)

    async def activations(self, job: CodecJobId) -> Path | None:
        """Those that a step of the job collected."""
        try:
            return await self._buckets.fetch(self._bucket, self._activations(job))
        except FileNotFoundError:
            return None

    async def put_activations(self, job: CodecJobId, path: Path) -> Path:
        await self._buckets.delete(self._bucket, self._activations(job))
        stored = await self._buckets.upload(self._bucket, self._activations(job), path)
        return await self._buckets.fetch(self._bucket, stored.key, stored.sha256)

    async def put_file(self, key: str, path: Path) -> StoredFile:
        """key: below the artifact's folder."""
        await self._buckets.delete(self._bucket, f"{self._folder}/{key}")  # left by an attempt that was killed
        stored = await self._buckets.upload(self._bucket, f"{self._folder}/{key}", path)
        return StoredFile(key, stored.sha256, stored.bytes)

    async def put_manifest(self, manifest: Manifest) -> Sha256:
        """From here on the artifact is there. Returns the manifest's own sha256."""
        raw = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
        await self._buckets.put(self._bucket, f"{self._folder}/{MANIFEST}", raw, overwrite=True)
        return hashlib.sha256(raw).hexdigest()

    async def forget_rows(self) -> None:
        """Once the manifest has them."""
        await self._buckets.delete_prefix(self._bucket, f"{self._folder}/rows")

    async def manifest(self) -> tuple[Manifest, Sha256]:
        """Raises FileNotFoundError when the artifact isn't there, ValidationError for a manifest that isn't ours."""
        raw = await self._buckets.get(self._bucket, f"{self._folder}/{MANIFEST}")
        return msgspec.json.decode(raw, type=Manifest), hashlib.sha256(raw).hexdigest()

    async def local(self, into: Path) -> Path:
        """The artifact as a local folder: files of its manifest, linked from where the bucket has or keeps them.
        Raises FileNotFoundError, CorruptState for a file that fails its checksum."""
        manifest, sha256 = await self.manifest()
        place = into / sha256
        files = [row.file for row in manifest.tensors if row.file is not None] + manifest.extra
        found = {MANIFEST: await self._buckets.fetch(self._bucket, f"{self._folder}/{MANIFEST}", sha256)}
        for file in files:
            found[file.key] = await self._buckets.fetch(self._bucket, f"{self._folder}/{file.key}", file.sha256)
        await anyio.to_thread.run_sync(link_tree, found, place)
        return place

    async def remove(self) -> None:
        """The manifest first: what is half gone isn't there."""
        await self._buckets.delete(self._bucket, f"{self._folder}/{MANIFEST}")
        await self._buckets.delete_prefix(self._bucket, self._folder)

    def _activations(self, job: CodecJobId) -> str:
        return f"{self._folder}/rows/{job}/activations.safetensors"

    def _row(self, job: CodecJobId, number: int) -> str:
        return f"{self._folder}/rows/{job}/{number:06d}.json"


def link_tree(files: dict[str, Path], place: Path) -> None:
    """A folder with links to the files, by their keys. One that is there is brought up to date."""
    for key, path in files.items():
        link = place / key
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink() and Path(os.readlink(link)) == path:
            continue
        new = link.with_name(f".{link.name}.new")
        new.unlink(missing_ok=True)
        new.symlink_to(path)
        new.replace(link)


def remove_tree(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
