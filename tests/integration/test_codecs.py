"""Codecs on a real daemon, over HTTP and NATS: a calibration that is killed in the middle goes on at the next tensor, a
column is certified and graduates, and everything tried is a row."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.tensors.header import Planned
from actors.tensors.shard_writer import write_arrays, write_index
from tests.integration.house import House, HttpError, house

TENSORS = 24
WORDS = [
    "graph",
    "vector",
    "index",
    "recall",
    "codec",
    "tensor",
    "query",
    "daemon",
    "bucket",
    "table",
    "planner",
    "profile",
    "gate",
    "adapter",
    "epoch",
]


@pytest.fixture
def here(tmp_path: Path) -> Iterator[House]:
    with house(tmp_path, codec__allowed_roots=[str(tmp_path)]) as made:
        yield made


def checkpoint(folder: Path, tensors: int = TENSORS, rows: int = 1500, columns: int = 256) -> Path:
    """Two shards of projections."""
    rng = np.random.default_rng(5)
    shards: dict[str, list[Planned]] = {}
    for shard in range(2):
        name = f"model-{shard + 1:05d}-of-00002.safetensors"
        arrays = {
            f"model.layers.{n}.mlp.up_proj.weight": rng.normal(size=(rows, columns)).astype(np.float32)
            for n in range(shard, tensors, 2)
        }
        write_arrays(folder / name, arrays)
        shards[name] = [Planned(tensor, "F32", array.shape) for tensor, array in arrays.items()]
    write_index(folder / "model.safetensors.index.json", shards)
    return folder


def target(path: Path) -> dict[str, str]:
    return {"kind": "checkpoint", "path": str(path)}


def of(kind: str, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["type"] == kind]


def calibrate(here: House, **more: Any) -> list[dict[str, Any]]:
    return here.call("POST", "/codec/calibrate", more)  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_calibration_that_is_killed_goes_on_at_the_next_tensor(here: House, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    body = {
        "target": target(folder), "artifact": "small",
        "params": {"family": "vq", "dsub": 2, "rotation": "hadamard", "calibration_rows": 700},
    }  # fmt: skip
    started = here.call("POST", "/codec/calibrate?wait=false", body)
    rows = here.state / "buckets" / "primary" / "codecs" / "small" / "rows" / started["job"]
    here.until(lambda: rows.is_dir() and len(list(rows.iterdir())) >= 3, "three tensors are done", 60)
    here.kill()
    done = {path.name: path.read_bytes() for path in rows.iterdir()}
    assert 3 <= len(done) < TENSORS
    files = here.state / "buckets" / "primary" / "codecs" / "small" / "tensors"
    written = {path.name: path.stat().st_mtime_ns for path in files.iterdir() if f"{path.stem}.json" in done}
    with pytest.raises(ConnectionError):
        here.call("GET", "/codec/artifacts/small")
    here.start()
    here.until(lambda: not here.call("GET", "/codec/jobs")["jobs"], "the job is over", 90)
    info = here.call("GET", "/codec/artifacts/small")
    assert (info["tensors"], info["quantised"], info["problems"]) == (TENSORS, TENSORS, 0)
    manifest = here.call("GET", "/codec/artifacts/small/manifest")["manifest"]
    assert [row["number"] for row in manifest["tensors"]] == list(range(TENSORS))
    for row in manifest["tensors"]:
        if f"{row['number']:06d}.json" in done:  # what was done before the kill was not done again
            before = json.loads(done[f"{row['number']:06d}.json"])
            assert before["fit_s"] == row["fit_s"]
            assert (
                files.joinpath(f"{row['number']:06d}.safetensors").stat().st_mtime_ns
                == written[f"{row['number']:06d}.safetensors"]
            )
    out = here.call("POST", "/codec/decode", {"artifact": "small", "folder": str(tmp_path / "decoded")})
    assert out["files"] == 3
    with pytest.raises(HttpError) as no:
        here.call("POST", "/codec/decode", {"artifact": "small", "folder": str(tmp_path / "decoded")})
    assert no.value.status == 409


def test_what_is_asked_wrongly_is_said(here: House, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", 2, 600, 64)
    int8 = {"family": "scalar", "bits": 8}
    for path, body, status, words in (
        ("calibrate", {"target": target(folder), "params": {"family": "scalar", "bitz": 8}}, 400, "bitz"),
        ("calibrate", {"target": {"kind": "folder", "path": "/x"}, "params": int8}, 422, "one of checkpoint, column"),
        ("calibrate", {"target": target(Path("/etc")), "params": int8}, 403, "codec.allowed_roots"),
        ("calibrate", {"target": target(tmp_path / "none"), "params": int8}, 404, "no such"),
        ("calibrate", {"target": target(folder), "params": {"family": "scalar", "bits": 9}}, 422, "bits"),
        ("calibrate", {"target": target(folder), "params": {"family": "scalar"}}, 422, "needs bits"),
        ("sweep", {"target": target(folder), "axes": {"bits": [1], "seed": list(range(10_001))}}, 400, "10,001"),
        ("sweep", {"target": target(folder), "axes": {"bitz": [1]}}, 400, "bitz"),
        ("certify", {"artifact": "none"}, 404, "none"),
        ("graduate", {"artifact": "none", "index": "docs"}, 404, "none"),
        ("rowcount-probe", {"target": target(folder), "rows": [1]}, 422, "rows"),
    ):  # fmt: skip
        with pytest.raises(HttpError) as no:
            here.call("POST", f"/codec/{path}", body)
        assert no.value.status == status, (path, body, no.value.body)
        assert words in f"{no.value.body['reason']} {no.value.body['hint']}", no.value.body


def test_a_sweep_streams_rows_that_the_frontier_reads(here: House, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", 2, 600, 64)
    body = {
        "target": target(folder), "base": {"family": "scalar", "calibration_rows": 300},
        "axes": {"bits": [3, 4, 8, 99]},
    }  # fmt: skip
    lines = here.call("POST", "/codec/sweep", body)
    assert [line["type"] for line in (lines[0], lines[-1])] == ["codec.job_started", "codec.sweep_finished"]
    measured = of("codec.point_measured", lines)
    assert len(measured) == 6
    assert len(of("codec.point_skipped", lines)) == 1
    trials = here.call("GET", f"/codec/trials?job={lines[0]['job']}")
    assert trials["total"] == 6
    points = here.call("GET", f"/codec/frontier?target={folder}")["points"]
    assert [(point["params"]["bits"], point["frontier"]) for point in points] == [(3, True), (4, True), (8, True)]
    probe = here.call("POST", "/codec/rowcount-probe", {"target": target(folder), "rows": [128, 300]})
    overfit = of("codec.point_measured", probe)[0]["trial"]
    assert overfit["icc_3_1_calibration"] > 0.99 > 0.6 > overfit["icc_3_1"]
    assert "learnt by heart" in overfit["refused"]


@pytest.mark.slow
def test_a_column_is_calibrated_certified_and_graduates(here: House, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(WORDS, 12)) for _ in range(1200)]
    (tmp_path / "notes.jsonl").write_text("\n".join(json.dumps({"id": n, "text": t}) for n, t in enumerate(texts)))
    here.ingest(tmp_path / "notes.jsonl", "notes", id_column="id")
    here.call("POST", "/vectors/indexes", {"name": "notes", "dataset": "notes", "column": "text"})
    here.index_ready("notes", 1200)
    column = {"kind": "column", "dataset": "notes", "column": "text"}
    lines = calibrate(
        here, target=column, artifact="codes",
        params={"family": "rotated", "bits": 4, "rotation": "hadamard", "calibration_rows": 600},
    )  # fmt: skip
    assert lines[-1]["type"] == "codec.calibrated"
    with pytest.raises(HttpError) as no:
        here.call("POST", "/codec/graduate", {"artifact": "codes", "index": "notes"})
    assert (no.value.status, "no certificate" in no.value.body["reason"]) == (409, True)
    gate = {"function": "column", "recall": 0.9, "oversample": 5}
    certificate = here.call("POST", "/codec/certify", {"artifact": "codes", "gate": gate})[-1]["certificate"]
    assert certificate["passed"], certificate["failures"]
    assert [control["failed"] for control in certificate["self_test"]] == [True] * 4
    graduated = here.call("POST", "/codec/graduate", {"artifact": "codes", "index": "notes"})
    assert graduated["manifest_sha256"] == certificate["manifest_sha256"]
    assert here.call("GET", "/codec/artifacts/codes")["uses"][0]["index"] == "notes"
    with pytest.raises(HttpError) as no:
        here.call("DELETE", "/codec/artifacts/codes")
    assert no.value.status == 409
    here.call("POST", "/codec/withdraw", {"index": "notes"})
    assert here.call("DELETE", "/codec/artifacts/codes")["artifact"] == "codes"
