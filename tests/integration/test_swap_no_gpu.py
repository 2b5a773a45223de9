"""The slot on a machine without a GPU: nothing can be counted, and models run on the CPU if that
is allowed."""

from pathlib import Path

import pytest

from tests.integration.swap_house import swap_house
from tests.integration.test_swap import CODER, EMBEDDER, NOMIC, WRITER


def test_profiles_take_turns_on_the_cpu(tmp_path: Path) -> None:
    with swap_house(tmp_path, vram=0, agent__enabled=False, slot__allow_partial=True) as swaps:
        report = swaps.call("GET", "/admin/vram")
        if report["gpus"]:
            pytest.skip("this machine has a GPU")
        assert report["reason"]
        assert (report["total"], report["used"], report["free"], report["unaccounted"]) == (None, None, None, None)
        swaps.profile("coder", CODER, embedder=NOMIC)
        swaps.profile("writer", WRITER, embedder=NOMIC)
        swaps.profile("huge", "llama3:70b")  # no arithmetic stands against it
        for id, model in (("coder", CODER), ("writer", WRITER)):
            answer = swaps.activate(id)
            assert {one["model"]: one["size_vram"] for one in answer["models"]} == {model: 0, EMBEDDER: 0}
            assert swaps.resident() == {model, EMBEDDER}
        assert [one["model"] for one in answer["kept"]] == [EMBEDDER]
        assert swaps.activate("huge")["previous"] == "writer"
        assert swaps.resident() == {"llama3:70b"}
        assert swaps.active()["state"] == "ready"
