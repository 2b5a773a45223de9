"""Words of the adapter gate: what is trained, what weights come of it, what an export is.

A *mix* is a weight for every declared adapter, in the order in which the profile declares them.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.events.index import EmbedderSpec
from schemas.names import AdapterName, Bytes, ModelName, ProfileName, Sha256, Timestamp

GateRunId = Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}$", description="one training of a gate")]
GateMode = Literal["trained", "uniform", "diverged"]
"""`uniform`: too few prompts of some adapter to learn from. `diverged`: learnt nothing; nothing uses it."""
MixSource = Literal["static_mean", "static_loss", "uniform", "explicit", "dynamic"]
"""Where weights come from; `dynamic`: from each prompt, when it is asked."""
ExportTarget = Literal["peft", "ollama", "base", "llamacpp"]
MergeMode = Literal["exact", "svd", "none"]


class AdapterWeight(msgspec.Struct, frozen=True):
    adapter: Annotated[str, Meta(min_length=1, max_length=255)]  # as declared; of a gate it is an AdapterName
    weight: float


class Example(msgspec.Struct, frozen=True):
    """A prompt, and the adapter that helps with it."""

    prompt: Annotated[str, Meta(min_length=1, max_length=100_000)]
    adapter: AdapterName


class GateRun(msgspec.Struct, frozen=True, kw_only=True):
    """One training: the metadata that lie beside its weights."""

    run: GateRunId
    profile: ProfileName
    mode: GateMode
    adapters: list[AdapterName]  # in the order of the gate's outputs
    samples: list[int]  # prompts of each
    base_model: ModelName
    base_revision: str  # as told, or as the adapters' configurations tell it; empty: nobody does
    embedder: EmbedderSpec
    embedder_identity: str
    input_dim: int
    hidden_dim: int
    seed: int
    steps: int
    corpus_sha256: Sha256
    train_loss: float | None  # nats a prompt; None: not trained, or not finite
    held_out_loss: float | None
    uniform_loss: float  # ln N, what knows nothing
    mean_weights: list[float | None]  # over the prompts of its corpus; None: not finite
    created: Timestamp
    embedder_revision: str = ""  # the digest of a model behind a server; empty: it tells none
    base_sha256: Sha256 | None = None  # of the base's tensors and config; None: it wasn't at hand


class GateFile(msgspec.Struct, frozen=True):
    """An artifact of a gate, or a file of an export."""

    key: str
    sha256: Sha256
    bytes: Bytes


class GateFiles(msgspec.Struct, frozen=True):
    """Where a run lies in the profile's bucket."""

    metadata: GateFile
    weights: GateFile | None = None  # a uniform gate has none
    embedder: GateFile | None = None  # the lexical embedder's model


# --- exports ------------------------------------------------------------------------------------


class ExportedAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """What was merged, and how strongly."""

    name: AdapterName
    weight: float
    scale: float = 1.0  # that the weight was multiplied by: the declared one for a gate's weights
    sha256: Sha256  # of its weights' file
    config_sha256: Sha256
    ranks: list[int]  # that its modules have, ascending
    alphas: list[float]
    rslora: bool
    modules: int


class ModuleError(msgspec.Struct, frozen=True):
    """‖ΔW − ΔW_k‖ / ‖ΔW‖ (Frobenius) of a module whose merge was cut to a rank."""

    module: str
    rank: int  # before
    error: float


class MergeReport(msgspec.Struct, frozen=True, kw_only=True):
    mode: MergeMode
    rank: int = 0  # of every module of the merged adapter; 0: there is none
    modules: int = 0
    error: float = 0.0  # the worst module's
    errors: list[ModuleError] = []  # svd: every module's


class MixLoss(msgspec.Struct, frozen=True):
    """Mean loss of a merged model, in nats a token. The last one is that of what was written, cut to its rank where
    it is; the others are those of exact merges, to compare it with."""

    of: str  # base, uniform, `adapter NAME`, or where the chosen mix comes from; of dynamic its mean: static_mean
    weights: list[float]  # as they were merged
    loss: float


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Losses on prompts of a held-out text that the weights weren't chosen on."""

    text_sha256: Sha256
    prompts: int
    tokens: int
    fitted_on: int  # other prompts of the text, by which static_loss chose; 0: the weights weren't chosen by loss
    losses: list[MixLoss]


class ExportManifest(msgspec.Struct, frozen=True, kw_only=True):
    """`export_manifest.json`, written last: an export without it isn't whole."""

    profile: ProfileName
    target: ExportTarget
    gate_mode: MixSource
    weights: list[AdapterWeight]  # of dynamic: the mean of what prompts get
    run: GateRunId | None  # of the gate that the weights come from
    adapters: list[ExportedAdapter]
    base_model: str
    base_revision: str  # as told, or as the adapters' configurations tell it; empty: nobody does
    base_sha256: Sha256 | None = None  # of the base's tensors and config; None: it wasn't at hand, nothing was compared
    merge: MergeReport
    evaluation: Evaluation | None
    arguments: list[str]  # llamacpp: for llama-server
    notes: list[str]
    files: list[GateFile]
    created: Timestamp
    job: str = ""  # that made it: an export that comes again knows its own by it
    banner: str = ""  # that told of the gate's weights


class GateExport(msgspec.Struct, frozen=True, kw_only=True):
    """An export, as the gate remembers it."""

    target: ExportTarget
    gate_mode: MixSource
    weights: list[AdapterWeight]
    scales: list[float] = []  # that the weights were multiplied by, in their order; empty: none were
    place: str  # a folder of the machine that did the work, or bucket://NAME/PREFIX
    manifest_sha256: Sha256
    created: Timestamp
