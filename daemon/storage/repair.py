"""`lakehouse repair`: heads of registry documents rebuilt from the buckets. A head that points
at a good revision stays; otherwise the newest good one becomes current. Nothing is deleted and
nothing of a newer format is touched."""

from collections import defaultdict
from collections.abc import Callable
from typing import Literal

import msgspec

from actors.errors import CorruptState
from actors.ports import Buckets
from daemon.bus.heads import Heads
from daemon.storage import revisions
from daemon.storage.revisions import Head, head_key
from schemas.documents.base import FORMAT
from schemas.names import BucketName


class Finding(msgspec.Struct, frozen=True):
    """One line of the report."""

    document: str  # "index docs"
    what: Literal["moved", "bad", "lost", "newer"]
    text: str


async def repair(buckets: Buckets, heads: Heads, look: Callable[[str], None] = lambda _: None) -> list[Finding]:
    """Rebuild what is missing or wrong; returns what was changed ("moved") and what is bad.
    `look` hears of everything before it is looked at. Run it while no daemon writes."""
    found: dict[tuple[str, str], list[tuple[int, BucketName, str]]] = defaultdict(list)
    report: list[Finding] = []
    for bucket in await buckets.names():
        look(f"bucket {bucket}")
        for key in await buckets.list(bucket, revisions.PREFIX):
            match = revisions.KEY.fullmatch(key)
            if match:
                found[match["kind"], match["name"]].append((int(match["revision"]), bucket, key))
            else:
                report.append(Finding(key, "bad", f"{key} in bucket {bucket} is no registry object; it was left alone"))
    for key in await heads.all():
        kind, _, name = key.partition(".")
        found.setdefault((kind, name), [])
    for (kind, name), candidates in sorted(found.items()):
        look(f"{kind} {name}: {len(candidates)} revisions")
        report += await _repair_one(buckets, heads, kind, name, sorted(candidates, reverse=True))
    return report


async def _repair_one(
    buckets: Buckets, heads: Heads, kind: str, name: str, candidates: list[tuple[int, BucketName, str]]
) -> list[Finding]:
    report: list[Finding] = []
    document = f"{kind} {name}"
    current = await heads.get(head_key(kind, name))
    head = _decode(current[0]) if current else None
    if head and head.format > FORMAT:
        return [Finding(document, "newer", f"its head is of format {head.format}: upgrade lakehouse")]
    if head and head.deleted and head.bucket not in await buckets.names():
        return report  # it was dropped, and its bucket taken away since
    # Bad revisions are found on the way down to the first good one; older ones aren't read.
    if head and await _good(buckets, document, head.bucket, head.key, report) is not None:
        return report
    for revision, bucket, key in candidates:
        good = await _good(buckets, document, bucket, key, report)
        if any(finding.what == "newer" for finding in report):
            return report
        if good is None:
            continue
        await heads.set(head_key(kind, name), msgspec.json.encode(good), current[1] if current else None)
        was = f"was at revision {head.revision}" if head else "was missing"
        state = "deleted" if good.deleted else "current"
        report.append(Finding(document, "moved", f"head {was}; revision {revision} in bucket {bucket} is {state} now"))
        return report
    report.append(Finding(document, "lost", "no good revision is left; restore its bucket from a backup"))
    return report


async def _good(buckets: Buckets, document: str, bucket: BucketName, key: str, report: list[Finding]) -> Head | None:
    """The head for a revision that can be read; otherwise None, and a line in the report."""
    try:
        body = await buckets.get(bucket, key)
        revision = revisions.unpack(body, key)
    except (CorruptState, FileNotFoundError, KeyError) as error:
        newer = isinstance(error, revisions.NewerFormat)
        finding = Finding(document, "newer" if newer else "bad", f"bucket {bucket}: {error}")
        if finding not in report:
            report.append(finding)
        return None
    return revisions.head_of(revision, body, bucket, key)


def _decode(value: bytes) -> Head | None:
    try:
        return msgspec.json.decode(value, type=Head)
    except msgspec.DecodeError:
        return None
