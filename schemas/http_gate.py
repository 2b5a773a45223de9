"""Bodies and parameters of the routes under /gate, and of a profile's /generate. See schemas/http.py."""

from typing import Annotated

from msgspec import Meta

from schemas.events.gate import MOST_EXAMPLES, Prompt, Rank, Routing, Seed
from schemas.gate import Example, ExportTarget, MixSource
from schemas.http import Body, Params
from schemas.names import DatasetName, ProfileName


class GateJobParams(Params, frozen=True):
    profile: ProfileName
    wait: bool = True  # false: the answer is that it has begun, and nothing is streamed


class ExampleBody(Example, frozen=True, forbid_unknown_fields=True):
    """A prompt, and the adapter that helps with it."""


class TrainGateBody(Body, frozen=True):
    """Pairs to learn from: `examples`, or two columns of a dataset."""

    examples: Annotated[list[ExampleBody], Meta(max_length=MOST_EXAMPLES)] = []
    dataset: DatasetName | None = None
    prompt_column: str = "prompt"
    adapter_column: str = "adapter"
    base: str | None = None
    base_revision: str = ""
    seed: Seed = 42
    asked_by: str = "http"


class PromptBody(Body, frozen=True):
    prompt: Prompt


class ExportGateBody(Body, frozen=True):
    """What to freeze, and as what."""

    target: ExportTarget
    weights: MixSource | None = None
    adapter_mix: str | None = None
    rank: Rank | None = None
    max_error: Annotated[float, Meta(ge=0, le=1)] = 0.05
    base: str | None = None
    base_revision: str = ""
    text: str | None = None
    free: bool = False
    prompts: Annotated[int, Meta(ge=16, le=100_000)] = 200
    tokens: Annotated[int, Meta(ge=8, le=8192)] = 64
    allow_quantised: bool = False
    folder: str | None = None
    from_model: str | None = None
    template: str = ""
    system: str = ""
    parameters: dict[str, list[str]] = {}
    asked_by: str = "http"


class GenerateBody(Body, frozen=True):
    """A prompt for a profile's model."""

    prompt: Prompt
    max_tokens: Annotated[int, Meta(ge=1, le=8192)] = 128
    routing: Routing = "top1"
    floor: Annotated[float, Meta(ge=0, le=1)] = 0.1
    adapter_mix: str | None = None
