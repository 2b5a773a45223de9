"""The slot, end to end, on a real llama-server and a real daemon: in router mode models come and go as
processes, their adapters are scaled, and everything that can break breaks."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPException

import pytest

from tests.integration.house import HttpError
from tests.integration.llama_house import Llamas, alive, llama_house, ready, refused, router_arguments

pytestmark = pytest.mark.slow

EMBEDDER = {"kind": "openai", "model": "three"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llamas]:
    folder = tmp_path_factory.mktemp("llamas")
    with llama_house(folder, router_arguments(folder), agent__enabled=False, slot__reconcile_s=0.5) as made:
        made.profile("first", "one")
        made.profile("second", "two")
        made.profile("twin", "two.gguf", exclusive=False)
        made.profile("broken", "broken")
        made.profile("styled", "tiny", adapters=[{"name": "style", "scale": 0.5}])
        made.profile("legal", "tiny", adapters=[{"name": "law.gguf", "scale": 0.25}, {"name": "style", "scale": 2}])
        made.profile("odd", "tiny", adapters=[{"name": "style", "scale": 3}, {"name": "nobody"}])
        made.profile("brief", "tiny", adapters=[{"name": "style", "scale": 0.5}], keep_alive="10m")
        yield made


@pytest.fixture
def llamas(shared: Llamas) -> Llamas:
    """With a slot that knows."""
    shared.until(lambda: shared.active()["state"] in ("empty", "ready"), "the slot is certain", 20)
    return shared


def emptied(llamas: Llamas) -> None:
    if profile := llamas.active()["profile"]:
        llamas.deactivate(profile)
    for model in llamas.resident():
        llamas.call("POST", "/admin/unload", {"model": model})
    assert llamas.resident() == set()


# --- swaps --------------------------------------------------------------------------------------


def test_exclusive_profiles_swap_and_the_old_models_process_is_gone(llamas: Llamas) -> None:
    llamas.activate("first")
    old = llamas.process("one")
    assert llamas.completes("one")
    answer = llamas.activate("second")
    assert not alive(old)
    assert llamas.resident() == {"two"}
    assert alive(llamas.process("two"))
    assert llamas.completes("two")
    assert not llamas.completes("one")
    assert [ref["model"] for ref in answer["unloaded"]] == ["one"]
    assert [ref["model"] for ref in answer["loaded"]] == ["two"]
    (model,) = answer["models"]
    assert (model["size"], model["size_vram"], model["expires_at"]) == (461_568, None, None)
    ready(llamas, "second")


def test_the_same_model_is_not_loaded_again(llamas: Llamas) -> None:
    llamas.activate("second")
    process = llamas.process("two")
    answer = llamas.activate("twin")
    assert (answer["loaded"], answer["unloaded"]) == ([], [])
    assert [ref["model"] for ref in answer["kept"]] == ["two"]
    assert llamas.process("two") == process
    ready(llamas, "twin")


def test_a_model_that_does_not_load_is_told_and_the_old_one_is_back(llamas: Llamas) -> None:
    llamas.activate("first")
    reason = refused(409, llamas.activate, "broken")
    assert "broken" in reason
    assert "exit code 1" in reason
    assert "'first' is back" in reason
    assert llamas.resident() == {"one"}
    assert llamas.completes("one")
    ready(llamas, "first")


def test_a_model_that_the_server_lacks_is_refused_before_anything_leaves(llamas: Llamas) -> None:
    llamas.activate("first")
    process = llamas.process("one")
    if not any(each["profile"]["id"] == "nowhere" for each in llamas.call("GET", "/vectors/profiles")["profiles"]):
        llamas.profile("nowhere", "nowhere")
    assert "has no model nowhere" in refused(404, llamas.activate, "nowhere")
    assert llamas.process("one") == process
    ready(llamas, "first")


def test_deactivation_ends_the_process(llamas: Llamas) -> None:
    llamas.activate("first")
    process = llamas.process("one")
    assert [ref["model"] for ref in llamas.deactivate("first")["unloaded"]] == ["one"]
    assert not alive(process)
    assert llamas.active()["state"] == "empty"
    assert llamas.resident() == set()


# --- adapters -----------------------------------------------------------------------------------


def test_profiles_on_one_model_scale_its_adapters_without_a_reload(llamas: Llamas) -> None:
    llamas.activate("styled")
    process = llamas.process("tiny")
    assert llamas.scales() == {"style": 0.5, "law": 0.0}
    assert llamas.activate("legal")["loaded"] == []
    assert llamas.scales() == {"style": 2.0, "law": 0.25}
    llamas.activate("styled")
    assert llamas.scales() == {"style": 0.5, "law": 0.0}
    assert llamas.process("tiny") == process


@pytest.mark.parametrize("before", ["first", "styled"])
def test_an_unknown_adapter_is_refused_and_the_old_profile_is_back(llamas: Llamas, before: str) -> None:
    """Also where the old profile has the same model, with scales of its own."""
    llamas.activate(before)
    reason = refused(404, llamas.activate, "odd")
    assert "no adapter nobody" in reason
    assert "style, law" in reason
    assert f"{before!r} is back" in reason
    assert llamas.resident() == ({"one"} if before == "first" else {"tiny"})
    if before == "styled":
        assert llamas.scales() == {"style": 0.5, "law": 0.0}
    ready(llamas, before)


def test_a_preload_leaves_the_active_profiles_scales(llamas: Llamas) -> None:
    llamas.activate("brief")
    report = llamas.call("POST", "/admin/preload", {"model": "tiny", "keep_alive": "2h"})
    assert not report["changed"]
    assert report["expires_at"] == pytest.approx(time.time() + 7200, abs=20)
    assert llamas.scales() == {"style": 0.5, "law": 0.0}


def test_a_replaced_profile_scales_anew_at_its_next_activation(llamas: Llamas) -> None:
    llamas.profile("changing", "tiny", adapters=[{"name": "style", "scale": 0.5}])
    llamas.activate("changing")
    process = llamas.process("tiny")
    for adapters, scale in (([{"name": "style", "scale": 0.75}], 0.75), ([], 0.0)):
        body = {"id": "changing", "model": "tiny", "server": "llamacpp", "adapters": adapters}
        llamas.call("PUT", "/vectors/profiles/changing", body)
        llamas.activate("changing")
        assert llamas.scales() == {"style": scale, "law": 0.0}, "none named is none on"
    assert llamas.process("tiny") == process


# --- an embedding model that llama.cpp runs -----------------------------------------------------


@pytest.fixture(scope="module")
def notes(shared: Llamas) -> str:
    """A text index that model three embeds, made while its profile is active."""
    folder = shared.daemon.folder
    table = folder / "notes.csv"
    table.write_text("id,text\n" + "\n".join(f'{n},"note {n} on topic {n % 7}"' for n in range(60)))
    shared.daemon.ingest(table, "notes", id_column="id")
    shared.profile("reader", "one", embedder=EMBEDDER, indexes=["notes"])
    shared.profile("stranger", "two", indexes=["notes"])
    with suppress(HttpError):  # its index isn't there yet: what it needs is
        shared.profile("maker", "one", embedder=EMBEDDER)
    shared.activate("maker")
    body = {"name": "notes", "dataset": "notes", "column": "text", "embedder": EMBEDDER}
    shared.call("POST", "/vectors/indexes", body)
    shared.daemon.index_ready("notes", 60)
    return "notes"


def test_a_text_search_takes_the_profiles_embedder_only_while_it_is_active(llamas: Llamas, notes: str) -> None:
    answer = llamas.activate("reader")
    assert llamas.resident() == {"one", "three"}
    assert [index["reason"] for index in answer["indexes"]] == [""]
    body = {"text": "note 17 on topic 3", "k": 3}
    found = llamas.call("POST", "/vectors/profile/reader/search", body)
    assert found["index"] == notes
    assert found["queries"][0][0]["id"] == 17
    assert found["queries"][0][0]["distance"] == pytest.approx(0, abs=1e-3)

    llamas.activate("second")
    assert llamas.resident() == {"two"}
    reason = refused(409, llamas.call, "POST", "/vectors/profile/reader/search", body)
    assert "llamacpp/three" in reason
    assert llamas.resident() == {"two"}, "nothing was loaded behind the active profile's back"
    refused(422, llamas.activate, "stranger")
    assert "llamacpp/three" in refused(422, llamas.call, "POST", "/vectors/profile/stranger/search", body)
    ready(llamas, "second")


def test_rows_that_come_while_another_profile_is_active_are_embedded_at_the_next_activation(
    llamas: Llamas, notes: str
) -> None:
    llamas.activate("second")
    more = llamas.daemon.folder / "more.csv"
    more.write_text("id,text\n" + "\n".join(f'{n},"note {n} on topic {n % 7}"' for n in range(60, 80)))
    llamas.daemon.ingest(more, "notes", id_column="id")
    words = refused(503, llamas.call, "POST", "/vectors/search", {"index": notes, "text": "note 61", "k": 1})
    assert "model is not loaded" in words
    assert llamas.resident() == {"two"}, "nothing was loaded behind the active profile's back"
    llamas.activate("reader")
    llamas.daemon.index_ready(notes, 80)
    body = {"text": "note 71 on topic 1", "k": 1}

    def found() -> bool:  # it has a vector, and is searched a moment later
        return bool(llamas.call("POST", "/vectors/profile/reader/search", body)["queries"][0][0]["id"] == 71)

    llamas.daemon.until(found, "note 71 is found", 30)


def test_an_embedder_by_the_routers_address_is_the_same_model(llamas: Llamas, notes: str) -> None:
    llamas.profile("byurl", "one", embedder=EMBEDDER | {"url": f"{llamas.server.url}/v1"}, indexes=[notes])
    llamas.activate("byurl")
    assert llamas.resident() == {"one", "three"}
    kept = llamas.activate("reader")["kept"]
    assert {ref["model"] for ref in kept} == {"one", "three"}


# --- admin --------------------------------------------------------------------------------------


def test_preload_and_unload_are_idempotent_and_vram_lists_what_is_there(llamas: Llamas) -> None:
    emptied(llamas)
    first = llamas.call("POST", "/admin/preload", {"model": "two"})
    assert (first["server"], first["changed"], first["loaded"]) == ("llamacpp", True, True)
    assert first["expires_at"] == pytest.approx(time.time() + 300, abs=20)
    assert not llamas.call("POST", "/admin/preload", {"model": "two"})["changed"]
    listed = llamas.vram()
    assert listed.keys() == {"two"}
    assert (listed["two"]["size"], listed["two"]["size_vram"]) == (461_568, None)
    process = llamas.process("two")
    assert llamas.call("POST", "/admin/unload", {"model": "two"})["changed"]
    assert not alive(process)
    assert not llamas.call("POST", "/admin/unload", {"model": "two"})["changed"]
    assert llamas.vram() == {}
    assert "no model nothing" in refused(404, llamas.call, "POST", "/admin/preload", {"model": "nothing"})


def test_an_unused_preload_leaves_when_its_time_is_up(llamas: Llamas) -> None:
    emptied(llamas)
    llamas.call("POST", "/admin/preload", {"model": "two", "keep_alive": "2s"})
    process, began = llamas.process("two"), time.monotonic()
    while time.monotonic() - began < 4:
        assert llamas.completes("two"), "what is used stays"
        time.sleep(0.3)
    llamas.until(lambda: not alive(process), "the unused model is unloaded", 15)
    llamas.until(lambda: llamas.vram() == {}, "it is no longer listed", 5)
    assert llamas.active()["state"] == "empty"


def test_unloading_the_profiles_model_deactivates_it(llamas: Llamas) -> None:
    llamas.activate("first")
    assert "first" in refused(409, llamas.call, "POST", "/admin/preload", {"model": "two"})
    llamas.call("POST", "/admin/unload", {"model": "one"})
    assert llamas.active()["state"] == "empty"
    assert llamas.resident() == set()


# --- what breaks --------------------------------------------------------------------------------


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does nothing, until the block ends."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def order(llamas: Llamas, profile: str) -> None:
    with suppress(OSError, HTTPException):  # whoever asked a daemon that dies gets no answer
        llamas.activate(profile)


def agrees(llamas: Llamas) -> bool:
    """Whether the slot of `first` and `second` is settled, and as the router has it."""
    slot, resident = llamas.slot(), llamas.resident()
    own = {"first": {"one"}, "second": {"two"}}.get(slot["profile"] or "", set())
    return bool((slot["state"] == "ready" and resident == own) or (slot["state"] == "empty" and not resident))


def test_a_model_whose_process_dies_leaves_an_empty_slot(llamas: Llamas) -> None:
    llamas.activate("first")
    os.kill(llamas.process("one"), signal.SIGKILL)
    llamas.until(lambda: llamas.slot()["state"] == "empty", "the slot sees that its model is gone", 15)
    assert llamas.activate("first")["profile"] == "first"
    assert llamas.completes("one")


def test_a_restart_of_the_daemon_finds_its_slot(llamas: Llamas) -> None:
    llamas.activate("styled")
    process = llamas.process("tiny")
    llamas.daemon.kill()
    llamas.daemon.start()
    ready(llamas, "styled")
    assert llamas.process("tiny") == process
    assert llamas.scales() == {"style": 0.5, "law": 0.0}


@pytest.mark.parametrize("moment", ["unloading", "loading"])
def test_a_daemon_killed_in_the_middle_of_a_swap_says_what_is_true_afterwards(llamas: Llamas, moment: str) -> None:
    """The process in whose middle it happens is held: until the daemon is back, nothing moves on."""
    llamas.activate("first")
    with ExitStack() as held:
        if moment == "unloading":
            held.enter_context(stopped(llamas.process("one")))
        ordering = threading.Thread(target=order, args=(llamas, "second"))
        ordering.start()
        if moment == "loading":
            held.enter_context(stopped(llamas.next_process("two")))
        llamas.until(lambda: llamas.slot()["state"] == moment, f"the slot is {moment}", 5)
        llamas.daemon.kill()
        ordering.join()
        llamas.daemon.start()
        slot = llamas.active()
        assert slot["state"] != "ready", slot
        assert slot["state"] != "empty" or not llamas.resident(), "a process that loads is ended at once, held or not"
    llamas.until(lambda: agrees(llamas), "the slot agrees with the router", 30)
    assert llamas.activate("second")["profile"] == "second"
    assert llamas.resident() == {"two"}


def test_an_unload_that_never_ends_leaves_the_slot_unknown_and_it_heals(llamas: Llamas) -> None:
    llamas.activate("first")
    with ExitStack() as held:
        held.enter_context(stopped(llamas.process("one")))
        refusals: list[str] = []
        began = time.monotonic()
        ordering = threading.Thread(target=lambda: refusals.append(refused(409, llamas.activate, "second")))
        ordering.start()
        llamas.until(lambda: llamas.slot()["state"] == "unloading", "the unload has begun", 5)
        time.sleep(0.3)
        held.enter_context(stopped(llamas.server.pid))  # or it would kill the model's process after 10 s
        ordering.join()
        assert time.monotonic() - began < 17
        assert "models haven't left the memory after 15 s" in refusals[0]
        assert llamas.active()["state"] == "unknown"
    llamas.until(lambda: agrees(llamas), "the slot agrees with the router", 30)
    assert llamas.activate("second")["profile"] == "second"
    assert llamas.resident() == {"two"}


def test_a_router_that_dies_leaves_the_slot_unknown_until_it_is_back(llamas: Llamas) -> None:
    llamas.activate("first")
    process = llamas.process("one")
    llamas.kill_server()
    assert llamas.active()["state"] == "unknown", "a look says so at once"
    llamas.until(lambda: llamas.slot()["state"] == "unknown", "the slot is in doubt", 15)
    assert "llama.cpp" in llamas.active()["reason"]
    for order in (llamas.activate, llamas.deactivate):
        assert "llama.cpp" in refused(503, order, "first")
    assert "llama.cpp" in refused(503, llamas.activate, "second")
    llamas.until(lambda: not alive(process), "its model has ended with it", 15)
    llamas.start_server()
    llamas.until(lambda: llamas.slot()["state"] == "empty", "the slot sees that nothing is loaded", 20)
    assert llamas.resident() == set()
    assert llamas.activate("second")["profile"] == "second"
    assert llamas.completes("two")


def test_a_router_that_comes_back_with_the_model_is_the_profiles_again(llamas: Llamas) -> None:
    """Somebody else has loaded it, with every adapter at its full scale: it is ready with its own."""
    llamas.activate("styled")
    llamas.kill_server()
    llamas.until(lambda: llamas.slot()["state"] == "unknown", "the slot is in doubt", 15)
    llamas.start_server()
    llamas.ask("/models/load", {"model": "tiny"})
    llamas.until(lambda: llamas.slot()["state"] == "ready", "the slot is sure again", 20)
    ready(llamas, "styled")
    assert llamas.resident() == {"tiny"}
    assert llamas.scales() == {"style": 0.5, "law": 0.0}
