"""What an export passes on to the merge, refuses, tells in its manifest, and in which order it is put into a bucket."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from actors.gate.store import GateStore
from actors.tensors.shard_writer import write_arrays
from schemas.events.base import Message, Refusal
from schemas.events.gate import ExportGate, GateExported, Generate, Generated, TrainGate
from schemas.events.index import EmbedderSpec
from schemas.gate import ExportManifest
from schemas.profile import Adapter
from tests.unit.gate_adapters import read_all, write_adapter_folder, write_base_folder
from tests.unit.gate_setting import Setting, examples, of, trained


@pytest.fixture
async def house(tmp_path: Path) -> Setting:
    """With a profile and its adapters."""
    made = Setting(tmp_path)
    await made.with_profile()
    made.with_adapters()
    return made


async def exported(house: Setting, target: Any, id: str = "e1", mix: str | None = "code:1,prose:1", **more: Any) -> Any:
    return await house.ask(ExportGate("p", target, adapter_mix=mix, folder=str(house.work / id), **more), id)


def refused(said: Message) -> str:
    assert isinstance(said, Refusal), said
    return said.reason


def manifest(folder: Path) -> ExportManifest:
    return msgspec.json.decode((folder / "export_manifest.json").read_bytes(), type=ExportManifest)


# --- what the manifest tells --------------------------------------------------------------------


async def test_a_manifest_has_the_hash_of_either_file_of_an_adapter(house: Setting) -> None:
    of(GateExported, await exported(house, "peft"))
    for one in manifest(house.work / "e1").adapters:
        for told, file in ((one.sha256, "adapter_model.safetensors"), (one.config_sha256, "adapter_config.json")):
            assert told == hashlib.sha256((house.work / one.name / file).read_bytes()).hexdigest()


async def test_a_base_s_revision_is_the_adapters_where_nobody_says_another(tmp_path: Path) -> None:
    house = Setting(tmp_path)
    await house.with_profile()
    house.with_adapters(config={"revision": "r7"})
    of(GateExported, await exported(house, "peft"))
    of(GateExported, await exported(house, "peft", "e2", base_revision="r8"))
    assert [manifest(house.work / id).base_revision for id in ("e1", "e2")] == ["r7", "r8"]
    assert (await trained(house)).gate.base_revision == "r7"
    assert (await trained(house, id="m2", base_revision="r8")).gate.base_revision == "r8"


async def test_weights_that_were_asked_for_as_uniform_are_no_gate_s(house: Setting) -> None:
    gate = (await trained(house)).gate
    said = of(GateExported, await exported(house, "peft", mix=None, weights="uniform"))
    assert (said.export.gate_mode, said.run, said.banner) == ("uniform", None, "")
    assert manifest(house.work / "e1").run is None
    own = of(GateExported, await exported(house, "peft", "e2", mix=None))
    assert (own.export.gate_mode, own.run) == ("static_mean", gate.run)


# --- what the merge is asked --------------------------------------------------------------------


@pytest.mark.parametrize("target", ["peft", "ollama", "base"])
async def test_every_merge_is_cut_to_the_rank_within_the_bound(house: Setting, target: str) -> None:
    base = house.with_base()
    cut = of(GateExported, await exported(house, target, rank=5, max_error=1.0, base=base))
    told = manifest(house.work / "e1").merge
    assert (cut.rank, told.mode, told.rank, len(told.errors)) == (5, "svd", 5, 3)
    assert cut.error == max(each.error for each in told.errors) > 0.05
    within = of(GateExported, await exported(house, target, "e2", rank=5, max_error=cut.error, base=base))
    assert within.error == cut.error
    said = refused(await exported(house, target, "e3", rank=5, max_error=0.99 * cut.error, base=base))
    assert "cut to rank 5" in said
    assert not (house.work / "e3").exists()
    assert "cut to rank 5" in refused(await exported(house, target, "e4", rank=5, base=base))  # 0.05 is what it has


async def test_a_cut_base_is_another_than_the_exact_one(house: Setting) -> None:
    base = house.with_base()
    for id, rank in (("exact", None), ("cut", 5)):
        of(GateExported, await exported(house, "base", id, rank=rank, max_error=1.0, base=base))
    exact, cut = (read_all(house.work / id)["model.layers.0.q.weight"] for id in ("exact", "cut"))
    assert np.abs(exact - cut).max() > 0.01


async def test_a_quantised_base_has_to_be_allowed(house: Setting) -> None:
    base = house.work / "quantised"
    write_base_folder(base, config={"quantization_config": {"quant_method": "gptq"}})
    assert "quantised (gptq)" in refused(await exported(house, "base", base=str(base)))
    of(GateExported, await exported(house, "base", "e2", base=str(base), allow_quantised=True))


@pytest.mark.parametrize("name", ["lm_head", "embed_out"])
async def test_a_head_that_is_tied_to_the_embedding_is_refused(tmp_path: Path, name: str) -> None:
    house = Setting(tmp_path)
    await house.with_profile()
    for seed, adapter in enumerate(("code", "prose")):
        write_adapter_folder(house.work / adapter, seed, modules=[name], shapes={name: (50, 16)})
    base = house.work / "base"
    write_arrays(base / "model.safetensors", {f"{name}.weight": np.zeros((50, 16), np.float32)})
    (base / "config.json").write_text('{"tie_word_embeddings": true}')
    assert f"{name} is tied to the embedding" in refused(await exported(house, "base", base=str(base)))
    (base / "config.json").write_text('{"tie_word_embeddings": false}')
    of(GateExported, await exported(house, "base", "e2", base=str(base)))


async def test_weights_the_other_way_round_are_another_base_s_unless_the_adapters_say_so(house: Setting) -> None:
    write_base_folder(house.work / "base", transposed=True)
    said = refused(await exported(house, "base", base=str(house.work / "base")))
    assert "is [16, 24], the adapters' model.layers.0.q is [24, 16]" in said


# --- whose base an export is for ----------------------------------------------------------------


async def test_an_export_speaks_for_the_adapters_that_it_lists_alone(house: Setting) -> None:
    """One that lies in its folder for another reason is nobody's."""
    write_base_folder(house.work / "other", dtype="F16")
    of(GateExported, await exported(house, "peft", "mix", base=house.with_base()))
    write_adapter_folder(house.work / "mix/mine", 3)
    mine = Adapter("code", 1.0, str(house.work / "mix/mine"))
    await house.with_profile(adapters=[mine, Adapter("prose", 1.0, str(house.work / "prose"))])
    other = str(house.work / "other")
    of(GateExported, await exported(house, "peft", "e1", base=other))
    assert (await trained(house, base=other)).gate.base_sha256 == manifest(house.work / "e1").base_sha256
    mixed = Adapter("code", 1.0, str(house.work / "mix"))
    await house.with_profile(adapters=[mixed, Adapter("prose", 1.0, str(house.work / "prose"))])
    assert "adapter code is for a base of content" in refused(await exported(house, "peft", "e2", base=other))


# --- the bucket ---------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["peft", "ollama", "llamacpp"])
async def test_the_manifest_comes_into_the_bucket_last(
    house: Setting, monkeypatch: pytest.MonkeyPatch, target: Any
) -> None:
    keys: list[str] = []
    upload = house.buckets.upload

    async def seen(bucket: str, key: str, path: Path, **more: Any) -> Any:
        keys.append(key)
        return await upload(bucket, key, path, **more)

    monkeypatch.setattr(house.buckets, "upload", seen)
    said = of(GateExported, await house.ask(ExportGate("p", target, adapter_mix="code:1,prose:1")))
    place = said.export.place.removeprefix("bucket://mine/")
    assert len(keys) > 2
    assert (
        [key for key in keys if key.endswith("export_manifest.json")] == [f"{place}/export_manifest.json"] == keys[-1:]
    )


async def test_an_attempt_that_was_killed_leaves_nothing_in_the_next_one(house: Setting, tmp_path: Path) -> None:
    await house.buckets.provision("mine")
    store = GateStore(house.buckets, "mine", "p")
    for text in ("half", "whole"):
        (tmp_path / text).write_text(text)
    await store.put_export("peft-1", [("a", tmp_path / "half"), ("adapter/b", tmp_path / "half")])
    place = await store.put_export("peft-1", [("a", tmp_path / "whole")])
    prefix = place.removeprefix("bucket://mine/")
    assert await house.buckets.list("mine", prefix) == [f"{prefix}/a"]
    assert await house.buckets.get("mine", f"{prefix}/a") == b"whole"


# --- trainings ----------------------------------------------------------------------------------


@pytest.mark.slow
async def test_events_are_rows_before_a_document_says_so(house: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    first = (await trained(house)).gate
    then: list[Any] = []
    append = house.journal.append

    async def seen(events: Any) -> None:
        then.append(((await house.document()).live, len(events)))
        await append(events)

    monkeypatch.setattr(house.journal, "append", seen)
    second = (await trained(house, 30, "m2")).gate
    assert then == [(first, 2)]
    assert (await house.document()).live == second


@pytest.mark.slow
async def test_a_training_is_of_its_seed(house: Setting) -> None:
    hashes = []
    for id, seed in (("m1", 7), ("m2", 42), ("m3", 7)):
        assert (await trained(house, id=id, seed=seed)).gate.seed == seed
        files = (await house.document()).files
        assert files is not None
        assert files.weights is not None
        hashes.append(files.weights.sha256)
    assert hashes[0] == hashes[2] != hashes[1]


# --- the slot -----------------------------------------------------------------------------------


async def test_a_slot_that_another_profile_has_is_not_this_one_s(house: Setting) -> None:
    house.bus.active = "other"
    said = of(Refusal, await house.ask(Generate("p", "x")))
    assert (said.status, said.reason) == ("conflict", "profile 'p' isn't active: the slot is ready")
    await house.with_profile(embedder=EmbedderSpec("ollama", "nomic"))
    said = of(Refusal, await house.ask(TrainGate("p", examples(4))))
    assert (said.status, "the profile isn't active" in said.reason) == ("conflict", True)


async def test_what_ollama_serves_was_no_peft_export(house: Setting) -> None:
    await house.with_profile(server="ollama")
    house.bus.active = "p"
    of(GateExported, await exported(house, "peft", "e1", "code:1"))
    assert "no mix was exported" in of(Generated, await house.ask(Generate("p", "x"))).note
    made = of(GateExported, await exported(house, "ollama", "e2", "prose:0.5"))
    of(GateExported, await exported(house, "peft", "e3", "code:0.25"))
    said = of(Generated, await house.ask(Generate("p", "x")))
    assert said.weights == made.export.weights
    assert str(house.work / "e2") in said.note
