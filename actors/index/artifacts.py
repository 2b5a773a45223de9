"""Where an index's files lie in its bucket, and the record beside each generation's graph that
says what it is: the `GenerationBuilt` that announced it. The record is written last, so a graph
counts only when it is whole.
"""

import hashlib
import re

import msgspec

from actors.ports import Buckets, TableRef
from schemas.config import tagged
from schemas.documents.index import IndexDocument
from schemas.events.index import GenerationBuilt
from schemas.names import BucketName, IndexName, Sha256


def folder(index: IndexName, generation: int) -> str:
    return f"indexes/{index}/generations/{generation:06d}"


def graph_key(index: IndexName, generation: int) -> str:
    return f"{folder(index, generation)}/graph.hnsw"


def store_key(index: IndexName, number: int) -> str:
    """A Lance store's folder; `number` is one that no store of the index had."""
    return f"indexes/{index}/lance/{number}"


def name_sha256(name: str) -> Sha256:
    """Identity of what has no file of its own."""
    return hashlib.sha256(name.encode()).hexdigest()


def embedder_key(index: IndexName) -> str:
    return f"indexes/{index}/embedder.npz"


def vectors_table(document: IndexDocument) -> TableRef:
    """The vectors of a text index: columns source_row (the dataset's _row), vector."""
    return vectors_in(document.bucket, document.index)


def vectors_in(bucket: BucketName, index: IndexName) -> TableRef:
    return TableRef(bucket, f"indexes/{index}/vectors")


async def record(buckets: Buckets, bucket: BucketName, built: GenerationBuilt) -> None:
    key = f"{folder(built.index, built.generation)}/generation.json"
    await buckets.put(bucket, key, msgspec.json.encode(built), overwrite=True)


async def recorded(buckets: Buckets, bucket: BucketName, index: IndexName, generation: int) -> GenerationBuilt | None:
    """The finished artifact of a generation, or None."""
    try:
        data = await buckets.get(bucket, f"{folder(index, generation)}/generation.json")
    except FileNotFoundError:
        return None
    return msgspec.convert(tagged(msgspec.json.decode(data)), GenerationBuilt)


async def kept(buckets: Buckets, bucket: BucketName, index: IndexName) -> list[GenerationBuilt]:
    """Every finished artifact of an index, oldest first."""
    found = []
    for key in sorted(await buckets.list(bucket, f"indexes/{index}/generations")):
        if match := re.search(r"/(\d{6,})/generation\.json$", key):
            built = await recorded(buckets, bucket, index, int(match[1]))
            if built is not None:
                found.append(built)
    return found


async def remove(buckets: Buckets, bucket: BucketName, built: GenerationBuilt) -> None:
    await buckets.delete_prefix(bucket, folder(built.index, built.generation))
