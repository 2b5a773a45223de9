"""Buckets: made and taken away, watched over, and what moves from one to another. Owned by the storage desk; what
lies in them is its owners' (datasets: ingest, indexes: the catalog), whom it asks to switch.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.events.base import Event, Query, Reply, Request
from schemas.names import BucketName, Bytes, DatasetName, IndexName

Url = Annotated[str, Meta(max_length=2000, description="file:///folder or s3://bucket/prefix")]
Health = Literal["ok", "degraded", "down"]


class Home(msgspec.Struct, frozen=True):
    """Something whose home a bucket is."""

    kind: str  # dataset, index, harness, profile, codec …
    name: str


class BucketInfo(Reply, tag="bucket.info"):
    """A bucket, and how it is. `degraded`: objects that are meant for it wait in `rescue`."""

    bucket: BucketName
    url: str
    origin: Literal["configured", "provisioned"]
    options: dict[str, str]  # credentials by name only
    health: Health
    reason: str = ""  # of degraded and down
    objects: int | None = None  # None: not counted in time
    bytes: Bytes | None = None
    waiting: int = 0  # objects in `rescue` that are meant for it
    homes: list[Home] = []


class Clash(msgspec.Struct, frozen=True):
    """A document that lies in several buckets. The one in `home` counts; the others are left alone."""

    kind: str
    name: str
    home: BucketName | None  # None: none counts, `lakehouse repair` takes the newest in
    others: list[BucketName]


class BucketList(Reply, tag="bucket.list"):
    buckets: list[BucketInfo]
    clashes: list[Clash] = []


class ProvisionBucket(Request[BucketInfo], tag="bucket.provision"):
    """Make a bucket that every process of the lakehouse knows from then on. The same again changes nothing."""

    name: BucketName
    url: Url = ""  # empty: a folder below [storage] profile_root
    options: dict[str, str] = {}  # of the object store: endpoint, region, path_style, access_key_id_env …


class BucketProvisioned(Event, tag="bucket.provisioned"):
    """A bucket was made."""

    bucket: BucketName
    url: str


class BucketRemoved(Event, tag="bucket.removed"):
    """A bucket is known no more; its objects stay where they are."""

    bucket: BucketName


class RemoveBucket(Request[BucketRemoved], tag="bucket.remove"):
    """Forget a bucket. Refused while it is home to something."""

    name: BucketName


class ListBuckets(Query[BucketList], tag="bucket.list_all"):
    pass


class GetBucket(Query[BucketInfo], tag="bucket.get"):
    name: BucketName


class BucketDegraded(Event, tag="bucket.degraded"):
    """A bucket can't be written: what was meant for it waits in `rescue`, and is read from there."""

    bucket: BucketName
    reason: str
    waiting: int  # objects
    bytes: Bytes


class BucketRestored(Event, tag="bucket.restored"):
    """Everything that waited in `rescue` was brought home."""

    bucket: BucketName
    objects: int
    bytes: Bytes


class DatasetMoved(Event, tag="dataset.moved"):
    """A dataset's home is another bucket; its version and rows are the same."""

    dataset: DatasetName
    source: BucketName
    bucket: BucketName
    objects: int
    bytes: Bytes


class IndexMoved(Event, tag="index.moved"):
    """An index's home is another bucket, with its vectors, generations and eval sets."""

    index: IndexName
    source: BucketName
    bucket: BucketName
    objects: int
    bytes: Bytes


class MoveDataset(Request[DatasetMoved], tag="bucket.move_dataset"):
    """Move a dataset to another bucket. Readers go on; writers wait for the switch."""

    dataset: DatasetName
    bucket: BucketName


class MoveIndex(Request[IndexMoved], tag="bucket.move_index"):
    """Move an index to another bucket. Searches go on."""

    index: IndexName
    bucket: BucketName


class Switched(Reply, tag="bucket.switched"):
    """The owner has copied the rest, and its document names the new bucket."""

    objects: int  # there now
    bytes: Bytes


class SwitchDataset(Request[Switched], tag="ingest.switch"):
    """The storage desk's order in the middle of a move: let nobody write, copy what came since, move the head."""

    dataset: DatasetName
    source: BucketName
    bucket: BucketName


class SwitchIndex(Request[Switched], tag="index.switch"):
    """The same for an index. Refused (busy) while a generation is being built."""

    index: IndexName
    source: BucketName
    bucket: BucketName


class Cleared(Reply, tag="bucket.cleared"):
    """Nothing is left there, unless it is home."""


class ClearDataset(Request[Cleared], tag="ingest.clear"):
    """The storage desk's order after a move: leave nothing of a dataset in a bucket that isn't its home."""

    dataset: DatasetName
    bucket: BucketName


class ClearIndex(Request[Cleared], tag="index.clear"):
    """The same for an index."""

    index: IndexName
    bucket: BucketName
