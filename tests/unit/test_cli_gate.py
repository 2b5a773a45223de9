"""Commands about the gate: what they ask, what they print."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from daemon.cli.profile import _adapter
from schemas.events.base import Progress, Refusal
from schemas.events.gate import GateExported, GateInfo, GateTrained, Generated, PromptWeights
from schemas.gate import AdapterWeight, GateExport, GateRun
from tests.unit.cli_daemon import CliDaemon, Run, ndjson
from tests.unit.test_gate_core import run as gate_run

MIX = [AdapterWeight("code", 0.62), AdapterWeight("prose", 0.38)]


def of(**more: Any) -> GateRun:
    return gate_run(adapters=["code", "prose"], samples=[20, 12], mean_weights=[0.62, 0.38], uniform_loss=0.693, **more)


EXPORT = GateExport(
    target="peft", gate_mode="static_mean", weights=MIX, place="/out", manifest_sha256="0" * 64, created=1.0
)


def exported(**more: Any) -> GateExported:
    given: dict[str, Any] = {
        "profile": "p", "export": EXPORT, "run": "r1", "error": 0.0, "rank": 8, "arguments": [],
        "banner": "gate r1 puts in code 0.62, prose 0.38 (static_mean over 32 prompts)", "notes": [], "asked_by": "cli",
    }  # fmt: skip
    return GateExported(**{**given, **more})


def told(*last: msgspec.Struct) -> list[bytes]:
    """A job's stream: how far it is, then its end."""
    return ndjson(Progress("j1", "p", "embed", 0, 2, "prompts"), Progress("j1", "p", "train", 0, 200, "steps"), *last)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "a", "adapter": "code"}\n\n{"prompt": "b", "adapter": "prose"}\n')
    return file


def test_train_sends_pairs_and_says_how_it_went(run: Run, daemon: CliDaemon, pairs: Path) -> None:
    daemon.answers["POST /gate/{profile}/train"] = told(GateTrained("p", "primary", of(), True, "cli"))
    code, out, _ = run("gate", "train", "p", "--file", str(pairs), "--seed", "7")
    assert code == 0
    assert "gate r1 of p: trained; prompts: code 20, prose 12" in out
    assert "loss on unseen prompts 0.200, of chance 0.693; mean code 0.62, prose 0.38" in out
    ((_, params, body),) = daemon.seen
    assert params["profile"] == "p" if isinstance(params, dict) else params.profile == "p"
    sent = msgspec.to_builtins(body)
    assert [one["adapter"] for one in sent["examples"]] == ["code", "prose"]
    assert (sent["seed"], sent["asked_by"]) == (7, "cli")


@pytest.mark.parametrize(
    ("gate", "code", "says"),
    [
        (of(mode="uniform", held_out_loss=None), 0, "too few prompts"),
        (of(mode="diverged", held_out_loss=0.9), 1, "loss 0.900, of chance 0.693"),
        (of(mode="diverged", held_out_loss=None), 1, "loss not finite"),
    ],
)
def test_train_says_when_nothing_was_learnt(
    run: Run, daemon: CliDaemon, pairs: Path, gate: GateRun, code: int, says: str
) -> None:
    daemon.answers["POST /gate/{profile}/train"] = told(
        GateTrained("p", "primary", gate, gate.mode != "diverged", "cli")
    )
    found, out, _ = run("gate", "train", "p", "--file", str(pairs))
    assert (found, says in out) == (code, True), out


def test_a_stream_that_ends_otherwise_is_told(run: Run, daemon: CliDaemon, pairs: Path) -> None:
    train = ["gate", "train", "p", "--file", str(pairs)]
    daemon.answers["POST /gate/{profile}/train"] = told(Refusal("invalid", "the embedder can't", "another one"))
    code, out, err = run(*train)
    assert (code, out) == (1, "")
    assert "The embedder can't." in err
    assert "another one" in err
    daemon.answers["POST /gate/{profile}/train"] = told()
    code, _, err = run(*train)
    assert (code, "ended before the job did" in err) == (1, True)


def test_as_json_every_line_is_printed(run: Run, daemon: CliDaemon, pairs: Path) -> None:
    daemon.answers["POST /gate/{profile}/train"] = told(GateTrained("p", "primary", of(), True, "cli"))
    code, out, _ = run("gate", "train", "p", "--file", str(pairs), "--json")
    assert code == 0
    assert [json.loads(line)["type"] for line in out.splitlines()] == ["job.progress"] * 2 + ["gate.trained"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "p"], "--file or from a --dataset"),
        (["train", "p", "--file", "/nowhere"], "can't be read"),
        (["export", "p", "--as", "ollama", "--parameter", "temperature"], "no parameter"),
    ],
)
def test_wrong_use_is_told(run: Run, arguments: list[str], says: str) -> None:
    code, _, err = run("gate", *arguments)
    assert (code, says in err) == (2, True), err


def test_pairs_that_are_none_are_told(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    for raw in (b"[1]", b'{"prompt": "\xff"}', b"[" * 200_000):
        file.write_bytes(b'{"prompt": "a", "adapter": "code"}\n\n' + raw + b"\n")
        code, _, err = run("gate", "train", "p", "--file", str(file))
        assert (code, "no file of pairs: line 3: " in err) == (2, True), err


def test_export_shows_one_banner_line(run: Run, daemon: CliDaemon, tmp_path: Path) -> None:
    daemon.answers["POST /gate/{profile}/export"] = told(exported())
    system = tmp_path / "system.txt"
    system.write_text("Be brief.\n")
    code, out, _ = run(
        "gate", "export", "p", "--as", "peft", "--folder", "/out", "--rank", "8", "--system", str(system),
        "--parameter", "stop=a", "--parameter", "stop=b=c",
    )  # fmt: skip
    assert code == 0
    assert out.count("puts in") == 1
    assert "peft: code 0.62, prose 0.38 (static_mean), cut to rank 8, error 0" in out
    assert "in /out" in out
    sent = msgspec.to_builtins(daemon.seen[0][2])
    assert (sent["system"], sent["parameters"], sent["rank"]) == ("Be brief.", {"stop": ["a", "b=c"]}, 8)
    daemon.answers["POST /gate/{profile}/export"] = told(exported(banner="", arguments=["--lora-scaled", "a.gguf:1"]))
    code, out, _ = run("gate", "export", "p", "--as", "llamacpp", "--adapter-mix", "code:1")
    assert code == 0
    assert "puts in" not in out
    assert "--lora-scaled a.gguf:1" in out


def test_weights_show_and_generate(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /gate/{profile}/weights"] = PromptWeights("p", "r1", "trained", MIX)
    code, out, _ = run("gate", "weights", "p", "some words")
    assert code == 0
    assert "●  code" in out
    assert "0.620" in out
    info = GateInfo("p", "mine", of(), of(mode="diverged", run="r2"), "", MIX, "static_mean", "", [EXPORT])
    daemon.answers["GET /gate/{profile}"] = info
    code, out, _ = run("gate", "show", "p")
    assert code == 0
    for part in ("r1 (trained)", "code, 20 prompts", "r2 (diverged)", "code 0.62, prose 0.38 (static_mean)", "/out"):
        assert part in out
    daemon.answers["GET /gate/{profile}"] = GateInfo("p", "mine", None, None, "", None, None, "", [])
    code, out, _ = run("gate", "show", "p")
    assert (code, "none yet" in out) == (0, True)
    daemon.answers["POST /vectors/profile/{profile}/generate"] = Generated(
        "words", "p", "llamacpp", "tiny", "top1", MIX, MIX, "r1"
    )
    code, out, _ = run("gate", "generate", "p", "some words", "--routing", "floor")
    assert code == 0
    assert out.startswith("words\ntop1: code 0.62, prose 0.38")
    code, out, _ = run("gate", "weights", "p", "x", "--json")
    assert code == 0
    assert json.loads(out)["run"] == "r1"


def test_a_profile_s_adapters_may_have_folders() -> None:
    assert _adapter("code=0.5@/a/b@c") == {"name": "code", "scale": 0.5, "folder": "/a/b@c"}
    assert _adapter("code") == {"name": "code"}
