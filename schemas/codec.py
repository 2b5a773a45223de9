"""What a codec is and what may be asked of one: the parameters of every family, what was charged
for what, and what was measured."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.names import Bytes

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
    seed: Annotated[int, Meta(ge=0)] = 42

    @property
    def signature(self) -> str:
        """What a compiled kernel or a rotation depends on: everything but the seed and the row counts."""
        left_out = {"seed", "calibration_rows", "measurement_rows"}
        fields = {name: getattr(self, name) for name in self.__struct_fields__ if name not in left_out}
        return msgspec.json.encode(dict(sorted(fields.items()))).decode()


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
