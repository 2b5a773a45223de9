"""A gate over the embedder of an Ollama server: it is of the model that it was trained with, and of no other that comes
under its name."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from schemas.events.base import Refusal
from schemas.events.gate import Generate, Generated, PromptWeights, TrainGate, WeighPrompt
from schemas.events.index import EmbedderSpec
from tests.ollama_server import OllamaPlay, ollama
from tests.unit.gate_setting import Setting, examples, of, trained

NAME = "all-minilm:latest"


@pytest.fixture
async def play() -> AsyncIterator[OllamaPlay]:
    async with ollama() as running:
        yield running


@pytest.fixture
async def gated(tmp_path: Path, play: OllamaPlay) -> AsyncIterator[Setting]:
    made = Setting(tmp_path)
    await made.with_profile(embedder=EmbedderSpec("ollama", "all-minilm", play.url))
    yield made
    await made.embedders.aclose()


def pull(play: OllamaPlay) -> None:
    """Another model under the name, of the same width."""
    model = play.play.models[NAME]
    play.change(models={**play.play.models, NAME: msgspec.structs.replace(model, size=model.size + 1)})


async def test_a_model_that_was_pulled_anew_weighs_nothing_until_the_gate_is_trained_again(
    gated: Setting, play: OllamaPlay
) -> None:
    before = (await trained(gated)).gate
    assert len(before.embedder_revision) == 64
    of(PromptWeights, await gated.ask(WeighPrompt("p", "a loop")))
    pull(play)
    refused = of(Refusal, await gated.ask(WeighPrompt("p", "a loop")))
    assert refused.status == "conflict"
    assert f"at {before.embedder_revision[:12]}, the server has it at" in refused.reason
    assert refused.hint == "train it again: lakehouse gate train p"
    gated.bus.active = "p"
    said = of(Generated, await gated.ask(Generate("p", "a loop")))
    assert (said.routing, "the server has it at" in said.note) == ("declared", True)
    assert (await trained(gated, id="m2")).gate.embedder_revision != before.embedder_revision
    of(PromptWeights, await gated.ask(WeighPrompt("p", "a loop")))


async def test_a_model_that_is_replaced_while_prompts_are_embedded_trains_no_gate(
    gated: Setting, play: OllamaPlay
) -> None:
    def alter(vectors: list[list[float]]) -> list[list[float]]:
        if len(play.requests) > 1:  # the first found the dimension
            pull(play)
        return vectors

    play.alter = alter
    refused = of(Refusal, await gated.ask(TrainGate("p", examples(20))))
    assert "the server has it at" in refused.reason
