"""The trial journal: one row per measured point. The table's schema is this struct, field by
field, so that SQL reads what the agent reads."""

from typing import Any, Literal

import msgspec

from schemas.config import Effort, HnswConfig, IndexConfig, LanceConfig
from schemas.names import (
    Backend,
    Bytes,
    CampaignId,
    HarnessName,
    IndexName,
    MessageId,
    Micros,
    Rows,
    Seconds,
    Share,
    Timestamp,
    TrialId,
)

Proposer = Literal["grid", "champion", "explore", "exploit", "backend", "manual"]


class TrialPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One configuration measured on one eval set: a build, at one effort. Latencies are one query at
    a time, one thread. `chosen` marks the point that the trial stands for.

    The configuration is a tagged union: `backend` says which of its columns have values."""

    trial: TrialId
    campaign: CampaignId
    index: IndexName
    build: str  # identity of what was built: same build, same graph or index
    harness: HarnessName
    dataset_version: int
    rows: Rows
    # configuration
    backend: Backend = "hnsw"
    M: int | None = None  # hnsw
    ef_construction: int | None = None
    ef_search: int | None = None
    seed: int | None = None
    index_type: str | None = None  # lance
    partitions: int | None = None
    sub_vectors: int | None = None
    nprobes: int | None = None
    refine_factor: int | None = None
    ef: int | None = None
    # quality, over the eval set's queries
    queries: int
    k: int = 10
    target_recall: Share = 0.0  # what the trial was asked to hold
    recall: Share  # mean recall@k by ids; a row exactly as far as the k-th counts as one of them
    recall_ties: Share  # mean recall@k by distance ties (ann-benchmarks: distance <= d_k + 1e-3)
    recall_lower: Share  # one-sided 95 % lower bound on the mean, by ids
    recall_worst_decile: Share  # mean of the worst tenth of the queries
    # cost
    p50_us: Micros
    p95_us: Micros
    p99_us: Micros
    cpu_us: Micros  # CPU time per query
    # against the champion, interleaved on the same queries; None when it wasn't compared
    champion_trial: TrialId | None = None
    champion_ratio: float | None = None  # median of paired latency ratios; < 1 is faster
    champion_ratio_low: float | None = None  # 95 % confidence interval
    champion_ratio_high: float | None = None
    champion_recall_lower: float | None = None
    # the build
    build_s: Seconds  # 0 when it was there already
    build_cpu_s: Seconds
    bytes: Bytes
    library: str  # its version and build flag
    graph_added: Rows = 0  # rows that the graph took in after it was built
    graph_deleted: Rows = 0  # rows that are only marked deleted in it
    # how it came about
    chosen: bool = False
    proposer: Proposer
    rule: str  # in words: "exploit: champion M 16 + 4"
    draw: float | None = None  # the random number that decided between explore and exploit
    journal_rows: int  # rows of this index's journal that the proposal was made from
    policy: str = ""  # JSON: epsilon, bounds and target of the rule, so that it can be replayed
    asked_by: str  # "agent", "http", "cli" …
    trigger: MessageId  # id of the message that set the campaign off
    trigger_tag: str  # and what it was: "dataset.appended", "autotune.enqueue" …
    trigger_time: Timestamp | None = None  # when it came; None in rows older than this field
    host: str
    time: Timestamp

    @property
    def config(self) -> IndexConfig:
        """The configuration of the row's backend. Raises msgspec.ValidationError for a row that has none."""
        wanted: Any = HnswConfig if self.backend == "hnsw" else LanceConfig
        values = {name: getattr(self, name) for name in wanted.__struct_fields__}
        config: IndexConfig = msgspec.convert({name: v for name, v in values.items() if v is not None}, wanted)
        return config

    @property
    def effort(self) -> Effort:
        config = self.config
        return config.effort


def columns_of(config: IndexConfig) -> dict[str, Any]:
    """A configuration as columns of a `TrialPoint`."""
    return {"backend": config.backend, **{name: getattr(config, name) for name in config.__struct_fields__}}
