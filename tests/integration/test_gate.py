"""The gate through a whole daemon: trained over HTTP, its events in SQL, prompts routed to a llama.cpp server of the
tests, exports made by the worker process."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.house import House, HttpError, house
from tests.llama_process import LlamaModel, Lora
from tests.llama_server import LlamaServer, llama_router
from tests.unit.gate_adapters import write_adapter_folder, write_base_folder
from tests.unit.gate_setting import examples

pytestmark = pytest.mark.slow


class Gated:
    """The daemon, asked from a thread, since the model server answers in this one."""

    def __init__(self, daemon: House, play: LlamaServer, work: Path) -> None:
        self.daemon = daemon
        self.play = play
        self.work = work

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        return await asyncio.to_thread(self.daemon.call, method, path, body)


@pytest.fixture
async def gated(tmp_path: Path) -> AsyncIterator[Gated]:
    work = tmp_path / "work"
    for seed, name in enumerate(("code", "prose")):
        write_adapter_folder(work / name, seed)
    write_base_folder(work / "base")
    loras = [Lora("/loras/prose.gguf"), Lora("/loras/code.gguf")]  # the server's order isn't the profile's
    async with llama_router({"tiny": LlamaModel(loras=loras)}) as play:
        settings: dict[str, Any] = {"models__llamacpp_url": play.url, "gate__allowed_roots": [str(work)]}
        settings |= {"agent__enabled": False, "slot__allow_partial": True}
        running = house(tmp_path, **settings)
        daemon = await asyncio.to_thread(running.__enter__)
        made = Gated(daemon, play, work)
        adapters = [{"name": name, "folder": str(work / name)} for name in ("code", "prose")]
        profile = {"id": "p", "model": "tiny", "server": "llamacpp", "adapters": adapters, "bucket": "mine"}
        await made.call("POST", "/vectors/profiles", profile)
        try:
            yield made
        finally:
            await asyncio.to_thread(running.__exit__, None, None, None)


async def test_from_pairs_to_a_routed_prompt_and_an_export(gated: Gated) -> None:
    pairs = [{"prompt": one.prompt, "adapter": one.adapter} for one in examples(40)]
    *told, trained = await gated.call("POST", "/gate/p/train", {"examples": pairs})
    assert [(line["phase"], line["done"]) for line in told] == [
        ("embed", 0),
        ("embed", 80),
        ("train", 0),
        ("train", 200),
    ]
    assert {line["job"] for line in told} == {trained["gate"]["run"]}
    run = trained["gate"]["run"]
    assert (trained["gate"]["mode"], trained["live"], trained["asked_by"]) == ("trained", True, "http")
    weights = (await gated.call("POST", "/gate/p/weights", {"prompt": "import async lambda yield"}))["weights"]
    assert [one["adapter"] for one in weights] == ["code", "prose"]
    assert weights[0]["weight"] > weights[1]["weight"]
    rows = (await gated.call("POST", "/sql", {"query": f"SELECT * FROM gate_events WHERE run = '{run}'"}))["rows"]
    assert len(rows) == 2

    with pytest.raises(HttpError) as refused:
        await gated.call("POST", "/vectors/profile/p/generate", {"prompt": "import"})
    assert refused.value.status == 409
    await gated.call("POST", "/vectors/profile/p/activate")
    said = await gated.call("POST", "/vectors/profile/p/generate", {"prompt": "import async lambda yield"})
    assert (said["routing"], said["text"].split()[0], said["run"]) == ("top1", "code0", run)
    assert gated.play.models["tiny"].asked == [0.0, 1.0]
    mixed = {"prompt": "x", "adapter_mix": "prose:0.5"}
    assert (await gated.call("POST", "/vectors/profile/p/generate", mixed))["text"].startswith("prose0")
    assert [lora.scale for lora in gated.play.models["tiny"].loras] == [1.0, 1.0]  # as activation set them

    for target in ("peft", "base"):
        folder = gated.work / f"out-{target}"
        order = {"target": target, "folder": str(folder), "base": str(gated.work / "base")}
        *told, made = await gated.call("POST", "/gate/p/export", order)
        assert "merge" in {line["phase"] for line in told}
        assert made["banner"].startswith(f"gate {run} puts in code ")
        assert json.loads((folder / "export_manifest.json").read_text())["gate_mode"] == "static_mean"
    shown = await gated.call("GET", "/gate/p")
    assert [one["target"] for one in shown["exports"]] == ["base", "peft"]

    *_, unmerged = await gated.call(
        "POST", "/gate/p/export", {"target": "peft", "folder": str(gated.work / "x"), "rank": 1}
    )
    assert (unmerged["type"], unmerged["status"], "max_error" in unmerged["reason"]) == ("refusal", "invalid", True)
    with pytest.raises(HttpError) as early:
        await gated.call("POST", "/gate/p/export", {"target": "peft", "weights": "explicit"})
    assert early.value.status == 422
    with pytest.raises(HttpError) as unknown:
        await gated.call("POST", "/gate/p/train", {"examples": [], "exmaples": []})
    assert unknown.value.status == 400
