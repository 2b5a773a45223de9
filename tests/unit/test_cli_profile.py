"""Commands about model profiles and the slot: what they ask, what they print."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.config import HnswConfig
from schemas.events.base import Progress
from schemas.events.index import EmbedderSpec, Hit, SearchResult
from schemas.events.profile import (
    ActivatedIndex,
    LoadedModel,
    ModelRef,
    ProfileActivated,
    ProfileDeactivated,
    ProfileDeleted,
    ProfileInfo,
    ProfileList,
    SlotInfo,
)
from schemas.http import ErrorBody, StreamedEvent
from schemas.profile import Adapter, ModelProfile
from tests.unit.cli_daemon import Answer, CliDaemon, Run

GIB = 1 << 30
CHAT = ModelProfile(id="chat", model="llama3:latest", indexes=["docs"])
CODER = ModelProfile(
    id="coder", model="qwen2.5-coder:7b", embedder=EmbedderSpec("ollama", "all-minilm"), indexes=["docs", "notes"],
    bucket="code", vector_backend="hnsw", hnsw=HnswConfig(24, 120, 64), adapters=[Adapter("style.gguf", 0.5)],
    keep_alive="10m", group="work", exclusive=False, persistent=True,
)  # fmt: skip
QWEN = LoadedModel("ollama", "qwen2.5-coder:7b", 5 * GIB, 5 * GIB)
ACTIVATED = ProfileActivated(
    "coder", "chat", [QWEN, LoadedModel("ollama", "all-minilm:latest", 300 << 20, 300 << 20)],
    loaded=[QWEN.ref], unloaded=[ModelRef("ollama", "llama3:latest")], kept=[ModelRef("ollama", "all-minilm:latest")],
    indexes=[
        ActivatedIndex("docs", HnswConfig(24, 120, 64), 8),
        ActivatedIndex("notes", HnswConfig(24, 120, 64), 7, 8),
        ActivatedIndex("new", None, 0, 1),
        ActivatedIndex("lost", None, 0, reason="nobody answers"),
    ],
    bucket_made=True, took_ms=2412.0, servers_ms=2400.0,
)  # fmt: skip
READY = SlotInfo("ready", "coder", None, time.time() - 65, models=[QWEN])
STUCK = SlotInfo("unknown", "chat", "coder", 1.0, "llama3:latest is still listed after 15 s", waiting=2)
SEARCH = SearchResult("docs", 2, [[Hit("a", 0.1234)]], 312.0)

ACTIVATE = "POST /vectors/profile/{profile}/activate"
DEACTIVATE = "POST /vectors/profile/{profile}/deactivate"


def info(profile: ModelProfile, *, active: bool = False) -> ProfileInfo:
    return ProfileInfo(profile, active, 1.0, 2.0)


# --- kept ----------------------------------------------------------------------------------------


def test_profiles_are_listed(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["GET /vectors/profiles"] = ProfileList([info(CHAT), info(CODER, active=True)])
    code, out, _ = run("profile", "list")
    _, chat, coder = out.splitlines()
    assert code == 0
    assert ("●" in chat, "●" in coder) == (False, True)
    assert chat.split() == ["chat", "ollama/llama3:latest", "docs", "for", "ever", "exclusive"]
    assert "docs, notes" in coder
    assert "shared, persistent, group work" in coder
    daemon.answers["GET /vectors/profiles"] = ProfileList([])
    assert "lakehouse profile create NAME --model MODEL" in run("profile", "list")[1]
    assert json.loads(run("profile", "list", "--json")[1])["profiles"] == []


def test_a_profile_is_shown_whole(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["GET /vectors/profiles/{profile}"] = info(CODER, active=True)
    out = run("profile", "show", "coder")[1]
    for words in (
        "coder (active)", "ollama/qwen2.5-coder:7b", "style.gguf × 0.5", "ollama/all-minilm", "docs, notes",
        "M 24 · efc 120 · ef 64, where nothing is promoted", "10m", "work", "shared, persistent",
    ):  # fmt: skip
        assert words in out
    assert json.loads(run("profile", "show", "coder", "--json")[1]) == msgspec.to_builtins(info(CODER, active=True))


def test_every_field_can_be_given(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /vectors/profiles"] = info(CODER)
    code, out, err = run(
        "profile", "create", "coder", "--model", "qwen2.5-coder:7b", "--server", "ollama", "--index", "docs", "notes",
        "--embedder-kind", "ollama", "--embedder-model", "all-minilm", "--bucket", "code", "--backend", "hnsw",
        "-M", "24", "--ef-construction", "120", "--ef-search", "64", "--adapter", "style.gguf=0.5",
        "--keep-alive", "10m", "--group", "work", "--shared", "--persistent",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert msgspec.to_builtins(daemon.seen[0][2]) == msgspec.to_builtins(CODER)
    assert "coder: ollama/qwen2.5-coder:7b, shared, persistent; made" in out


def test_what_isnt_given_is_left_to_the_daemon(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /vectors/profiles"] = info(CHAT)
    assert run("profile", "create", "chat", "--model", "llama3", "--index", "docs,notes", "--keep-alive", "-1")[0] == 0
    body = daemon.seen[0][2]
    assert (body.id, body.indexes, body.exclusive, body.keep_alive) == ("chat", ["docs", "notes"], True, "-1")
    assert body.vector_backend == "auto"


@pytest.mark.parametrize("suffix", [".json", ".toml"])
def test_a_profile_comes_from_a_file_with_options_on_top(run: Run, daemon: CliDaemon, suffix: str) -> None:
    Path(f"p{suffix}").write_text(
        json.dumps({"model": "llama3", "hnsw": {"M": 8}, "indexes": ["docs"]})
        if suffix == ".json"
        else 'model = "llama3"\nindexes = ["docs"]\n[hnsw]\nM = 8\n'
    )
    daemon.answers["POST /vectors/profiles"] = daemon.answers["PUT /vectors/profiles/{profile}"] = info(CHAT)
    assert run("profile", "create", "chat", "--file", f"p{suffix}", "--ef-search", "99")[0] == 0
    assert run("profile", "set", "chat", "--file", f"p{suffix}", "--ef-search", "99")[0] == 0
    (posted, _, made), (put, params, replaced) = daemon.seen  # a file is the whole of it: nothing is read first
    assert (posted, put, params.profile) == ("POST /vectors/profiles", "PUT /vectors/profiles/{profile}", "chat")
    for body in (made, replaced):
        assert (body.id, body.model, body.indexes, body.hnsw.M, body.hnsw.ef_search) == (
            "chat", "llama3", ["docs"], 8, 99,
        )  # fmt: skip


def test_what_show_prints_as_json_makes_a_profile(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["GET /vectors/profiles/{profile}"] = info(CODER)
    Path("p.json").write_text(run("profile", "show", "coder", "--json")[1])
    daemon.answers["POST /vectors/profiles"] = info(CODER)
    assert run("profile", "create", "coder", "--file", "p.json")[0] == 0
    assert msgspec.to_builtins(daemon.seen[-1][2]) == msgspec.to_builtins(CODER)
    assert "describes profile coder, not other" in run("profile", "create", "other", "--file", "p.json")[2]


def test_set_changes_what_is_given_and_keeps_the_rest(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["GET /vectors/profiles/{profile}"] = info(CODER)
    daemon.answers["PUT /vectors/profiles/{profile}"] = info(CODER)

    def put(*words: str) -> dict[str, Any]:
        code, _, err = run("profile", "set", "coder", *words)
        assert (code, err) == (0, "")
        changed: dict[str, Any] = msgspec.to_builtins(daemon.seen[-1][2])
        return {name: value for name, value in changed.items() if value != msgspec.to_builtins(CODER)[name]}

    assert put("--keep-alive", "5m") == {"keep_alive": "5m"}
    assert put("--exclusive", "--no-persistent") == {"exclusive": True, "persistent": False}
    assert put("-M", "32") == {
        "hnsw": {"backend": "hnsw", "M": 32, "ef_construction": 120, "ef_search": 64, "seed": 42}
    }
    assert put("--backend", "lance") == {"vector_backend": "lance"}
    assert put("--bucket", "", "--adapter", "", "--index", "") == {"bucket": None, "adapters": [], "indexes": []}
    assert put("--embedder-model", "bge-m3")["embedder"]["model"] == "bge-m3"
    assert put("--embedder-kind", "lexical")["embedder"] == {"kind": "lexical", "model": "", "url": "", "dim": None}


def test_delete(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["DELETE /vectors/profiles/{profile}"] = ProfileDeleted("chat")
    assert run("profile", "delete", "chat")[:2] == (0, "deleted chat\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["create", "x"], "A profile needs a --model."),
        (["create", "x", "--model", "m", "--embedder-model", "e"], "--embedder-model says nothing"),
        (["create", "x", "--model", "m", "--adapter", "a=strong"], "'a=strong' is no adapter."),
        (["create", "x", "--file", "missing.json"], "missing.json can't be read: No such file"),
        (["create", "x", "--file", "bad.json"], "bad.json is not a JSON object"),
        (["create", "x", "--file", "bad.toml"], "bad.toml is not TOML"),
        (["create", "x", "--file", "other.json"], "The file describes profile y, not x."),
        (["create", "x", "--model", "m", "-M", "3"], "-M"),
        (["create", "x", "--model", "m", "--server", "vllm"], "ollama"),
        (["create", "x", "--model", "m", "--backend", "faiss"], "auto"),
        (["search", "coder"], "Exactly one of TEXT and --vector"),
        (["search", "coder", "--mode", "hybrid", "--vector", "[1]"], "--mode hybrid needs a TEXT."),
    ],
)
def test_wrong_use_asks_nothing(run: Run, daemon: CliDaemon, words: list[str], expected: str) -> None:
    Path("bad.json").write_text("[1]")
    Path("bad.toml").write_text("model =")
    Path("other.json").write_text('{"id": "y", "model": "m"}')
    code, out, err = run("profile", *words)
    assert (code, out, daemon.seen) == (2, "", [])
    assert expected in err
    assert "Traceback" not in err


# --- activated -----------------------------------------------------------------------------------


def test_activate_says_what_became_of_everything(run: Run, daemon: CliDaemon) -> None:
    daemon.answers[ACTIVATE] = ACTIVATED
    code, out, err = run("profile", "activate", "coder")
    assert (code, err, daemon.seen[0][1].wait) == (0, "", True)
    assert [" ".join(line.split()) for line in out.splitlines()] == [
        "● coder is active instead of chat; took 2.4 s, 2.4 s of it in the model servers",
        "unloaded ollama/llama3:latest",
        "loaded ollama/qwen2.5-coder:7b 5.0 GiB, all of it on the GPU",
        "kept ollama/all-minilm:latest 300 MiB, all of it on the GPU",
        "index docs generation 8 · M 24 · efc 120 · ef 64",
        "index notes generation 7; generation 8 is being built (M 24 · efc 120 · ef 64)",
        "index new no generation yet; generation 1 is being built",
        "index lost nobody answers",
        "made its bucket",
    ]
    assert json.loads(run("profile", "activate", "coder", "--json", "--no-wait")[1]) == msgspec.to_builtins(ACTIVATED)
    assert daemon.seen[1][1].wait is False


def test_a_same_model_activation_is_one_line(run: Run, daemon: CliDaemon) -> None:
    daemon.answers[ACTIVATE] = ProfileActivated("chat", "chat", [], took_ms=3.2)
    assert run("profile", "activate", "chat")[1] == "● chat is active; took 3.2 ms\n"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (LoadedModel("ollama", "m", 4 * GIB, 3 * GIB), "4.0 GiB, 75% of it on the GPU"),
        (LoadedModel("ollama", "m", 4 * GIB, 0), "4.0 GiB, none of it on the GPU"),
        (LoadedModel("llamacpp", "m", 4 * GIB), "4.0 GiB"),
        (LoadedModel("llamacpp", "m"), "its server doesn't say how large"),
    ],
)
def test_where_a_model_is(run: Run, daemon: CliDaemon, model: LoadedModel, expected: str) -> None:
    daemon.answers[ACTIVATE] = ProfileActivated("chat", None, [model], loaded=[model.ref])
    line = run("profile", "activate", "chat")[1].splitlines()[1]
    assert line.split(maxsplit=2)[2].strip() == expected


def test_a_refused_activation_is_said_in_the_slots_words(run: Run, daemon: CliDaemon) -> None:
    reason = "qwen needs 80.0 GiB, 24.0 GiB can be had"
    daemon.answers[ACTIVATE] = (422, ErrorBody("invalid", reason, "a smaller model"))
    code, out, err = run("profile", "activate", "coder")
    assert (code, out, err) == (1, "", "Qwen needs 80.0 GiB, 24.0 GiB can be had.\nhint: a smaller model\n")


def test_deactivate(run: Run, daemon: CliDaemon) -> None:
    daemon.answers[DEACTIVATE] = ProfileDeactivated("coder", "asked", [QWEN.ref])
    code, out, _ = run("profile", "deactivate", "coder", "--no-wait")
    assert (code, daemon.seen[0][1].wait) == (0, False)
    assert [line.split() for line in out.splitlines()][1] == ["unloaded", "ollama/qwen2.5-coder:7b"]
    daemon.answers[DEACTIVATE] = READY
    assert run("profile", "deactivate", "chat")[1] == "chat wasn't active; the slot is ready: coder\n"


def test_active_shows_the_slot_and_fails_when_nobody_knows(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["GET /vectors/profile/active"] = READY
    code, out, _ = run("profile", "active")
    assert (code, out.splitlines()[0]) == (0, "ready: coder")
    assert " min " in out
    assert "holds ollama/qwen2.5-coder:7b 5.0 GiB, all of it on the GPU" in " ".join(out.split())
    assert "line" not in out
    daemon.answers["GET /vectors/profile/active"] = STUCK
    code, out, _ = run("profile", "active")
    assert (code, out.splitlines()[0]) == (1, "unknown: chat for coder (llama3:latest is still listed after 15 s)")
    assert "2 in line" in out
    lost = msgspec.structs.replace(STUCK, models=[QWEN])
    daemon.answers["GET /vectors/profile/active"] = lost
    assert "last seen ollama/qwen2.5-coder:7b 5.0 GiB" in " ".join(run("profile", "active")[1].split())
    daemon.answers["GET /vectors/profile/active"] = STUCK
    code, out, _ = run("profile", "active", "--json")
    assert (code, json.loads(out)) == (1, msgspec.to_builtins(STUCK))
    daemon.answers["GET /vectors/profile/active"] = SlotInfo("empty", None, None, 0.0)
    assert run("profile", "active")[:2] == (0, "empty\n")


def test_leaving_an_activation_doesnt_undo_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from daemon.cli.client import Client

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "post", interrupted)
    code, _, err = run("profile", "activate", "coder")
    assert (code, "the daemon goes on" in err, "vram --watch" in err) == (130, True, True)


@pytest.mark.slow
def test_the_phases_of_a_swap_are_drawn(run: Run, daemon: CliDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is given only once its progress is heard: nothing of it is missed."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    hearing = threading.Event()

    def facts() -> Answer:
        hearing.set()
        phases = [("coder", "unload llama3:latest", 0), ("coder", "settle", 0), ("other", "load mistral", 0)]
        told = [Progress("slot", about, phase, done, 1, "models") for about, phase, done in phases]
        return [b"data: " + msgspec.json.encode(StreamedEvent("m", "c", 1.0, one)) + b"\n\n" for one in told]

    def activate() -> Answer:
        assert hearing.is_set()
        time.sleep(0.5)  # the bars are drawn ten times a second
        return ACTIVATED

    daemon.answers["GET /events"] = facts
    daemon.answers[ACTIVATE] = activate
    code, out, err = run("profile", "activate", "coder")
    assert (code, "is active" in out) == (0, True)
    assert (daemon.seen[0][1].match, daemon.seen[0][1].progress) == ("none", True)
    assert "activating coder" in err
    assert "unload llama3:latest" in err
    assert "1 of 1 models" in err  # unloaded: what comes after it has begun
    assert "waiting until the memory is free" in err
    assert "mistral" not in err  # another profile's turn


# --- searched with -------------------------------------------------------------------------------


def test_search_with_a_profile(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /vectors/profile/{profile}/search"] = SEARCH
    daemon.answers["POST /vectors/search"] = SEARCH
    code, out, _ = run("profile", "search", "coder", "parse json", "-k", "3", "--filter", "id > 1", "--explain")
    assert (code, "0.1234" in out, "generation 2, 312 µs" in out) == (0, True, True)
    _, params, body = daemon.seen[0]
    assert (params.profile, body.index, body.text, body.k, body.filter, body.explain) == (
        "coder", None, "parse json", 3, "id > 1", True,
    )  # fmt: skip
    run("profile", "search", "coder", "--vector", "[1, 2]", "--index", "docs")
    assert (daemon.seen[1][2].index, daemon.seen[1][2].vector) == ("docs", [1.0, 2.0])
    run("search", "docs", "parse json", "--profile", "coder")
    run("search", "docs", "parse json")
    assert [seen[2].profile for seen in daemon.seen[2:]] == ["coder", None]
