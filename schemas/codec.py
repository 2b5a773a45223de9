"""What a codec is, what may be asked of one, what it is applied to, what it costs, what was measured of it, and the
manifest of an artifact. Certificates are in schemas/certificate.py, messages in schemas/events/codec.py."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.names import Bytes, DatasetName, IndexName, Seconds, Sha256

Family = Literal[
    "pq",  # product quantisation, one codebook set a tensor (Jégou et al. 2011): the baseline
    "rpq",  # residual PQ: `residual.depth` more PQ stages on what is left
    "vq",  # one codebook shared by all groups of `dsub` values
    "scalar",  # integers of `bits`, a scale per row or per group
    "rotated",  # random rotation, then Lloyd-Max levels of a Gaussian (TurboQuant-MSE)
    "rabitq",  # one sign bit a dimension after a rotation (Gao & Long 2024)
    "additive",  # residual VQ whose stages are refined together
    "gptq",  # scalar with error feedback by calibration activations (Frantar et al. 2022)
    "bf16",
    "f32",
]
Rotation = Literal["identity", "hadamard", "opq"]
Distance = Literal["adc_u8", "adc_i8"]
LaneWidth = Literal["f32x16", "u8x64", "f64x8", "bf16x32"]
Clip = Literal["absmax", "mse"]

RouteKind = Literal["passthrough", "quantise", "skip"]

ArtifactName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="codec artifact: a-z 0-9 _ -")]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]  # as a table's column takes it
CodecJobId = Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}$", description="one calibration, sweep or certification")]


class Residual(msgspec.Struct, frozen=True, order=True):
    depth: Annotated[int, Meta(ge=1, le=3)] = 1
    centroids: Annotated[int, Meta(ge=2, le=65536)] = 256


class CodecParams(msgspec.Struct, frozen=True, kw_only=True):
    """One point of the codecs' space. `actors.codec.params.check` says what is wrong with it for a
    tensor before any work is done."""

    family: Family
    subspaces: Annotated[int, Meta(ge=1)] | None = None  # pq, rpq: give this or dsub
    dsub: Annotated[int, Meta(ge=1)] | None = None  # values a code stands for
    centroids: Annotated[int, Meta(ge=2, le=65536)] = 256
    bits: Annotated[int, Meta(ge=1, le=8)] | None = None  # scalar, rotated, gptq
    group: Annotated[int, Meta(ge=1)] | None = None  # values that share a scale; None: a row does
    clip: Clip = "absmax"
    zero_point: bool = False  # scalar, gptq: an asymmetric grid, for 8 bits more a group
    residual: Residual | None = None
    rotation: Rotation = "identity"
    distance: Distance = "adc_u8"
    lane_width: LaneWidth = "f32x16"  # the arithmetic that the kernel really runs in
    calibration_rows: Annotated[int, Meta(ge=1)] = 4096
    measurement_rows: Annotated[int, Meta(ge=0)] = 0  # 0: all rows that weren't calibrated on
    seed: Seed = 42

    @property
    def signature(self) -> str:
        """What a compiled kernel or a rotation depends on: everything but the seed and the row counts."""
        left_out = {"seed", "calibration_rows", "measurement_rows"}
        fields = {name: getattr(self, name) for name in self.__struct_fields__ if name not in left_out}
        return msgspec.json.encode(dict(sorted(fields.items()))).decode()


# --- what a codec is applied to -----------------------------------------------------------------


class Checkpoint(msgspec.Struct, frozen=True, tag="checkpoint", tag_field="kind"):
    """safetensors, one or many shards with an index: a file, an index or a folder, as the machine that does the work
    sees it, or `bucket://NAME/PREFIX`."""

    path: Annotated[str, Meta(min_length=1, max_length=4096)]


class VectorColumn(msgspec.Struct, frozen=True, tag="column", tag_field="kind"):
    """The vectors of a dataset's column: those that an index over it serves (which `index` names where there are
    several), or the column's own where there is no index."""

    dataset: DatasetName
    column: str
    index: IndexName | None = None


CodecTarget = Checkpoint | VectorColumn


def describe(target: CodecTarget) -> str:
    """A target in one word, as tables and logs show it, and as a command line takes it."""
    if isinstance(target, Checkpoint):
        return target.path
    return f"{target.dataset}.{target.column}" + (f"@{target.index}" if target.index else "")


class Override(msgspec.Struct, frozen=True):
    """The caller's word on every tensor whose lower-cased name matches a glob: `*.mlp.down_proj.weight`."""

    pattern: Annotated[str, Meta(min_length=1)]
    kind: RouteKind


# --- what it costs, what was measured -----------------------------------------------------------


class Charge(msgspec.Struct, frozen=True):
    """Everything that has to be kept to decode, in bytes."""

    codes: Bytes
    codebooks: Bytes = 0
    scales: Bytes = 0
    rotation: Bytes = 0  # 0 for a seeded one, which is made anew

    @property
    def total(self) -> Bytes:
        return self.codes + self.codebooks + self.scales + self.rotation

    def bits_per_weight(self, weights: int) -> float:
        return 8 * self.total / weights


class Measures(msgspec.Struct, frozen=True):
    """How far a decoded matrix is from the original, over some of its rows."""

    rows: int
    relative_l2: float  # |X - Y|_F / |X|_F
    row_cosine: float  # mean
    norm_error: float  # mean of | |y| / |x| - 1 |
    icc_3_1: float  # two-way, consistency (Shrout & Fleiss 1979)
    icc_1_1: float  # one-way, the origin's formula under another name
    pairs: int  # row pairs behind the ICCs


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A codec on one matrix: on rows that it was fitted on, on rows that it has never seen, and on all."""

    calibration: Measures
    held_out: Measures
    all_rows: Measures
    memorisation: float  # ICC(3,1) on calibration rows less that on held-out rows
    memorised: bool  # the gap is more than halves of one tensor differ by


class Versions(msgspec.Struct, frozen=True):
    """What a figure was made with."""

    lakehouse: str
    numpy: str
    blas: str = ""
    torch: str = ""  # of certificates of models
    transformers: str = ""


# --- an artifact's manifest ---------------------------------------------------------------------


class StoredFile(msgspec.Struct, frozen=True):
    key: str  # below the artifact's folder
    sha256: Sha256
    bytes: Bytes


class TensorRow(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one tensor of the target, and why. Every tensor has exactly one, also one that can't be read."""

    number: int  # its place in the target, from 0
    name: str
    shard: str  # file name in the target
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it; "" where the header doesn't tell
    route: RouteKind
    rule: str
    reason: str
    problem: str = ""  # why it couldn't be used; such a tensor has no file
    sha256: Sha256 | None = None  # of its stored bytes
    file: StoredFile | None = None
    transposed: bool = False
    matrices: int = 0  # 1, or one an expert; 0 if it isn't quantised
    params: CodecParams | None = None  # as applied: row counts are capped for a tensor of few rows
    charge: Charge | None = None  # of all its matrices
    bits_per_weight: float | None = None  # of the quantised; 8 x stored bytes / elements of the copied
    measured: list[Measured] = []  # one a matrix
    fit_s: Seconds = 0.0
    encode_s: Seconds = 0.0


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`manifest.json` of an artifact, which is there exactly when the artifact is whole."""

    format: int = 1
    artifact: ArtifactName
    target: CodecTarget
    target_sha256: Sha256  # of the names, types, shapes and contents of all tensors
    params: CodecParams
    overrides: list[Override] = []
    tensors: list[TensorRow]
    extra: list[StoredFile] = []  # config.json, tokenizer: what a loader needs beside the tensors
    bits_per_weight: float  # over everything that is quantised
    total_bits_per_weight: float  # over the whole target, copied tensors too
    dataset_version: int | None = None  # of a vector column
    rows: int | None = None
    measured: Literal[True] = True  # every figure in it was measured by this daemon
    versions: Versions
