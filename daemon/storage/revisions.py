"""How a registry document lies in a bucket: one immutable object per revision,

    registry/<kind>/<name>/<revision, 8 digits>-<12 digits of its sha256>.json
    {"format": 1, "kind", "name", "revision", "writer", "sha256", "payload"}

`sha256` is that of the payload's bytes, `writer` is random so that two writers of the same
content still write two objects, and a payload of null says that the document was deleted. A head
(see daemon/bus/heads.py) names the current one. Nothing here does I/O; registry.py does.
"""

import contextlib
import hashlib
import os
import re
from typing import Any

import msgspec

from actors.errors import CorruptState
from schemas.config import tagged
from schemas.documents.base import FORMAT, Document, kind_of_document
from schemas.names import BucketName, Sha256

PREFIX = "registry"
KEY = re.compile(PREFIX + r"/(?P<kind>[a-z0-9_.-]+)/(?P<name>[^/]+)/(?P<revision>\d{8})-[0-9a-f]{12}\.json")


class NewerFormat(CorruptState):
    """Written by a newer version of this program: refused, and never touched."""


class Head(msgspec.Struct, frozen=True):
    """The value of a head: which object is current. It moves by compare-and-set."""

    revision: int
    sha256: Sha256  # of the whole object
    bucket: BucketName
    key: str
    deleted: bool = False  # a tombstone: the revision counts on, the document is gone
    format: int = FORMAT


class Revision(msgspec.Struct, frozen=True):
    """The stored object."""

    format: int
    kind: str
    name: str
    revision: int
    writer: str
    sha256: Sha256
    payload: msgspec.Raw


def head_key(kind: str, name: str) -> str:
    return f"{kind}.{name}"


def folder(kind: str, name: str) -> str:
    return f"{PREFIX}/{kind}/{name}"


def pack(kind: str, name: str, revision: int, document: Document | None, bucket: BucketName) -> tuple[Head, bytes]:
    """The object of a new revision, and the head that points to it. None: a tombstone."""
    payload = msgspec.json.encode(document)
    body = msgspec.json.encode(
        Revision(FORMAT, kind, name, revision, os.urandom(6).hex(), _sha256(payload), msgspec.Raw(payload))
    )
    sha256 = _sha256(body)
    key = f"{folder(kind, name)}/{revision:08d}-{sha256[:12]}.json"
    return Head(revision, sha256, bucket, key, document is None), body


def unpack(body: bytes, key: str) -> Revision:
    """The checked object. Raises CorruptState for a damaged one or one of a newer format."""
    try:
        revision = msgspec.json.decode(body, type=Revision)
    except msgspec.DecodeError as error:
        newer = _format(body)
        if newer is not None and newer > FORMAT:
            raise newer_format(key, newer) from error
        raise CorruptState(f"registry object {key} can't be read ({error}); {REPAIR}") from error
    if revision.format > FORMAT:
        raise newer_format(key, revision.format)
    expected = f"{folder(revision.kind, revision.name)}/{revision.revision:08d}-{_sha256(body)[:12]}.json"
    if _sha256(bytes(revision.payload)) != revision.sha256 or expected != key:
        raise CorruptState(f"registry object {key} fails its checksum; {REPAIR}")
    return revision


def decode(revision: Revision, kind: type[Document], key: str) -> Document:
    """The document of a revision that is no tombstone. Raises CorruptState."""
    payload = bytes(revision.payload)
    try:
        return msgspec.json.decode(payload, type=kind)
    except msgspec.ValidationError as error:
        with contextlib.suppress(msgspec.ValidationError):
            return msgspec.convert(tagged(msgspec.json.decode(payload)), kind)
        raise CorruptState(f"registry object {key} is no valid {kind_of_document(kind)}: {error}; {REPAIR}") from error


def head_of(revision: Revision, body: bytes, bucket: BucketName, key: str) -> Head:
    """The head that makes a stored revision current."""
    return Head(revision.revision, _sha256(body), bucket, key, bytes(revision.payload) == b"null", revision.format)


def newer_format(key: str, found: int) -> NewerFormat:
    return NewerFormat(
        f"registry object {key} is of format {found}, written by a newer lakehouse; this one reads up to "
        f"{FORMAT}. Upgrade lakehouse: nothing was changed"
    )


REPAIR = "run `lakehouse repair` to go back to its newest good revision"


def _format(body: bytes) -> int | None:
    try:
        found: Any = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return None
    value = found.get("format") if isinstance(found, dict) else None
    return value if isinstance(value, int) else None


def _sha256(data: bytes) -> Sha256:
    return hashlib.sha256(data).hexdigest()
