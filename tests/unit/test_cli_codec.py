"""`lakehouse codec`: what a line of it asks for, and how the answers read."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from daemon.cli.codec_words import axes_of, counted, short, target_name, target_of
from daemon.cli.errors import CliError
from daemon.cli.plot_names import Box, place
from schemas.certificate import (
    Agreement,
    CausalLmFunction,
    CausalLmGate,
    Certificate,
    ColumnFunction,
    ColumnGate,
    Control,
    EncoderFunction,
    EncoderGate,
    Estimate,
    LayerError,
)
from schemas.codec import (
    Charge,
    Checkpoint,
    CodecParams,
    CodecTarget,
    Manifest,
    Measured,
    Measures,
    Residual,
    TensorRow,
    Versions,
    describe,
)
from schemas.documents.codec_trial import CodecTrial
from schemas.events.base import Progress
from schemas.events.codec import (
    CodecCalibrated,
    CodecCertified,
    CodecDecoded,
    CodecDropped,
    CodecGraduated,
    CodecInfo,
    CodecJob,
    CodecJobFailed,
    CodecJobs,
    CodecJobStarted,
    CodecList,
    CodecUse,
    CodecWithdrawn,
    Frontier,
    FrontierPoint,
    ManifestReply,
    SweepFinished,
    SweepPointMeasured,
    SweepPointSkipped,
    TensorCalibrated,
)
from tests.unit.cli_daemon import CliDaemon, Run

TARGET = Checkpoint("/models/tiny")
INT4 = CodecParams(family="scalar", bits=4, group=64)
VERSIONS = Versions("0.1.0", "2.4.6")


def measures(icc: float) -> Measures:
    return Measures(1000, 0.1, 0.99, 0.01, icc, icc - 0.001, 4096)


def tensor(name: str, icc: float = 0.995, **more: Any) -> TensorRow:
    given: dict[str, Any] = {
        "number": 0, "name": name, "shard": "model.safetensors", "shape": (2000, 64), "dtype": "F32",
        "route": "quantise",
        "rule": "projection", "reason": "an attention or MLP projection", "matrices": 1, "params": INT4,
        "charge": Charge(64_000), "bits_per_weight": 4.25,
        "measured": [Measured(calibration=measures(1.0), held_out=measures(icc), all_rows=measures(0.99),
                              memorisation=1 - icc, memorised=icc < 0.9)],
    }  # fmt: skip
    return TensorRow(**{**given, **more})


def trial(point: int, **more: Any) -> CodecTrial:
    given: dict[str, Any] = {
        "job": "c1", "group": 0, "point": point, "target": "/models/tiny", "target_sha256": "a" * 64,
        "tensor": "up.weight",
        "rows": 2000, "columns": 64, "signature": "{}", "family": "pq", "subspaces": 6, "centroids": 256,
        "clip": "absmax",
        "zero_point": False, "rotation": "identity", "distance": "adc_u8", "lane_width": "f32x16", "seed": 42,
        "bits_per_weight": 8.09, "codes_bytes": 1, "codebooks_bytes": 1, "scales_bytes": 0, "rotation_bytes": 0,
        "measured_rows": 900, "icc_3_1": 0.19, "icc_1_1": 0.18, "relative_l2": 1.005, "row_cosine": 0.1,
        "norm_error": 0.2,
        "pairs": 4096, "calibration_rows": 128, "icc_3_1_calibration": 0.9998, "relative_l2_calibration": 0.01,
        "icc_3_1_all": 0.3, "relative_l2_all": 0.9, "memorisation": 0.8, "memorised": True, "fit_s": 0.1,
        "fit_shared": False, "encode_s": 0.1, "decode_s": 0.1, "versions": "{}", "asked_by": "cli", "host": "h",
        "time": 1.0,
    }  # fmt: skip
    return CodecTrial(**{**given, **more})


def lines(*messages: msgspec.Struct) -> list[bytes]:
    return [msgspec.json.encode(message) + b"\n" for message in messages]


CALIBRATED = CodecCalibrated(
    "c1", "small", "primary", TARGET, "a" * 64, "b" * 64, INT4, 3, 1, 1, 4.25, 9.5, "cli"
)  # fmt: skip


# --- words -----------------------------------------------------------------------------------------


def test_a_target_is_a_path_a_bucket_or_a_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.text").mkdir()
    assert target_of("./model") == {"kind": "checkpoint", "path": f"{tmp_path}/model"}
    assert target_of("notes.text") == {"kind": "checkpoint", "path": f"{tmp_path}/notes.text"}, "it is there"
    assert target_of("../model/")["path"] == f"{tmp_path.parent}/model", "one name, wherever it is named from"
    for url in ("bucket://primary/m", "bucket://primary/m/"):
        assert target_of(url) == {"kind": "checkpoint", "path": "bucket://primary/m"}
    assert target_of("papers.abstract") == {"kind": "column", "dataset": "papers", "column": "abstract", "index": None}
    assert target_of("papers.abstract@fine")["index"] == "fine"
    for text in ("/models/tiny", "bucket://primary/m", "papers.abstract", "papers.abstract@fine"):
        target = target_of(text)
        assert target_name(target) == describe(msgspec.convert(target, CodecTarget)) == text
    with pytest.raises(CliError, match="no target"):
        target_of("model")


def test_one_is_no_plural() -> None:
    assert [counted(n, "step") for n in (0, 1, 2000)] == ["0 steps", "1 step", "2,000 steps"]


def test_axes_are_words_numbers_and_objects() -> None:
    assert axes_of(["family=scalar,rotated", "bits=2,3", "group=null,64", 'residual={"depth": 1},null']) == {
        "family": ["scalar", "rotated"], "bits": [2, 3], "group": [None, 64], "residual": [{"depth": 1}, None],
    }  # fmt: skip
    for wrong in ("bits", "bits=", "a b=3"):
        with pytest.raises(CliError, match="no axis"):
            axes_of([wrong])


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (CodecParams(family="scalar", bits=8), "int8"),
        (CodecParams(family="scalar", bits=4, group=64, clip="mse"), "int4 groups of 64 mse clip"),
        (CodecParams(family="rotated", bits=4, rotation="hadamard"), "rotated 4 bits"),
        (CodecParams(family="pq", subspaces=6), "PQ 6×256"),
        (CodecParams(family="vq", dsub=2, rotation="hadamard"), "VQ d2×256 hadamard"),
        (CodecParams(family="rpq", subspaces=6, residual=Residual(2, 64)), "residual PQ 6×256 + 2×64"),
        (CodecParams(family="rabitq", rotation="hadamard", lane_width="f64x8"), "RaBitQ f64x8"),
    ],
)  # fmt: skip
def test_a_codec_has_a_short_name(params: CodecParams, words: str) -> None:
    assert short(msgspec.to_builtins(params)) == words


# --- jobs ------------------------------------------------------------------------------------------


def test_a_calibration_is_asked_for_and_told(run: Run, daemon: CliDaemon, tmp_path: Path) -> None:
    daemon.answers["POST /codec/calibrate"] = lines(
        CodecJobStarted("c1", "calibrate", 3, "small"),
        Progress("c1", "small", "quantise", 1, 4, "matrices"),
        TensorCalibrated("c1", "small", 3, tensor("up.weight")),
        TensorCalibrated("c1", "small", 3, tensor("learnt.weight", 0.2)),
        TensorCalibrated("c1", "small", 3, tensor("bad.weight", problem="row 3, column 7 is NaN", measured=[])),
        CALIBRATED,
    )
    code, out, _ = run(
        "codec", "calibrate", str(tmp_path), "--family", "scalar", "--bits", "4", "--group", "64", "--clip", "mse",
        "--calibration-rows", "500", "--seed", "7", "--artifact", "small", "--override", "*.q_proj.*=skip",
        "--bucket", "attic", "--activations", "a.safetensors",
    )  # fmt: skip
    assert code == 0
    body = daemon.seen[0][2]
    assert (body.target.path, body.artifact, body.bucket, body.asked_by) == (str(tmp_path), "small", "attic", "cli")
    assert (body.params.family, body.params.bits, body.params.group, body.params.clip) == ("scalar", 4, 64, "mse")
    assert (body.params.calibration_rows, body.params.seed) == (500, 7)
    assert [(one.pattern, one.kind) for one in body.overrides] == [("*.q_proj.*", "skip")]
    assert body.activations.endswith("/a.safetensors")
    assert "up.weight  4.25 bits  ICC 0.9950" in out
    assert "learnt.weight  4.25 bits  ICC 0.2000  relative L2 0.1000  memorised" in out
    assert "bad.weight  unusable: row 3, column 7 is NaN  (model.safetensors)" in out
    assert (
        "artifact small: 1 of 3 tensors quantised, 1 unusable, 4.25 bits a weight in them, 9.50 over the whole" in out
    )
    assert "mend the target" in out


def test_what_lies_in_a_bucket_is_named_as_it_is(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /codec/calibrate"] = lines(CodecJobStarted("c1", "calibrate", 3, "small"), CALIBRATED)
    daemon.answers["POST /codec/certify"] = lines(
        CodecJobStarted("c2", "certify", 1, "small"), CodecCertified("c2", certificate("encoder", True))
    )
    assert run("codec", "calibrate", "bucket://attic/m", "--activations", "bucket://attic/in.safetensors")[0] == 0
    assert run("codec", "certify", "small", "--text", "bucket://attic/held-out.txt")[0] == 0
    assert daemon.seen[0][2].activations == "bucket://attic/in.safetensors"
    assert daemon.seen[1][2].text == "bucket://attic/held-out.txt"


def test_axes_of_rotated_codecs_rotate_by_themselves(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /codec/sweep"] = lines(CodecJobStarted("c1", "sweep", 1), SweepFinished("c1", "sweep", "cli"))
    assert run("codec", "sweep", "/m", "--axis", "family=rabitq,rotated", "bits=1,2")[0] == 0
    assert run("codec", "sweep", "/m", "--axis", "family=rabitq,scalar", 'residual={"depth": 1}')[0] == 0
    assert [seen[2].axes.get("rotation") for seen in daemon.seen] == [["hadamard"], None]


def test_without_options_it_is_four_rotated_bits_and_params_may_say_it_all(run: Run, daemon: CliDaemon) -> None:
    whole = msgspec.structs.replace(CALIBRATED, problems=0)
    daemon.answers["POST /codec/calibrate"] = lines(CodecJobStarted("c1", "calibrate", 3, "small"), whole)
    code, out, _ = run("codec", "calibrate", "/m")
    assert (code, "lakehouse codec certify small --text FILE" in out) == (0, True)
    assert run("codec", "calibrate", "/m", "--params", '{"family": "pq", "dsub": 4}', "--centroids", "64")[0] == 0
    assert run("codec", "calibrate", "/m", "--family", "rpq", "--subspaces", "6", "--residual-depth", "2")[0] == 0
    one, two, three = (seen[2].params for seen in daemon.seen)
    assert (one.family, one.bits, one.rotation) == ("rotated", 4, "hadamard")
    assert (two.family, two.dsub, two.centroids, two.rotation) == ("pq", 4, 64, "identity")
    assert (three.subspaces, three.residual.depth) == (6, 2)


def test_a_job_that_fails_says_why(run: Run, daemon: CliDaemon) -> None:
    failed = CodecJobFailed("c1", "calibrate", "the target has changed", "calibrate again", "small")
    daemon.answers["POST /codec/calibrate"] = lines(CodecJobStarted("c1", "calibrate", 3, "small"), failed)
    code, out, _ = run("codec", "calibrate", "/m")
    assert (code, "the target has changed" in out, "hint: calibrate again" in out) == (1, True, True)
    daemon.answers["POST /codec/calibrate"] = lines(CodecJobStarted("c1", "calibrate", 3, "small"))
    code, _, err = run("codec", "calibrate", "/m")
    assert (code, "lakehouse codec jobs" in err) == (1, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("calibrate", "model"), "no target"),
        (("calibrate", "/m", "--params", "{"), "no JSON object"),
        (("calibrate", "/m", "--override", "x=y"), "no override"),
        (("calibrate", "/m", "--bits", "9"), "bits"),
        (("sweep", "/m"), "a file or axes"),
        (("sweep", "/m", "none.yaml"), "can't be read"),
        (("sweep", "/m", "--axis", "bits"), "no axis"),
        (("probe", "/m", "--rows", "1"), "--rows"),
        (("certify", "a", "--top1", "0.9", "--recall", "0.9"), "different gates"),
        (("graduate", "a"), "one index or one profile"),
        (("graduate", "a", "--index", "i", "--profile", "p"), "one index or one profile"),
        (("withdraw",), "one index or one profile"),
        (("frontier", "--plot", "f.gif"), "neither PNG nor SVG"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(run: Run, words: tuple[str, ...], said: str) -> None:
    code, out, err = run("codec", *words)
    assert (code, out) == (2, "")
    assert said in err


def test_a_sweep_is_a_file_or_axes(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /codec/sweep"] = lines(
        CodecJobStarted("c1", "sweep", 2),
        SweepPointMeasured("c1", trial(0, refused="learnt by heart")),
        SweepPointSkipped("c1", "up.weight", {"family": "scalar", "bits": 99}, "Expected `int` <= 8"),
        SweepFinished("c1", "sweep", "cli"),
    )
    deploy = Path(__file__).parents[2] / "deploy" / "codec"
    code, out, _ = run("codec", "sweep", "/m", str(deploy / "cross_product.yaml"), "--tensors", "*.up.*", "--controls")
    assert code == 0
    body = daemon.seen[0][2]
    assert (set(body.axes), body.tensors, body.controls) == (
        {"subspaces", "residual", "rotation", "lane_width"}, ["*.up.*"], True,
    )  # fmt: skip
    assert "up.weight  PQ 6×256  8.09 bits  ICC 0.1900  relative L2 1.0050  memorised  (a control: refused)" in out
    assert "skipped on up.weight: int99: Expected `int` <= 8" in out
    assert "lakehouse codec frontier --job c1" in out
    assert run("codec", "sweep", "notes.text", "--axis", "family=rotated", "bits=3,4")[0] == 0
    body = daemon.seen[1][2]
    assert (body.target.dataset, body.axes) == (
        "notes", {"family": ["rotated"], "bits": [3, 4], "rotation": ["hadamard"]},
    )  # fmt: skip
    Path("wrong.yaml").write_text("axis: {bits: [3]}")
    code, _, err = run("codec", "sweep", "/m", "wrong.yaml")
    assert (code, "unknown key axis" in err) == (2, True)


def test_a_probe_is_a_table_of_what_is_known_by_heart(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /codec/rowcount-probe"] = lines(
        CodecJobStarted("c1", "probe", 1),
        SweepPointMeasured("c1", trial(1, calibration_rows=1024, icc_3_1=0.48, memorised=False)),
        SweepPointMeasured("c1", trial(0, refused="learnt by heart")),
        SweepFinished("c1", "probe", "cli"),
    )
    code, out, _ = run("codec", "probe", "/m", "--tensor", "up.weight", "--rows", "128", "1024")
    assert code == 0
    assert daemon.seen[0][2].rows == (128, 1024)
    few, many = out.splitlines()[-2:]
    assert few.split() == ["128", "0.9998", "0.1900", "0.3000", "1.0050", "memorised", "refuses", "it"]
    assert many.split() == ["1,024", "0.9998", "0.4800", "0.3000", "1.0050", "takes", "it"]


def test_json_is_every_message_as_a_line(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /codec/calibrate"] = lines(CodecJobStarted("c1", "calibrate", 3, "small"), CALIBRATED)
    code, out, _ = run("codec", "calibrate", "/m", "--json")
    assert code == 0
    assert [json.loads(line)["type"] for line in out.splitlines()] == ["codec.job_started", "codec.calibrated"]


# --- certificates ----------------------------------------------------------------------------------

SHARE = Estimate(0.971, 0.9648, 0.9773, 0.966, 3782)
AGREEMENT = Agreement(
    positions=3782, mean_kl=0.0007, kl_p999=0.0065, top1=SHARE, top5=SHARE, perplexity=225.2, delta_perplexity=0.14
)
FUNCTIONS = {
    "causal_lm": (
        CausalLmGate(),
        CausalLmFunction(
            prompts=60, agreement=AGREEMENT, noise_floor=AGREEMENT, reference_perplexity=225.0,
            layers=[LayerError("up.weight", 0.1, 0.004)], divergences=[], diverged=109, first_divergence=[32, 8],
            reference_ms=[1.0, 3.0, 2.0], candidate_ms=[9.0, 2.5, 2.0],
        ),
        ("top-1", "0.9710 (0.9648 to 0.9773), at least 0.9660 of 3,782; bfloat16 0.9710", "225.20, +0.140",
         "alike for 32, 8 tokens", "2.5 ms a prompt decoded, 2.0 of the reference"),
    ),
    "encoder": (
        EncoderGate(),
        EncoderFunction(
            texts=150, cosine=SHARE, worst_cosine=0.9, neighbours=SHARE, top1_neighbour=SHARE, noise_floor_cosine=0.9999
        ),
        ("cosine", "worst 0.9000; bfloat16 0.9999", "10 nearest"),
    ),
    "column": (
        ColumnGate(),
        ColumnFunction(
            rows=3000, queries=200, k=10, recall=SHARE, recall_codes=SHARE, oversample=10, code_bytes_share=0.133
        ),
        ("recall@10", "10 × rescored", "codes alone", "0.133 of float32"),
    ),
}  # fmt: skip


def certificate(function: str, passed: bool) -> Certificate:
    gate, measured, _ = FUNCTIONS[function]
    return Certificate(
        artifact="small", manifest_sha256="b" * 64, target=TARGET, target_sha256="a" * 64, gate=gate, function=measured,
        passed=passed, failures=[] if passed else ["top-1 0.9710, at least 0.9660 < 0.99"],
        self_test=[Control("noise", True, "top1 0.112, at most 0.127 < 0.99")], text="/held-out.txt",
        text_sha256="c" * 64, seed=42, versions=VERSIONS, took_s=3.0, time=5.0, host="h",
    )  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("passed", [True, False])
def test_a_certificate_is_told_with_its_gate_bounds_and_controls(
    run: Run, daemon: CliDaemon, function: str, passed: bool
) -> None:
    daemon.answers["POST /codec/certify"] = lines(
        CodecJobStarted("c1", "certify", 1, "small"), CodecCertified("c1", certificate(function, passed))
    )
    code, out, _ = run("codec", "certify", "small", "--text", "held-out.txt", "--prompts", "60")
    assert code == (0 if passed else 1)
    assert daemon.seen[0][2].text.endswith("/held-out.txt")
    assert daemon.seen[0][2].gate is None
    assert ("small: passed" in out, "at least 0.9660 < 0.99" in out) == (passed, not passed)
    for words in (*FUNCTIONS[function][2], "gate", "noise fails (top1 0.112, at most 0.127 < 0.99)", "/held-out.txt"):
        assert words in out


@pytest.mark.parametrize(
    ("options", "gate"),
    [
        (("--top1", "0.95"), {"function": "causal_lm", "top1": 0.95, "top5": 0.999, "mean_kl": None}),
        (("--cosine", "0.9", "--neighbours", "0.8"), {"function": "encoder", "cosine": 0.9, "neighbours": 0.8}),
        (("--oversample", "3"), {"function": "column", "recall": 0.95, "k": 10, "oversample": 3}),
        (("--k", "5"), {"function": "column", "recall": 0.95, "k": 5, "oversample": 10}),
    ],
)
def test_a_gate_is_asked_for(run: Run, daemon: CliDaemon, options: tuple[str, ...], gate: dict[str, Any]) -> None:
    daemon.answers["POST /codec/certify"] = lines(
        CodecJobStarted("c1", "certify", 1, "small"), CodecCertified("c1", certificate("column", True))
    )
    assert run("codec", "certify", "small", *options)[0] == 0
    assert msgspec.to_builtins(daemon.seen[0][2].gate) == gate


# --- artifacts -------------------------------------------------------------------------------------


def info(**more: Any) -> CodecInfo:
    given: dict[str, Any] = {
        "artifact": "small", "bucket": "primary", "target": TARGET, "params": INT4, "tensors": 3, "quantised": 1,
        "problems": 0, "bits_per_weight": 4.25, "total_bits_per_weight": 9.5, "manifest_sha256": "b" * 64,
        "created": 1.0,
        "certificate": None, "uses": [],
    }  # fmt: skip
    return CodecInfo(**{**given, **more})


def test_artifacts_are_listed_and_shown(run: Run, daemon: CliDaemon) -> None:
    used = info(certificate=certificate("column", True), uses=[CodecUse("docs", None, 1.0, "cli")])
    daemon.answers["GET /codec/artifacts"] = CodecList([info(artifact="bare"), used])
    _, bare, small = run("codec", "list")[1].splitlines()
    assert ("none" in bare, "passed" in small, "index docs" in small) == (True, True, True)
    assert "int4 groups of 64" in bare
    daemon.answers["GET /codec/artifacts/{artifact}"] = used
    manifest = Manifest(
        artifact="small", target=TARGET, target_sha256="a" * 64, params=INT4, tensors=[tensor("up.weight")],
        bits_per_weight=4.25, total_bits_per_weight=9.5, versions=VERSIONS,
    )  # fmt: skip
    daemon.answers["GET /codec/artifacts/{artifact}/manifest"] = ManifestReply(manifest)
    out = run("codec", "show", "small", "--tensors")[1]
    for words in ("/models/tiny", "4.25, over all 9.50", "small: passed", "2000×64", "0.9950", "an attention or MLP"):
        assert words in out
    assert json.loads(run("codec", "show", "small", "--tensors", "--json")[1])["tensors"][0]["name"] == "up.weight"
    daemon.answers["GET /codec/artifacts"] = CodecList([])
    assert "lakehouse codec calibrate TARGET" in run("codec", "list")[1]


def test_artifacts_are_put_to_use_and_away(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["POST /codec/graduate"] = CodecGraduated("small", "primary", "b" * 64, "docs", None, "cli")
    daemon.answers["POST /codec/withdraw"] = CodecWithdrawn("small", None, "coder", "asked by cli")
    daemon.answers["DELETE /codec/artifacts/{artifact}"] = CodecDropped("small")
    daemon.answers["POST /codec/decode"] = CodecDecoded("small", "/out", 3, 12_000_000)
    assert "small serves index docs" in run("codec", "graduate", "small", "--index", "docs")[1]
    assert "small no longer serves profile coder" in run("codec", "withdraw", "--profile", "coder")[1]
    assert "dropped small" in run("codec", "drop", "small")[1]
    assert "3 files, 12.0 MB, in /out" in run("codec", "decode", "small", "out")[1]
    bodies = [seen[2] for seen in daemon.seen]
    assert (bodies[0].index, bodies[0].profile, bodies[1].index, bodies[1].profile) == ("docs", None, None, "coder")
    assert bodies[3].folder == str(Path.cwd() / "out")


def test_jobs_are_listed_and_cancelled(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["GET /codec/jobs"] = CodecJobs([CodecJob("c1", "sweep", "/models/tiny", None, 12, 1.0, "cli")])
    daemon.answers["DELETE /codec/jobs/{job}"] = CodecJobFailed("c1", "sweep", "cancelled by cli")
    assert run("codec", "jobs")[1].splitlines()[1].split()[:4] == ["c1", "sweep", "/models/tiny", "12"]
    assert "cancelled c1" in run("codec", "cancel", "c1")[1]
    assert (daemon.seen[1][1].job, daemon.seen[1][1].asked_by) == ("c1", "cli")


def point(size: float, value: float, frontier: bool, memorised: int = 0, **params: Any) -> FrontierPoint:
    return FrontierPoint("{}", CodecParams(**params), size, value, 37, 1000, value - 0.01, memorised, frontier)


POINTS = [
    point(3.03, 0.9827, True, family="rotated", bits=3, rotation="hadamard"),
    point(4.25, 0.9934, False, family="scalar", bits=4, group=64),
    point(8.03, 1.0, True, family="scalar", bits=8),
    point(8.09, 0.19, False, 37, family="pq", subspaces=6),
]


@pytest.mark.slow
def test_the_frontier_is_a_table_and_a_picture(run: Run, daemon: CliDaemon) -> None:
    daemon.answers["GET /codec/frontier"] = Frontier("icc_3_1", "/models/tiny", POINTS, "SELECT")
    out = run("codec", "frontier", "/models/tiny", "--plot", "f.png")[1]
    assert ("rotated 3 bits" in out, "int4 groups of 64" in out) == (True, False)
    assert "2 more are beaten in both, or were measured on less: --points shows them" in out
    assert Path("f.png").read_bytes().startswith(b"\x89PNG")
    out = run("codec", "frontier", "--points", "--measure", "relative_l2", "--plot", "f.svg")[1]
    assert "memorised" in out
    drawn = Path("f.svg").read_text()
    assert drawn.startswith("<?xml")
    assert (daemon.seen[0][1].target, daemon.seen[1][1].measure) == ("/models/tiny", "relative_l2")
    daemon.answers["GET /codec/frontier"] = Frontier("icc_3_1", None, [], "SELECT")
    code, _, err = run("codec", "frontier", "--plot", "g.png")
    assert (code, "nothing to draw" in err) == (1, True)


@pytest.mark.slow
@pytest.mark.parametrize("values", [(0.995,), (0.9958, 0.9969), (0.98, 0.995), (-0.1, 0.999), (1.0, 1.0)])
def test_a_picture_has_figures_on_both_axes_however_little_its_points_differ(
    run: Run, daemon: CliDaemon, values: tuple[float, ...]
) -> None:
    points = [point(0.1 * 700**n, value, True, family="scalar", bits=8) for n, value in enumerate(values)]
    daemon.answers["GET /codec/frontier"] = Frontier("icc_3_1", None, points, "SELECT")
    assert run("codec", "frontier", "--plot", "f.svg")[0] == 0
    drawn = Path("f.svg").read_text()
    assert ('id="xtick_1"' in drawn, 'id="ytick_2"' in drawn) == (True, True)


def test_names_in_a_picture_cover_no_name_no_point_and_stay_inside() -> None:
    frame = (0.0, 0.0, 400.0, 200.0)
    full: list[Box] = []
    spots = [(60.0, 100.0), (66.0, 104.0), (330.0, 100.0), (390.0, 190.0)]
    for spot in spots:
        found = place(spot, (80.0, 12.0), frame, full, spots, [])
        assert found is not None
        box = found[1]
        assert (box[0] >= 0, box[2] <= 400, box[1] >= 0, box[3] <= 200) == (True,) * 4
        assert not any(box[0] < x < box[2] and box[1] < y < box[3] for x, y in spots)
        assert not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in full)
        full.append(box)
    assert full[0][2] <= 60.0 or full[0][0] > 66.0, "not between its point and the next"
    assert place((5.0, 5.0), (80.0, 12.0), (0.0, 0.0, 50.0, 50.0), [], [], []) is None, "there is no room"


def test_a_name_keeps_off_the_line() -> None:
    across = [(x, 100.0) for x in range(0, 400, 5)]
    found = place((200.0, 100.0), (80.0, 12.0), (0.0, 0.0, 400.0, 200.0), [], [(200.0, 100.0)], across)
    assert found is not None
    assert not found[1][1] < 100.0 < found[1][3]
    assert not found[2], "it is beside its point"
