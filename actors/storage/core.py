"""What the storage desk decides: which buckets may be made and taken away, what has its home where, which documents
clash, and what is next in a move. Values in, values out.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Literal
from urllib.parse import unquote, urlsplit

from actors.ports import Lying, Place, Waiting
from schemas.documents.move import MoveDocument
from schemas.events.base import Refusal
from schemas.events.storage import Clash, Home
from schemas.names import BucketName

BUILT_IN = ("primary", "rescue")
KINDS = {"dataset", "index", "harness", "profile", "codec"}
"""Kinds of document that have a home bucket of their own; the others lie beside one of these."""
SCHEMES = ("file", "s3")

What = Literal["dataset", "index"]


def folders(what: What, name: str) -> list[str]:
    """Where in its bucket something lies."""
    return [f"{'datasets' if what == 'dataset' else 'indexes'}/{name}"]


def refuse_url(name: BucketName, url: str, places: Mapping[BucketName, Place]) -> Refusal | None:
    """Why a bucket can't lie at a URL; None: nothing is against it. places: of the buckets there are."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or (parts.scheme == "file" and (parts.netloc or not parts.path.startswith("/"))):
        return Refusal("invalid", f"{_shown(url)} is no place for a bucket", "file:///folder or s3://bucket/prefix")
    if parts.scheme == "s3" and not parts.netloc:
        return Refusal("invalid", f"{_shown(url)} names no bucket", "s3://bucket/prefix")
    for other, place in places.items():
        if other != name and overlap(url, place.url):
            return Refusal(
                "conflict",
                f"bucket {other!r} lies at {place.url}: one can't lie in the other",
                "give a folder or prefix of its own",
            )
    return None


def path_of(url: str) -> str:
    """The directory of a `file://` URL."""
    return unquote(urlsplit(url).path)


def overlap(one: str, other: str) -> bool:
    """Whether two URLs are one place, or one lies below the other."""
    a, b = urlsplit(one), urlsplit(other)
    if (a.scheme, a.netloc.rpartition("@")[2]) != (b.scheme, b.netloc.rpartition("@")[2]):
        return False
    mine, others = (PurePath("/") / unquote(parts.path).strip("/") for parts in (a, b))
    return mine.is_relative_to(others) or others.is_relative_to(mine)


def refuse_removal(name: BucketName, origin: str, homes: Sequence[Home], waiting: int) -> Refusal | None:
    """Why a bucket can't be taken away; None: it can."""
    if name in BUILT_IN:
        return Refusal("forbidden", f"bucket {name!r} is built in", "it always exists")
    if origin == "configured":
        return Refusal("forbidden", f"bucket {name!r} is named in lakehouse.toml", "take it out of [[storage.buckets]]")
    if homes:
        named = ", ".join(f"{home.kind} {home.name}" for home in homes)
        return Refusal(
            "conflict",
            f"bucket {name!r} is home to {named}",
            "move them (lakehouse datasets move, lakehouse index move) or drop them first",
        )
    if waiting:
        return Refusal(
            "conflict",
            f"{waiting} objects in rescue are meant for bucket {name!r}",
            "they go home when it can be written",
        )
    return None


def home_to(
    bucket: BucketName,
    fields: Iterable[tuple[str, str, BucketName | None]],
    heads: Iterable[tuple[str, str, BucketName]],
    moves: Iterable[MoveDocument],
) -> list[Home]:
    """What has its home in a bucket, or is on its way there or from there. fields: kind, name and the
    document's own `bucket`; heads: kind, name and bucket of every document."""
    found = {(kind, name) for kind, name, home in fields if (home or "primary") == bucket}
    found |= {(kind, name) for kind, name, home in heads if home == bucket and bucket not in BUILT_IN}
    found |= {(move.what, move.name) for move in moves if bucket in (move.source, move.bucket)}
    return [Home(kind, name) for kind, name in sorted(found)]


def clashes(lying: Iterable[Lying]) -> list[Clash]:
    """Of what has a home of its own: what lies in several buckets, or where nobody counts it."""
    return [Clash(each.kind, each.name, each.home, each.others) for each in lying if each.kind in KINDS]


def refuse_target(bucket: BucketName, known: Sequence[BucketName], degraded: Collection[BucketName]) -> Refusal | None:
    """Why nothing can be moved to a bucket; None: it can."""
    if bucket not in known:
        return Refusal("not_found", f"there is no bucket {bucket!r}", f"known are {', '.join(known)}")
    if bucket == "rescue":
        return Refusal("invalid", "rescue is for what can't be written elsewhere", "move it to another bucket")
    if bucket in degraded:
        reason = f"bucket {bucket!r} is degraded: objects that are meant for it wait in rescue"
        return Refusal("unavailable", reason, "wait until it is restored", retry_after_s=10.0)
    return None


def refuse_move(what: What, name: str, bucket: BucketName, move: MoveDocument | None) -> Refusal | None:
    """Why something can't go to a bucket while `move` is under way; None: it can, or is there already."""
    if move is not None and move.state == "copying" and move.bucket != bucket:
        reason = f"{what} {name!r} is being moved to bucket {move.bucket!r}"
        return Refusal("conflict", reason, "wait until it is there")
    return None


def together(one: Waiting, other: Waiting) -> Waiting:
    """Two parts of what was brought home to one bucket."""
    return Waiting(one.bucket, one.objects + other.objects, one.bytes + other.bytes, one.reason)


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
