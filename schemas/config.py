"""Index configurations and their bounds: what a trial tries, a promotion promotes, a build builds."""

from typing import Annotated

import msgspec
from msgspec import Meta

M_BOUNDS = (4, 64)
EF_CONSTRUCTION_BOUNDS = (10, 400)
EF_SEARCH_BOUNDS = (10, 400)


class GraphConfig(msgspec.Struct, frozen=True, order=True):
    """What an HNSW graph is built with (Malkov & Yashunin 2016, §4). One build per value."""

    M: Annotated[int, Meta(ge=M_BOUNDS[0], le=M_BOUNDS[1])] = 16
    ef_construction: Annotated[int, Meta(ge=EF_CONSTRUCTION_BOUNDS[0], le=EF_CONSTRUCTION_BOUNDS[1])] = 100
    seed: Annotated[int, Meta(ge=0)] = 42


class HnswConfig(msgspec.Struct, frozen=True, order=True):
    """A graph and the ef it is searched with: everything that decides recall and cost."""

    M: Annotated[int, Meta(ge=M_BOUNDS[0], le=M_BOUNDS[1])] = 16
    ef_construction: Annotated[int, Meta(ge=EF_CONSTRUCTION_BOUNDS[0], le=EF_CONSTRUCTION_BOUNDS[1])] = 100
    ef_search: Annotated[int, Meta(ge=EF_SEARCH_BOUNDS[0], le=EF_SEARCH_BOUNDS[1])] = 50
    seed: Annotated[int, Meta(ge=0)] = 42

    @property
    def graph(self) -> GraphConfig:
        return GraphConfig(self.M, self.ef_construction, self.seed)


DEFAULT_CONFIG = HnswConfig()
