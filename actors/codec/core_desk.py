"""What the desk decides: whether a codec can be right for a target, whether a certificate lets an artifact be put to
use, who uses what. Values in, values out."""

from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from actors.codec.base import CodecError
from actors.codec.core import Route
from actors.codec.params import capped, check
from schemas.certificate import Certificate, ColumnGate
from schemas.codec import Checkpoint, CodecParams, CodecTarget, VectorColumn
from schemas.documents.codec import CodecDocument
from schemas.documents.index import IndexDocument
from schemas.events.codec import CertifyCodec, CodecInfo, CodecUse, GraduateCodec
from schemas.names import IndexName, ProfileName, Sha256


def unfit(routes: Iterable[Route], params: CodecParams, activations: bool) -> str | None:
    """Why no tensor of a target can take these parameters, or None when one can: its first objection."""
    if activations and params.family != "gptq":
        return f"{params.family} takes no activations: they are gptq's"
    objection: str | None = None
    for route in routes:
        if route.kind != "quantise":
            continue
        try:
            shape = (route.rows, route.columns)
            check(capped(params, route.rows), shape, (1, route.columns) if activations else None)
        except CodecError as error:
            objection = objection or f"{route.name}: {error}"
        else:
            return None
    return objection or "nothing in the target is quantised: every tensor is copied as it is"


def unusable(problems: Mapping[str, str]) -> str | None:
    """Why nothing can be done with a target, or None when something can. problems: by tensor, empty where there is
    none."""
    if not problems or not all(problems.values()):
        return None
    name, problem = next(iter(problems.items()))
    return f"none of its {len(problems)} tensors can be used; {name}: {problem}"


def wrong_gate(command: CertifyCodec, target: CodecTarget) -> str | None:
    """Why what was asked for can't judge such a target. Whether a checkpoint is a language model or an encoder is
    known where it is opened."""
    if command.text is not None and isinstance(target, VectorColumn):
        return f"{command.artifact!r} is of vectors: they are their own queries, a text says nothing of them"
    if command.gate is None or isinstance(command.gate, ColumnGate) == isinstance(target, VectorColumn):
        return None
    what = "vectors: recall judges it" if isinstance(target, VectorColumn) else "a model: agreement or cosine judges it"
    return f"{command.artifact!r} is of {what}"


def not_certified(document: CodecDocument, manifest_sha256: Sha256) -> str | None:
    """Why an artifact may not be put to use. `manifest_sha256`: of the manifest as it lies in the bucket now."""
    certificate = document.certificate
    name = document.artifact
    if manifest_sha256 != document.manifest_sha256:
        return f"the manifest of {name!r} isn't the one that was written: {manifest_sha256[:12]} in its place"
    if certificate is None:
        return f"{name!r} has no certificate"
    if not holds_for(certificate, document):
        return f"the certificate of {name!r} is for other hashes: {certificate.manifest_sha256[:12]}"
    if not certificate.passed:
        return f"the certificate of {name!r} didn't pass: {'; '.join(certificate.failures)}"
    return None


def holds_for(certificate: Certificate, document: CodecDocument) -> bool:
    return (certificate.manifest_sha256, certificate.target_sha256) == (
        document.manifest_sha256,
        document.target_sha256,
    )


def column_gate(document: CodecDocument) -> ColumnGate:
    """What a column was certified by."""
    gate = document.certificate.gate if document.certificate else None
    return gate if isinstance(gate, ColumnGate) else ColumnGate()


def misplaced(command: GraduateCodec, document: CodecDocument, index: IndexDocument | None) -> str | None:
    """Why an artifact can't serve what was named, whatever its certificate says."""
    target = document.target
    if command.index is not None:
        if not isinstance(target, VectorColumn):
            return f"{command.artifact!r} is of a model; an index takes one of its column's vectors"
        if index is not None and (index.dataset, index.column) != (target.dataset, target.column):
            return (
                f"{command.artifact!r} is of {target.dataset}.{target.column}, index {command.index!r} is over "
                f"{index.dataset}.{index.column}"
            )
        if index is not None and index.metric != document.metric:
            was = f"an index's by {document.metric}" if document.metric else "the column's own, without an index"
            return (
                f"{command.artifact!r} is of other vectors ({was}); index {command.index!r} has them by {index.metric}"
            )
        if target.index is not None and target.index != command.index:
            return f"{command.artifact!r} is of index {target.index!r}'s vectors, not {command.index!r}'s"
    elif not isinstance(target, Checkpoint):
        return f"{command.artifact!r} is of vectors; a profile takes one of a model"
    return None


def used(document: CodecDocument, use: CodecUse) -> CodecDocument:
    return replace(document, uses=[*unused(document, use.index, use.profile).uses, use])


def unused(document: CodecDocument, index: IndexName | None, profile: ProfileName | None) -> CodecDocument:
    return replace(document, uses=[use for use in document.uses if (use.index, use.profile) != (index, profile)])


def users(uses: Sequence[CodecUse]) -> str:
    return ", ".join(f"index {use.index}" if use.index else f"profile {use.profile}" for use in uses)


def info(document: CodecDocument) -> CodecInfo:
    return CodecInfo(
        artifact=document.artifact,
        bucket=document.bucket,
        target=document.target,
        params=document.params,
        tensors=document.tensors,
        quantised=document.quantised,
        problems=document.problems,
        bits_per_weight=document.bits_per_weight,
        total_bits_per_weight=document.total_bits_per_weight,
        manifest_sha256=document.manifest_sha256,
        created=document.created,
        certificate=document.certificate,
        uses=document.uses,
    )
