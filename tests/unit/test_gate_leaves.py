"""What trainings and exports leave in a bucket: what is used or listed, and no more."""

from pathlib import Path

import pytest

from actors.errors import Transient
from schemas.documents.gate import MOST_EXPORTS
from schemas.events.base import Message
from schemas.events.gate import ExportGate, GateExported, GateTrained, PromptWeights, TrainGate, WeighPrompt
from tests.unit.gate_setting import Setting, examples, of, trained


@pytest.fixture
def house(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


async def names(house: Setting, below: str) -> set[str]:
    return {key.removeprefix(f"{below}/") for key in await house.buckets.list("mine", below)}


@pytest.mark.slow
async def test_a_run_that_is_neither_live_nor_last_leaves_its_metadata_alone(
    house: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.with_profile()
    first = (await trained(house)).gate.run
    assert await names(house, f"gates/p/{first}") == {"gate.json", "gate.safetensors", "embedder.bin"}
    second = (await trained(house, id="m2")).gate.run
    assert await names(house, f"gates/p/{first}") == {"gate.json"}
    from actors.gate import core_mlp

    with monkeypatch.context() as patched:
        patched.setattr(core_mlp.fit, "__defaults__", (core_mlp.Recipe(rate=1e300),))
        bad = (await trained(house, id="m3")).gate.run
    for run in (second, bad):  # live, and last
        assert await names(house, f"gates/p/{run}") == {"gate.json", "gate.safetensors", "embedder.bin"}
    of(PromptWeights, await house.ask(WeighPrompt("p", "x")))
    await trained(house, id="m4")
    for run in (first, second, bad):
        assert await names(house, f"gates/p/{run}") == {"gate.json"}


async def test_an_export_goes_when_it_falls_off_the_list(house: Setting) -> None:
    await house.with_profile()
    house.with_adapters()
    outside = house.work / "out"
    command = ExportGate("p", "peft", adapter_mix="code:1")
    await house.ask(ExportGate("p", "peft", adapter_mix="code:1", folder=str(outside)), "folder")
    places = [of(GateExported, await house.ask(command, f"e{n}")).export.place for n in range(MOST_EXPORTS + 2)]
    listed = [export.place for export in (await house.document()).exports]
    assert listed == places[:1:-1]
    kept = {f"bucket://mine/gates/p/exports/{name.split('/')[0]}" for name in await names(house, "gates/p/exports")}
    assert kept == set(listed)
    assert outside.is_dir()  # what has a folder of its own is its owner's


async def test_nothing_goes_before_the_document_says_so(house: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    await house.with_profile()
    first = (await trained(house)).gate.run
    with monkeypatch.context() as patched:
        patched.setattr("actors.gate.train_step.change", None)
        with pytest.raises(TypeError):
            await trained(house, id="m2")
    assert len(await names(house, f"gates/p/{first}")) == 3
    of(PromptWeights, await house.ask(WeighPrompt("p", "x")))


async def test_a_question_to_a_gate_that_is_being_replaced_is_asked_again(
    house: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.with_profile()
    await trained(house)
    load = house.gates._embedders.load

    async def late(*given: object) -> object:
        await trained(house, 30, "m2")
        return await load(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(house.gates._embedders, "load", late)
        with pytest.raises(Transient, match="being replaced"):
            await house.ask(WeighPrompt("p", "x"))
    said: Message = await house.ask(WeighPrompt("p", "x"))
    of(PromptWeights, said)


@pytest.mark.slow
async def test_the_gates_that_were_asked_last_stay_in_memory(house: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.gate.gates.KEPT", 2)
    runs = {}
    for name in ("p", "q", "r"):
        await house.with_profile(name)
        said = of(GateTrained, await house.ask(TrainGate(name, examples(8)), f"of-{name}"))
        runs[said.gate.run] = name
    for name in ("p", "q", "p", "r"):
        of(PromptWeights, await house.ask(WeighPrompt(name, "x")))
    assert [runs[run] for run, _ in house.gates._loaded] == ["p", "r"]
