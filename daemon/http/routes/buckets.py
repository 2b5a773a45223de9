"""Buckets: made, shown and taken away at run time."""

from daemon.http.route import Call, Route, message
from schemas.events.storage import (
    BucketInfo,
    BucketList,
    BucketRemoved,
    GetBucket,
    ListBuckets,
    ProvisionBucket,
    RemoveBucket,
)
from schemas.http import BucketBody, BucketParams, NoParams


async def provision(call: Call[NoParams, BucketBody]) -> BucketInfo:
    return await call.ask(message(ProvisionBucket, call.body), long=True)


async def list_buckets(call: Call[NoParams, None]) -> BucketList:
    return await call.ask(ListBuckets())


async def get_bucket(call: Call[BucketParams, None]) -> BucketInfo:
    return await call.ask(GetBucket(call.params.bucket))


async def remove(call: Call[BucketParams, None]) -> BucketRemoved:
    return await call.ask(RemoveBucket(call.params.bucket))


ROUTES = [
    Route("POST", "/storage/buckets", provision, "Make a bucket that every process knows from then on", status=201),
    Route("GET", "/storage/buckets", list_buckets, "Every bucket: health, size, what has its home there; name clashes"),
    Route("GET", "/storage/buckets/{bucket}", get_bucket, "One bucket"),
    Route("DELETE", "/storage/buckets/{bucket}", remove, "Forget a bucket that is home to nothing; its objects stay"),
]
