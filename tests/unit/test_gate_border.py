"""What somebody may give the gate that is meant to break it: names that are paths, links that lead elsewhere, a profile
deleted meanwhile; and what a killed export leaves."""

import os
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from actors.errors import CorruptState, ModelServerError
from actors.gate.work import Work
from actors.ports import TableRef
from daemon.models.llamacpp_adapters import Lora, wanted_scales
from schemas.documents.dataset import DatasetDocument
from schemas.documents.gate import GateDocument
from schemas.documents.profile import ProfileDocument
from schemas.events.base import Message, Refusal
from schemas.events.dataset import CommitInfo
from schemas.events.gate import ExportGate, GateExported, GateTrained, Generate, Generated, TrainGate, WeighPrompt
from schemas.events.index import EmbedderSpec
from schemas.events.profile import ProfileDeleted
from schemas.gate import ExportManifest
from schemas.profile import Adapter
from tests.unit.gate_adapters import write_adapter_folder
from tests.unit.gate_setting import Setting, examples
from tests.unit.inline_compute import InlineCompute


@pytest.fixture
def house(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


def refused(said: Message) -> Refusal:
    assert isinstance(said, Refusal), said
    return said


# --- names --------------------------------------------------------------------------------------


async def test_a_name_that_is_a_path_writes_nothing_elsewhere(house: Setting) -> None:
    """llama.cpp's adapters may be named by their paths; an export makes folders of names."""
    house.with_adapters()
    adapters = [Adapter("code", 1.0, str(house.work / "code")), Adapter("../../../x", 1.0, str(house.work / "prose"))]
    await house.with_profile(adapters=adapters)
    command = ExportGate("p", "llamacpp", adapter_mix="code:1", folder=str(house.work / "a/b"))
    assert "can't have the adapter '../../../x'" in refused(await house.ask(command)).reason
    assert not (house.work / "x").exists()
    await house.with_profile(adapters=[])
    nothing = refused(await house.ask(ExportGate("p", "peft")))
    assert nothing.reason == "profile 'p' has 0 adapters: there is nothing to export"


async def test_an_answer_may_tell_names_that_a_gate_can_t_have(house: Setting) -> None:
    """Another process of the daemon has to be able to read it."""
    await house.with_profile(adapters=[Adapter("My-Lora.v2", 0.5)])
    house.bus.active = "p"
    said = await house.ask(Generate("p", "x"))
    assert msgspec.json.decode(msgspec.json.encode(said), type=Generated) == said


# --- paths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "README.md"])
async def test_an_adapter_s_links_may_not_lead_outside(house: Setting, tmp_path: Path, file: str) -> None:
    await house.with_profile()
    house.with_adapters()
    elsewhere = tmp_path / file
    if (house.work / "code" / file).exists():
        (house.work / "code" / file).rename(elsewhere)
    (house.work / "code" / file).symlink_to(elsewhere)
    said = refused(await house.ask(ExportGate("p", "peft", adapter_mix="code:1")))
    assert said.status == "forbidden"
    assert f"{house.work / 'code' / file} lies outside" in said.reason
    assert "gate.allowed_roots" in said.hint


async def test_a_base_s_links_may_not_lead_outside_and_may_lead_within(house: Setting, tmp_path: Path) -> None:
    """As a cache of downloads is laid out, where shards are links."""
    await house.with_profile()
    house.with_adapters()
    base = Path(house.with_base())
    blobs = house.work / "blobs"
    blobs.mkdir()
    for shard in ("model-1-of-2.safetensors", "model-2-of-2.safetensors"):
        (base / shard).rename(blobs / shard)
        (base / shard).symlink_to(blobs / shard)
    command = ExportGate("p", "base", adapter_mix="code:1", base=str(base), folder=str(house.work / "out"))
    assert isinstance(await house.ask(command), GateExported)
    (tmp_path / "secret.json").write_text("{}")
    (base / "secret.json").symlink_to(tmp_path / "secret.json")
    said = refused(await house.ask(msgspec.structs.replace(command, folder=str(house.work / "more")), "e2"))
    assert (said.status, "secret.json lies outside" in said.reason) == ("forbidden", True)
    assert not (house.work / "more").exists()


async def test_a_pipe_is_never_waited_for(house: Setting) -> None:
    await house.with_profile()
    house.with_adapters()
    base = Path(house.with_base())
    os.mkfifo(base / "model-3-of-3.safetensors")
    said = refused(await house.ask(ExportGate("p", "base", adapter_mix="code:1", base=str(base))))
    assert "model-3-of-3.safetensors is neither a file nor a folder" in said.reason


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"base": "tokenizer.json"}, "tokenizer.json: there is no such folder"),
        ({"base": "", "text": ""}, "there is no such file"),
        ({"base": "nowhere"}, "nowhere: there is no such folder"),
        ({"text": "tokenizer.json"}, "nothing says which"),
    ],
)
async def test_a_folder_is_a_folder_and_a_file_a_file(house: Setting, more: dict[str, str], says: str) -> None:
    await house.with_profile()
    house.with_adapters()
    base = Path(house.with_base())
    paths: dict[str, Any] = {name: str(base / path) for name, path in more.items()}
    command = ExportGate("p", "peft", adapter_mix="code:1", **paths)
    assert says in refused(await house.ask(command)).reason


async def test_commands_that_llama_cpp_s_scripts_are_run_by_hold_paths_as_paths(house: Setting) -> None:
    await house.with_profile()
    house.with_adapters()
    house.with_base()
    base = house.work / "a base; touch x"
    (house.work / "base").rename(base)
    folder = house.work / "out"
    command = ExportGate("p", "llamacpp", adapter_mix="code:1", base=str(base), folder=str(folder))
    assert isinstance(await house.ask(command), GateExported)
    assert f"--base '{base}' --outfile" in (folder / "convert.txt").read_text()


async def test_an_export_of_an_export_counts_its_own_files_alone(house: Setting) -> None:
    await house.with_profile()
    house.with_adapters()
    base = house.with_base()
    for number, name in enumerate(("one", "two")):
        command = ExportGate("p", "base", adapter_mix="code:1", base=base, folder=str(house.work / name))
        assert isinstance(await house.ask(command, f"e{number}"), GateExported)
        base = str(house.work / name)
    told = msgspec.json.decode((house.work / "two/export_manifest.json").read_bytes(), type=ExportManifest)
    assert "export_manifest.json" not in {file.key for file in told.files}


def test_what_a_killed_export_left_beside_its_target_goes_at_the_next_start(tmp_path: Path) -> None:
    other = tmp_path / "out-keep"
    other.mkdir()
    bus: Any = None
    work = Work(InlineCompute(), bus, tmp_path / "cache")  # type: ignore[arg-type]
    killed = work.folder(tmp_path / "new/out")
    place = killed.__enter__()
    (place / "half").write_bytes(b"half")
    (tmp_path / "cache/0.beside").write_bytes(os.fsencode(other))  # a mark is believed of its own folder alone
    Work(InlineCompute(), bus, tmp_path / "cache").sweep_out()  # type: ignore[arg-type]
    assert (place.exists(), other.exists(), (tmp_path / "cache").exists()) == (False, True, False)
    with work.folder(tmp_path / "new/out") as again:
        assert again.is_dir()
    assert list((tmp_path / "cache").iterdir()) == list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("target", ["ollama", "base", "llamacpp"])
async def test_an_export_is_on_the_disk_before_it_has_its_name(
    house: Setting, monkeypatch: pytest.MonkeyPatch, target: Any
) -> None:
    """A file that is only in the page cache is empty after a power cut, the folder's new name may be kept."""
    await house.with_profile()
    house.with_adapters()
    synced: set[int] = set()
    renamed: list[set[int]] = []
    fsync, rename = os.fsync, os.rename

    def seen(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def named(old: Path, new: Path) -> None:
        renamed.append({path.stat().st_ino for path in (*old.rglob("*"), old)} - synced)
        rename(old, new)

    monkeypatch.setattr("os.fsync", seen)
    monkeypatch.setattr("actors.gate.export_step.os.rename", named)
    out = house.work / "out"
    command = ExportGate("p", target, adapter_mix="code:1,prose:1", base=house.with_base(), folder=str(out))
    assert isinstance(await house.ask(command), GateExported)
    assert (renamed, house.work.stat().st_ino in synced) == ([set()], True)


async def test_a_full_disk_is_told_with_the_folder(house: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    await house.with_profile()
    house.with_adapters()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("actors.tensors.shard_writer.os.fsync", full)
    folder = str(house.work / "out")
    said = refused(await house.ask(ExportGate("p", "peft", adapter_mix="code:1", folder=folder)))
    assert said.reason == f"the export can't be made in {folder}: No space left on device"
    assert said.hint == f"free some space for {folder}"


async def test_a_full_disk_is_told_by_a_training_too(house: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    await house.with_profile()

    def full(_: Any, file: Path) -> None:
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr("actors.gate.training.write_gate", full)
    said = refused(await house.ask(TrainGate("p", examples=examples(8))))
    assert said.reason.startswith("the gate can't be trained in the cache in the daemon's state directory: ")
    assert said.reason.endswith("gate.safetensors: No space left on device")
    assert said.hint == "free some space for the cache in the daemon's state directory"


async def test_what_isn_t_the_folder_s_fault_is_tried_again(house: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TimeoutError is an OSError: of the registry it says nothing of the export."""
    await house.with_profile()
    house.with_adapters()
    load = house.registry.load

    async def slow(kind: Any, name: str) -> Any:
        if kind is GateDocument:
            raise TimeoutError("the registry is slow")
        return await load(kind, name)

    monkeypatch.setattr(house.registry, "load", slow)
    with pytest.raises(TimeoutError):
        await house.ask(ExportGate("p", "peft", adapter_mix="code:1", folder=str(house.work / "out")))


# --- two at once --------------------------------------------------------------------------------


async def test_examples_and_a_dataset_are_one_too_many(house: Setting) -> None:
    await house.with_profile()
    said = refused(await house.ask(TrainGate("p", examples=examples(4), dataset="pairs")))
    assert "both are given" in said.reason


def test_a_server_s_ids_are_each_adapter_s_own() -> None:
    have = [Lora(0, "/l/code.gguf", 1.0), Lora(0, "/l/prose.gguf", 1.0)]
    with pytest.raises(ModelServerError, match=r"adapters of one id \(0: /l/code\.gguf, 0: /l/prose\.gguf\)"):
        wanted_scales(have, [Adapter("code")])


# --- a gate that isn't whole --------------------------------------------------------------------


async def test_a_profile_without_an_embedder_has_no_gate_and_goes_on(house: Setting) -> None:
    await house.with_profile()
    assert isinstance(await house.ask(TrainGate("p", examples=examples(8))), GateTrained)
    await house.with_profile(embedder=EmbedderSpec("none"))
    said = refused(await house.ask(WeighPrompt("p", "x")))
    assert (said.status, "the profile's embedder is none" in said.reason) == ("conflict", True)
    house.bus.active = "p"
    spoken = await house.ask(Generate("p", "x"))
    assert isinstance(spoken, Generated)
    assert (spoken.routing, "embedder is none" in spoken.note) == ("declared", True)


@pytest.mark.parametrize("file", ["weights", "embedder"])
async def test_a_gate_that_lost_a_file_is_told(house: Setting, file: str) -> None:
    await house.with_profile()
    assert isinstance(await house.ask(TrainGate("p", examples=examples(8))), GateTrained)
    files = (await house.document()).files
    key = getattr(files, file).key
    await house.buckets.delete("mine", key)
    with pytest.raises(CorruptState, match=f"{key} of a gate isn't in bucket mine any more: train the gate again"):
        await house.ask(WeighPrompt("p", "x"))


@pytest.mark.parametrize(
    "command", [TrainGate("p", examples=examples(8)), ExportGate("p", "peft", adapter_mix="code:1")]
)
async def test_a_profile_deleted_meanwhile_leaves_no_gate_to_the_next_of_its_name(
    house: Setting, monkeypatch: pytest.MonkeyPatch, command: TrainGate | ExportGate
) -> None:
    await house.with_profile()
    house.with_adapters()

    async def deleted(_: Message) -> None:
        if await house.registry.load(ProfileDocument, "p") is not None:
            await house.registry.delete(ProfileDocument, "p")
            await house.ask(ProfileDeleted("p"))

    monkeypatch.setattr(house.bus, "signal", deleted)
    said = refused(await house.ask(command))
    assert (said.status, said.reason) == ("not_found", "there is no profile 'p'")
    assert await house.registry.load(GateDocument, "p") is None
    assert await house.buckets.list("mine", "gates") == []


# --- a dataset's columns ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"prompt_column": "ask"}, "has no column adapter"),
        ({}, "has no column prompt and adapter"),
        ({"prompt_column": "ask", "adapter_column": "ask"}, "column 'ask' can't be both"),
    ],
)
async def test_columns_that_are_none_are_named(house: Setting, columns: dict[str, str], says: str) -> None:
    await house.with_profile()
    rows = pa.RecordBatch.from_pylist([{"ask": one.prompt, "who": one.adapter} for one in examples(5)])
    commit = CommitInfo(version=0, time=0, operation="append", rows=0, message="m", source="s")
    await house.tables.commit(TableRef("primary", "datasets/pairs"), [rows], commit)
    document = DatasetDocument(
        dataset="pairs", bucket="primary", path="datasets/pairs", id_column="id", generated_id=False, columns=[],
        created=5.0,
    )  # fmt: skip
    await house.registry.save("pairs", document, expected=None)
    assert says in refused(await house.ask(TrainGate("p", dataset="pairs", **columns))).reason


# --- how to mend it -----------------------------------------------------------------------------


async def test_refusals_say_how_to_mend_it(house: Setting) -> None:
    await house.with_profile(adapters=[Adapter("code", 1.0, str(house.work / "code"))])
    alone = refused(await house.ask(TrainGate("p", examples=examples(4)))).reason
    assert "lakehouse profile set p --adapter NAME=SCALE@FOLDER" in alone
    await house.with_profile()
    for seed, name in enumerate(("code", "prose")):
        write_adapter_folder(house.work / name, seed, config={"base_model_name_or_path": name})
    apart = refused(await house.ask(ExportGate("p", "peft", adapter_mix="code:1"))).reason
    assert "'code' and 'prose'; where both mean the same, write it alike, as base_model_name_or_path in" in apart
