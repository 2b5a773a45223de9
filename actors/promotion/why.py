"""Why an index is configured as it is: the chain from what serves now back to the file.

generation ← promotion ← trial ← proposal ← trigger ← commit ← file, newest first. Built from
what is stored only (registry documents, the journal, the tables' commit notes), so a restart
loses no link. With nothing promoted the chain starts where the index was created.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from actors.ports import Journal, Registry, TableRef, Tables
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.documents.promotion import PromotionDocument, PromotionEntry
from schemas.documents.trial import TrialPoint, columns_of
from schemas.events.dataset import CommitInfo
from schemas.events.promotion import WhyChain, WhyLink
from schemas.names import Timestamp

COMMITS = 1000
"""How many commits before a trial's dataset version are looked through for the causing one."""


async def chain(index: IndexDocument, registry: Registry, journal: Journal, tables: Tables) -> WhyChain:
    """The chain of one index. Raises Transient when a store can't be reached."""
    generation = await registry.load(GenerationDocument, index.index)
    promotion = await registry.load(PromotionDocument, index.index)
    dataset = await registry.load(DatasetDocument, index.dataset)
    entry = promotion[0].current if promotion else None
    points = await journal.points(index.index) if entry else []
    commits: list[CommitInfo] = []
    if dataset:  # from the version that was measured back: what came since may be millions of commits
        point = _promoted(points, entry) if entry else None
        version = point.dataset_version if point else generation[0].version if generation and not entry else None
        commits = await tables.history(TableRef(dataset[0].bucket, dataset[0].path), COMMITS, version)
    return WhyChain(index.index, links(index, generation[0] if generation else None, entry, points, commits))


def links(
    index: IndexDocument,
    generation: GenerationDocument | None,
    entry: PromotionEntry | None,
    points: Sequence[TrialPoint],
    commits: Sequence[CommitInfo],
) -> list[WhyLink]:
    """The links, newest first. `points` are the index's journal, `commits` the dataset's, newest
    first."""
    found = [_generation(generation, entry)] if generation else []
    if entry is None:
        found.append(_created(index, generation))
        return found + _data(commits, generation.version if generation else None, None)
    found.append(_promotion(index, entry))
    sweep = [point for point in points if point.trial == entry.trial]
    point = _promoted(sweep, entry)
    if point is None:
        found.append(
            WhyLink(
                "trial",
                entry.trial,
                entry.time,
                f"The journal lacks trial {entry.trial} at {entry.config.effort}.",
            )
        )
        return found + _data(commits, None, None)
    began = point.trigger_time or min(p.time for p in points if p.campaign == point.campaign)
    found += [_trial(point, sweep), _proposal(point), _trigger(point, began, commits)]
    return found + _data(commits, point.dataset_version, point.trigger)


def causing_commit(commits: Sequence[CommitInfo], version: int | None, message: str | None) -> CommitInfo | None:
    """The commit that a trial's data came from.

    The one whose command is `message`, when the trigger was that very command; else the newest
    that changed rows up to dataset `version`: an append's event carries its own id, and the
    version that it announced is the one that the trial measured."""
    by_message = next((commit for commit in commits if message is not None and commit.message == message), None)
    if by_message is not None:
        return by_message
    upto = [commit for commit in commits if version is None or commit.version <= version]
    return max(upto, key=lambda commit: commit.version, default=None)


def _promoted(points: Sequence[TrialPoint], entry: PromotionEntry) -> TrialPoint | None:
    """The measured point that was promoted."""
    return next((p for p in points if p.trial == entry.trial and p.effort == entry.config.effort), None)


def _generation(generation: GenerationDocument, entry: PromotionEntry | None) -> WhyLink:
    config = generation.config
    text = (
        f"Generation {generation.generation} ({generation.reason or 'no reason given'}) serves with {config}, built "
        f"over {generation.rows} rows of dataset version {generation.version}."
    )
    if entry is not None and entry.config != config:
        text += f" The promoted configuration of trial {entry.trial} is still being built."
    return WhyLink(
        "generation",
        str(generation.generation),
        generation.built,
        text,
        _facts(generation, "config", "version", "rows", "bytes", "build_s", "sha256", "library", "reason", "trial"),
        entry.cause if entry is not None and entry.config == config else None,
    )


def _promotion(index: IndexDocument, entry: PromotionEntry) -> WhyLink:
    note = f" ({entry.note})" if entry.note else ""
    return WhyLink(
        "promotion",
        entry.cause,
        entry.time,
        f"Trial {entry.trial} was promoted for {index.index} by {entry.promoted_by}{note}: recall "
        f"{entry.recall:.4f}, lower bound {entry.recall_lower:.4f}, against a target of "
        f"{index.target_recall:g}, p50 {entry.p50_us:.0f} µs.",
        _facts(entry, "config", "recall", "recall_lower", "p50_us", "promoted_by", "note", "generation"),
        entry.cause,
    )


def _trial(point: TrialPoint, points: Sequence[TrialPoint]) -> WhyLink:
    text = (
        f"Trial {point.trial} measured recall@{point.k} {point.recall:.4f} (lower bound {point.recall_lower:.4f}) and "
        f"p50 {point.p50_us:.0f} µs at {point.effort}, over {point.queries} queries of eval set {point.harness} on "
        f"{point.rows} rows; it measured {len(points)} points on one build."
    )
    if point.champion_ratio is not None:
        text += f" Against trial {point.champion_trial} it took {point.champion_ratio:.3f} of the time."
    facts = _facts(
        point, "recall", "recall_ties", "recall_lower", "recall_worst_decile", "p50_us", "p95_us", "p99_us", "cpu_us",
        "champion_trial", "champion_ratio", "champion_ratio_low", "champion_ratio_high", "build_s", "bytes", "queries",
        "harness", "rows", "dataset_version", "build", "host",
    )  # fmt: skip
    facts["sweep"] = [
        {
            **msgspec.structs.asdict(p.effort),
            "recall": p.recall,
            "recall_lower": p.recall_lower,
            "p50_us": p.p50_us,
        }
        for p in sorted(points, key=lambda p: p.effort)
    ]
    return WhyLink("trial", point.trial, point.time, text, facts, point.campaign)


def _proposal(point: TrialPoint) -> WhyLink:
    draw = f", drawn {point.draw:.4f}" if point.draw is not None else ""
    return WhyLink(
        "proposal",
        point.campaign,
        point.time,
        f"It was proposed by the rule “{point.rule}” ({point.proposer}{draw}), from {point.journal_rows} rows "
        f"of the journal, in campaign {point.campaign}.",
        {**_facts(point, "proposer", "rule", "draw", "policy", "journal_rows"), **columns_of(point.config)},
        point.trigger,
    )


def _trigger(point: TrialPoint, began: Timestamp, commits: Sequence[CommitInfo]) -> WhyLink:
    """Its time is when the message came; of a row that doesn't say so, the commit's that set it
    off, or `began`."""
    commit = causing_commit(commits, point.dataset_version, point.trigger)
    by_data = point.trigger_tag in ("dataset.appended", "index.appended")
    said = {
        "dataset.appended": "Rows were appended to the dataset",
        "index.appended": "The index took in new rows",
        "index.ready": "The index served for the first time",
        "recall.drifted": "Live recall drifted below the target",
        "autotune.enqueue": "Tuning was asked for on the queue",
        "autotune.start": "Tuning was asked for out of turn",
    }.get(point.trigger_tag, "The campaign began")
    return WhyLink(
        "trigger",
        point.trigger,
        commit.time if by_data and commit and point.trigger_time is None else began,
        f"{said} ({point.trigger_tag}), asked by {point.asked_by}.",
        _facts(point, "trigger_tag", "asked_by", "campaign"),
        commit.message if commit else None,
    )


def _created(index: IndexDocument, generation: GenerationDocument | None) -> WhyLink:
    config = generation.config if generation else index.config
    return WhyLink(
        "index",
        index.index,
        index.created,
        f"Nothing is promoted: {index.index} runs with the configuration that it was created with, {config}, over "
        f"column {index.column} of dataset {index.dataset}.",
        {
            **_facts(index, "dataset", "column", "metric", "backend", "why_backend", "target_recall"),
            "config": msgspec.to_builtins(config),
        },
    )


def _data(commits: Sequence[CommitInfo], version: int | None, message: str | None) -> list[WhyLink]:
    commit = causing_commit(commits, version, message)
    if commit is None:
        return []
    found = [
        WhyLink(
            "commit",
            str(commit.version),
            commit.time,
            f"Dataset version {commit.version}: {commit.operation} of {commit.rows} rows, {commit.rejected} set aside.",
            _facts(commit, "version", "operation", "rows", "rejected", "message"),
            commit.message,
        )
    ]
    if commit.source:
        checksum = f", sha256 {commit.sha256[:12]}…" if commit.sha256 else ""
        found.append(
            WhyLink(
                "file",
                commit.source,
                commit.time,
                f"Its rows came from {commit.source}{checksum}.",
                _facts(commit, "source", "sha256"),
                commit.message,
            )
        )
    return found


def _facts(value: msgspec.Struct, *fields: str) -> dict[str, Any]:
    return {field: msgspec.to_builtins(getattr(value, field)) for field in fields}
