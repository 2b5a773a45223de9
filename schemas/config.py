"""Index configurations and their bounds: what a trial tries, a promotion promotes, a build builds.

A configuration is one of two, told apart by `backend`: a graph in memory, or an index on disk or S3.
Each has two halves: what is built (one build a value), and the effort of a search, which is swept
on one build.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

M_BOUNDS = (4, 64)
EF_CONSTRUCTION_BOUNDS = (10, 400)
EF_SEARCH_BOUNDS = (10, 400)
PARTITION_BOUNDS = (1, 32_768)
REFINE_BOUNDS = (1, 100)
EF_BOUNDS = (1, 4000)

LanceType = Literal["IVF_RQ", "IVF_FLAT", "IVF_PQ", "IVF_HNSW_SQ"]

Partitions = Annotated[int, Meta(ge=PARTITION_BOUNDS[0], le=PARTITION_BOUNDS[1])]


class GraphConfig(msgspec.Struct, frozen=True, order=True):
    """What an HNSW graph is built with (Malkov & Yashunin 2016, §4). One build per value."""

    M: Annotated[int, Meta(ge=M_BOUNDS[0], le=M_BOUNDS[1])] = 16
    ef_construction: Annotated[int, Meta(ge=EF_CONSTRUCTION_BOUNDS[0], le=EF_CONSTRUCTION_BOUNDS[1])] = 100
    seed: Annotated[int, Meta(ge=0)] = 42

    def __str__(self) -> str:
        return f"M {self.M}, ef_construction {self.ef_construction}"


class HnswEffort(msgspec.Struct, frozen=True, order=True, tag_field="backend", tag="hnsw"):
    """How hard a graph is searched."""

    ef_search: Annotated[int, Meta(ge=EF_BOUNDS[0], le=EF_BOUNDS[1])]

    def __str__(self) -> str:
        return f"ef_search {self.ef_search}"


class HnswConfig(msgspec.Struct, frozen=True, order=True, tag_field="backend", tag="hnsw"):
    """A graph and the ef it is searched with: everything that decides recall and cost."""

    M: Annotated[int, Meta(ge=M_BOUNDS[0], le=M_BOUNDS[1])] = 16
    ef_construction: Annotated[int, Meta(ge=EF_CONSTRUCTION_BOUNDS[0], le=EF_CONSTRUCTION_BOUNDS[1])] = 100
    ef_search: Annotated[int, Meta(ge=EF_SEARCH_BOUNDS[0], le=EF_SEARCH_BOUNDS[1])] = 50
    seed: Annotated[int, Meta(ge=0)] = 42

    @property
    def backend(self) -> Literal["hnsw"]:
        return "hnsw"

    @property
    def build(self) -> GraphConfig:
        return GraphConfig(self.M, self.ef_construction, self.seed)

    @property
    def effort(self) -> HnswEffort:
        return HnswEffort(self.ef_search)

    def __str__(self) -> str:
        return f"{self.build}, {self.effort}"


class LanceBuild(msgspec.Struct, frozen=True, order=True):
    """What a Lance index is built with: an inverted file of `partitions` k-means cells (Jégou et al.
    2011, §4), and how the vectors in a cell are kept: RQ one bit a dimension (RaBitQ, Gao & Long
    2024, arXiv:2405.12497), FLAT as they are, PQ `sub_vectors` bytes (Jégou et al. 2011, §3), HNSW_SQ
    a byte a dimension with a graph over each cell."""

    index_type: LanceType = "IVF_RQ"
    partitions: Partitions = 1
    sub_vectors: Annotated[int, Meta(ge=0, le=4096)] = 0  # of IVF_PQ; 0 otherwise

    @property
    def name(self) -> str:
        """`IVF_PQ-p256-m48`"""
        return f"{self.index_type}-p{self.partitions}" + (f"-m{self.sub_vectors}" if self.sub_vectors else "")

    def __str__(self) -> str:
        of = f", {self.sub_vectors} sub-vectors" if self.sub_vectors else ""
        return f"{self.index_type}, {self.partitions} partitions{of}"


class LanceEffort(msgspec.Struct, frozen=True, order=True, tag_field="backend", tag="lance"):
    """How hard a Lance index is searched."""

    nprobes: Partitions  # cells looked into, the nearest first
    refine_factor: Annotated[int, Meta(ge=REFINE_BOUNDS[0], le=REFINE_BOUNDS[1])] = 1  # candidates rescored per hit
    ef: Annotated[int, Meta(ge=0, le=EF_BOUNDS[1])] = 0  # of IVF_HNSW_SQ; 0 otherwise

    def __str__(self) -> str:
        of = f", ef {self.ef}" if self.ef else ""
        return f"nprobes {self.nprobes}, refine_factor {self.refine_factor}{of}"


class LanceConfig(msgspec.Struct, frozen=True, order=True, tag_field="backend", tag="lance"):
    """A Lance index and the effort it is searched with."""

    index_type: LanceType = "IVF_RQ"
    partitions: Partitions = 1
    sub_vectors: Annotated[int, Meta(ge=0, le=4096)] = 0
    nprobes: Partitions = 1
    refine_factor: Annotated[int, Meta(ge=REFINE_BOUNDS[0], le=REFINE_BOUNDS[1])] = 1
    ef: Annotated[int, Meta(ge=0, le=EF_BOUNDS[1])] = 0

    @classmethod
    def of(cls, build: LanceBuild, effort: LanceEffort) -> "LanceConfig":
        return cls(
            build.index_type, build.partitions, build.sub_vectors, effort.nprobes, effort.refine_factor, effort.ef
        )

    @property
    def backend(self) -> Literal["lance"]:
        return "lance"

    @property
    def build(self) -> LanceBuild:
        return LanceBuild(self.index_type, self.partitions, self.sub_vectors)

    @property
    def effort(self) -> LanceEffort:
        return LanceEffort(self.nprobes, self.refine_factor, self.ef)

    def __str__(self) -> str:
        return f"{self.build}, {self.effort}"


IndexConfig = HnswConfig | LanceConfig
Build = GraphConfig | LanceBuild
Effort = HnswEffort | LanceEffort

DEFAULT_CONFIG = HnswConfig()


def with_effort(config: IndexConfig, effort: Effort) -> IndexConfig:
    """The same build, searched otherwise. Raises ValueError for the other backend's effort."""
    if isinstance(config, HnswConfig) and isinstance(effort, HnswEffort):
        return msgspec.structs.replace(config, ef_search=effort.ef_search)
    if isinstance(config, LanceConfig) and isinstance(effort, LanceEffort):
        return LanceConfig.of(config.build, effort)
    raise ValueError(f"{config} can't be searched with {effort}")


GRAPH_FIELDS = {"M", "ef_construction", "ef_search", "seed"}


def tagged(value: object) -> object:
    """What a version before 0.2 wrote, decoded to plain values, as it is written now: a configuration
    was a graph's and didn't say so."""
    if isinstance(value, list):
        return [tagged(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value and value.keys() <= GRAPH_FIELDS and "ef_search" in value:
        return {"backend": "hnsw", **value}
    if "extra_ef" in value:
        value = {**value, "extra": [{"backend": "hnsw", "ef_search": ef} for ef in value["extra_ef"]]}
    return {key: tagged(item) for key, item in value.items()}
