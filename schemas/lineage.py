"""Run events as OpenLineage defines them (spec 2-0-2, RunEvent), as far as we say them; Marquez and
OpenMetadata read them. Facets are plain dicts: each has its own schema at its `_schemaURL`.
"""

from typing import Any, Literal

import msgspec

PRODUCER = "https://lakehouse.invalid/lakehouse"
SPEC = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"

RunState = Literal["START", "COMPLETE", "FAIL"]
RunKind = Literal["ingest", "build", "campaign", "promotion"]


class Run(msgspec.Struct, frozen=True, rename="camel"):
    run_id: str  # a UUID
    facets: dict[str, Any] = {}


class Job(msgspec.Struct, frozen=True):
    namespace: str
    name: str
    facets: dict[str, Any] = {}


class LineageDataset(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    namespace: str
    name: str
    facets: dict[str, Any] = {}
    input_facets: dict[str, Any] = {}
    output_facets: dict[str, Any] = {}


_NAMES = {"schema_url": "schemaURL", "event_type": "eventType", "event_time": "eventTime"}


class RunEvent(msgspec.Struct, frozen=True, rename=_NAMES):
    event_type: RunState
    event_time: str  # ISO 8601, UTC
    run: Run
    job: Job
    inputs: list[LineageDataset]
    outputs: list[LineageDataset]
    producer: str = PRODUCER
    schema_url: str = SPEC
