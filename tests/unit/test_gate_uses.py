"""Exports of every kind, and prompts routed by a gate, through the gate's actors."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from schemas.events.base import Refusal
from schemas.events.gate import (
    ExportGate,
    GateExported,
    Generate,
    Generated,
)
from schemas.gate import ExportManifest
from schemas.profile import Adapter
from tests.unit.gate_adapters import dense, factors, read_all
from tests.unit.gate_setting import Setting, of, trained


@pytest.fixture
def house(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


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
    mix = ", ".join(f"{name} {weight:.3g}" for name, weight in zip(("code", "prose"), gate.mean_weights, strict=True))
    assert said.banner == f"gate {gate.run} puts in {mix} (static_mean over 40 prompts)"
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


async def test_an_export_that_comes_again_finds_its_own_alone(house: Setting) -> None:
    await house.with_profile()
    house.with_adapters()
    _, folder = await exported(house, "peft", adapter_mix="code:1")
    other = ExportGate("p", "ollama", adapter_mix="prose:1", folder=str(folder))
    refused = of(Refusal, await house.ask(other, "e2", delivery=2))
    assert (refused.status, "is there already" in refused.reason) == ("conflict", True)
    for foreign in (b"{}", b"\xff", b"[" * 100_000):
        (folder / "export_manifest.json").write_bytes(foreign)
        assert of(Refusal, await house.ask(other, "e3", delivery=2)).status == "conflict"


async def test_the_banner_is_of_the_gate_that_was_used(house: Setting) -> None:
    await house.with_profile()
    house.with_adapters()
    await trained(house)
    said, folder = await exported(house, "peft")
    newer = await trained(house, 30, "m2")
    again = of(GateExported, await house.ask(ExportGate("p", "peft", folder=str(folder)), "e1", delivery=2))
    assert (again, newer.gate.run in again.banner, "40 prompts" in again.banner) == (said, False, True)


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
        ({"weights": "static_loss", "base": "/b", "text": "/t", "rank": 2}, "invalid", "`rank` would make another"),
        ({"weights": "dynamic"}, "invalid", "peft takes fixed weights"),
        ({"adapter_mix": "poem:1"}, "invalid", "'poem'"),
        ({"adapter_mix": "code:1", "folder": "/etc/x"}, "forbidden", "outside the folders"),
        ({"adapter_mix": "code:1", "folder": "x"}, "malformed", "no absolute path"),
        ({"adapter_mix": "code:1", "base": "/etc"}, "forbidden", "outside the folders"),
        ({"target": "llamacpp", "adapter_mix": "code:1", "rank": 1}, "invalid", "rank does nothing here"),
        ({"adapter_mix": "code:1", "system": "x"}, "invalid", "system does nothing here: it is for ollama's Modelfile"),
        ({"adapter_mix": "code:1", "template": "x"}, "invalid", "template does nothing"),
        ({"adapter_mix": "code:1", "from_model": "x"}, "invalid", "from_model does nothing"),
        ({"adapter_mix": "code:1", "parameters": {"stop": ["x"]}}, "invalid", "parameters does nothing"),
        ({"adapter_mix": "code:1", "allow_quantised": True}, "invalid", "allow_quantised does nothing"),
        ({"adapter_mix": "code:1", "weights": "static_loss", "free": True}, "invalid", "free does nothing"),
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


async def test_a_model_that_the_server_lacks_is_not_found_and_an_error_of_ours_is_one(
    house: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.with_profile()
    house.bus.active = "p"

    async def lacks(*_: Any, **__: Any) -> str:
        raise LookupError("there is no model tiny")

    server: Any = house.gates._servers["llamacpp"]
    with monkeypatch.context() as patched:
        patched.setattr(server, "generate", lacks)
        refused = of(Refusal, await house.ask(Generate("p", "x")))
        assert (refused.status, refused.reason) == ("not_found", "there is no model tiny")

    async def broken(*_: Any) -> Any:
        raise KeyError("ours")

    monkeypatch.setattr(house.gates, "_scales", broken)
    with pytest.raises(KeyError):
        await house.ask(Generate("p", "x"))
