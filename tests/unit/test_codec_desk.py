"""The desk: what is refused before any work, what is ordered, who may use what."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from actors.errors import Transient
from schemas.certificate import CausalLmGate
from schemas.codec import Checkpoint, CodecParams, Override
from schemas.documents.codec import CodecJobDocument, IndexCodecDocument
from schemas.events.base import Message, Refusal
from schemas.events.codec import (
    CalibrateCodec,
    CalibrateTensor,
    CancelCodecJob,
    CertifyCodec,
    CodecCalibrated,
    CodecDropped,
    CodecGraduated,
    CodecJobFailed,
    CodecJobs,
    CodecJobStarted,
    CodecWithdrawn,
    DropCodec,
    GetCodec,
    GraduateCodec,
    ListCodecJobs,
    ListCodecs,
    MeasurePoints,
    ProbeRowcount,
    RunCertification,
    SweepCodec,
    WithdrawCodec,
)
from schemas.events.index import IndexDropped
from tests.unit.codec_setting import COLUMN, Setting

INT8 = CodecParams(family="scalar", bits=8)


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


def refusal(said: Sequence[Message]) -> Refusal:
    (only,) = said
    assert isinstance(only, Refusal), only
    return only


# --- calibration -----------------------------------------------------------------------------------


async def test_a_calibration_is_a_chain_that_begins_with_the_first_tensor(setting: Setting) -> None:
    command = CalibrateCodec(setting.checkpoint, INT8, "small")
    started, first = await setting.ask(command)
    assert isinstance(started, CodecJobStarted)
    assert isinstance(first, CalibrateTensor)
    assert (started.kind, started.steps, started.artifact) == ("calibrate", 4, "small")
    assert (first.job, first.number, first.tensors, first.order) == (started.job, 0, 4, command)
    (jobs,) = await setting.ask(ListCodecJobs())
    assert isinstance(jobs, CodecJobs)
    assert [(job.job, job.about) for job in jobs.jobs] == [(started.job, command.target.path)]  # type: ignore[union-attr]


async def test_the_same_order_again_is_the_same_job_and_loses_no_file(setting: Setting) -> None:
    command = CalibrateCodec(setting.checkpoint, INT8, "small")
    once = await setting.ask(command)
    await setting.buckets.put("primary", "codecs/small/tensors/000000.safetensors", b"done")
    assert await setting.ask(command) == once
    assert await setting.buckets.get("primary", "codecs/small/tensors/000000.safetensors") == b"done"


async def test_a_name_is_taken_by_a_calibration_under_way_and_by_an_artifact(setting: Setting) -> None:
    command = CalibrateCodec(setting.checkpoint, INT8, "small")
    started = (await setting.ask(command, "m1"))[0]
    no = refusal(await setting.ask(command, "m2"))
    assert no.status == "conflict"
    assert started.job in no.reason  # type: ignore[attr-defined]
    assert "cancel" in no.hint
    await setting.with_artifact("other")
    no = refusal(await setting.ask(replace(command, artifact="other"), "m3"))
    assert (no.status, "other" in no.reason) == ("conflict", True)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (CodecParams(family="pq", subspaces=6, calibration_rows=128), "centroids = 256"),  # the overfit
        (CodecParams(family="rotated", bits=4), "rotation"),
        (CodecParams(family="pq", dsub=5), "dsub"),
        (CodecParams(family="gptq", bits=4), "activations"),
        (CodecParams(family="pq", subspaces=4, rotation="opq", centroids=16), "bf16x32"),
    ],
)
async def test_parameters_that_no_tensor_can_take_are_refused_before_any_work(
    setting: Setting, params: CodecParams, words: str
) -> None:
    no = refusal(await setting.ask(CalibrateCodec(setting.checkpoint, params)))
    assert no.status == "invalid"
    assert words in no.reason
    assert "up_proj" in no.reason
    assert await setting.registry.all(CodecJobDocument) == []


async def test_activations_are_refused_where_nothing_would_look_at_them(setting: Setting, tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("a\n\nb\n")
    no = refusal(await setting.ask(CalibrateCodec(setting.checkpoint, INT8, activations=str(tmp_path / "held.txt"))))
    assert (no.status, "scalar takes no activations" in no.reason) == ("invalid", True)


@pytest.mark.parametrize("place", ["/model", "bucket://primary/models/tiny"])
@pytest.mark.parametrize(
    ("after_header", "said"),
    [(4, "none of its 4 tensors can be used; model.embed_tokens.weight: truncated"), (-4, "truncated")],
)
async def test_a_target_that_is_cut_off_is_refused_by_its_own_name(
    setting: Setting, place: str, after_header: int, said: str
) -> None:
    whole = (Path(setting.checkpoint.path) / "model.safetensors").read_bytes()
    cut = whole[: 8 + int.from_bytes(whole[:8], "little") + after_header]
    (setting.folder / "model" / "model.safetensors").write_bytes(cut)
    await setting.buckets.put("primary", "models/tiny/model.safetensors", cut)
    target = Checkpoint(place if place.startswith("bucket") else f"{setting.folder}{place}")
    for order in (CalibrateCodec(target, INT8, "small"), SweepCodec(target, base={"family": "scalar", "bits": 8})):
        refused = refusal(await setting.ask(order, "other"))
        assert refused.status == "invalid"
        assert refused.reason.startswith(target.path)
        assert "cache" not in refused.reason
        assert said in refused.reason


async def test_what_is_named_must_be_there_and_allowed(setting: Setting, tmp_path: Path) -> None:
    checkpoint = setting.checkpoint
    os.mkfifo(tmp_path / "pipe")
    for command, status, words in (
        (CalibrateCodec(Checkpoint("/etc"), INT8), "forbidden", "codec.allowed_roots"),
        (CalibrateCodec(Checkpoint("model"), INT8), "malformed", "absolute"),
        (CalibrateCodec(Checkpoint(str(tmp_path / "none")), INT8), "not_found", "no such"),
        (CalibrateCodec(Checkpoint("bucket://nowhere/x"), INT8), "not_found", "nowhere"),
        (CalibrateCodec(Checkpoint("bucket://primary/models/x"), INT8), "not_found", "no such object"),
        (CalibrateCodec(COLUMN, INT8), "not_found", "notes"),
        (CalibrateCodec(checkpoint, INT8, bucket="attic"), "not_found", "attic"),
        (CalibrateCodec(checkpoint, INT8, overrides=[Override("*.nothing", "skip")]), "invalid", "*.nothing"),
        (CalibrateCodec(checkpoint, INT8, activations="/etc/passwd"), "forbidden", "allowed_roots"),
        (CalibrateCodec(Checkpoint(str(tmp_path / ("n" * 300))), INT8), "invalid", "too long"),
        (CalibrateCodec(Checkpoint(str(tmp_path / "pipe")), INT8), "invalid", "neither a file nor a folder"),
    ):
        no = refusal(await setting.ask(command))
        assert no.status == status, no
        assert words in f"{no.reason} {no.hint}", no


async def test_a_checkpoint_in_a_bucket_is_opened_as_a_folder(setting: Setting) -> None:
    folder = Path(setting.checkpoint.path)
    for name in ("model.safetensors", "config.json"):
        await setting.buckets.upload("primary", f"models/tiny/{name}", folder / name)
    started, _ = await setting.ask(CalibrateCodec(Checkpoint("bucket://primary/models/tiny"), INT8))
    assert started.steps == 4  # type: ignore[attr-defined]


async def test_a_cancelled_job_is_gone_and_its_name_free(setting: Setting) -> None:
    command = CalibrateCodec(setting.checkpoint, INT8, "small")
    started = (await setting.ask(command))[0]
    assert isinstance(started, CodecJobStarted)
    (failed,) = await setting.ask(CancelCodecJob(started.job, "cli"))
    assert failed == CodecJobFailed(started.job, "calibrate", "cancelled by cli", artifact="small")
    assert refusal(await setting.ask(CancelCodecJob(started.job))).status == "not_found"
    assert isinstance((await setting.ask(command, "m2"))[0], CodecJobStarted)


async def test_a_bucket_that_is_away_keeps_no_job_from_ending_and_none_on_the_board(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: str) -> None:
        raise Transient("bucket primary can't be reached")

    command = CalibrateCodec(setting.checkpoint, INT8, "small")
    started = (await setting.ask(command, "m1"))[0]
    assert isinstance(started, CodecJobStarted)
    monkeypatch.setattr(setting.buckets, "delete_prefix", away)
    (failed,) = await setting.ask(CancelCodecJob(started.job, "cli"))
    assert isinstance(failed, CodecJobFailed)
    with pytest.raises(Transient):
        await setting.ask(command, "m2")
    assert await setting.registry.all(CodecJobDocument) == []


async def test_a_finished_job_is_no_longer_under_way(setting: Setting) -> None:
    started = (await setting.ask(CalibrateCodec(setting.checkpoint, INT8, "small")))[0]
    assert isinstance(started, CodecJobStarted)
    done = CodecCalibrated(
        started.job, "small", "primary", setting.checkpoint, "a" * 64, "b" * 64, INT8, 4, 2, 0, 8.0, 9.0, "cli"
    )
    assert list(await setting.ask(done)) == []
    assert (await setting.ask(ListCodecJobs())) == [CodecJobs([])]


# --- sweeps ----------------------------------------------------------------------------------------


async def test_a_sweep_is_a_chain_of_groups(setting: Setting) -> None:
    order = SweepCodec(setting.checkpoint, base={"family": "scalar"}, axes={"bits": [4, 8], "group": [None, 16]})
    started, first = await setting.ask(order)
    assert isinstance(started, CodecJobStarted)
    assert isinstance(first, MeasurePoints)
    assert (started.kind, first.kind, first.group, first.groups) == ("sweep", "sweep", 0, started.steps)
    assert started.steps >= 2  # a group is on one tensor, and there are two


async def test_too_many_points_are_counted_before_any_is_made_or_the_target_looked_at(setting: Setting) -> None:
    axes = {"bits": list(range(1, 9)), "seed": list(range(1251))}
    no = refusal(await setting.ask(SweepCodec(Checkpoint("/nowhere"), base={"family": "scalar"}, axes=axes)))
    assert (no.status, "10,008" in no.reason) == ("malformed", True)
    huge = {"bits": list(range(1, 9)), "seed": list(range(100_000)), "group": list(range(1, 100_001))}
    no = refusal(await setting.ask(SweepCodec(Checkpoint("/nowhere"), base={"family": "scalar"}, axes=huge)))
    assert "80,000,000,000" in no.reason


async def test_a_misspelt_axis_and_a_glob_for_nothing_are_refused(setting: Setting) -> None:
    no = refusal(await setting.ask(SweepCodec(setting.checkpoint, base={"familly": "scalar"})))
    assert (no.status, "familly" in no.reason) == ("malformed", True)
    no = refusal(await setting.ask(SweepCodec(setting.checkpoint, ["*.lm_head"], {"family": "scalar", "bits": 8})))
    assert (no.status, "*.lm_head" in no.reason) == ("invalid", True)


async def test_a_probe_grows_the_calibration_rows_of_the_largest_tensor(setting: Setting) -> None:
    started, first = await setting.ask(ProbeRowcount(setting.checkpoint, rows=(64, 128, 300)))
    assert isinstance(first, MeasurePoints)
    assert (started.kind, first.kind, first.order.controls) == ("probe", "probe", True)  # type: ignore[attr-defined]
    assert first.order.axes == {"calibration_rows": [64, 128, 300]}


# --- certificates ----------------------------------------------------------------------------------


async def test_a_certification_is_for_the_manifest_of_now(setting: Setting) -> None:
    sha256 = await setting.with_artifact(passed=None)
    started, run = await setting.ask(CertifyCodec("small"))
    assert isinstance(run, RunCertification)
    assert (started.kind, run.manifest_sha256) == ("certify", sha256)  # type: ignore[attr-defined]


async def test_a_certification_that_can_t_be_is_refused(setting: Setting, tmp_path: Path) -> None:
    await setting.with_artifact("column", passed=None)
    await setting.with_artifact("model", setting.checkpoint, passed=None)
    assert refusal(await setting.ask(CertifyCodec("none"))).status == "not_found"
    assert "held-out text" in refusal(await setting.ask(CertifyCodec("model"))).reason
    assert "recall" in refusal(await setting.ask(CertifyCodec("column", gate=CausalLmGate()))).reason
    assert "their own queries" in refusal(await setting.ask(CertifyCodec("column", str(tmp_path / "none.txt")))).reason
    assert refusal(await setting.ask(CertifyCodec("model", str(tmp_path / "none.txt")))).status == "not_found"
    assert refusal(await setting.ask(CertifyCodec("model", "/etc/passwd"))).status == "forbidden"
    folder = refusal(await setting.ask(CertifyCodec("model", setting.checkpoint.path)))
    assert (folder.status, "is a folder" in folder.reason) == ("invalid", True)


# --- use -------------------------------------------------------------------------------------------


async def test_a_certified_artifact_graduates_is_kept_and_withdrawn(setting: Setting) -> None:
    await setting.with_index()
    sha256 = await setting.with_artifact()
    (graduated,) = await setting.ask(GraduateCodec("small", index="docs", asked_by="cli"))
    assert graduated == CodecGraduated("small", "primary", sha256, "docs", None, "cli")
    assert [(use.index, use.asked_by) for use in (await setting.document()).uses] == [("docs", "cli")]
    found = await setting.registry.load(IndexCodecDocument, "docs")
    assert found is not None
    assert (found[0].artifact, found[0].manifest_sha256) == ("small", sha256)
    assert (found[0].oversample, found[0].candidates) == (10, 100)  # its gate's: recall@10

    no = refusal(await setting.ask(DropCodec("small")))
    assert (no.status, "index docs" in no.reason) == ("conflict", True)
    (withdrawn,) = await setting.ask(WithdrawCodec(index="docs", asked_by="cli"))
    assert withdrawn == CodecWithdrawn("small", "docs", None, "asked by cli")
    assert (await setting.document()).uses == []
    assert await setting.registry.load(IndexCodecDocument, "docs") is None
    assert refusal(await setting.ask(WithdrawCodec(index="docs"))).status == "not_found"
    assert await setting.ask(DropCodec("small")) == [CodecDropped("small")]
    assert refusal(await setting.ask(GetCodec("small"))).status == "not_found"
    assert await setting.buckets.list("primary", "codecs/small") == []


async def test_a_successor_takes_the_place(setting: Setting) -> None:
    await setting.with_index()
    await setting.with_artifact("one")
    await setting.with_artifact("two")
    await setting.ask(GraduateCodec("one", index="docs"))
    await setting.ask(GraduateCodec("two", index="docs"))
    await setting.ask(GraduateCodec("two", index="docs"))
    assert (await setting.document("one")).uses == []
    assert len((await setting.document("two")).uses) == 1
    (listed,) = await setting.ask(ListCodecs())
    assert [(info.artifact, len(info.uses)) for info in listed.codecs] == [("one", 0), ("two", 1)]  # type: ignore[attr-defined]


async def test_nothing_graduates_without_a_certificate_for_exactly_its_hashes(setting: Setting) -> None:
    await setting.with_index()
    await setting.with_artifact("bare", passed=None)
    await setting.with_artifact("failed", passed=False)
    sha256 = await setting.with_artifact("changed")
    manifest = await setting.buckets.get("primary", "codecs/changed/manifest.json")
    await setting.buckets.put("primary", "codecs/changed/manifest.json", manifest + b" ", overwrite=True)
    await setting.with_artifact("other")
    document = await setting.document("other")
    assert document.certificate is not None
    stale = replace(document, certificate=replace(document.certificate, target_sha256="c" * 64))
    await setting.registry.save("other", stale, expected=1)
    for name, words in (
        ("bare", "no certificate"),
        ("failed", "recall@10 0.90 < 0.95"),
        ("changed", "isn't the one"),
        ("other", "other hashes"),
    ):
        no = refusal(await setting.ask(GraduateCodec(name, index="docs")))
        assert no.status == "conflict"
        assert words in no.reason
    assert sha256
    assert await setting.registry.load(IndexCodecDocument, "docs") is None


async def test_an_artifact_serves_what_it_was_made_of(setting: Setting) -> None:
    await setting.with_index()
    await setting.with_artifact("model", setting.checkpoint)
    await setting.with_artifact("column")
    await setting.with_artifact("elsewhere", replace(COLUMN, column="title"))
    await setting.with_artifact("raw")
    await setting.registry.save("raw", replace(await setting.document("raw"), metric=None), expected=1)
    for command, status in (
        (GraduateCodec("model", index="docs"), "invalid"),
        (GraduateCodec("elsewhere", index="docs"), "invalid"),
        (GraduateCodec("raw", index="docs"), "invalid"),
        (GraduateCodec("column", profile="coder"), "not_found"),
        (GraduateCodec("column", index="none"), "not_found"),
        (GraduateCodec("none", index="docs"), "not_found"),
        (GraduateCodec("column"), "invalid"),
        (GraduateCodec("column", "docs", "coder"), "invalid"),
    ):
        assert refusal(await setting.ask(command)).status == status, command


async def test_a_dropped_index_uses_nothing(setting: Setting) -> None:
    await setting.with_index()
    await setting.with_artifact()
    await setting.ask(GraduateCodec("small", index="docs"))
    now = setting.clock.now()
    assert list(await setting.ask(IndexDropped("docs"), time=now - 1)) == []  # once more, of one that was before
    assert len((await setting.document()).uses) == 1
    (withdrawn,) = await setting.ask(IndexDropped("docs"), time=now + 1)
    assert withdrawn.reason == "the index was dropped"  # type: ignore[attr-defined]
    assert list(await setting.ask(IndexDropped("docs"), time=now + 1)) == []
    assert (await setting.document()).uses == []
