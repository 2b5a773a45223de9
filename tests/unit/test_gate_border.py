"""What somebody may give the gate that is meant to break it: names that are paths, links that lead elsewhere, files
that lie, numbers too large; and what a killed export leaves."""

import os
import pickle
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from actors.errors import CorruptState, ModelServerError
from actors.gate import core
from actors.gate.adapters import open_adapter, open_adapters
from actors.gate.base_merge import write_base
from actors.gate.core_lora import Unmergeable
from actors.gate.merging import Merge, Weighted, write_adapter
from actors.gate.work import Work
from actors.ports import TableRef
from actors.tensors.checkpoint import open_checkpoint
from actors.tensors.header import CheckpointError
from daemon.models.llamacpp_adapters import Lora, wanted_scales
from schemas.documents.dataset import DatasetDocument
from schemas.documents.gate import GateDocument
from schemas.documents.profile import ProfileDocument
from schemas.events.base import Message, Refusal
from schemas.events.dataset import CommitInfo
from schemas.events.gate import ExportGate, GateExported, GateTrained, Generate, Generated, TrainGate, WeighPrompt
from schemas.events.index import EmbedderSpec
from schemas.events.profile import ProfileDeleted
from schemas.gate import AdapterWeight, ExportManifest
from schemas.profile import Adapter
from tests.unit.gate_adapters import SHAPES, write_adapter_folder, write_base_folder
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


# --- files that lie -----------------------------------------------------------------------------

DEEP = '{"r":' + "[" * 200_000 + "]" * 200_000 + "}"


def test_what_is_wrong_with_a_file_comes_out_of_the_worker_process() -> None:
    for error in (CheckpointError("f", "t", "is NaN"), CheckpointError("f", None, "truncated")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.tensor) == (CheckpointError, str(error), error.tensor)


def test_json_without_end_is_refused(tmp_path: Path) -> None:
    a = write_adapter_folder(tmp_path / "a", 0)
    merge = Merge([Weighted(open_adapter("a", a), 1.0)])
    (a / "adapter_config.json").write_text(DEEP)
    with pytest.raises(Unmergeable, match=r"adapter a: adapter_config\.json can't be read"):
        open_adapter("a", a)
    write_base_folder(tmp_path / "base", shards=2)
    (tmp_path / "base/config.json").write_text(DEEP)
    with pytest.raises(Unmergeable, match=r"config\.json can't be read"):
        list(write_base(merge, tmp_path / "base", tmp_path / "out"))
    (tmp_path / "base/model.safetensors.index.json").write_text(DEEP)
    with pytest.raises(CheckpointError, match="malformed index"):
        open_checkpoint(tmp_path / "base")


@pytest.mark.parametrize(("a", "b"), [((0, 16), (24, 0)), ((4, 0), (24, 4)), ((4, 16), (0, 4))])
def test_empty_factors_are_refused(tmp_path: Path, a: tuple[int, int], b: tuple[int, int]) -> None:
    name = "base_model.model.x.q"
    extra: dict[str, Any] = {
        f"{name}.lora_A.weight": np.ones(a, np.float32),
        f"{name}.lora_B.weight": np.ones(b, np.float32),
    }
    folder = write_adapter_folder(tmp_path / "a", 0, extra=extra, config={"rank_pattern": {"x.q": a[0]}})
    with pytest.raises(Unmergeable, match=r"adapter style: x\.q: .* are empty"):
        open_adapter("style", folder)


@pytest.mark.parametrize("pattern", ["(([a-z._0-9])+)+!", ".*.*.*!", "(a|b){9}", "a?" * 9 + "b", "(a|aa)" * 9])
@pytest.mark.parametrize("which", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_could_be_looked_for_without_end_is_refused(tmp_path: Path, pattern: str, which: str) -> None:
    folder = write_adapter_folder(tmp_path / "a", 0, config={which: {pattern: 4}})
    with pytest.raises(Unmergeable, match=r"adapter style: the pattern .* could be looked for without end"):
        open_adapter("style", folder)


@pytest.mark.parametrize("pattern", [r".*\.layers\.(0|1)\..*", r"layers\.[01]\.(q|up)", r"^model\.layers\.0\.q\+?"])
def test_patterns_as_people_write_them_are_read(tmp_path: Path, pattern: str) -> None:
    folder = write_adapter_folder(tmp_path / "a", 0, config={"alpha_pattern": {pattern: 40}})
    modules = open_adapter("style", folder).modules
    assert {name for name, module in modules.items() if module.alpha == 40} == {
        name for name in SHAPES if re.match(rf"(.*\.)?({pattern})$", name)
    }


def test_a_name_without_end_is_refused(tmp_path: Path) -> None:
    name = "base_model.model." + "x" * 301
    extra: dict[str, Any] = {f"{name}.lora_{factor}.weight": np.ones((4, 4), np.float32) for factor in "AB"}
    with pytest.raises(Unmergeable, match="whose name has 301 characters"):
        open_adapter("style", write_adapter_folder(tmp_path / "a", 0, extra=extra))


# --- numbers too large --------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["code:1e39", "code:1_0", "code:\N{ARABIC-INDIC DIGIT ONE}", "code:-0", "code:1e"])
def test_weights_are_plain_numbers_that_float32_holds(text: str) -> None:
    with pytest.raises(core.NoMix, match="'code' in the adapter mix weighs"):
        core.parse_mix(text, ["code"])


def test_weights_may_be_written_in_any_plain_way() -> None:
    for text, value in (("code: 1", 1.0), ("code:+.5", 0.5), ("code:1.", 1.0), ("code:1e-3", 1e-3), ("code:2E1", 20.0)):
        assert core.parse_mix(text, ["code"]) == [AdapterWeight("code", value)]


@pytest.mark.parametrize(("weight", "alpha"), [(3e38, 8000), (1.0, 1e300)])
def test_a_merge_beyond_float32_is_refused(tmp_path: Path, weight: float, alpha: float) -> None:
    a = write_adapter_folder(tmp_path / "a", 0, config={"lora_alpha": alpha})
    merge = Merge([Weighted(open_adapter("a", a), weight)])
    with pytest.raises(Unmergeable, match=r"adapter a: lora_B of model\.layers\.\S+, .* beyond what float32 holds"):
        write_adapter(merge, tmp_path / "out")
    with pytest.raises(Unmergeable, match="beyond what float32 holds"):
        write_adapter(Merge([Weighted(open_adapter("a", a), weight)], 2), tmp_path / "cut")


@pytest.mark.parametrize(("dtype", "weight", "says"), [("F16", 1e5, "beyond what F16 holds"), ("F32", 3e37, "float32")])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_base_beyond_its_type_is_refused_with_the_tensor(
    tmp_path: Path, dtype: str, weight: float, says: str, transposed: bool
) -> None:
    config = {"fan_in_fan_out": transposed}
    a, b = (write_adapter_folder(tmp_path / name, 0, config=config) for name in "ab")
    arrays = open_adapters({"a": a, "b": b})
    write_base_folder(tmp_path / "base", dtype=dtype, transposed=transposed)
    merge = Merge([Weighted(each, weight) for each in arrays])
    with pytest.raises(Unmergeable, match=rf"the base's model\.layers\.\S+\.weight with the mix added.*{says}"):
        list(write_base(merge, tmp_path / "base", tmp_path / "out"))


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
    assert (said.status, "embedder can't be used" in said.reason) == ("conflict", True)
    house.bus.active = "p"
    spoken = await house.ask(Generate("p", "x"))
    assert isinstance(spoken, Generated)
    assert (spoken.routing, "embedder can't be used" in spoken.note) == ("declared", True)


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
