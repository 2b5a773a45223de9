"""The gate's actors: trainings and what they leave, questions, refusals, gates that fit no more."""

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from actors.gate.core_mlp import probabilities
from actors.gate.store import GateStore
from actors.gate.training import read_gate
from actors.ports import TableRef
from schemas.documents.dataset import DatasetDocument
from schemas.documents.gate import GateDocument
from schemas.documents.profile import ProfileDocument
from schemas.events.base import Progress, Refusal
from schemas.events.dataset import CommitInfo
from schemas.events.gate import (
    ExportGate,
    GateDropped,
    GateInfo,
    GateTrained,
    Generate,
    Generated,
    GetGate,
    PromptWeights,
    TrainGate,
    WeighPrompt,
)
from schemas.events.index import EmbedderSpec
from schemas.events.profile import ProfileDeleted
from schemas.gate import Example
from schemas.profile import Adapter
from tests.unit.gate_setting import Setting, examples, of, trained


@pytest.fixture
def house(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


# --- training -----------------------------------------------------------------------------------


async def test_a_training_leaves_a_gate_its_events_and_its_artifacts(house: Setting) -> None:
    await house.with_profile()
    said = await trained(house)
    gate = said.gate
    assert (gate.mode, said.live, gate.adapters, gate.samples) == ("trained", True, ["code", "prose"], [20, 20])
    assert gate.held_out_loss is not None
    assert gate.held_out_loss < gate.uniform_loss == pytest.approx(math.log(2))
    document = await house.document()
    assert (document.live, document.last, document.bucket) == (gate, gate, "mine")
    assert document.files is not None
    store = GateStore(house.buckets, "mine", "p")
    assert await store.run(gate.run) == gate  # the round trip
    assert document.files.weights is not None
    mlp = read_gate(await store.local(document.files.weights))
    assert (mlp.w1.shape, mlp.w2.shape) == ((gate.input_dim, gate.hidden_dim), (64, 2))
    events = await house.journal.run(gate.run)
    assert [(event.adapter, event.mean_weight, event.samples, event.mode) for event in events] == [
        (name, mean, 40, "trained") for name, mean in zip(gate.adapters, gate.mean_weights, strict=True)
    ]
    assert sum(event.mean_weight for event in events) == pytest.approx(1, abs=1e-12)
    told = [said for said in house.bus.told if isinstance(said, Progress)]
    assert [(said.phase, said.done, said.total) for said in told] == [
        ("embed", 0, 40), ("embed", 40, 40), ("train", 0, 200), ("train", 200, 200),
    ]  # fmt: skip
    assert {(said.job, said.about) for said in told} == {(gate.run, "p")}


async def test_the_gate_tells_prompts_apart(house: Setting) -> None:
    await house.with_profile()
    await trained(house, 60)
    for prompt, best in (("import async lambda yield", "code"), ("autumn evening by the river", "prose")):
        said = of(PromptWeights, await house.ask(WeighPrompt("p", prompt)))
        assert max(said.weights, key=lambda one: one.weight).adapter == best
        assert sum(one.weight for one in said.weights) == pytest.approx(1)
    info = of(GateInfo, await house.ask(GetGate("p")))
    assert (info.source, info.stale, info.exports) == ("static_mean", "", [])
    assert info.banner.startswith(f"gate {info.live.run} puts in code ")
    assert sum(one.weight for one in info.mix) == pytest.approx(1, abs=1e-12)


async def test_a_redelivered_training_gives_the_same_answer_and_no_new_events(house: Setting) -> None:
    await house.with_profile()
    first, again = await trained(house), await trained(house)
    assert again == first
    assert len(await house.journal.run(first.gate.run)) == 2


async def test_a_training_that_comes_again_late_puts_no_older_gate_back(house: Setting) -> None:
    await house.with_profile()
    first, second = await trained(house), await trained(house, id="m2")
    again = await trained(house)
    assert again == msgspec.structs.replace(first, live=False)
    assert (await house.document()).live == (await house.document()).last == second.gate
    assert len(await house.journal.run(first.gate.run)) == 2


async def test_a_training_that_has_ended_is_not_done_again(house: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    await house.with_profile()
    first = await trained(house)
    monkeypatch.setattr("actors.gate.train_step.train_job", None)
    assert await trained(house) == first


@pytest.mark.slow
async def test_a_training_that_was_killed_before_its_document_is_done_again(
    house: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.with_profile()
    await trained(house)
    house.lab._training._clock.time += 1  # type: ignore[attr-defined]
    with monkeypatch.context() as patched:
        patched.setattr("actors.gate.train_step.change", None)
        with pytest.raises(TypeError):
            await trained(house, id="m2")
    said = await trained(house, id="m2")
    assert (said.live, (await house.document()).live) == (True, said.gate)
    assert len(await house.journal.run(said.gate.run)) == 2


async def test_too_few_prompts_of_an_adapter_make_a_uniform_gate(house: Setting) -> None:
    await house.with_profile()
    gate = (await trained(house, 3)).gate
    assert (gate.mode, gate.mean_weights, gate.steps) == ("uniform", [0.5, 0.5], 0)
    assert [event.mode for event in await house.journal.run(gate.run)] == ["uniform", "uniform"]
    document = await house.document()
    assert document.files is not None
    assert document.files.weights is None
    said = of(PromptWeights, await house.ask(WeighPrompt("p", "anything")))
    assert (said.mode, [one.weight for one in said.weights]) == ("uniform", [0.5, 0.5])
    assert of(GateInfo, await house.ask(GetGate("p"))).source == "uniform"


async def test_a_gate_that_learnt_nothing_is_marked_and_not_used(
    house: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.with_profile()
    good = await trained(house)
    from actors.gate import core_mlp

    monkeypatch.setattr(core_mlp.fit, "__defaults__", (core_mlp.Recipe(rate=1e300),))
    bad = await trained(house, id="m2")
    assert (bad.gate.mode, bad.live) == ("diverged", False)
    assert bad.gate.held_out_loss is None
    assert msgspec.json.decode(msgspec.json.encode(bad), type=GateTrained) == bad
    events = await house.journal.run(bad.gate.run)
    assert [math.isnan(event.mean_weight) for event in events] == [True, True]
    info = of(GateInfo, await house.ask(GetGate("p")))
    assert (info.live, info.last) == (good.gate, bad.gate)


async def test_only_a_diverged_gate_is_no_gate(house: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    await house.with_profile()
    from actors.gate import core_mlp

    monkeypatch.setattr(core_mlp.fit, "__defaults__", (core_mlp.Recipe(rate=1e300),))
    await trained(house)
    assert of(GateInfo, await house.ask(GetGate("p"))).mix is None
    assert "diverged" in of(Refusal, await house.ask(WeighPrompt("p", "x"))).reason
    refused = of(Refusal, await house.ask(ExportGate("p", "peft")))
    assert (refused.status, "no gate of use" in refused.reason) == ("conflict", True)


@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        (TrainGate("nobody", examples(4)), "not_found", "no profile 'nobody'"),
        (TrainGate("p"), "invalid", "0 examples, and 2 adapters"),
        (TrainGate("p", [Example("x", "poem")]), "invalid", "'poem'; declared are code, prose"),
        (TrainGate("p", dataset="none"), "not_found", "no dataset 'none'"),
    ],
)
async def test_what_can_t_be_learnt_from_is_refused(house: Setting, command: TrainGate, status: str, says: str) -> None:
    await house.with_profile()
    refused = of(Refusal, await house.ask(command))
    assert (refused.status, says in refused.reason) == (status, True), refused


async def test_profiles_that_can_have_no_gate(house: Setting) -> None:
    await house.with_profile(adapters=[Adapter("code")])
    assert "1 adapters" in of(Refusal, await house.ask(TrainGate("p", examples(4)))).reason
    await house.with_profile(adapters=[Adapter("code"), Adapter("prose.gguf")])
    assert "'prose.gguf'" in of(Refusal, await house.ask(TrainGate("p", examples(4)))).reason
    await house.with_profile(embedder=EmbedderSpec("ollama", "nomic"))
    refused = of(Refusal, await house.ask(TrainGate("p", examples(4))))
    assert (refused.status, "isn't active" in refused.reason) == ("conflict", True)


async def test_pairs_come_from_a_dataset(house: Setting) -> None:
    await house.with_profile()
    table = TableRef("primary", "datasets/pairs")
    rows = pa.RecordBatch.from_pylist([{"ask": one.prompt, "who": one.adapter} for one in examples(5)])
    await house.tables.commit(
        table, [rows], CommitInfo(version=0, time=0, operation="append", rows=0, message="m", source="s")
    )
    document = DatasetDocument(
        dataset="pairs", bucket="primary", path="datasets/pairs", id_column="id", generated_id=False, columns=[],
        created=5.0,
    )  # fmt: skip
    await house.registry.save("pairs", document, expected=None)
    wrong = of(Refusal, await house.ask(TrainGate("p", dataset="pairs")))
    assert ("no column prompt and adapter" in wrong.reason, wrong.hint) == (True, "it has ask, who")
    command = TrainGate("p", dataset="pairs", prompt_column="ask", adapter_column="who")
    said = of(GateTrained, await house.ask(command))
    assert said.gate.samples == [5, 5]
    assert said.gate.corpus_sha256 == (await trained(house, 5, "m2")).gate.corpus_sha256


# --- a gate that fits no more -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"embedder": EmbedderSpec("openai", "m", "http://127.0.0.1:9", dim=384)}, "384 dimensions"),
        ({"embedder": EmbedderSpec("none")}, "embeddings of lexical (384 dimensions), the profile's embedder is none"),
        ({"model": "other"}, "for the model tiny, the profile has other"),
        ({"adapters": [Adapter("prose"), Adapter("code")]}, "code, prose, the profile has prose, code"),
    ],
)
async def test_a_gate_is_refused_for_what_it_was_not_trained_for(
    house: Setting, more: dict[str, Any], says: str
) -> None:
    await house.with_profile()
    await trained(house)
    await house.with_profile(**more)
    refused = of(Refusal, await house.ask(WeighPrompt("p", "x")))
    assert (refused.status, says in refused.reason) == ("conflict", True), refused
    info = of(GateInfo, await house.ask(GetGate("p")))
    assert (says in info.stale, info.mix, info.source, info.banner) == (True, None, None, "")
    refused = of(Refusal, await house.ask(ExportGate("p", "peft")))
    assert (refused.status, says in refused.reason) == ("conflict", True), refused
    house.bus.active = "p"
    said = of(Generated, await house.ask(Generate("p", "x")))
    assert (said.routing, says in said.note) == ("declared", True)


async def test_the_gate_goes_with_its_profile(house: Setting) -> None:
    profile = await house.with_profile()
    await trained(house)
    said = await house.ask(ProfileDeleted("p"))
    assert of(Refusal, said)  # one of that name is there again: nothing is taken from it
    await house.registry.delete(ProfileDocument, profile.id)
    assert await house.ask(ProfileDeleted("p")) == GateDropped("p")
    assert await house.registry.load(GateDocument, "p") is None
    assert await house.buckets.list("mine", "gates") == []


async def test_a_gate_stays_where_it_was_first_trained(house: Setting) -> None:
    await house.with_profile()
    await trained(house)
    await house.with_profile(bucket="elsewhere")
    said = await trained(house, 30, "m2")
    assert said.bucket == "mine"
    assert (await house.document()).live == said.gate
    of(PromptWeights, await house.ask(WeighPrompt("p", "x")))


def test_what_is_read_is_what_was_trained(tmp_path: Path) -> None:
    from actors.gate import core_mlp
    from actors.gate.training import write_gate

    mlp = core_mlp.initial(12, 3, 64, np.random.default_rng(0))
    write_gate(mlp, tmp_path / "gate.safetensors")
    x = np.random.default_rng(1).standard_normal((5, 12))
    assert (probabilities(read_gate(tmp_path / "gate.safetensors"), x) == probabilities(mlp, x)).all()
