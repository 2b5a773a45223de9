"""[index] of lakehouse.toml."""

import msgspec


class IndexConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    memory_budget_mb: int = 4096
    """Loaded indexes over this are unloaded, least recently used first, and loaded on demand."""
    sample_share: float = 0.01
    """Share of live queries that are run again exactly in the background, to know live recall."""
    log_share: float = 0.1
    """Share of live queries whose vectors are kept for eval sets."""
    exact_below_rows: int = 2000
    """A filter that leaves fewer rows is answered by exact search over them."""
    embed_batch: int = 512
    """Texts embedded at a time when an index catches up with its dataset."""
    keep_generations: int = 3
    """Graph files kept per index, the live one included, so that a rollback needs no build."""
    full_text: bool = True
    """Text columns get a full-text index, for text and hybrid search; needs pylance."""
    optimise_share: float = 0.1
    """A Lance store takes rows into its indexes once this share of them lies outside."""
    store_history_days: float = 7.0
    """A Lance store can be searched as it was for so long; older versions are removed when it is optimised."""
    graph_cache_mb: int = 2048
    """Graphs that trials built are kept up to this size: a promoted one needs no second build."""
