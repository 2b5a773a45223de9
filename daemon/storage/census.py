"""Which buckets a document lies in, by its revisions, whatever its head says: two lakehouses that share a bucket, or a
copied folder, make the same name occur twice. Tombstones don't count, and neither do buckets that can't be reached.
"""

from collections import defaultdict

import structlog

from actors.errors import CorruptState, Transient
from actors.ports import Buckets, Lying
from daemon.storage import revisions
from schemas.names import BucketName

log = structlog.get_logger(__name__)


async def lying(buckets: Buckets, homes: dict[tuple[str, str], BucketName]) -> list[Lying]:
    """Every document that doesn't lie in its home alone. homes: by kind and name, what the heads say."""
    newest: defaultdict[tuple[str, str], dict[BucketName, str]] = defaultdict(dict)
    for bucket in await buckets.names():
        try:
            keys = await buckets.list(bucket, revisions.PREFIX)
        except KeyError:  # it was taken away meanwhile
            continue
        except Transient as error:
            log.warning("bucket is not looked through", bucket=bucket, why=str(error))
            continue
        for key in keys:  # sorted, so the last one of a folder is the newest
            if match := revisions.KEY.fullmatch(key):
                newest[match["kind"], match["name"]][bucket] = key
    found = []
    for (kind, name), places in sorted(newest.items()):
        home = homes.get((kind, name))
        if list(places) == [home]:
            continue
        there = [
            bucket for bucket, key in sorted(places.items()) if bucket != home and await _lives(buckets, bucket, key)
        ]
        if there:
            found.append(Lying(kind, name, home, there))
    return found


async def _lives(buckets: Buckets, bucket: BucketName, key: str) -> bool:
    """Whether a revision is a document and no tombstone. A damaged one is `lakehouse repair`'s to tell."""
    try:
        return bytes(revisions.unpack(await buckets.get(bucket, key), key).payload) != b"null"
    except (CorruptState, FileNotFoundError, KeyError, Transient):
        return False
