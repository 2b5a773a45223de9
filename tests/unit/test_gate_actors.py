"""The gate's actors: trainings and what they leave, questions, refusals, exports of every kind, prompts routed."""

import json
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
from schemas.events.base import Message, Progress, Refusal
from schemas.events.dataset import CommitInfo
from schemas.events.gate import (
    ExportGate,
    GateDropped,
    GateExported,
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
from schemas.gate import Example, ExportManifest
from schemas.profile import Adapter
from tests.unit.gate_adapters import dense, factors, read_all
from tests.unit.gate_setting import Setting, examples


@pytest.fixture
def house(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


def of(kind: Any, said: Message) -> Any:
    assert isinstance(said, kind), said
    return said


async def trained(house: Setting, each: int = 20, id: str = "m1", **more: Any) -> GateTrained:
    return of(GateTrained, await house.ask(TrainGate("p", examples(each), **more), id))


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
    assert await store.metadata(document.files) == gate  # the round trip
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


# --- exports ------------------------------------------------------------------------------------


def manifest(folder: Path) -> ExportManifest:
    return msgspec.json.decode((folder / "export_manifest.json").read_bytes(), type=ExportManifest)


async def exported(house: Setting, target: Any, id: str = "e1", **more: Any) -> tuple[GateExported, Path]:
    folder = house.work / f"out-{id}"
    said = of(GateExported, await house.ask(ExportGate("p", target, folder=str(folder), **more), id))
    return said, folder


async def test_the_gate_s_mean_is_merged_into_one_adapter(house: Setting) -> None:
    await house.with_profile()
    house.with_adapters()
    gate = (await trained(house)).gate
    said, folder = await exported(house, "peft")
    told = manifest(folder)
    assert (told.gate_mode, told.run, told.base_model) == ("static_mean", gate.run, "org/base")
    assert [one.weight for one in told.weights] == gate.mean_weights
    assert said.banner == f"gate {gate.run} puts in {said.banner.split(' puts in ')[1]}"
    assert "static_mean over 40 prompts" in said.banner
    code, prose = dense(house.work / "code"), dense(house.work / "prose")
    for module, delta in dense(folder, 1.0).items():
        expected = told.weights[0].weight * code[module] + told.weights[1].weight * prose[module]
        np.testing.assert_allclose(delta, expected, atol=1e-5)
    assert {file.key for file in told.files} == {"adapter_config.json", "adapter_model.safetensors"}
    assert [(one.ranks, one.alphas, one.rslora) for one in told.adapters] == [([4], [8.0], False)] * 2
    assert (await house.document()).exports[0].place == str(folder)
    again = of(GateExported, await house.ask(ExportGate("p", "peft", folder=str(folder)), "e1", delivery=2))
    assert again == said
    refused = of(Refusal, await house.ask(ExportGate("p", "peft", folder=str(folder)), "e2"))
    assert (refused.status, "is there already" in refused.reason) == ("conflict", True)


async def test_weights_that_somebody_gives_need_no_gate_and_show_no_banner(house: Setting) -> None:
    await house.with_profile()
    house.with_adapters()
    said, folder = await exported(house, "peft", adapter_mix="prose:0.5")
    assert (said.banner, said.export.gate_mode, said.run) == ("", "explicit", None)
    assert [(one.adapter, one.weight) for one in said.export.weights] == [("code", 0.0), ("prose", 0.5)]
    assert {b.shape[1] for b, _ in factors(folder).values()} == {4}  # code isn't in it
    same, _ = await exported(house, "peft", "e2", weights="uniform")
    assert [one.weight for one in same.export.weights] == [0.5, 0.5]
    await trained(house)
    wins, _ = await exported(house, "peft", "e3", weights="static_mean", adapter_mix="code:1")
    assert wins.export.gate_mode == "explicit"


async def test_a_declared_scale_counts_in_a_gate_s_merge_as_it_does_for_a_prompt(house: Setting) -> None:
    scaled = [Adapter("code", 0.5, str(house.work / "code")), Adapter("prose", 2.0, str(house.work / "prose"))]
    await house.with_profile(adapters=scaled)
    house.with_adapters()
    await trained(house)
    code, prose = dense(house.work / "code"), dense(house.work / "prose")
    said, folder = await exported(house, "peft")
    told = manifest(folder)
    (w1, w2) = (one.weight for one in told.weights)
    assert w1 + w2 == pytest.approx(1)  # what the gate said stays as it is
    assert [(one.weight, one.scale) for one in told.adapters] == [(w1, 0.5), (w2, 2.0)]
    assert any("code 0.5, prose 2" in note for note in said.notes)
    for module, delta in dense(folder, 1.0).items():
        np.testing.assert_allclose(delta, w1 * 0.5 * code[module] + w2 * 2.0 * prose[module], atol=1e-5)
    alike, _ = await exported(house, "llamacpp", "e2", weights="uniform")
    assert alike.arguments[1] == "adapters/code.gguf:0.25,adapters/prose.gguf:1"
    final, folder = await exported(house, "peft", "e3", adapter_mix="code:0.25,prose:1")  # as with a prompt
    assert [one.scale for one in manifest(folder).adapters] == [1.0, 1.0]
    assert not any("declares" in note for note in final.notes)
    for module, delta in dense(folder, 1.0).items():
        np.testing.assert_allclose(delta, 0.25 * code[module] + prose[module], atol=1e-5)


async def test_the_frozen_mix_is_told_as_it_was_merged(house: Setting) -> None:
    scaled = [Adapter("code", 0.5, str(house.work / "code")), Adapter("prose", 2.0, str(house.work / "prose"))]
    await house.with_profile(server="ollama", adapters=scaled)
    house.with_adapters()
    house.bus.active = "p"
    await exported(house, "ollama", weights="uniform")
    said = of(Generated, await house.ask(Generate("p", "x")))
    assert [one.weight for one in said.weights] == [0.25, 1.0]


async def test_a_uniform_gate_is_told_as_such(house: Setting) -> None:
    await house.with_profile()
    house.with_adapters()
    gate = (await trained(house, 2)).gate
    said, folder = await exported(house, "peft")
    assert manifest(folder).gate_mode == said.export.gate_mode == "uniform"
    assert said.banner == f"gate {gate.run} puts in code 0.5, prose 0.5 (uniform)"


async def test_ollama_gets_a_modelfile_beside_the_adapter(house: Setting) -> None:
    await house.with_profile()
    house.with_adapters()
    _, folder = await exported(
        house, "ollama", adapter_mix="code:1,prose:1", from_model="llama3.2:3b", template="{{ .Prompt }}",
        system='Say "hello".\nFROM evil', parameters={"temperature": ["0.2"], "stop": ["<|end|>", "\n\n"]},
    )  # fmt: skip
    text = (folder / "Modelfile").read_text()
    assert text.startswith('FROM "llama3.2:3b"\nADAPTER "./adapter"\nTEMPLATE """{{ .Prompt }}"""\n')
    assert 'SYSTEM """Say "hello".\nFROM evil"""\n' in text
    names = {path.name for path in (folder / "adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}
    refused = of(Refusal, await house.ask(ExportGate("p", "ollama", adapter_mix="code:1", system='"""'), "e2"))
    assert "SYSTEM" in refused.reason


async def test_a_base_is_written_with_the_mix_in_it(house: Setting) -> None:
    await house.with_profile()
    house.with_adapters()
    base = house.with_base()
    _, folder = await exported(house, "base", adapter_mix="code:0.6,prose:0.4", base=base, base_revision="abc")
    before, after = read_all(Path(base)), read_all(folder)
    code, prose = dense(house.work / "code"), dense(house.work / "prose")
    for name, weight in before.items():
        module = name.removesuffix(".weight")
        delta = 0.6 * code[module] + 0.4 * prose[module] if module in code else 0
        np.testing.assert_allclose(after[name], weight + delta, atol=1e-5)
    told = manifest(folder)
    assert (told.base_revision, told.merge.mode, told.merge.modules) == ("abc", "exact", 3)
    assert {file.key for file in told.files} >= {"config.json", "tokenizer.json", "model.safetensors.index.json"}


async def test_llamacpp_gets_every_adapter_with_its_scale_folded_in(house: Setting) -> None:
    await house.with_profile()
    house.with_adapters(config={"use_rslora": True})
    await trained(house)
    said, folder = await exported(house, "llamacpp", weights="dynamic")
    assert said.arguments == ["--lora-scaled", "adapters/code.gguf:0,adapters/prose.gguf:0"]
    assert manifest(folder).gate_mode == "dynamic"
    assert manifest(folder).merge.mode == "none"
    for name in ("code", "prose"):
        assert json.loads((folder / f"adapters/{name}/adapter_config.json").read_text())["lora_alpha"] == 4
        expected = dense(house.work / name, 4.0)  # alpha / sqrt(r)
        for module, delta in dense(folder / "adapters" / name, 1.0).items():
            np.testing.assert_allclose(delta, expected[module], atol=1e-4)
    fixed, _ = await exported(house, "llamacpp", "e2", adapter_mix="code:0.25,prose:1")
    assert fixed.arguments[1] == "adapters/code.gguf:0.25,adapters/prose.gguf:1"
    assert (folder / "convert.txt").read_text().count("convert_lora_to_gguf.py") == 2


async def test_without_a_folder_an_export_goes_into_the_profile_s_bucket(house: Setting) -> None:
    await house.with_profile()
    house.with_adapters()
    said = of(GateExported, await house.ask(ExportGate("p", "peft", adapter_mix="code:1"), "e1"))
    prefix = said.export.place.removeprefix("bucket://mine/")
    keys = {key.removeprefix(prefix + "/") for key in await house.buckets.list("mine", prefix)}
    assert keys == {"adapter_config.json", "adapter_model.safetensors", "export_manifest.json"}
    told = msgspec.json.decode(await house.buckets.get("mine", f"{prefix}/export_manifest.json"), type=ExportManifest)
    for file in told.files:
        await house.buckets.fetch("mine", f"{prefix}/{file.key}", file.sha256)


async def test_a_cut_is_refused_over_its_bound_and_leaves_nothing(house: Setting) -> None:
    await house.with_profile()
    house.with_adapters()
    folder = house.work / "cut"
    command = ExportGate("p", "peft", adapter_mix="code:1,prose:1", rank=5, folder=str(folder))
    refused = of(Refusal, await house.ask(command))
    assert (refused.status, "max_error 0.05" in refused.reason) == ("invalid", True)
    assert [path.name for path in sorted(house.work.iterdir())] == ["code", "prose"]
    said = of(GateExported, await house.ask(msgspec.structs.replace(command, max_error=0.9), "e2"))
    assert (said.rank, 0.05 < said.error < 0.9) == (5, True)
    assert len(manifest(folder).merge.errors) == 3


@pytest.mark.parametrize(
    ("more", "status", "says"),
    [
        ({}, "conflict", "no gate of use"),
        ({"weights": "explicit"}, "invalid", "none are given"),
        ({"weights": "static_loss"}, "invalid", "needs `base`"),
        ({"weights": "dynamic"}, "invalid", "peft takes fixed weights"),
        ({"adapter_mix": "poem:1"}, "invalid", "'poem'"),
        ({"adapter_mix": "code:1", "folder": "/etc/x"}, "forbidden", "outside the folders"),
        ({"adapter_mix": "code:1", "folder": "x"}, "malformed", "no absolute path"),
        ({"adapter_mix": "code:1", "base": "/etc"}, "forbidden", "outside the folders"),
        ({"target": "base", "adapter_mix": "code:1"}, "invalid", "where the base checkpoint is"),
    ],
)
async def test_exports_that_can_t_be_are_refused(house: Setting, more: dict[str, Any], status: str, says: str) -> None:
    await house.with_profile()
    house.with_adapters()
    refused = of(Refusal, await house.ask(ExportGate(**{"profile": "p", "target": "peft", **more})))
    assert (refused.status, says in refused.reason) == (status, True), refused


async def test_adapters_that_can_t_be_merged_are_refused_with_the_reason(house: Setting) -> None:
    await house.with_profile(adapters=[Adapter("code"), Adapter("prose")])
    command = ExportGate("p", "peft", adapter_mix="code:1")
    assert "'code' of profile 'p' has no folder" in of(Refusal, await house.ask(command)).reason
    await house.with_profile()
    assert "there is no such folder" in of(Refusal, await house.ask(command)).reason
    house.with_adapters(config={"use_dora": True})
    assert "DoRA" in of(Refusal, await house.ask(command)).reason


# --- prompts ------------------------------------------------------------------------------------


async def test_a_prompt_is_routed_by_the_gate(house: Setting) -> None:
    await house.with_profile()
    await trained(house, 60)
    refused = of(Refusal, await house.ask(Generate("p", "import async lambda")))
    assert (refused.status, "isn't active" in refused.reason) == ("conflict", True)
    house.bus.active = "p"
    said = of(Generated, await house.ask(Generate("p", "import async lambda yield")))
    assert (said.text, said.routing) == ("tiny code:1,prose:0", "top1")
    assert [one.weight for one in said.weights] == [1.0, 0.0]
    assert sum(one.weight for one in said.gate) == pytest.approx(1)
    both = of(Generated, await house.ask(Generate("p", "import async lambda yield", routing="floor", floor=0.0)))
    assert [one.weight for one in both.weights] == [one.weight for one in both.gate]
    mixed = of(Generated, await house.ask(Generate("p", "x", adapter_mix="prose:0.5")))
    assert (mixed.text, mixed.routing, mixed.gate) == ("tiny code:0,prose:0.5", "explicit", [])
    assert "'poem'" in of(Refusal, await house.ask(Generate("p", "x", adapter_mix="poem:1"))).reason


async def test_without_a_gate_the_declared_scales_hold(house: Setting) -> None:
    await house.with_profile(adapters=[Adapter("code", 0.5), Adapter("prose", 0.25)])
    house.bus.active = "p"
    said = of(Generated, await house.ask(Generate("p", "x")))
    assert (said.text, said.routing) == ("tiny code:0.5,prose:0.25", "declared")
    assert "no trained gate" in said.note
    await house.with_profile(adapters=[])
    plain = of(Generated, await house.ask(Generate("p", "x")))
    assert (plain.text, plain.weights) == ("tiny as it is", [])


async def test_ollama_serves_the_frozen_mix_and_says_so(house: Setting) -> None:
    await house.with_profile(server="ollama")
    house.with_adapters()
    house.bus.active = "p"
    before = of(Generated, await house.ask(Generate("p", "x")))
    assert (before.routing, before.weights, "no mix was exported" in before.note) == ("frozen", [], True)
    made, _ = await exported(house, "ollama", adapter_mix="code:0.75,prose:0.25")
    said = of(Generated, await house.ask(Generate("p", "x")))
    assert (said.text, said.routing, said.weights) == ("tiny as it is", "frozen", made.export.weights)
    assert "frozen mix is served" in said.note
    refused = of(Refusal, await house.ask(Generate("p", "x", adapter_mix="code:1")))
    assert "frozen" in refused.reason


def test_what_is_read_is_what_was_trained(tmp_path: Path) -> None:
    from actors.gate import core_mlp
    from actors.gate.training import write_gate

    mlp = core_mlp.initial(12, 3, 64, np.random.default_rng(0))
    write_gate(mlp, tmp_path / "gate.safetensors")
    x = np.random.default_rng(1).standard_normal((5, 12))
    assert (probabilities(read_gate(tmp_path / "gate.safetensors"), x) == probabilities(mlp, x)).all()
