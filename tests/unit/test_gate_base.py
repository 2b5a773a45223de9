"""Which base is at hand: its content, however it is stored; what was made for another is refused, and where it isn't at
hand that is said."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.gate import base_content, core
from actors.gate.base_content import content_job
from actors.gate.phase import Phase
from schemas.events.base import Message, Progress, Refusal
from schemas.events.gate import ExportGate, GateExported, GateTrained, TrainGate
from schemas.gate import ExportManifest
from schemas.profile import Adapter
from tests.unit.gate_adapters import write_base_folder
from tests.unit.gate_setting import Setting, examples


@pytest.fixture
def house(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


def of(kind: Any, said: Message) -> Any:
    assert isinstance(said, kind), said
    return said


def content(base: Path) -> str:
    *_, sha256 = content_job(base)
    assert isinstance(sha256, str)
    return sha256


def other_base(folder: Path) -> str:
    """One value of one weight is another."""
    write_base_folder(folder)
    file = folder / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    return str(folder)


def manifest(folder: Path) -> ExportManifest:
    return msgspec.json.decode((folder / "export_manifest.json").read_bytes(), type=ExportManifest)


async def exported(house: Setting, id: str, **more: Any) -> Any:
    given = {"profile": "p", "target": "peft", "folder": str(house.work / id), **more}
    return await house.ask(ExportGate(**given), id)


# --- content ------------------------------------------------------------------------------------


def test_shards_and_where_it_was_saved_change_nothing(tmp_path: Path) -> None:
    write_base_folder(tmp_path / "one")
    write_base_folder(tmp_path / "three", shards=3, config={"_name_or_path": "/x", "transformers_version": "9"})
    assert content(tmp_path / "one") == content(tmp_path / "three")


@pytest.mark.parametrize("more", [{"dtype": "F16"}, {"config": {"rope_theta": 1e6}}])
def test_types_and_the_configuration_count(tmp_path: Path, more: dict[str, Any]) -> None:
    write_base_folder(tmp_path / "one")
    write_base_folder(tmp_path / "two", **more)
    assert content(tmp_path / "one") != content(tmp_path / "two")


def test_one_bit_counts_and_its_reading_is_told(tmp_path: Path) -> None:
    write_base_folder(tmp_path / "one")
    other_base(tmp_path / "two")
    assert content(tmp_path / "one") != content(tmp_path / "two")
    told = [said for said in content_job(tmp_path / "one") if isinstance(said, Phase)]
    done = [said.done for said in told]
    assert done == sorted(done)
    assert (done[0], done[-1], told[0].unit) == (0, told[0].total, "bytes")


def test_what_is_for_another_base_is_named() -> None:
    a, b = "a" * 64, "b" * 64
    assert core.other_base(None, {"gate r1": None, "adapter code": a}) is None
    assert core.other_base(a, {"gate r1": a, "adapter code": None}) is None
    assert core.other_base(b, {"gate r1": b, "adapter code": a}) == (
        f"adapter code is for a base of content {a[:12]}, the base at hand is {b[:12]}"
    )
    assert core.other_base(None, {"adapter code": a, "adapter prose": b}) == (
        f"adapter prose is for a base of content {b[:12]}, adapter code for {a[:12]}"
    )


# --- trainings ----------------------------------------------------------------------------------


async def test_a_gate_keeps_the_content_of_its_base(house: Setting) -> None:
    await house.with_profile()
    base = house.with_base()
    gate = of(GateTrained, await house.ask(TrainGate("p", examples(5), base=base))).gate
    assert gate.base_sha256 == content(Path(base))
    assert (await house.document()).live.base_sha256 == gate.base_sha256
    told = [said for said in house.bus.told if isinstance(said, Progress) and said.phase == "hash"]
    assert {said.job for said in told} == {gate.run}


async def test_a_base_that_isn_t_at_hand_has_no_content(house: Setting) -> None:
    await house.with_profile()
    house.with_adapters()  # they name org/base, which is no folder
    assert of(GateTrained, await house.ask(TrainGate("p", examples(5)))).gate.base_sha256 is None


async def test_the_folder_that_the_adapters_name_is_the_base_at_hand(house: Setting) -> None:
    await house.with_profile()
    base = house.with_base()
    house.with_adapters(config={"base_model_name_or_path": base})
    assert of(GateTrained, await house.ask(TrainGate("p", examples(5)))).gate.base_sha256 == content(Path(base))
    outside = house.folder / "outside"
    write_base_folder(outside)
    for name in ("code", "prose"):
        config = house.work / name / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(outside)}))
    assert of(GateTrained, await house.ask(TrainGate("p", examples(5)), "m2")).gate.base_sha256 is None


@pytest.mark.parametrize(
    ("base", "status", "says"),
    [
        ("/etc", "forbidden", "outside the folders"),
        ("nowhere", "not_found", "no such"),
        ("empty", "invalid", "base can"),
    ],
)
async def test_a_base_that_can_t_be_read_is_refused(house: Setting, base: str, status: str, says: str) -> None:
    await house.with_profile()
    (house.work / "empty").mkdir()
    path = base if base.startswith("/") else str(house.work / base)
    refused = of(Refusal, await house.ask(TrainGate("p", examples(5), base=path)))
    assert (refused.status, says in refused.reason) == (status, True), refused


@pytest.mark.slow
async def test_a_base_is_read_again_when_its_files_changed(house: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    await house.with_profile()
    base = Path(house.with_base())
    read: list[Path] = []

    def counted(folder: Path) -> Any:
        read.append(folder)
        return content_job(folder)

    monkeypatch.setattr(base_content, "content_job", counted)
    found = [
        of(GateTrained, await house.ask(TrainGate("p", examples(5), base=str(base)), id)).gate.base_sha256
        for id in ("m1", "m2")
    ]
    assert (found[0], read) == (found[1], [base])
    os.utime(base / "config.json", ns=(1, 1))
    assert of(GateTrained, await house.ask(TrainGate("p", examples(5), base=str(base)), "m3"))
    assert read == [base, base]


# --- exports ------------------------------------------------------------------------------------


async def test_a_manifest_has_the_content_beside_the_revision(house: Setting) -> None:
    await house.with_profile()
    house.with_adapters()
    base = house.with_base()
    of(GateExported, await exported(house, "e1", adapter_mix="code:1", base=base, base_revision="abc"))
    told = manifest(house.work / "e1")
    assert (told.base_revision, told.base_sha256) == ("abc", content(Path(base)))
    assert not any("at hand" in note for note in told.notes)
    said = of(GateExported, await exported(house, "e2", adapter_mix="code:1"))
    told = manifest(house.work / "e2")
    assert told.base_sha256 is None
    assert any("isn't at hand" in note for note in told.notes)
    assert said.notes == told.notes


async def test_a_gate_of_another_base_is_not_put_into_this_one(house: Setting) -> None:
    await house.with_profile()
    house.with_adapters()
    base, other = house.with_base(), other_base(house.work / "other")
    gate = of(GateTrained, await house.ask(TrainGate("p", examples(20), base=base))).gate
    refused = of(Refusal, await exported(house, "e1", target="base", base=other))
    assert refused.status == "conflict"
    assert f"gate {gate.run} is for a base of content {gate.base_sha256[:12]}, the base at hand is" in refused.reason
    assert "gate train p --base" in refused.hint
    assert not (house.work / "e1").exists()
    of(GateExported, await exported(house, "e2", target="base", base=base))
    of(GateExported, await exported(house, "e3", target="base", base=other, adapter_mix="code:1"))  # no gate's doing


@pytest.mark.parametrize(("target", "below"), [("peft", "."), ("ollama", "adapter"), ("llamacpp", "adapters/code")])
async def test_an_adapter_that_was_exported_for_another_base_is_refused(
    house: Setting, target: str, below: str
) -> None:
    await house.with_profile()
    house.with_adapters()
    base, other = house.with_base(), other_base(house.work / "other")
    of(GateExported, await exported(house, "mix", target=target, adapter_mix="code:1,prose:1", base=base))
    mixed = Adapter("code", 1.0, str(house.work / "mix" / below))
    await house.with_profile(adapters=[mixed, Adapter("prose", 1.0, str(house.work / "prose"))])
    refused = of(Refusal, await exported(house, "e1", adapter_mix="code:1", base=other))
    assert "adapter code is for a base of content" in refused.reason
    refused = of(Refusal, await house.ask(TrainGate("p", examples(5), base=other)))
    assert "adapter code is for a base of content" in refused.reason
    of(GateExported, await exported(house, "e2", adapter_mix="code:1", base=base))
    of(GateExported, await exported(house, "e3", adapter_mix="prose:1"))  # nothing is at hand to compare
