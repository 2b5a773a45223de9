"""Commands about the GPU's memory: drawn once, drawn live, one model in, one out."""

import json
import re
import time

import msgspec
import pytest

from daemon.cli import vram
from schemas.events.profile import (
    Gpu,
    GpuProcess,
    LoadedModel,
    ModelReport,
    ServerReport,
    SlotInfo,
    VramReport,
)
from schemas.http import ErrorBody
from tests.unit.cli_daemon import Answer, CliDaemon, Run

GIB = 1 << 30
NOW = 1_800_000_000.0
MODELS = [
    LoadedModel("ollama", "qwen2.5-coder:7b", 5 * GIB, 5 * GIB, None, 4096),
    LoadedModel("ollama", "llama3:latest", 4 * GIB, 3 * GIB, NOW + 252.5),
    LoadedModel("ollama", "old:latest", 1 * GIB, 1 * GIB, NOW - 1),
    LoadedModel("ollama", "odd[bold]", 1 * GIB),
]
GPU = Gpu(0, "NVIDIA Test", "GPU-1", 24 * GIB, 12 * GIB, 12 * GIB, [GpuProcess(4711, "ollama", 11 * GIB)])
REPORT = VramReport(
    gpus=[GPU], source="nvml", reason="",
    servers=[
        ServerReport("ollama", "http://127.0.0.1:11434", True, models=MODELS),
        ServerReport("llamacpp", "http://127.0.0.1:8080", False, "connection refused"),
    ],
    slot=SlotInfo("ready", "coder", None, NOW - 125, waiting=1), time=NOW, total=24 * GIB, used=12 * GIB,
    free=12 * GIB, accounted=9 * GIB, unaccounted=3 * GIB,
)  # fmt: skip
BARE = msgspec.structs.replace(
    REPORT, gpus=[], source="none", reason="no NVIDIA driver is installed", total=None, used=None, free=None,
    servers=[ServerReport("ollama", "http://127.0.0.1:11434", True)], accounted=0, unaccounted=None,
    slot=SlotInfo("unknown", "chat", None, 0.0, "llama3 is still listed"),
)  # fmt: skip


def squeezed(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_memory_is_drawn(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["GET /admin/vram"] = REPORT
    code, out, err = run("vram")
    assert (code, err) == (0, "")
    assert squeezed(out) == [
        "GPU 0 ████████████░░░░░░░░░░░░ 12.0 GiB of 24.0 GiB used, 12.0 GiB free",
        "NVIDIA Test",
        "11.0 GiB ollama (pid 4711)",
        "slot ready: coder, for 2 min 5 s, 1 in line",
        "memory 9.0 GiB in models, 3.0 GiB unaccounted for: contexts, other programs",
        "",
        "server model size on the GPU context stays",
        "ollama qwen2.5-coder:7b 5.0 GiB 100% 4,096 for ever",
        "ollama llama3:latest 4.0 GiB 75% for 4 min 12 s unused",
        "ollama old:latest 1.0 GiB 100% is leaving",
        "ollama odd[bold] 1.0 GiB not said for ever",
        "llamacpp is away: connection refused",
    ]
    assert json.loads(run("vram", "--json")[1]) == msgspec.to_builtins(REPORT)


def test_without_a_gpu_the_reason_is_said(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["GET /admin/vram"] = BARE
    lines = squeezed(run("vram")[1])
    assert lines[0] == "GPU none to be read: no NVIDIA driver is installed"
    assert lines[1] == "slot unknown: chat (llama3 is still listed)"
    assert "ollama nothing loaded" in lines
    assert not [line for line in lines if "unaccounted" in line]


def test_what_cant_be_read_of_a_gpu_is_said(run: Run, daemon: CliDaemon) -> None:
    silent = msgspec.structs.replace(GPU, processes=None)
    nameless = msgspec.structs.replace(GPU, index=1, used=24 * GIB, free=0, processes=[GpuProcess(7, "", None)])
    daemon.answers["GET /admin/vram"] = msgspec.structs.replace(REPORT, gpus=[silent, nameless])
    lines = squeezed(run("vram")[1])
    assert lines[1] == "NVIDIA Test; its processes can't be read"
    assert lines[2].startswith("GPU 1 ████████████████████████ 24.0 GiB of 24.0 GiB used, 0 MiB free")
    assert lines[3:5] == ["NVIDIA Test", "? a process (pid 7)"]


# --- live ----------------------------------------------------------------------------------------


@pytest.fixture
def readings(daemon: CliDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two readings with an outage between them, then Ctrl-C."""
    answers: list[Answer] = [
        REPORT,
        (503, ErrorBody("unavailable", "the daemon is stopping")),
        msgspec.structs.replace(REPORT, time=NOW + 2, slot=SlotInfo("empty", None, None, NOW)),
    ]
    daemon.answers["GET /admin/vram"] = lambda: answers.pop(0)

    def sleep(_: float) -> None:
        if not answers:
            raise KeyboardInterrupt

    monkeypatch.setattr(vram.time, "sleep", sleep)


@pytest.mark.usefixtures("readings")
def test_watching_outlives_a_daemon_that_starts_again(run: Run) -> None:
    code, out, err = run("vram", "--watch")
    assert code == 130
    assert err.startswith("The daemon is stopping. Asking again; the last reading is of ")
    assert err.count("\n") == 1
    assert [line for line in squeezed(out) if line.startswith("slot")] == [
        "slot ready: coder, for 2 min 5 s, 1 in line",
        "slot empty, for 2 s",
    ]


@pytest.mark.usefixtures("readings")
def test_watching_as_json_is_a_line_a_reading(run: Run) -> None:
    code, out, _ = run("vram", "--watch", "--json")
    assert code == 130
    assert [json.loads(line)["slot"]["state"] for line in out.splitlines()] == ["ready", "empty"]


@pytest.mark.usefixtures("readings")
def test_watching_draws_over_itself_on_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    monkeypatch.setattr(vram, "console", Console(force_terminal=True, width=120, highlight=False))
    code, out, err = run("vram", "--watch")
    assert (code, err) == (130, "")
    assert "Asking again; the last reading is of " in out
    assert "\x1b[1A" in out  # the cursor goes up: the second drawing replaces the first
    assert out.rindex("Asking again") < out.rindex("empty")


def test_it_fits_a_narrow_terminal(run: Run, daemon: CliDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the last line of a live drawing stays short: the terminal's echo of ^C would break a full one."""
    from rich.console import Console

    narrow = Console(force_terminal=True, width=80, highlight=False, color_system=None)
    monkeypatch.setattr(vram, "console", narrow)
    away = ServerReport("llamacpp", "http://127.0.0.1:8080", False, "llama.cpp at http://127.0.0.1:8080: refused")
    full = msgspec.structs.replace(GPU, used=120 * GIB, total=141 * GIB, free=21 * GIB)
    servers = [ServerReport("ollama", "http://127.0.0.1:11434", True, models=MODELS), away]
    daemon.answers["GET /admin/vram"] = msgspec.structs.replace(REPORT, gpus=[full], servers=servers)
    lines = squeezed(run("vram")[1])
    assert "GPU 0 ████████████████████░░░░ 120.0 GiB of 141.0 GiB used, 21.0 GiB free" in lines
    assert "ollama llama3:latest 4.0 GiB 75% for 4 min 12 s unused" in lines
    assert lines[-1] == "llamacpp is away: llama.cpp at http://127.0.0.1:8080: refused"

    def sleep(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(vram.time, "sleep", sleep)
    assert ": refused\n\n" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", run("vram", "--watch")[1])


def test_watching_needs_a_first_reading(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["GET /admin/vram"] = (503, ErrorBody("unavailable", "nobody answers"))
    assert run("vram", "--watch")[::2] == (1, "Nobody answers.\n")


# --- one model -----------------------------------------------------------------------------------


def test_preload(run: Run, daemon: CliDaemon) -> None:
    report = ModelReport("ollama", "llama3:latest", True, True, 5 * GIB, 5 * GIB, time.time() + 300.9, 2100.0)
    daemon.answers["POST /admin/preload"] = report
    code, out, _ = run("preload", "llama3")
    assert code == 0
    assert out == "ollama/llama3:latest is loaded, in 2.1 s: 5.0 GiB, all of it on the GPU; for 5 min 0 s unused\n"
    daemon.answers["POST /admin/preload"] = msgspec.structs.replace(report, changed=False, expires_at=None)
    out = run("preload", "llama3", "--keep-alive", "-1", "--server", "ollama")[1]
    assert out == "ollama/llama3:latest was loaded already: 5.0 GiB, all of it on the GPU; for ever\n"
    assert [(body.model, body.keep_alive, body.server) for _, _, body in daemon.seen] == [
        ("llama3", "5m", None),
        ("llama3", "-1", "ollama"),
    ]
    assert json.loads(run("preload", "llama3", "--json")[1])["changed"] is False


def test_unload(run: Run, daemon: CliDaemon) -> None:
    report = ModelReport("ollama", "llama3:latest", False, True, took_ms=840.0)
    daemon.answers["POST /admin/unload"] = report
    assert run("unload", "llama3")[:2] == (0, "ollama/llama3:latest has left the memory, in 0.8 s\n")
    daemon.answers["POST /admin/unload"] = msgspec.structs.replace(report, changed=False)
    assert run("unload", "llama3", "--server", "ollama")[1] == "ollama/llama3:latest wasn't loaded\n"
    assert [(body.model, body.server) for _, _, body in daemon.seen] == [("llama3", None), ("llama3", "ollama")]
    daemon.answers["POST /admin/unload"] = msgspec.structs.replace(report, deactivated="coder")
    assert run("unload", "llama3")[1].splitlines()[1:] == ["profile coder, which needed it, is no longer active"]


def test_a_model_that_doesnt_fit_is_said(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /admin/preload"] = (422, ErrorBody("invalid", "70b needs 40.0 GiB, 12.0 GiB are free", "hm"))
    assert run("preload", "70b") == (1, "", "70b needs 40.0 GiB, 12.0 GiB are free.\nhint: hm\n")
