"""Grids: the builds of a campaign that someone asked for, point by point. Pure."""

from collections.abc import Sequence

from actors.autotune.spaces import lance_by_rule
from actors.autotune.sweep import REFINE_LADDER
from actors.backends.lance_rules import first_config, resolve
from schemas.config import Effort, GraphConfig, HnswConfig, HnswEffort, LanceBuild, LanceEffort
from schemas.events.autotune import DEFAULT_GRID, LancePoint, Proposal, StartAutotune
from schemas.names import Backend, Rows


def grid_of(command: StartAutotune, serving: Backend, rows: Rows, dim: int, highest_ef: int) -> list[Proposal]:
    """What was asked for; by default some of what `serving` can build. Raises ValueError, with the numbers, for a
    point that rows or dimensions don't allow."""
    graphs, lance = command.grid, command.lance
    if graphs is None and lance is None:
        graphs = DEFAULT_GRID if serving == "hnsw" else None
    configs = [HnswConfig(point.M, point.ef_construction, point.ef_search) for point in graphs or []]
    asked = lance_by_rule(rows, dim) if graphs is None and lance is None else _resolved(lance or [], rows, dim)
    highest = command.objective == "recall_first"  # what a build can reach is seen at the highest effort
    return [*by_graph(configs, highest_ef if highest else None), *by_lance(asked, highest_ef if highest else None)]


def by_graph(configs: Sequence[HnswConfig], highest_ef: int | None = None) -> list[Proposal]:
    """One proposal a graph, in the order first named: points that share a graph are one build."""
    grouped: dict[GraphConfig, set[int]] = {}
    for config in configs:
        grouped.setdefault(config.build, set()).add(config.ef_search)
    firsts = {config.build: config for config in reversed(configs)}
    return [
        Proposal(
            config=firsts[graph],
            proposer="grid",
            rule=f"grid: {graph}, ef_search {', '.join(map(str, sorted(efs)))}",
            extra=[HnswEffort(ef) for ef in sorted(efs | ({highest_ef} if highest_ef else set()))],
        )
        for graph, efs in grouped.items()
    ]


def by_lance(builds: Sequence[LanceBuild], highest_ef: int | None = None) -> list[Proposal]:
    return [
        Proposal(
            config=first_config(build),
            proposer="grid",
            rule=f"grid: {build}",
            extra=[_highest(build, highest_ef)] if highest_ef else [],
        )
        for build in dict.fromkeys(builds)
    ]


def _resolved(points: Sequence[LancePoint], rows: Rows, dim: int) -> list[LanceBuild]:
    return [resolve(rows, dim, point.index_type, point.partitions, point.sub_vectors) for point in points]


def _highest(build: LanceBuild, highest_ef: int) -> Effort:
    refine = REFINE_LADDER[build.index_type][-1]
    ef = max(highest_ef, first_config(build).ef * refine) if build.index_type == "IVF_HNSW_SQ" else 0
    return LanceEffort(build.partitions, refine, ef)
