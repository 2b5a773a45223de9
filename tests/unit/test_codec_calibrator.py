"""A job from the order to its last fact, step by step as the bus would carry it; killed workers, cancelled jobs,
tensors that can't be used, and the artifact read back."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.codec.artifact import open_column, read_manifest
from actors.codec.calibrator import Calibrator
from actors.codec.config import CodecConfig
from actors.codec.steps import calibrating
from actors.codec.store import ArtifactStore
from actors.tensors.checkpoint import open_checkpoint
from actors.tensors.shard_writer import write_arrays
from actors.tensors.stored import read_matrix
from schemas.codec import Checkpoint, CodecParams
from schemas.documents.codec import CodecDocument
from schemas.events.base import Command, Message, Refusal
from schemas.events.codec import (
    CalibrateCodec,
    CalibrateTensor,
    CancelCodecJob,
    CodecCalibrated,
    CodecDecoded,
    CodecJobFailed,
    CodecJobStarted,
    DecodeCodec,
    GetFrontier,
    ListCodecTrials,
    ProbeRowcount,
    SweepCodec,
    SweepFinished,
    SweepPointMeasured,
    SweepPointSkipped,
    TensorCalibrated,
)
from tests.unit.codec_setting import COLUMN, COLUMNS, ROWS, Setting, origin
from tests.unit.inline_compute import InlineCompute
from tests.unit.tuning_bench import HeardBus

INT8 = CodecParams(family="scalar", bits=8, calibration_rows=300)


class House(Setting):
    """The desk and the calibrator."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.bus = HeardBus()
        self.calibrator = Calibrator(
            self.registry, self.buckets, self.targets, self.journal, InlineCompute(), self.bus, self.clock, "here",
            CodecConfig(), folder / "cache" / "codec",
        )  # fmt: skip

    async def work(self, command: Message, id: str, delivery: int = 1) -> Sequence[Message]:
        for route in Calibrator.routes():
            if route.takes is type(command):
                method = getattr(self.calibrator, route.method)
                return await (method(command, origin(id, delivery)) if route.wants_origin else method(command))
        raise AssertionError(f"nobody takes {command}")

    async def run(self, order: Command, id: str = "m1") -> list[Message]:
        """Everything that is said from the order on."""
        heard = list(await self.ask(order, id))
        pending = [said for said in heard if isinstance(said, Command)]
        step = 0
        while pending:
            command = pending.pop(0)
            step += 1
            said = await self.work(command, f"{id}-{step}")
            heard += said
            for fact in said:
                if isinstance(fact, CodecCalibrated | SweepFinished | CodecJobFailed):
                    await self.ask(fact)
            pending += [one for one in said if isinstance(one, Command)]
        return heard


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def of(kind: type[Any], heard: Sequence[Message]) -> list[Any]:
    return [one for one in heard if isinstance(one, kind)]


# --- calibration -----------------------------------------------------------------------------------


async def test_a_calibration_makes_an_artifact_that_is_the_checkpoint_again(house: House, tmp_path: Path) -> None:
    target = house.checkpoint
    heard = await house.run(CalibrateCodec(target, INT8, "small", asked_by="test"))
    rows = [fact.tensor for fact in of(TensorCalibrated, heard)]
    assert [(row.name, row.route) for row in rows] == [
        ("model.embed_tokens.weight", "passthrough"),
        ("model.layers.0.mlp.up_proj.weight", "quantise"),
        ("model.layers.1.mlp.up_proj.weight", "quantise"),
        ("model.norm.weight", "skip"),
    ]
    (done,) = of(CodecCalibrated, heard)
    assert (done.tensors, done.quantised, done.problems) == (4, 2, 0)
    assert done.bits_per_weight == pytest.approx(8 + 16 / COLUMNS, abs=0.02)  # 8 bits and a bfloat16 a row
    document = await house.document()
    assert (document.manifest_sha256, document.target_sha256) == (done.manifest_sha256, done.target_sha256)
    assert await house.buckets.list("primary", "codecs/small/rows") == []  # the manifest has them

    out = tmp_path / "decoded"
    (decoded,) = await house.work(DecodeCodec("small", str(out)), "d1")
    assert isinstance(decoded, CodecDecoded)
    assert decoded.files == 2
    for place in (out / "config.json" / "below", tmp_path / ("n" * 300)):
        (no,) = await house.work(DecodeCodec("small", str(place)), "d2")
        assert isinstance(no, Refusal)
        assert (no.status, no.reason.startswith(str(place))) == ("invalid", True)
    assert (out / "config.json").read_bytes() == (Path(target.path) / "config.json").read_bytes()
    original, restored = open_checkpoint(Path(target.path)), open_checkpoint(out)
    for name, tensor in original.tensors.items():
        there, here = read_matrix(tensor), read_matrix(restored.tensor(name))
        if "up_proj" in name:
            step = np.abs(there).max(axis=1, keepdims=True) / 127
            assert (np.abs(there - here) <= step * 0.51).all()
            assert not np.array_equal(there, here)
        else:
            np.testing.assert_array_equal(there, here)


async def test_a_step_that_comes_again_does_nothing_twice(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = await house.ask(CalibrateCodec(house.checkpoint, INT8, "small"))
    once = await house.work(first, "s1")

    def never(*_: Any) -> Any:
        raise AssertionError("calibrated again")

    monkeypatch.setattr(calibrating, "calibrate_tensor", never)
    assert await house.work(first, "s1", delivery=2) == once
    monkeypatch.undo()
    command: Message = once[1]
    while isinstance(command, CalibrateTensor):
        said = await house.work(command, f"s{command.number}")
        last, command = command, said[1]
    assert isinstance(command, CodecCalibrated)
    assert await house.work(last, "s3", delivery=2) == said  # the process was killed before it could tell
    assert len(await house.registry.all(CodecDocument)) == 1


async def test_an_order_that_comes_again_after_its_end_leaves_the_artifact_alone(house: House) -> None:
    order = CalibrateCodec(house.checkpoint, INT8, "small")
    await house.run(order)
    files = await house.buckets.list("primary", "codecs/small")
    (only,) = await house.ask(order)
    assert isinstance(only, CodecJobStarted)
    assert await house.buckets.list("primary", "codecs/small") == files


async def test_a_killed_attempt_leaves_half_a_tensor_that_nobody_sees(house: House) -> None:
    """A file without its row is done again."""
    _, first = await house.ask(CalibrateCodec(house.checkpoint, INT8, "small"))
    await house.buckets.put("primary", "codecs/small/tensors/000000.safetensors", b"half of it")
    said = await house.work(first, "s1")
    row = of(TensorCalibrated, said)[0].tensor
    assert len(await house.buckets.get("primary", "codecs/small/tensors/000000.safetensors")) == row.file.bytes > 10


async def test_a_cancelled_job_s_next_step_does_nothing(house: House) -> None:
    started, first = await house.ask(CalibrateCodec(house.checkpoint, INT8, "small"))
    assert isinstance(started, CodecJobStarted)
    _, second = await house.work(first, "s1")
    assert await house.buckets.list("primary", "codecs/small") != []
    await house.ask(CancelCodecJob(started.job))
    assert list(await house.work(second, "s2")) == []
    assert await house.buckets.list("primary", "codecs/small") == []


async def test_a_job_that_is_cancelled_while_its_last_step_works_makes_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.with_index()
    started, only = await house.ask(CalibrateCodec(COLUMN, INT8, "small"))
    assert isinstance(started, CodecJobStarted)
    compute = InlineCompute.stream
    taken: list[Message] = []

    async def cancelled_meanwhile(self: InlineCompute, *args: Any) -> AsyncIterator[Any]:
        async for item in compute(self, *args):
            yield item
        await house.ask(CancelCodecJob(started.job))
        taken.extend(await house.ask(CalibrateCodec(COLUMN, INT8, "small"), "m2"))
        await house.buckets.put("primary", "codecs/small/tensors/000000.safetensors", b"the other job's")

    monkeypatch.setattr(InlineCompute, "stream", cancelled_meanwhile)
    assert list(await house.work(only, "s1")) == []
    assert isinstance(taken[0], CodecJobStarted)
    assert await house.buckets.get("primary", "codecs/small/tensors/000000.safetensors") == b"the other job's"
    assert await house.registry.load(CodecDocument, "small") is None


async def test_a_calibration_that_goes_no_further_leaves_no_file(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    started, first = await house.ask(CalibrateCodec(house.checkpoint, INT8, "small"))
    assert isinstance(started, CodecJobStarted)
    second = (await house.work(first, "s1"))[1]
    assert await house.buckets.list("primary", "codecs/small") != []
    await house.ask(CancelCodecJob(started.job))
    await house.buckets.put("primary", "codecs/small/tensors/000001.safetensors", b"by a step that was at work")
    assert list(await house.work(second, "s2")) == []
    assert await house.buckets.list("primary", "codecs/small") == [], "cancelled"

    _, again = await house.ask(CalibrateCodec(house.checkpoint, INT8, "small"), "m2")
    kept = (await house.work(again, "s3"))[1]
    assert list(await house.work(second, "s2", delivery=2)) == []
    assert await house.buckets.list("primary", "codecs/small") != [], "by now the name is another job's"

    def broken(*_: Any) -> Any:
        raise RuntimeError("no lanes")

    monkeypatch.setattr(calibrating, "calibrate_tensor", broken)
    assert isinstance((await house.work(kept, "s4"))[0], CodecJobFailed)
    assert await house.buckets.list("primary", "codecs/small") == [], "failed"


async def test_a_step_that_comes_again_after_the_end_leaves_the_artifact(house: House) -> None:
    _, first = await house.ask(CalibrateCodec(house.checkpoint, INT8, "small"))
    await house.run(CalibrateCodec(house.checkpoint, INT8, "small"))
    before = await house.buckets.list("primary", "codecs/small")
    assert list(await house.work(first, "s1", delivery=2)) == []
    assert await house.buckets.list("primary", "codecs/small") == before != []


async def test_a_step_that_kills_its_worker_again_and_again_ends_the_job(house: House) -> None:
    _, first = await house.ask(CalibrateCodec(house.checkpoint, INT8, "small"))
    (failed,) = await house.work(first, "s1", delivery=4)
    assert isinstance(failed, CodecJobFailed)
    assert "at each of 3 attempts" in failed.reason


async def test_a_tensor_that_can_t_be_used_harms_no_other(house: House, tmp_path: Path) -> None:
    folder = Path(house.checkpoint.path)
    file = open_checkpoint(folder).tensors["model.layers.0.mlp.up_proj.weight"]
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[file.offset : file.offset + 4] = np.float32("nan").tobytes()
    (folder / "model.safetensors").write_bytes(raw)
    heard = await house.run(CalibrateCodec(Checkpoint(str(folder)), INT8, "small"))
    bad, good = [row.tensor for row in of(TensorCalibrated, heard) if "up_proj" in row.tensor.name]
    assert "row 0, column 0 is NaN" in bad.problem
    assert (bad.file, good.problem) == (None, "")
    assert of(CodecCalibrated, heard)[0].problems == 1
    (no,) = await house.work(DecodeCodec("small", str(tmp_path / "decoded")), "d1")
    assert isinstance(no, Refusal)
    assert "layers.0.mlp.up_proj.weight" in no.reason
    assert not (tmp_path / "decoded").exists()


async def test_a_tensor_that_the_parameters_don_t_fit_is_copied_and_says_why(house: House, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    arrays = {f"layers.{d}.mlp.up_proj.weight": rng.normal(size=(400, d)).astype(np.float32) for d in (28, 32)}
    write_arrays(tmp_path / "odd.safetensors", arrays)
    params = CodecParams(family="rotated", bits=4, rotation="hadamard", calibration_rows=100)
    heard = await house.run(CalibrateCodec(Checkpoint(str(tmp_path / "odd.safetensors")), params, "odd"))
    rows = {row.tensor.name: row.tensor for row in of(TensorCalibrated, heard)}
    odd = rows["layers.28.mlp.up_proj.weight"]
    assert (odd.route, odd.rule, odd.params) == ("passthrough", "parameters", None)
    assert "28" in odd.reason
    assert rows["layers.32.mlp.up_proj.weight"].params == params


async def test_a_truncated_target_ends_the_job_with_the_reason(house: House) -> None:
    target = house.checkpoint
    _, first = await house.ask(CalibrateCodec(target, INT8, "small"))
    (Path(target.path) / "model.safetensors").write_bytes(b"short")
    (failed,) = await house.work(first, "s1")
    assert isinstance(failed, CodecJobFailed)
    assert "no safetensors file" in failed.reason
    await house.ask(failed)
    assert isinstance((await house.ask(CalibrateCodec(house.checkpoint, INT8, "small"), "m2"))[0], CodecJobStarted)


async def test_a_column_s_vectors_are_an_artifact_with_their_rows(house: House, tmp_path: Path) -> None:
    await house.with_index()
    params = CodecParams(family="rotated", bits=4, rotation="hadamard", calibration_rows=300)
    await house.run(CalibrateCodec(COLUMN, params, "vectors"))
    folder = await ArtifactStore(house.buckets, "primary", "vectors").local(tmp_path / "artifacts")
    manifest, column = read_manifest(folder), open_column(folder)
    assert (manifest.dataset_version, manifest.rows) == (7, ROWS)
    assert (column.rows, column.columns) == (ROWS, COLUMNS)
    np.testing.assert_array_equal(np.load(folder / "extra" / "rows.npy"), np.arange(ROWS))
    decoded = column.decode(0, ROWS)
    assert np.linalg.norm(decoded - house.vectors) / np.linalg.norm(house.vectors) < 0.12
    codes = column.encode(house.vectors[:5])
    for name, array in codes.items():
        np.testing.assert_array_equal(array, column.codes[name][:5])


# --- sweeps ----------------------------------------------------------------------------------------


async def test_a_sweep_s_points_are_rows_and_a_frontier(house: House) -> None:
    order = SweepCodec(
        house.checkpoint,
        base={"family": "scalar", "calibration_rows": 300},
        axes={"bits": [2, 4, 8, 9]},
        asked_by="test",
    )
    heard = await house.run(order)
    measured, skipped = of(SweepPointMeasured, heard), of(SweepPointSkipped, heard)
    assert len(measured) == 2 * 3
    assert len(skipped) == 1  # 9 bits are no parameter on any tensor
    assert of(SweepFinished, heard)[0].asked_by == "test"
    (listed,) = await house.ask(ListCodecTrials(job=measured[0].job))
    assert isinstance(listed, Message)
    newest_first = [fact.trial for fact in reversed(measured)]
    assert listed.trials == newest_first  # type: ignore[attr-defined]
    (frontier,) = await house.ask(GetFrontier())
    points = frontier.points  # type: ignore[attr-defined]
    assert [point.frontier for point in points] == [True] * 3
    assert [point.params.bits for point in points] == [2, 4, 8]
    assert {point.tensors for point in points} == {2}


async def test_a_probe_shows_what_was_learnt_by_heart(house: House) -> None:
    params = CodecParams(family="pq", subspaces=4, centroids=64)
    heard = await house.run(ProbeRowcount(house.checkpoint, params=params, rows=(64, 300)))
    few, many = [fact.trial for fact in of(SweepPointMeasured, heard)]
    assert few.icc_3_1_calibration == pytest.approx(1, abs=1e-3)  # each row is a centroid
    assert few.icc_3_1 < 0.6
    assert few.memorised
    assert many.memorisation < few.memorisation
