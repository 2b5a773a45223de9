"""The ingest actor's part in a dataset's move to another bucket: the switch, while nobody writes, and the clearing of
the old place. How a move goes as a whole is the storage desk's (actors/storage/moving.py).
"""

import msgspec

from actors.errors import CorruptState
from actors.ingest.loading import rejects_of
from actors.mirror import Mirror
from actors.ports import Buckets, Registry, TableRef, Tables
from schemas.documents.dataset import DatasetDocument
from schemas.events.base import Refusal
from schemas.events.storage import ClearDataset, Cleared, SwitchDataset, Switched


class DatasetMoves:
    """The caller is the dataset's only writer meanwhile."""

    def __init__(self, registry: Registry, tables: Tables, buckets: Buckets, mirror: Mirror) -> None:
        self._registry = registry
        self._tables = tables
        self._buckets = buckets
        self._mirror = mirror

    async def switch(self, order: SwitchDataset) -> Switched | Refusal:
        """Copies what came since the first pass, compares the tables and moves the head."""
        name = order.dataset
        found = await self._registry.load(DatasetDocument, name)
        if found is None:
            return Refusal("not_found", f"there is no dataset {name!r}", "it was dropped meanwhile")
        document, revision = found
        if document.bucket == order.bucket:  # an answer that was lost
            return Switched(0, 0)
        if document.bucket != order.source:
            return Refusal("conflict", f"dataset {name!r} lies in bucket {document.bucket!r}", "look again")
        try:
            mirrored = await self._mirror.run(order.source, order.bucket, [f"datasets/{name}"])
            await self._compare(order, document)
        except CorruptState as error:
            return Refusal("unavailable", str(error), "nothing was moved")
        await self._registry.save(name, msgspec.structs.replace(document, bucket=order.bucket), expected=revision)
        return Switched(mirrored.objects, mirrored.bytes)

    async def _compare(self, order: SwitchDataset, document: DatasetDocument) -> None:
        """Raises CorruptState when the copied tables aren't at the same version with the same rows."""
        for table in (TableRef(order.source, document.path), rejects_of(order.source, order.dataset)):
            before = await self._tables.state(table)
            after = await self._tables.state(TableRef(order.bucket, table.path))
            if before != after:
                raise CorruptState(f"the copy of table {table.path} in bucket {order.bucket} is not what it was")

    async def clear(self, order: ClearDataset) -> Cleared:
        found = await self._registry.load(DatasetDocument, order.dataset)
        if found is None or found[0].bucket != order.bucket:
            for path in ("table", "rejects"):
                await self._tables.drop(TableRef(order.bucket, f"datasets/{order.dataset}/{path}"))
            await self._buckets.delete_prefix(order.bucket, f"datasets/{order.dataset}")
        return Cleared()
