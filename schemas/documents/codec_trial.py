"""The codec trials: one row per codec measured on one matrix. The table's schema is this struct, field by field, so
that SQL reads what the frontier reads."""

import msgspec

from schemas.codec import Clip, CodecJobId, Distance, Family, LaneWidth, Rotation
from schemas.names import Bytes, Rows, Seconds, Sha256, Timestamp


class CodecTrial(msgspec.Struct, frozen=True, kw_only=True):
    """Everything is measured on held-out rows unless its name says otherwise."""

    job: CodecJobId
    group: int  # of the job's points; those of one group share what was learnt
    point: int  # of the job
    target: str  # as `schemas.codec.describe` names it
    target_sha256: Sha256  # of the matrix's stored bytes
    tensor: str
    matrix: int = 0  # of the tensor: an expert's number
    rows: Rows
    columns: int
    # the codec
    signature: str
    family: Family
    subspaces: int | None = None
    dsub: int | None = None
    centroids: int
    bits: int | None = None
    group_size: int | None = None
    clip: Clip
    zero_point: bool
    residual_depth: int | None = None
    residual_centroids: int | None = None
    rotation: Rotation
    distance: Distance
    lane_width: LaneWidth
    seed: int
    # its size
    bits_per_weight: float
    codes_bytes: Bytes
    codebooks_bytes: Bytes
    scales_bytes: Bytes
    rotation_bytes: Bytes
    # on rows that it hasn't seen
    measured_rows: Rows
    icc_3_1: float
    icc_1_1: float
    relative_l2: float
    row_cosine: float
    norm_error: float
    pairs: int
    # on those that it was fitted on, and on all
    calibration_rows: Rows
    icc_3_1_calibration: float
    relative_l2_calibration: float
    icc_3_1_all: float
    relative_l2_all: float
    memorisation: float
    memorised: bool
    refused: str = ""  # why calibration would refuse these parameters: a negative control
    # what it took
    fit_s: Seconds  # 0 when what was learnt was at hand
    fit_shared: bool  # it was
    encode_s: Seconds
    decode_s: Seconds
    # how it came about
    measured: bool = True
    versions: str  # JSON of schemas.codec.Versions
    asked_by: str
    host: str
    time: Timestamp
