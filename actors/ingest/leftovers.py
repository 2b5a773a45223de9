"""What a dataset that was dropped has left in a bucket on its way elsewhere: not the new one's of its name."""

from actors.ports import Registry, TableRef, Tables
from schemas.documents.move import MoveDocument
from schemas.names import DatasetName


async def clear(registry: Registry, tables: Tables, dataset: DatasetName, *places: TableRef) -> None:
    """Drops `places` if a move that isn't over has been there; otherwise another process may be making the same
    dataset in them right now."""
    for _, move, _ in await registry.all(MoveDocument):
        if (move.what, move.name) == ("dataset", dataset):
            for table in places:
                if table.bucket in (move.source, move.bucket):
                    await tables.drop(table)
