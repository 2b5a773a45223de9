"""Adapters and bases whose files lie, and numbers that are too large: refused with the place, whatever they say."""

import json
import pickle
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.gate import core
from actors.gate.adapters import open_adapter, open_adapters
from actors.gate.base_merge import write_base
from actors.gate.core_lora import Unmergeable
from actors.gate.merging import Merge, Weighted, write_adapter
from actors.tensors.checkpoint import open_checkpoint
from actors.tensors.header import CheckpointError
from schemas.events.base import Refusal
from schemas.events.gate import ExportGate, GateExported, GateTrained, TrainGate
from schemas.gate import AdapterWeight
from tests.unit.gate_adapters import SHAPES, write_adapter_folder, write_base_folder
from tests.unit.gate_setting import Setting, examples

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


async def test_a_manifest_without_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies above an adapter's folder, where anybody may have put it."""
    house = Setting(tmp_path)
    await house.with_profile()
    house.with_adapters()
    base = house.with_base()
    file = {"key": "code/adapter_model.safetensors", "sha256": "0" * 64, "bytes": 1}
    told = {"files": [file], "base_sha256": "1" * 64, "more": " " * 5000}
    (house.work / "export_manifest.json").write_text(json.dumps(told))
    command = ExportGate("p", "peft", adapter_mix="code:1", base=base)
    said = await house.ask(command)
    assert isinstance(said, Refusal)
    assert "adapter code is for a base of content" in said.reason
    monkeypatch.setattr("actors.gate.adapters.MOST_SMALL", 5000)
    assert isinstance(await house.ask(command), GateExported)
    assert isinstance(await house.ask(TrainGate("p", examples(8), base=base)), GateTrained)


async def test_a_configuration_without_end_is_not_read(tmp_path: Path) -> None:
    house = Setting(tmp_path)
    await house.with_profile()
    house.with_adapters()
    with (house.work / "code/adapter_config.json").open("ab") as file:
        file.write(b" " * (17 << 20))
    assert isinstance(await house.ask(TrainGate("p", examples(8))), GateTrained)
    said = await house.ask(ExportGate("p", "peft", adapter_mix="code:1"))
    assert isinstance(said, Refusal)
    assert "code/adapter_config.json: more than 16 MiB" in said.reason


async def test_files_of_others_are_read_beside_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = Setting(tmp_path)
    await house.with_profile()
    house.with_adapters()
    (house.work / "export_manifest.json").write_text("{}")
    threads: set[int] = set()
    opened = Path.open

    def seen(path: Path, *given: Any, **more: Any) -> Any:
        if path.name in ("export_manifest.json", "adapter_config.json"):
            threads.add(threading.get_ident())
        return opened(path, *given, **more)

    monkeypatch.setattr(Path, "open", seen)
    assert isinstance(await house.ask(TrainGate("p", examples(8))), GateTrained)
    assert threads
    assert threading.get_ident() not in threads


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
