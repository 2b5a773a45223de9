"""Whether an index can have a Lance store, of all its columns or of its texts alone."""

from collections.abc import Sequence

from actors.backends import lance_store
from actors.ports import Buckets
from schemas.events.base import Refusal
from schemas.names import BucketName, DatasetName


async def unfit(dataset: DatasetName, columns: Sequence[str], bucket: BucketName, buckets: Buckets) -> Refusal | None:
    """Why there can be no store of these columns in the bucket; None when there can."""
    if not lance_store.available():
        return Refusal("invalid", "Lance needs pylance, which isn't installed", "pip install 'lakehouse[lance]'")
    bad = lance_store.unfit_names(columns)
    if bad:
        reason = f"dataset {dataset!r} has a column {bad[0]!r}, which a Lance store can't have"
        return Refusal("invalid", reason, "ingest it under another name")
    try:
        await buckets.lance_place(bucket, "indexes")
    except ValueError as error:
        return Refusal("invalid", str(error), "move the index to another bucket: lakehouse index move")
    return None
