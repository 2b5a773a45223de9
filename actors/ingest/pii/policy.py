"""What a dataset's policy makes of what was found: which columns are masked, which are left out,
when a file is refused. Values in, values out.

A policy is given with a dataset's first file and stays with it, as what was found does: a column
that was once told to hold phone numbers is masked in every later file, whatever that file's sample
shows, and a column that was left out stays out.
"""

from collections.abc import Collection, Sequence

import msgspec

from actors.ingest.core import BadFile, Dataset, Plan
from schemas.documents.dataset import DatasetDocument
from schemas.events.dataset import IngestMode, PiiFinding, PiiKind, PiiPolicy
from schemas.names import MessageId

_MOVED = 0.01
"""Smaller changes of a share or confidence aren't worth a new revision of the document."""


class Protection(msgspec.Struct, frozen=True):
    """What becomes of the columns of one file."""

    policy: PiiPolicy
    findings: list[PiiFinding]  # of the dataset with this file, by column
    masked: frozenset[str] = frozenset()  # columns whose values are masked
    left_out: frozenset[str] = frozenset()  # columns that the new table doesn't get
    emptied: frozenset[str] = frozenset()  # columns that the table has, and that get no more values

    @property
    def kinds(self) -> dict[str, list[PiiKind]]:
        """Column → what it holds, surest first."""
        found: dict[str, list[PiiKind]] = {}
        for one in sorted(self.findings, key=lambda f: -f.confidence):
            found.setdefault(one.column, []).append(one.kind)
        return found


def policy_for(
    document: DatasetDocument | None, given: PiiPolicy | None, mode: IngestMode, default: PiiPolicy
) -> PiiPolicy:
    """The policy that a file comes under. Raises BadFile for one that isn't the dataset's: rows
    that are stored already were stored by the old one."""
    if document is None:
        return given or default
    if given not in (None, document.pii_policy) and mode != "replace":
        raise BadFile(
            f"dataset {document.dataset} has the PII policy {document.pii_policy!r}, not {given!r}",
            "leave `pii` out, or take all its rows out and begin with the new policy: mode replace",
            "conflict",
        )
    return given or document.pii_policy


def protect(
    policy: PiiPolicy,
    known: Sequence[PiiFinding],
    found: Sequence[PiiFinding],
    *,
    file: str,
    columns: Collection[str],
    id_column: str | None,
    new: bool,
) -> Protection:
    """known: findings of the dataset before; found: of this file; columns: those that would be
    stored, without generated ids; id_column: None when ingest makes the ids; new: there is no
    table yet. Raises BadFile when the policy refuses the file or can't be kept."""
    if policy == "refuse" and found:
        raise BadFile(
            f"{file} holds personal data: {told(found)}",
            "remove the columns, or ingest into a new dataset with another PII policy: mask, drop or flag",
        )
    findings = merged(known, found)
    concerned = frozenset(finding.column for finding in findings) & frozenset(columns)
    if policy not in ("mask", "drop"):
        return Protection(policy, findings)
    if id_column in concerned:
        what = told([finding for finding in findings if finding.column == id_column])
        verb = "masked: rows would have the same id" if policy == "mask" else "dropped: rows need their ids"
        raise BadFile(
            f"the id column holds personal data ({what}) and can't be {verb}",
            "name another `id_column`, or leave it out (ids are then made of the rows' content), or choose PII "
            "policy flag",
        )
    if policy == "mask":
        return Protection(policy, findings, masked=concerned)
    if concerned >= frozenset(columns):
        raise BadFile(
            f"every column of {file} holds personal data and would be dropped: {told(findings)}",
            "choose the PII policy mask or flag",
        )
    if new:
        return Protection(policy, findings, left_out=concerned)
    return Protection(policy, findings, emptied=concerned)


def protection_of(
    dataset: Dataset | None,
    plan: Plan,
    policy: PiiPolicy,
    found: Sequence[PiiFinding],
    mode: IngestMode,
    file: str,
    ingest: MessageId,
) -> Protection:
    """What a file's findings mean for its dataset (None: a new one). Raises BadFile."""
    document = dataset.document if dataset else None
    known = document.pii if document else []
    if document and mode == "replace":  # the rows that it was told of go
        known = [finding for finding in known if finding.column in {column.name for column in document.dropped}]
    elif document and document.pii_ingest == ingest:
        found = [
            finding for finding in found if (finding.column, finding.kind) not in {(f.column, f.kind) for f in known}
        ]
    made_id = plan.id_column if plan.generated_id or (document and document.generated_id) else None
    return protect(
        policy,
        known,
        found,
        file=file,
        columns=[column.name for column in plan.columns if column.name != made_id],
        id_column=None if made_id else plan.id_column,
        new=dataset is None,
    )


def with_protection(
    document: DatasetDocument, plan: Plan, protection: Protection, ingest: MessageId
) -> DatasetDocument:
    """The document as it is after the file; the same when there is nothing new to keep."""
    gone = protection.left_out | protection.emptied
    known = {column.name for column in document.dropped}
    dropped = [*document.dropped, *(c.info for c in plan.columns if c.name in gone and c.name not in known)]
    new = (
        protection.policy != document.pii_policy
        or len(dropped) != len(document.dropped)
        or worth_keeping(document.pii, protection.findings)
    )
    if not new:
        return document
    return msgspec.structs.replace(
        document,
        columns=[column for column in document.columns if column.name not in protection.left_out],
        pii_policy=protection.policy,
        pii=protection.findings,
        pii_ingest=ingest,
        dropped=dropped,
    )


def merged(known: Sequence[PiiFinding], found: Sequence[PiiFinding]) -> list[PiiFinding]:
    """What is known of a dataset after one more file: the samples of the files in which a kind was
    found add up, the greater confidence stays. Ordered by column and kind."""
    both = {(finding.column, finding.kind): finding for finding in known}
    for new in found:
        old = both.get((new.column, new.kind))
        if old is not None:
            sampled, matched = old.sampled + new.sampled, old.matched + new.matched
            surer = max(old, new, key=lambda finding: finding.confidence)
            new = msgspec.structs.replace(
                surer, share=round(matched / max(1, sampled), 4), sampled=sampled, matched=matched
            )
        both[new.column, new.kind] = new
    return [both[key] for key in sorted(both)]


def worth_keeping(before: Sequence[PiiFinding], after: Sequence[PiiFinding]) -> bool:
    """Whether `after` tells something that `before` didn't."""
    old = {(finding.column, finding.kind): finding for finding in before}
    if {(finding.column, finding.kind) for finding in after} != set(old):
        return True
    return any(
        abs(new.share - old[new.column, new.kind].share) > _MOVED
        or abs(new.confidence - old[new.column, new.kind].confidence) > _MOVED
        for new in after
    )


def told(findings: Sequence[PiiFinding]) -> str:
    """In words, for people."""
    return "; ".join(
        f"column {finding.column!r}: {finding.kind.replace('_', ' ')}, {finding.share:.0%} of the values"
        for finding in findings
    )
