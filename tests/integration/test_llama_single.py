"""The slot, end to end, on a real llama-server in single mode: its one model stays for as long as it
runs, and nobody says that it has left."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.integration.house import ROOT
from tests.integration.llama_house import Llamas, llama_house, ready, refused, router_arguments, single_arguments

pytestmark = pytest.mark.slow


@contextmanager
def ollama() -> Iterator[str]:
    """An Ollama of the tests, by its URL."""
    command = [sys.executable, "-m", "tests.ollama_server", "--vram", "12", "--play", json.dumps({"load_s": 0.02})]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llamas]:
    """Beside an Ollama."""
    folder = tmp_path_factory.mktemp("single")
    settings = {"agent__enabled": False, "slot__reconcile_s": 0.5}
    with ollama() as url, llama_house(folder, single_arguments(folder), models__ollama_url=url, **settings) as made:
        made.profile("alone", "alone", adapters=[{"name": "style", "scale": 0.5}])
        made.profile("other", "other")
        made.profile("elsewhere", "mistral:7b", server="ollama")
        yield made


def test_a_single_mode_servers_profile_is_activated_and_can_not_be_emptied(single: Llamas) -> None:
    answer = single.activate("alone")
    assert (answer["loaded"], [ref["model"] for ref in answer["kept"]]) == ([], ["alone"])
    assert single.scales("alone") == {"style": 0.5, "law": 0.0}
    ready(single, "alone")
    began = time.monotonic()
    assert "router mode" in refused(409, single.deactivate, "alone")
    assert "router mode" in refused(409, single.call, "POST", "/admin/unload", {"model": "alone"})
    assert "single mode and has alone" in refused(404, single.activate, "other")
    assert time.monotonic() - began < 3
    assert single.slot()["state"] == "ready"
    ready(single, "alone")
    (listed,) = single.vram().values()
    assert listed["fixed"]


def test_a_profile_in_whose_way_a_single_mode_server_is_is_refused_and_the_slot_stays_true(single: Llamas) -> None:
    single.activate("alone")
    assert "single mode" in refused(409, single.activate, "elsewhere")
    assert single.completes("alone")
    single.until(lambda: single.slot()["state"] == "ready", "the slot is sure again", 10)
    ready(single, "alone")


def test_a_single_mode_server_that_is_ended_leaves_the_slot_to_others_when_a_router_is_in_its_place(
    single: Llamas,
) -> None:
    single.activate("alone")
    single.kill_server()
    single.until(lambda: single.slot()["state"] == "unknown", "the slot is in doubt", 15)
    single.start_server(router_arguments(single.daemon.folder / "routed"))
    single.until(lambda: single.slot()["state"] == "empty", "the slot sees that nothing is loaded", 20)
    assert single.activate("elsewhere")["profile"] == "elsewhere"
