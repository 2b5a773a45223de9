"""Certificates: what a codec does to the *function* of what it was applied to, measured on data that it has never
seen. One kind for each kind of target; `passed` is decided by the gate that the certificate carries."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.codec import ArtifactName, CodecTarget, Versions
from schemas.names import Seconds, Sha256, Share, Timestamp

Ratio = Annotated[float, Meta(ge=0, le=1)]


class Estimate(msgspec.Struct, frozen=True):
    """A share with its uncertainty: 95 % interval of a bootstrap over prompts or queries; `lower` is the one-sided
    95 % bound that gates look at (never above Clopper & Pearson's for as many independent trials)."""

    mean: Share
    low: Share
    high: Share
    lower: Share
    count: int  # positions or queries


# --- gates: what is demanded --------------------------------------------------------------------


class CausalLmGate(msgspec.Struct, frozen=True, tag="causal_lm", tag_field="function"):
    """The origin's: 0.99 of top-1 is about what 8 bits reach (int8 rows 0.994, 4 bits 0.94 to 0.96, bf16 0.9987)."""

    top1: Ratio = 0.99
    top5: Ratio = 0.999
    mean_kl: Annotated[float, Meta(gt=0)] | None = None  # nats; None: not demanded


class EncoderGate(msgspec.Struct, frozen=True, tag="encoder", tag_field="function"):
    cosine: Ratio = 0.99  # lower bound on the mean cosine of embeddings
    neighbours: Ratio = 0.95  # lower bound on the agreement of the 10 nearest neighbours


class ColumnGate(msgspec.Struct, frozen=True, tag="column", tag_field="function"):
    """Of recall@k: `recall` of the search that an index would do (candidates from codes, rescored exactly)."""

    recall: Ratio = 0.95
    k: Annotated[int, Meta(ge=1, le=100)] = 10
    oversample: Annotated[int, Meta(ge=1, le=100)] = 10  # candidates per hit that are rescored


Gate = CausalLmGate | EncoderGate | ColumnGate


# --- functions: what was measured ---------------------------------------------------------------


class LayerError(msgspec.Struct, frozen=True):
    layer: str
    mse: float  # mean squared error of its output, given the reference's input
    relative: float  # over the mean square of the reference's output


class Divergence(msgspec.Struct, frozen=True):
    """Where the candidate's most likely token isn't the reference's. `position` counts through all prompts."""

    prompt: int
    position: int
    reference: int
    candidate: int


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate beside the reference, teacher-forced on the same text."""

    positions: int
    mean_kl: float  # KL(reference || candidate), nats
    kl_p999: float  # its 99.9th percentile
    top1: Estimate
    top5: Estimate  # the reference's most likely token is among the candidate's five
    perplexity: float
    delta_perplexity: float  # less the reference's


class CausalLmFunction(msgspec.Struct, frozen=True, tag="causal_lm", tag_field="function", kw_only=True):
    prompts: int
    agreement: Agreement
    noise_floor: Agreement  # of the reference itself in bfloat16
    reference_perplexity: float
    layers: list[LayerError]
    divergences: list[Divergence]  # the first 1,000
    diverged: int  # of all positions
    first_divergence: list[int]  # free-running, greedy, tokens until the two differ, a prompt; descriptive
    reference_ms: list[float]  # a forward pass, a prompt
    candidate_ms: list[float]


class EncoderFunction(msgspec.Struct, frozen=True, tag="encoder", tag_field="function", kw_only=True):
    texts: int
    cosine: Estimate
    worst_cosine: float
    neighbours: Estimate  # share of the 10 nearest that stay so
    top1_neighbour: Estimate
    noise_floor_cosine: float  # of the reference in bfloat16


class ColumnFunction(msgspec.Struct, frozen=True, tag="column", tag_field="function", kw_only=True):
    rows: int
    queries: int
    k: int
    recall: Estimate  # of search over codes, rescored
    recall_codes: Estimate  # of search over codes alone
    oversample: int
    code_bytes_share: float  # of codes and all that goes with them over float32


Function = CausalLmFunction | EncoderFunction | ColumnFunction


class Control(msgspec.Struct, frozen=True):
    """A destroyed target that the same measurement had to fail."""

    name: Literal["row_rescaling", "global_rotation", "overfit_128_rows", "noise"]
    failed: bool  # it did, as it must
    figure: str  # "top1 0.31 < 0.99"


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured, with everything needed to measure it again."""

    artifact: ArtifactName
    manifest_sha256: Sha256  # it holds for exactly this artifact ...
    target: CodecTarget
    target_sha256: Sha256  # ... of exactly this target
    gate: Gate
    function: Function
    passed: bool
    failures: list[str]  # what the gate found, with the numbers; empty when passed
    self_test: list[Control]
    text: str  # which held-out data: a file, a dataset's column, or the column itself
    text_sha256: Sha256
    seed: int
    measured: Literal[True] = True
    versions: Versions
    took_s: Seconds
    time: Timestamp
    host: str
