"""The adapter gate: trained from prompts, asked for weights, frozen into exports, used prompt by prompt.

Two shells share it. Gates (control) answers questions and routes what is generated; the gate lab (work) trains and
exports, in the worker process.
"""

from typing import Annotated, Literal

from msgspec import Meta

from schemas.events.base import Event, Query, Reply, Request
from schemas.gate import AdapterWeight, Example, ExportTarget, GateExport, GateRun, MixSource
from schemas.names import BucketName, DatasetName, ModelName, ProfileName, ServerName

Routing = Literal["top1", "floor"]
Routed = Literal["top1", "floor", "explicit", "declared", "frozen"]
"""`declared`: the scales that the profile has; `frozen`: what the served model was merged with."""

MOST_EXAMPLES = 100_000
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Rank = Annotated[int, Meta(ge=1, le=4096)]
Prompt = Annotated[str, Meta(min_length=1, max_length=100_000)]


class TrainGate(Request["GateTrained"], tag="gate.train"):
    """Learn from (prompt, adapter) pairs which adapter a prompt wants: `examples`, or a dataset's two columns.

    Refused: invalid (fewer than two adapters, a name that can't be a gate's, no examples, an adapter that the profile
    doesn't declare), not_found. A gate that learnt nothing is no refusal: its mode says so."""

    profile: ProfileName
    examples: Annotated[list[Example], Meta(max_length=MOST_EXAMPLES)] = []
    dataset: DatasetName | None = None
    prompt_column: str = "prompt"
    adapter_column: str = "adapter"
    base: str | None = None  # folder of the model's checkpoint; its content is kept with the gate
    base_revision: str = ""  # of the profile's model; default what the adapters' configurations say
    seed: Seed = 42
    asked_by: str = "bus"


class GateTrained(Event, tag="gate.trained"):
    """A training ended, and its events are rows of `gate_events`. Whether the gate is of use is in its mode."""

    profile: ProfileName
    bucket: BucketName
    gate: GateRun
    live: bool  # the gate that is used from now on
    asked_by: str


class PromptWeights(Reply, tag="gate.prompt_weights"):
    profile: ProfileName
    run: str
    mode: Literal["trained", "uniform"]
    weights: list[AdapterWeight]


class WeighPrompt(Query[PromptWeights], tag="gate.weights"):
    """What the gate gives a prompt. Refused (conflict) where the profile has another embedder, other adapters or
    another model than the gate was trained with."""

    profile: ProfileName
    prompt: Prompt


class GateInfo(Reply, tag="gate.info"):
    profile: ProfileName
    bucket: BucketName
    live: GateRun | None  # what is used
    last: GateRun | None  # the newest training, which may have diverged
    stale: str  # why the live gate can't be used with the profile as it is; empty: it can
    mix: list[AdapterWeight] | None  # put in where weights have to be fixed, times declared scales; None: no gate's
    source: MixSource | None
    banner: str  # says in a line that gate weights are put in; empty: none are
    exports: list[GateExport]  # newest first


class GetGate(Query[GateInfo], tag="gate.get"):
    profile: ProfileName


class ExportGate(Request["GateExported"], tag="gate.export"):
    """Freeze a mix of a profile's adapters.

    peft      an adapter directory in PEFT's format that is the weighted sum of the adapters
    ollama    the same with a Modelfile
    base      the base checkpoint with the sum added to its weights
    llamacpp  every adapter by itself, scales folded in, with `--lora-scaled` arguments

    Refused: invalid with the reason for an adapter that can't be merged exactly, where a cut to `rank` loses more than
    `max_error`, and for an option that the target doesn't use; forbidden outside of [gate] allowed_roots; conflict when
    `folder` is there."""

    profile: ProfileName
    target: ExportTarget
    weights: MixSource | None = None  # default: explicit with `adapter_mix`, else static_mean
    adapter_mix: str | None = None  # NAME:WEIGHT,…; always wins
    rank: Rank | None = None  # cut every module of the merged adapter to it; None: exact
    max_error: Annotated[float, Meta(ge=0, le=1)] = 0.05
    base: str | None = None  # folder of the base checkpoint; `base` and static_loss need it
    base_revision: str = ""
    text: str | None = None  # held-out text, prompts apart by blank lines; static_loss needs it
    free: bool = False  # static_loss: any weights from 0 on, not those that sum to 1
    prompts: Annotated[int, Meta(ge=16, le=100_000)] = 200  # of the text, at most
    tokens: Annotated[int, Meta(ge=8, le=8192)] = 64  # of a prompt, at most
    allow_quantised: bool = False  # merge into a base that says it is quantised, where its weights are numbers
    folder: str | None = None  # new; default: below the profile's gate in its bucket
    from_model: str | None = None  # ollama: FROM; default the profile's model
    template: str = ""
    system: str = ""
    parameters: dict[str, list[str]] = {}  # ollama: PARAMETER lines, by name
    asked_by: str = "bus"


class GateExported(Event, tag="gate.exported"):
    """An export is whole: its manifest is written."""

    profile: ProfileName
    export: GateExport
    run: str | None
    error: float  # of the merge, the worst module's
    rank: int
    arguments: list[str]
    banner: str
    notes: list[str]
    asked_by: str


class Generated(Reply, tag="gate.generated"):
    """What a model said, and which adapters spoke."""

    text: str
    profile: ProfileName
    server: ServerName
    model: ModelName
    routing: Routed
    weights: list[AdapterWeight]  # scales that held for this prompt
    gate: list[AdapterWeight]  # the gate's own output; empty: it wasn't asked
    run: str | None
    note: str = ""  # why it was routed as it was, where that isn't plain


class Generate(Query[Generated], tag="profile.generate"):
    """Have a profile's model go on from a prompt, by the adapters that the gate finds for it where the server takes
    scales with a request (llama.cpp). Refused (conflict) while the profile isn't active."""

    profile: ProfileName
    prompt: Prompt
    max_tokens: Annotated[int, Meta(ge=1, le=8192)] = 128
    routing: Routing = "top1"  # the best adapter alone, or all above `floor`, each by its weight
    floor: Annotated[float, Meta(ge=0, le=1)] = 0.1
    adapter_mix: str | None = None  # NAME:WEIGHT,…; instead of the gate's


class GateDropped(Event, tag="gate.dropped"):
    """The profile is gone, and its gate with it. Exports outside of the bucket stay."""

    profile: ProfileName
