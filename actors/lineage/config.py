"""[lineage] of lakehouse.toml."""

import msgspec


class LineageConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    namespace: str = "lakehouse"
    """OpenLineage namespace of our datasets, indexes and jobs."""
    url: str = ""
    """Marquez-compatible endpoint that every run event is posted to, as http://host:5000/api/v1/lineage;
    empty: none."""
    api_key_file: str = ""
    """File with the bearer token of that endpoint."""
    timeout_s: float = 10.0
    """How long it may take to answer."""
