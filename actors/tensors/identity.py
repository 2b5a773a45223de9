"""What a checkpoint is by its content: its tensors, however they are spread over files."""

import hashlib
from collections.abc import Iterable

import msgspec

from actors.tensors.stored import StoredTensor, byte_chunks
from schemas.names import Sha256


def stored_sha256(tensor: StoredTensor) -> Sha256:
    """Of a tensor's bytes as they are stored. Raises CheckpointError."""
    digest = hashlib.sha256()
    for chunk in byte_chunks(tensor):
        digest.update(chunk)
    return digest.hexdigest()


def content_sha256(tensors: Iterable[tuple[str, str, tuple[int, ...], Sha256 | None]]) -> Sha256:
    """Of (name, type, shape, sha256 of the bytes), in the order of names."""
    return hashlib.sha256(msgspec.json.encode(sorted(tensors))).hexdigest()
