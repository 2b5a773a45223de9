"""What measuring a point comes to, and the row of the journal that is made of it."""

from typing import Any

import msgspec

from schemas.codec import Charge, CodecJobId, CodecParams, Measured, Versions
from schemas.documents.codec_trial import CodecTrial
from schemas.names import Seconds, Sha256, Timestamp


class PointMeasured(msgspec.Struct, frozen=True, kw_only=True):
    point: int
    tensor: str
    matrix: int
    rows: int
    columns: int
    sha256: Sha256  # of the matrix's stored bytes
    params: CodecParams  # as applied
    charge: Charge
    measured: Measured
    refused: str  # why calibration would refuse it
    fit_s: Seconds
    fit_shared: bool
    encode_s: Seconds
    decode_s: Seconds


class PointSkipped(msgspec.Struct, frozen=True):
    point: int
    tensor: str
    params: dict[str, Any]  # as asked for
    reason: str


def trial(
    found: PointMeasured,
    *,
    job: CodecJobId,
    group: int,
    target: str,
    versions: Versions,
    asked_by: str,
    host: str,
    time: Timestamp,
) -> CodecTrial:
    params, charge, measured = found.params, found.charge, found.measured
    unseen = measured.held_out
    return CodecTrial(
        job=job,
        group=group,
        point=found.point,
        target=target,
        target_sha256=found.sha256,
        tensor=found.tensor,
        matrix=found.matrix,
        rows=found.rows,
        columns=found.columns,
        signature=params.signature,
        family=params.family,
        subspaces=params.subspaces,
        dsub=params.dsub,
        centroids=params.centroids,
        bits=params.bits,
        group_size=params.group,
        clip=params.clip,
        zero_point=params.zero_point,
        residual_depth=params.residual.depth if params.residual else None,
        residual_centroids=params.residual.centroids if params.residual else None,
        rotation=params.rotation,
        distance=params.distance,
        lane_width=params.lane_width,
        seed=params.seed,
        bits_per_weight=charge.bits_per_weight(found.rows * found.columns),
        codes_bytes=charge.codes,
        codebooks_bytes=charge.codebooks,
        scales_bytes=charge.scales,
        rotation_bytes=charge.rotation,
        measured_rows=unseen.rows,
        icc_3_1=unseen.icc_3_1,
        icc_1_1=unseen.icc_1_1,
        relative_l2=unseen.relative_l2,
        row_cosine=unseen.row_cosine,
        norm_error=unseen.norm_error,
        pairs=unseen.pairs,
        calibration_rows=measured.calibration.rows,
        icc_3_1_calibration=measured.calibration.icc_3_1,
        relative_l2_calibration=measured.calibration.relative_l2,
        icc_3_1_all=measured.all_rows.icc_3_1,
        relative_l2_all=measured.all_rows.relative_l2,
        memorisation=measured.memorisation,
        memorised=measured.memorised,
        refused=found.refused,
        fit_s=found.fit_s,
        fit_shared=found.fit_shared,
        encode_s=found.encode_s,
        decode_s=found.decode_s,
        versions=msgspec.json.encode(versions).decode(),
        asked_by=asked_by,
        host=host,
        time=time,
    )
