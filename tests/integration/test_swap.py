"""The slot, end to end, on a real daemon: profiles take turns on a GPU that an Ollama fills, over
HTTP and the bus, with everything that goes wrong on the way, and a search that stays in its scope."""

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from typing import Any

import nats
import pytest

from tests.integration.house import HttpError
from tests.integration.swap_house import GIB, Swaps, swap_house
from tests.integration.test_main_road import ROWS, parquet, vectors

CODER, WRITER, HUGE, EMBEDDER = "qwen2.5-coder:14b", "mistral:7b", "llama3:70b", "nomic-embed-text:latest"
NOMIC = {"kind": "ollama", "model": "nomic-embed-text"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swaps]:
    with swap_house(tmp_path_factory.mktemp("swap"), agent__enabled=False, slot__reconcile_s=0.5) as made:
        made.profile("coder", "qwen2.5-coder:14b", embedder=NOMIC)
        made.profile("writer", "mistral:7b", embedder=NOMIC)
        made.profile("editor", "mistral:7b")
        made.profile("huge", "llama3:70b")
        yield made


@pytest.fixture
def swaps(shared: Swaps) -> Swaps:
    """With an Ollama that behaves and a slot that knows."""
    shared.play(stuck=[], partial={}, broken={}, slow={}, stale_ps=False, load_s=0.02, drain_s=0.05)
    shared.until(lambda: shared.active()["state"] in ("empty", "ready"), "the slot is certain", 10)
    return shared


@contextmanager
def heard(swaps: Swaps, match: str) -> Iterator[list[dict[str, Any]]]:
    """What GET /events says meanwhile; closed half a second after the block."""
    said: list[dict[str, Any]] = []
    request = urllib.request.Request(
        f"http://127.0.0.1:{swaps.daemon.port}/events?match={match}",
        headers={"Authorization": f"Bearer {swaps.daemon.token}"},
    )
    stream = urllib.request.urlopen(request, timeout=10)
    assert stream.readline().startswith(b": listening")

    def listen() -> None:
        try:
            said.extend(json.loads(line[6:]) for line in stream if line.startswith(b"data: "))
        except (TimeoutError, OSError, ValueError, AttributeError):
            return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    yield said
    time.sleep(0.5)


def refused(status: int, call: Any, *arguments: Any) -> str:
    """The refusal's reason and hint."""
    with pytest.raises(HttpError) as caught:
        call(*arguments)
    assert caught.value.status == status, caught.value
    return f"{caught.value.body['reason']} | {caught.value.body['hint']}"


# --- the swap -----------------------------------------------------------------------------------


def test_profiles_take_turns_and_what_they_share_stays(swaps: Swaps) -> None:
    swaps.activate("coder")
    assert swaps.resident() == {CODER, EMBEDDER}
    with heard(swaps, "slot.*,model.*,profile.*") as said:
        answer = swaps.activate("writer")
    assert swaps.resident() == {WRITER, EMBEDDER}
    assert answer["previous"] == "coder"
    assert [ref["model"] for ref in answer["unloaded"]] == [CODER]
    assert [ref["model"] for ref in answer["loaded"]] == [WRITER]
    assert [ref["model"] for ref in answer["kept"]] == [EMBEDDER]
    assert all(model["size_vram"] == model["size"] > 0 for model in answer["models"])
    assert answer["took_ms"] >= answer["servers_ms"] > 0
    messages = [(event["message"]["type"], event["message"]) for event in said]
    assert {tag for tag, _ in messages} >= {
        "model.unloaded", "model.loaded", "profile.activated", "profile.deactivated", "slot.changed",
    }  # fmt: skip
    unloaded = next(message for tag, message in messages if tag == "model.unloaded")
    assert unloaded["freed"] == pytest.approx(10_800_000_000, rel=0.01), "the GPU's own reading says so"
    slot = [message for tag, message in messages if tag == "slot.changed"][-1]["slot"]
    assert (slot["state"], slot["profile"]) == ("ready", "writer")


def test_the_same_model_is_neither_unloaded_nor_loaded(swaps: Swaps) -> None:
    swaps.activate("writer")
    answer = swaps.activate("editor")
    assert answer["loaded"] == []
    assert [ref["model"] for ref in answer["kept"]] == [WRITER]
    assert swaps.active()["profile"] == "editor"


def test_what_cannot_fit_is_refused_before_anything_is_unloaded(swaps: Swaps) -> None:
    swaps.activate("coder")
    reason = refused(422, swaps.activate, "huge")
    assert "37.2 GiB" in reason, reason
    assert swaps.resident() == {CODER, EMBEDDER}
    assert swaps.active()["profile"] == "coder"


def test_a_model_that_is_partly_on_the_cpu_is_refused_and_the_old_one_is_back(swaps: Swaps) -> None:
    swaps.activate("coder")
    swaps.play(partial={WRITER: 0.5})
    with heard(swaps, "slot.failed") as said:
        reason = refused(409, swaps.activate, "writer")
    assert "4.9 GiB" in reason, reason
    assert "2.5 GiB" in reason, reason
    assert swaps.resident() == {CODER, EMBEDDER}
    slot = swaps.active()
    assert (slot["state"], slot["profile"]) == ("ready", "coder")
    assert said[0]["message"]["restored"] == "coder"


def test_a_model_that_breaks_is_told_in_the_servers_words(swaps: Swaps) -> None:
    swaps.activate("coder")
    swaps.play(broken={WRITER: "llama runner process has terminated: signal: killed"})
    assert "signal: killed" in refused(409, swaps.activate, "writer")
    assert swaps.active()["profile"] == "coder"
    assert swaps.active()["state"] == "ready"


def test_an_unload_that_never_ends_leaves_the_slot_unknown_and_it_heals(swaps: Swaps) -> None:
    swaps.activate("coder")
    swaps.play(stuck=[CODER])
    started = time.monotonic()
    reason = refused(409, swaps.activate, "writer")
    assert time.monotonic() - started < 17
    assert CODER in reason
    assert swaps.active()["state"] == "unknown"
    assert CODER in swaps.active()["reason"]
    swaps.play(stuck=[])
    swaps.until(lambda: swaps.active()["state"] == "empty", "the slot sees that it is free", 10)
    assert swaps.activate("writer")["profile"] == "writer"


def test_orders_wait_their_turn_or_are_refused_at_once(swaps: Swaps) -> None:
    swaps.activate("coder")
    swaps.play(load_s=1.0)
    answers: list[str] = []

    def order(profile: str) -> None:
        swaps.activate(profile)
        answers.append(profile)

    first, second = threading.Thread(target=order, args=("writer",)), threading.Thread(target=order, args=("coder",))
    first.start()
    time.sleep(0.3)
    second.start()
    time.sleep(0.1)
    assert "writer" in refused(409, swaps.activate, "editor", "?wait=false")
    first.join()
    second.join()
    assert answers == ["writer", "coder"]
    assert swaps.resident() == {CODER, EMBEDDER}


def test_deactivation_empties_the_slot_and_is_idempotent(swaps: Swaps) -> None:
    swaps.activate("writer")
    answer = swaps.call("POST", "/vectors/profile/writer/deactivate")
    assert {ref["model"] for ref in answer["unloaded"]} == {WRITER, EMBEDDER}
    assert swaps.resident() == set()
    assert swaps.active()["state"] == "empty"
    assert swaps.call("POST", "/vectors/profile/writer/deactivate")["state"] == "empty"


async def test_nats_pub_drives_it(swaps: Swaps) -> None:
    where = json.loads(lakehouse(swaps, "env", "--json"))
    password = (swaps.daemon.state / "nats.password").read_text().strip()
    client = await nats.connect(where["NATS_URL"], user=where["NATS_USER"], password=password)
    try:
        await client.publish("lakehouse.cmd.profile.activate", b'{"profile": "writer"}')
        await client.flush()
        swaps.until(lambda: swaps.active()["profile"] == "writer" and swaps.active()["state"] == "ready", "writer", 10)
        with heard(swaps, "command.refused") as said:
            await client.publish("lakehouse.cmd.profile.activate", b'{"profile": "nobody"}')
            await client.flush()
        assert said[0]["message"]["about"] == "nobody"
        for command, body, left in (
            ("profile.deactivate", {"profile": "writer"}, set()),
            ("model.preload", {"model": "nomic-embed-text"}, {EMBEDDER}),
            ("model.unload", {"model": "nomic-embed-text"}, set()),
        ):
            await client.publish(f"lakehouse.cmd.{command}", json.dumps(body).encode())
            await client.flush()
            swaps.until(lambda left=left: swaps.resident() == left, f"{command} is carried out", 10)
    finally:
        await client.close()


# --- admin --------------------------------------------------------------------------------------


def test_vram_joins_the_driver_with_the_servers(swaps: Swaps) -> None:
    swaps.activate("coder")
    report = swaps.call("GET", "/admin/vram")
    assert report["source"] == "nvidia-smi"
    assert report["total"] == 12 * GIB
    assert abs(report["used"] + report["free"] - report["total"]) < 2 << 20, "the reading is in MiB"
    servers = {server["server"]: server for server in report["servers"]}
    models = {model["model"]: model for model in servers["ollama"]["models"]}
    assert models.keys() == {CODER, EMBEDDER}
    assert report["accounted"] == sum(model["size_vram"] for model in models.values())
    assert abs(report["unaccounted"]) < 2 << 20
    assert report["slot"]["profile"] == "coder"
    assert not servers["llamacpp"]["reachable"]
    assert servers["llamacpp"]["reason"]


def test_a_console_hears_the_memory_change(swaps: Swaps) -> None:
    """The report itself comes over /events, so that a console that was told once needn't ask again."""
    swaps.activate("coder")
    swaps.until(lambda: swaps.call("GET", "/admin/vram")["accounted"] > 10 * GIB, "coder is counted", 5)
    time.sleep(1.2)  # two rounds: what the last test did is told
    with heard(swaps, "vram.*") as said:
        swaps.activate("writer")
        swaps.until(lambda: bool(said), "a reconcile tells of it", 5)
    tags = {event["message"]["type"] for event in said}
    assert tags == {"vram.changed"}
    told = said[-1]["message"]["vram"]
    assert told.keys() == swaps.call("GET", "/admin/vram").keys()
    (ollama,) = [server for server in told["servers"] if server["server"] == "ollama"]
    assert {model["model"] for model in ollama["models"]} == {WRITER, EMBEDDER}
    assert (told["slot"]["state"], told["slot"]["profile"]) == ("ready", "writer")
    assert told["used"] == pytest.approx(told["accounted"], abs=2 << 20)


def test_preload_and_unload_are_idempotent_and_keep_the_slot_honest(swaps: Swaps) -> None:
    if swaps.active()["profile"]:
        swaps.call("POST", f"/vectors/profile/{swaps.active()['profile']}/deactivate")
    first = swaps.call("POST", "/admin/preload", {"model": "mistral:7b"})
    assert (first["changed"], first["loaded"]) == (True, True)
    assert first["expires_at"] == pytest.approx(time.time() + 300, abs=20)
    assert not swaps.call("POST", "/admin/preload", {"model": "mistral:7b"})["changed"]
    assert swaps.call("POST", "/admin/unload", {"model": "mistral:7b"})["changed"]
    assert not swaps.call("POST", "/admin/unload", {"model": "mistral:7b"})["changed"]
    assert swaps.resident() == set()
    assert "no-such" in refused(404, swaps.call, "POST", "/admin/preload", {"model": "no-such"})

    swaps.activate("coder")
    assert "coder" in refused(409, swaps.call, "POST", "/admin/preload", {"model": "mistral:7b"})
    assert swaps.resident() == {CODER, EMBEDDER}
    swaps.call("POST", "/admin/unload", {"model": CODER})
    assert swaps.active()["state"] == "empty"


# --- a restart finds the slot -------------------------------------------------------------------


def test_a_restart_finds_its_slot(swaps: Swaps) -> None:
    swaps.activate("writer")
    swaps.daemon.kill()
    swaps.daemon.start()
    slot = swaps.active()
    assert (slot["state"], slot["profile"]) == ("ready", "writer")


def test_a_daemon_killed_in_the_middle_of_a_swap_says_what_is_true_afterwards(swaps: Swaps) -> None:
    swaps.activate("writer")
    swaps.play(load_s=3.0)

    def order() -> None:
        with suppress(OSError, HTTPException):  # whoever asked a daemon that dies gets no answer
            swaps.activate("coder")

    ordering = threading.Thread(target=order)
    ordering.start()
    swaps.until(lambda: WRITER not in swaps.resident(), "writer's model has left", 10)
    swaps.daemon.kill()
    ordering.join()
    swaps.play(load_s=0.02)
    swaps.daemon.start()

    def true() -> bool:
        slot, resident = swaps.active(), swaps.resident()
        return (slot["state"] == "ready") == (CODER in resident) and slot["state"] != "unknown"

    swaps.until(true, "the slot agrees with Ollama", 15)
    assert swaps.activate("coder")["profile"] == "coder"
    assert swaps.resident() == {CODER, EMBEDDER}


# --- searches in scope, and the hot swap --------------------------------------------------------


@pytest.fixture(scope="module")
def indexed(shared: Swaps) -> Swaps:
    """Two vector indexes and a text index that Ollama embeds, in three profiles."""
    folder = shared.daemon.folder
    for name, seed in (("left", 1), ("right", 2)):
        shared.daemon.ingest(parquet(folder / f"{name}.parquet", ROWS, seed=seed), name, id_column="id")
        body = {"name": name, "dataset": name, "column": "embedding", "metric": "l2"}
        shared.call("POST", "/vectors/indexes", body)
        shared.daemon.index_ready(name, ROWS)
    notes = folder / "notes.csv"
    notes.write_text("id,text\n" + "\n".join(f'{n},"note number {n} on topic {n % 7}"' for n in range(200)))
    shared.daemon.ingest(notes, "notes", id_column="id")
    shared.call("POST", "/vectors/indexes", {"name": "notes", "dataset": "notes", "column": "text", "embedder": NOMIC})
    shared.daemon.index_ready("notes", 200)
    graph = {"M": 8, "ef_construction": 60, "ef_search": 40}
    shared.profile("left", "mistral:7b", indexes=["left"], hnsw=graph)
    shared.profile("right", "mistral:7b", indexes=["right", "notes"], embedder=NOMIC, bucket="rights")
    return shared


@pytest.mark.usefixtures("indexed")
def test_a_search_stays_in_its_profile(swaps: Swaps) -> None:
    vector = [float(x) for x in vectors(ROWS, 1)[17]]

    def search(profile: str, index: str) -> Any:
        body = {"index": index, "vector": vector, "k": 3}
        return swaps.call("POST", f"/vectors/profile/{profile}/search", body)

    assert search("left", "left")["queries"][0][0]["id"] == 17
    assert "right" in refused(403, search, "left", "right")
    assert "left" in refused(403, search, "right", "left")
    same = {"index": "right", "profile": "left", "vector": vector}
    assert "right" in refused(403, swaps.call, "POST", "/vectors/search", same)
    only = swaps.call("POST", "/vectors/profile/left/search", {"vector": vector, "k": 1})
    assert only["index"] == "left", "a profile with one index needn't name it"
    assert "right, notes" in refused(422, swaps.call, "POST", "/vectors/profile/right/search", {"vector": vector})


@pytest.mark.usefixtures("indexed")
def test_a_text_search_takes_the_profiles_model_only_while_it_is_active(swaps: Swaps) -> None:
    swaps.activate("left")
    text = {"index": "notes", "text": "topic 3", "k": 3}
    assert "activate" in refused(409, swaps.call, "POST", "/vectors/profile/right/search", text)
    assert EMBEDDER not in swaps.resident(), "nothing was loaded behind the active profile's back"
    swaps.activate("right")
    assert len(swaps.call("POST", "/vectors/profile/right/search", text)["queries"][0]) == 3


@pytest.mark.usefixtures("indexed")
def test_activation_hands_the_configuration_that_holds_to_the_index(swaps: Swaps) -> None:
    """The profile's default where nothing is promoted, then what is promoted."""
    (index,) = swaps.activate("left")["indexes"]
    assert index["config"]["M"] == 8
    swaps.until(
        lambda: swaps.call("GET", "/vectors/indexes/left/stats")["config"]["M"] == 8, "the profile's graph serves", 30
    )
    (index,) = swaps.activate("left")["indexes"]
    stats = swaps.call("GET", "/vectors/indexes/left/stats")
    assert index["building"] is None
    assert index["generation"] == stats["generation"] > 1

    grid = [{"M": 12, "ef_construction": 60, "ef_search": 80}]
    swaps.call("POST", "/vectors/harnesses", {"index": "left", "queries": 100})
    trial = next(
        line["trial"]
        for line in swaps.call(
            "POST", "/vectors/hnsw/autotune", {"index_name": "left", "grid": grid, "min_recall": 0.5}
        )
        if line["type"] == "trial.completed"
    )
    swaps.call("POST", f"/vectors/hnsw/promote/left/{trial}?force=true")
    (index,) = swaps.activate("left")["indexes"]
    assert index["config"]["M"] == 12
    swaps.until(
        lambda: swaps.call("GET", "/vectors/indexes/left/stats")["config"]["M"] == 12, "the promotion serves", 30
    )


@pytest.mark.usefixtures("indexed")
def test_a_profiles_bucket_is_made_and_outlives_a_restart(swaps: Swaps) -> None:
    swaps.activate("right")
    assert not swaps.activate("right")["bucket_made"]
    body = {"name": "left2", "dataset": "left", "column": "embedding", "metric": "l2", "bucket": "rights"}
    swaps.call("POST", "/vectors/indexes", body)
    swaps.daemon.index_ready("left2", ROWS)
    swaps.daemon.kill()
    swaps.daemon.start()
    found = swaps.call(
        "POST", "/vectors/search", {"index": "left2", "vector": [float(x) for x in vectors(ROWS, 1)[5]], "k": 1}
    )
    assert found["queries"][0][0]["id"] == 5
    assert swaps.active()["profile"] == "right"


def test_a_damaged_document_of_the_slot_stops_nobody(swaps: Swaps) -> None:
    """Not the daemon, which is ready with the other documents, and not the slot, which asks the servers."""
    swaps.activate("editor")
    swaps.daemon.kill()
    revisions = sorted((swaps.daemon.state / "buckets/primary/registry/slot/gpu").glob("*.json"))
    assert revisions
    for revision in revisions:
        revision.write_bytes(revision.read_bytes()[: revision.stat().st_size // 2])
    swaps.daemon.start()
    swaps.until(lambda: swaps.active()["state"] in ("ready", "empty"), "the slot has asked the servers", 10)
    assert swaps.resident() == {WRITER}, "nothing was unloaded for it"
    assert revisions[-1].exists(), "what was damaged is kept for whoever looks into it"
    assert swaps.activate("coder")["unloaded"] == [{"server": "ollama", "model": WRITER}]
    assert swaps.resident() == {CODER, EMBEDDER}
    swaps.daemon.kill()
    swaps.daemon.start()
    assert (swaps.active()["state"], swaps.active()["profile"]) == ("ready", "coder"), "and is saved again"


# --- the command line ---------------------------------------------------------------------------


def test_the_command_line_swaps_too(swaps: Swaps) -> None:
    assert "writer" in lakehouse(swaps, "profile", "activate", "writer")
    assert "mistral:7b" in lakehouse(swaps, "vram")
    assert json.loads(lakehouse(swaps, "vram", "--json"))["slot"]["profile"] == "writer"
    assert "huge" in lakehouse(swaps, "profile", "list")
    failed = lakehouse(swaps, "profile", "activate", "huge", code=1)
    assert "37.2 GiB" in failed
    assert "writer" in lakehouse(swaps, "profile", "active")
    assert "deactivate" in lakehouse(swaps, "profile", "delete", "writer", code=1)
    assert "no longer active" in lakehouse(swaps, "profile", "deactivate", "writer")
    assert "is loaded" in lakehouse(swaps, "preload", "mistral:7b", "--keep-alive", "1m")
    assert "was loaded already" in lakehouse(swaps, "preload", "mistral:7b", "--keep-alive", "1m")
    assert swaps.resident() == {WRITER}
    assert "has left the memory" in lakehouse(swaps, "unload", "mistral:7b")
    assert "wasn't loaded" in lakehouse(swaps, "unload", "mistral:7b")
    lakehouse(swaps, "profile", "create", "short", "--model", "mistral:7b", "--keep-alive", "5m")
    lakehouse(swaps, "profile", "set", "short", "--shared")
    assert json.loads(lakehouse(swaps, "profile", "show", "short", "--json"))["profile"]["exclusive"] is False
    assert "deleted" in lakehouse(swaps, "profile", "delete", "short")


def lakehouse(swaps: Swaps, *words: str, code: int = 0) -> str:
    """What a command prints, on both streams."""
    done = subprocess.run(
        [sys.executable, "-m", "daemon", *words],
        env={**swaps.daemon.environ, "LAKEHOUSE_CONFIG": str(swaps.daemon.folder / "lakehouse.toml"), "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr
