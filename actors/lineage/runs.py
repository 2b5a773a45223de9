"""What of an event becomes which OpenLineage runs, and how a name is walked up and down. Values in,
values out.

A run's id is derived from what it is a run of, so that an event heard twice is the same run. START
tells when the work was ordered, and is stored together with how it ended; a campaign's is stored
at its first trial.
"""

import datetime
import uuid
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import IndexDocument
from schemas.documents.lineage import LineageRow
from schemas.events.autotune import TrialCompleted, TuningFinished
from schemas.events.dataset import ColumnInfo, DatasetAppended, IngestRejected
from schemas.events.index import GenerationBuilt, GenerationFailed
from schemas.events.lineage import LineageGraph, LineageRun
from schemas.events.promotion import ConfigPromoted
from schemas.lineage import PRODUCER, Job, LineageDataset, Run, RunEvent, RunKind, RunState
from schemas.names import MessageId, Timestamp

_RUNS = uuid.UUID("6d1f5b0a-33b4-4c02-9c53-6a0a5d0a3d11")
_FACETS = "https://openlineage.io/spec/facets/"


class Described(msgspec.Struct, frozen=True):
    """A run without its state: what both of its events have in common."""

    kind: RunKind
    of: str  # what makes the run one
    job: str
    inputs: list[LineageDataset]
    outputs: list[LineageDataset]
    facets: dict[str, Any] = {}

    @property
    def id(self) -> str:
        return str(uuid.uuid5(_RUNS, f"{self.kind}\n{self.of}"))


def ingest(event: DatasetAppended, document: DatasetDocument | None, namespace: str) -> Described:
    columns = document.columns if document else []
    source = source_of(event.source)
    facets = {
        "schema": _facet("1-1-1/SchemaDatasetFacet.json", fields=[{"name": c.name, "type": c.type} for c in columns]),
        "version": _facet("1-0-1/DatasetVersionDatasetFacet.json", datasetVersion=str(event.version)),
        "columnLineage": _facet("1-2-0/ColumnLineageDatasetFacet.json", fields=_columns(columns, source)),
    }
    if document is not None and document.pii:
        findings = msgspec.to_builtins(document.pii)
        facets["lakehouse_pii"] = _facet("lakehouse/pii", policy=document.pii_policy, findings=findings)
    rows = _facet("1-0-2/OutputStatisticsOutputDatasetFacet.json", rowCount=event.rows)
    output = LineageDataset(namespace, f"dataset:{event.dataset}", facets, output_facets={"outputStatistics": rows})
    return Described("ingest", f"{event.dataset}\n{event.version}", f"ingest.{event.dataset}", [source], [output])


def refused_ingest(event: IngestRejected, namespace: str) -> Described:
    output = LineageDataset(namespace, f"dataset:{event.dataset}")
    return Described(
        "ingest", f"{event.dataset}\n{event.ingest}", f"ingest.{event.dataset}", [source_of(event.source)], [output]
    )


def build(event: GenerationBuilt | GenerationFailed, document: IndexDocument | None, namespace: str) -> Described:
    facets: dict[str, Any] = {}
    if isinstance(event, GenerationBuilt):
        facets["version"] = _facet("1-0-1/DatasetVersionDatasetFacet.json", datasetVersion=str(event.generation))
        facets["lakehouse_index"] = _facet(
            "lakehouse/index", config=msgspec.to_builtins(event.config), rows=event.rows, library=event.library
        )
        if document is not None:
            facets["columnLineage"] = _facet(
                "1-2-0/ColumnLineageDatasetFacet.json",
                fields={"vector": {"inputFields": [
                    {"namespace": namespace, "name": f"dataset:{document.dataset}", "field": document.column}
                ]}},
            )  # fmt: skip
    inputs = []
    if document is not None:
        version = str(event.version) if isinstance(event, GenerationBuilt) else ""
        read = {"version": _facet("1-0-1/DatasetVersionDatasetFacet.json", datasetVersion=version)} if version else {}
        inputs.append(LineageDataset(namespace, f"dataset:{document.dataset}", read))
    output = LineageDataset(namespace, f"index:{event.index}", facets)
    return Described("build", f"{event.index}\n{event.generation}", f"build.{event.index}", inputs, [output])


def campaign(event: TuningFinished | TrialCompleted, namespace: str) -> Described:
    index = LineageDataset(namespace, f"index:{event.index}")
    facets: dict[str, Any] = {}
    if isinstance(event, TuningFinished):
        best = msgspec.to_builtins(event.best) if event.best else None
        facets["lakehouse_trials"] = _facet(
            "lakehouse/trials", outcome=event.outcome, trials=event.trials, promoted=event.promoted, best=best
        )
    output = LineageDataset(namespace, f"campaign:{event.campaign}")
    return Described("campaign", f"{event.index}\n{event.campaign}", f"tune.{event.index}", [index], [output], facets)


def promotion(event: ConfigPromoted, message: MessageId, campaign: str | None, namespace: str) -> Described:
    inputs = [LineageDataset(namespace, f"campaign:{campaign}")] if campaign else []
    facet = _facet("lakehouse/promotion", entry=msgspec.to_builtins(event.entry), rolledBack=event.rolled_back)
    output = LineageDataset(namespace, f"index:{event.index}", {"lakehouse_promotion": facet})
    return Described("promotion", f"{event.index}\n{message}", f"promote.{event.index}", inputs, [output])


def row(
    run: Described, state: RunState, time: Timestamp, detail: str, message: MessageId, namespace: str
) -> LineageRow:
    """The event of a run, as it is stored. A FAIL tells why in the standard facet."""
    facets = dict(run.facets)
    if state == "FAIL":
        facets["errorMessage"] = _facet("1-0-1/ErrorMessageRunFacet.json", message=detail, programmingLanguage="Python")
    outputs = run.outputs
    if state != "COMPLETE":  # they aren't there
        outputs = [msgspec.structs.replace(output, facets={}, output_facets={}) for output in outputs]
    event = RunEvent(state, _iso(time), Run(run.id, facets), Job(namespace, run.job), run.inputs, outputs)
    return LineageRow(
        run=run.id, state=state, kind=run.kind, time=time, job=run.job, inputs=_names(run.inputs),
        outputs=_names(run.outputs), detail=detail, message=message, event=msgspec.json.encode(event).decode(),
    )  # fmt: skip


def source_of(source: str) -> LineageDataset:
    """A file or a database's table as OpenLineage names them; rows that a request brought."""
    if source in ("", "rows"):
        return LineageDataset(PRODUCER, "source:request")
    scheme, separator, rest = source.partition("://")
    if separator:
        host, _, name = rest.partition("/")
        return LineageDataset(f"{scheme}://{host}", f"source:{source}", {"symlinks": _facet(
            "1-0-1/SymlinksDatasetFacet.json",
            identifiers=[{"namespace": f"{scheme}://{host}", "name": name.replace("#", "."), "type": "TABLE"}],
        )})  # fmt: skip
    return LineageDataset("file", f"source:file:{source}")


def walk(rows: Sequence[LineageRow], name: str, limit: int) -> LineageGraph:
    """From every node of that name, up to what it came from and down to what came of it. `rows` in
    the order written; of a run the last one counts."""
    newest: dict[str, LineageRow] = {}
    for each in rows:
        newest.pop(each.run, None)
        newest[each.run] = each
    runs = [
        LineageRun(
            run=one.run,
            state=cast(RunState, one.state),
            kind=one.kind,
            time=one.time,
            detail=one.detail,
            inputs=msgspec.json.decode(one.inputs),
            outputs=msgspec.json.decode(one.outputs),
        )
        for one in reversed(newest.values())
    ]
    roots = sorted({node for run in runs for node in (*run.inputs, *run.outputs) if node.partition(":")[2] == name})
    return LineageGraph(
        roots,
        _reached(runs, roots, limit, lambda run: (run.outputs, run.inputs)),
        _reached(runs, roots, limit, lambda run: (run.inputs, run.outputs)),
    )


def _reached(runs: Sequence[LineageRun], roots: Sequence[str], limit: int, ends: Any) -> list[LineageRun]:
    """Runs that are met from the roots, nearest first, of equals the newest."""
    found: dict[str, LineageRun] = {}
    by_node: dict[str, list[LineageRun]] = {}
    for run in runs:
        for node in ends(run)[0]:
            by_node.setdefault(node, []).append(run)
    level, met = list(roots), set(roots)
    while level and len(found) < limit:
        following: list[str] = []
        for node in level:
            for run in by_node.get(node, ()):
                if run.run in found or len(found) >= limit:
                    continue
                found[run.run] = run
                for other in ends(run)[1]:
                    if other not in met:
                        met.add(other)
                        following.append(other)
        level = following
    return list(found.values())


def _columns(columns: Sequence[ColumnInfo], source: LineageDataset) -> dict[str, Any]:
    """Each column comes from the source's of its name; a made id from all of them."""
    named = [column.name for column in columns]
    return {
        name: {"inputFields": [
            {"namespace": source.namespace, "name": source.name, "field": field}
            for field in ([other for other in named if other != "_id"] if name == "_id" else [name])
        ]}
        for name in named
    }  # fmt: skip


def _facet(schema: str, **values: Any) -> dict[str, Any]:
    url = _FACETS + schema if schema[0].isdigit() else f"{PRODUCER}/facets/{schema}.json"
    return {"_producer": PRODUCER, "_schemaURL": url, **values}


def _names(nodes: Sequence[LineageDataset]) -> str:
    return msgspec.json.encode([node.name for node in nodes]).decode()


def _iso(time: Timestamp) -> str:
    return datetime.datetime.fromtimestamp(time, datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
