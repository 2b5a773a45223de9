"""What a trial is measured on and against, where it is kept: what is live, the campaign's champion, and
the index's Lance store. The lab's own part."""

from dataclasses import dataclass

from actors.autotune.builds import Live, LiveGraph, LiveLance
from actors.autotune.decide import chosen_points
from actors.autotune.jobs import Champion
from actors.backends import lance_store
from actors.backends.lance_store import Place
from actors.errors import Transient
from actors.hnsw import LIBRARY
from actors.ports import Buckets, Journal, Registry
from schemas.config import IndexConfig, LanceConfig
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.documents.store import StoreDocument
from schemas.events.autotune import RunTrial

BEHIND_S = 2.0
"""A store that hasn't the dataset version yet is asked again after so long, and then after four times as long."""


@dataclass(frozen=True)
class Subjects:
    config: IndexConfig  # to be measured
    reuse_live: bool  # as it is live
    live: Live | None
    champion: Champion | None
    store: Place | None


async def find(
    command: RunTrial,
    index: IndexDocument,
    version: int,
    delivery: int,
    registry: Registry,
    buckets: Buckets,
    journal: Journal,
) -> Subjects:
    """For a trial on a dataset version; `delivery` is the order's. Raises ValueError, with what to do, when the
    trial is Lance's and the index has no store; Transient while the store hasn't got to the version yet."""
    found = await registry.load(GenerationDocument, index.index)
    generation = found[0] if found else None
    live = await _live(index, generation, buckets) if generation else None
    champion = await _champion(command, generation if live else None, journal)
    wanted = live.config if command.proposal.reuse_live and live else command.proposal.config
    store = None
    if isinstance(wanted, LanceConfig):
        store = await _store(index, version, delivery, registry, buckets)
    elif isinstance(live, LiveLance) or (champion and isinstance(champion.config, LanceConfig)):
        try:
            store = await _store(index, version, delivery, registry, buckets)
        except ValueError:  # a graph is measured all the same, against nothing
            live = live if isinstance(live, LiveGraph) else None
    return Subjects(wanted, command.proposal.reuse_live and live is not None, live, champion, store)


async def _live(index: IndexDocument, generation: GenerationDocument, buckets: Buckets) -> Live | None:
    """None when another build of hnswlib wrote the graph."""
    config = generation.config
    if isinstance(config, LanceConfig):
        return LiveLance(generation.vector_index, config, generation.rows)
    if generation.library != LIBRARY:
        return None
    path = await buckets.fetch(index.bucket, generation.key, generation.sha256)
    return LiveGraph(path, generation.sha256, config, generation.rows)


async def _champion(command: RunTrial, generation: GenerationDocument | None, journal: Journal) -> Champion | None:
    """The point of the champion's trial that the campaign named; else what is live."""
    if command.champion_trial is not None:
        for point in chosen_points(await journal.trial(command.index, command.champion_trial)):
            return Champion(point.trial, point.config)
    if generation is None:
        return None
    return Champion(generation.trial or f"generation-{generation.generation}", generation.config)


async def _store(index: IndexDocument, version: int, delivery: int, registry: Registry, buckets: Buckets) -> Place:
    """The index's Lance store as it was at the dataset version."""
    if not lance_store.available():
        raise ValueError("pylance isn't installed: pip install 'lakehouse[lance]'")
    found = await registry.load(StoreDocument, index.index)
    if found is None or not found[0].vectors:
        raise ValueError(
            f"index {index.index!r} has no Lance store with its vectors: POST /vectors/lance/migrate/{index.index} "
            "makes one"
        )
    store = found[0]
    lance_version = store.at(version)
    if lance_version is None:
        raise Transient(
            f"the Lance store of {index.index!r} has dataset version {store.version}, not {version}",
            BEHIND_S * 4 ** (delivery - 1),
        )
    return await buckets.lance_place(index.bucket, store.key, lance_version)
