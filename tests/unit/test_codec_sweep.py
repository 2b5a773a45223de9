"""A group of points measured on a tensor: each exactly as it would be alone, refusals with their reasons."""

import pickle
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from actors.codec.base import CodecError, Phase
from actors.codec.checkpoints.source import open_source
from actors.codec.core_sweep import Kind, as_sweep, points
from actors.codec.core_trial import PointMeasured, PointSkipped, trial
from actors.codec.family import FAMILIES
from actors.codec.fitting import Fitting
from actors.codec.measures import measure
from actors.codec.params import capped, learnt, split_rows
from actors.codec.sweep import GroupOrder, groups, measure_group
from actors.codec.versions import versions
from actors.tensors.shard_writer import write_arrays
from schemas.codec import Checkpoint, CodecParams
from schemas.events.codec import ProbeRowcount, SweepCodec
from tests.unit.codec_matrices import weights

TENSOR = "encoder.layer.0.intermediate.dense.weight"
OTHER = "encoder.layer.1.intermediate.dense.weight"
MANY: list[dict[str, Any]] = [
    *(
        {"family": "rpq", "subspaces": 4, "centroids": 32, "residual": {"depth": depth, "centroids": 16}, **lanes}
        for lanes in ({}, {"lane_width": "u8x64"}, {"lane_width": "bf16x32", "rotation": "hadamard"})
        for depth in (3, 1, 2)
    ),
    *({"family": "pq", "subspaces": 6, "centroids": 32, "lane_width": width} for width in ("f32x16", "u8x64")),
    {"family": "pq", "subspaces": 4, "centroids": 16, "rotation": "opq", "lane_width": "bf16x32"},
    *({"family": "vq", "dsub": 2, "centroids": 64, "rotation": "hadamard", "seed": seed} for seed in (1, 2)),
    {"family": "additive", "dsub": 4, "centroids": 32, "residual": {"depth": 1, "centroids": 16}},
    *({"family": "scalar", "bits": bits, "group": 16} for bits in (2, 4, 8)),
    *({"family": "rotated", "bits": 4, "rotation": "hadamard", "calibration_rows": rows} for rows in (64, 100)),
    {"family": "rabitq", "rotation": "hadamard"},
    {"family": "bf16"},
    {"family": "f32"},
]


def model(folder: Path, **arrays: NDArray[np.generic]) -> Path:
    tensors: dict[str, NDArray[np.generic]] = {TENSOR: weights(400, 48), OTHER: weights(300, 48, seed=1), **arrays}
    write_arrays(folder / "model.safetensors", tensors)
    return folder


def sweep(folder: Path, tensors: list[str] | None = None, **fields: Any) -> SweepCodec:
    return SweepCodec(Checkpoint(str(folder)), tensors if tensors is not None else [TENSOR], **fields)


def run(
    folder: Path, order: SweepCodec, kind: Kind = "sweep", activations: Path | None = None
) -> tuple[list[PointMeasured], list[PointSkipped]]:
    found: list[PointMeasured | PointSkipped] = []
    for group in range(len(groups(open_source(folder), order, kind))):
        items = list(measure_group(pickle.loads(pickle.dumps(GroupOrder(folder, order, kind, group, activations)))))
        found += [pickle.loads(pickle.dumps(item)) for item in items if not isinstance(item, Phase)]
    return [x for x in found if isinstance(x, PointMeasured)], [x for x in found if isinstance(x, PointSkipped)]


def timeless(found: Iterable[PointMeasured]) -> dict[tuple[str, int], PointMeasured]:
    zero = {"fit_s": 0.0, "fit_shared": False, "encode_s": 0.0, "decode_s": 0.0}
    return {(item.tensor, item.point): replace(item, **zero) for item in found}


@pytest.mark.slow
def test_a_point_of_a_sweep_is_exactly_what_it_is_alone(tmp_path: Path) -> None:
    folder = model(tmp_path)
    together, skipped = run(folder, sweep(folder, points=MANY))
    assert skipped == []
    assert sorted(item.point for item in together) == list(range(len(MANY)))
    for number, asked in enumerate(MANY):
        (alone,), _ = run(folder, sweep(folder, points=[asked]))
        assert not alone.fit_shared
        assert timeless([replace(alone, point=number)]).items() <= timeless(together).items()
    learnt_alone = [item for item in together if not item.fit_shared]
    assert len(learnt_alone) == len({learnt(item.params) for item in together}) == len(together) - 10


@pytest.mark.slow
def test_a_point_is_what_the_family_alone_makes_of_the_rows(tmp_path: Path) -> None:
    folder = model(tmp_path)
    found, _ = run(folder, sweep(folder, points=MANY))
    matrix = weights(400, 48)
    for item in found:
        params = capped(msgspec.convert(MANY[item.point], CodecParams), 400)
        assert item.params == params
        family = FAMILIES[params.family]
        calibration, held_out = split_rows(400, params)
        state = family.fit(matrix[calibration], params, np.random.default_rng(params.seed))
        codes = family.encode(state, matrix, params)
        decoded = family.decode(state, codes, params)
        assert item.charge == family.charge(state, codes, params)
        assert item.measured.calibration.rows == len(calibration)
        assert item.measured.held_out.rows == len(held_out)
        for measures, rows in (
            (item.measured.calibration, calibration),
            (item.measured.held_out, held_out),
            (item.measured.all_rows, np.arange(400)),
        ):
            expected = measure(matrix[rows], decoded[rows], np.random.default_rng(0))
            assert measures.relative_l2 == pytest.approx(expected.relative_l2, rel=1e-5, abs=1e-9)
            assert measures.row_cosine == pytest.approx(expected.row_cosine, rel=1e-5)
            assert measures.icc_3_1 == pytest.approx(expected.icc_3_1, abs=0.02)  # of other pairs


def test_what_is_shared_is_learnt_once() -> None:
    fitting = Fitting(weights(400, 48))
    base = {"family": "rpq", "subspaces": 4, "centroids": 32, "calibration_rows": 200}
    made = [
        msgspec.convert({**base, "residual": {"depth": depth, "centroids": 16}, "lane_width": width}, CodecParams)
        for width in ("f32x16", "u8x64")
        for depth in (2, 1, 3)
    ]
    fits = [fitting.fit(params) for params in made]
    assert [fit.shared for fit in fits] == [False, True, True, True, True, True]
    assert [fit.seconds > 0 for fit in fits] == [True, False, True, False, False, False]
    assert (fitting.fits.misses, fitting.fits.hits) == (1, 5)
    for fit in fits[1:]:
        assert all(fit.arrays[name] is fits[2].arrays[name] for name in fit.arrays)
    codes = [fitting.encode(params) for params in made]
    assert (fitting.codings.misses, fitting.codings.hits) == (2, 4)
    assert [code.shared for code in codes] == [False, True, True] * 2
    assert [sorted(code.arrays) for code in codes[:2]] == [["codes_0", "codes_1", "codes_2"], ["codes_0", "codes_1"]]
    assert all(code.alone >= code.seconds for code in codes)


def test_a_fit_that_was_let_go_is_made_again_with_its_codes() -> None:
    fitting = Fitting(weights(400, 48))
    base = {"family": "rpq", "subspaces": 4, "centroids": 8, "calibration_rows": 200}
    shallow, deep = (
        msgspec.convert({**base, "residual": {"depth": depth, "centroids": 8}}, CodecParams) for depth in (1, 3)
    )
    fitting.encode(shallow)
    for seed in range(20):
        fitting.fit(CodecParams(family="f32", seed=seed, calibration_rows=200))
    codes = fitting.encode(deep)
    expected = FAMILIES["rpq"].encode(fitting.fit(deep).arrays, fitting.matrix, deep)
    assert codes.arrays.keys() == expected.keys()
    assert all(np.array_equal(codes.arrays[name], expected[name]) for name in expected)


def test_what_cannot_be_right_is_skipped_with_the_reason_and_the_rest_is_measured(tmp_path: Path) -> None:
    folder = model(tmp_path)
    asked = [
        {"family": "scalar", "bits": 4},
        {"family": "scalar", "bits": 9},
        {"family": "scalar", "bits": 4, "group": 7},
        {"family": "gptq", "bits": 4},
        {"family": "pq", "subspaces": 6, "rotation": "opq"},
        {"family": "pq", "subspaces": 6},  # 256 centroids, capped to 200 rows
        {"family": "scalar", "bits": 2},
    ]
    for controls in (False, True):
        found, skipped = run(folder, sweep(folder, points=asked, controls=controls))
        assert sorted(item.point for item in found) == ([0, 5, 6] if controls else [0, 6])
        reasons = {item.point: item.reason for item in skipped}
        assert "these are no parameters" in reasons[1]
        assert "group = 7 does not divide 48 columns" in reasons[2]
        assert "calibration activations" in reasons[3]
        assert "bf16x32" in reasons[4]
        assert all(item.params == asked[item.point] and item.tensor == TENSOR for item in skipped)
        if controls:
            (control,) = (item for item in found if item.point == 5)
            assert "learnt by heart" in control.refused
            assert control.measured.calibration.relative_l2 < 0.01 < 0.1 < control.measured.held_out.relative_l2
            assert all(item.refused == "" for item in found if item.point != 5)
        else:
            assert "256 is more than the 200" in reasons[5]


def test_the_probe_shows_the_overfit_as_rows_grow(tmp_path: Path) -> None:
    folder = model(tmp_path)
    params = CodecParams(family="pq", subspaces=6, centroids=64)
    probe = ProbeRowcount(Checkpoint(str(folder)), params=params, rows=(32, 64, 300, 350))
    found, skipped = run(folder, as_sweep(probe), "probe")
    assert {item.tensor for item in (*found, *skipped)} == {TENSOR}  # the larger one
    assert [item.measured.calibration.rows for item in found] == [32, 64, 300]
    assert [bool(item.refused) for item in found] == [True, True, False]  # 64 centroids for 64 rows are a copy
    gaps = [item.measured.memorisation for item in found]
    assert gaps[0] > gaps[2]
    assert [item.reason[:22] for item in skipped] == ["calibration_rows = 350"]


def test_a_tensor_whose_data_cannot_be_used_harms_no_other(tmp_path: Path) -> None:
    broken = weights(400, 48)
    broken[3, 4] = np.nan
    folder = model(tmp_path, **{TENSOR: broken})
    found, skipped = run(folder, sweep(folder, [], points=[{"family": "bf16"}, {"family": "scalar", "bits": 4}]))
    assert {item.tensor for item in found} == {OTHER}
    assert {item.tensor for item in skipped} == {TENSOR}
    assert all("row 3, column 4 is NaN" in item.reason for item in skipped)
    assert len(found) == len(skipped) == 2


def test_of_a_stack_of_experts_the_first_is_measured_or_those_named(tmp_path: Path) -> None:
    stack = np.stack([weights(200, 48, seed) for seed in (5, 6, 7)])
    name = "model.layers.0.mlp.experts.down_proj"
    folder = model(tmp_path, **{name: stack})
    (item,), _ = run(folder, sweep(folder, [name], base={"family": "scalar", "bits": 4}))
    assert (item.matrix, item.rows, item.columns) == (0, 200, 48)
    assert item.sha256 == sha256(stack[0].tobytes()).hexdigest()
    write_arrays(tmp_path / "one" / "model.safetensors", {TENSOR: stack[0]})
    (single,), _ = run(tmp_path / "one", sweep(tmp_path / "one", base={"family": "scalar", "bits": 4}))
    assert (item.measured, item.charge, item.sha256) == (single.measured, single.charge, single.sha256)
    named, _ = run(folder, sweep(folder, ["*.down_proj#2"], base={"family": "scalar", "bits": 4}))
    everyone, _ = run(folder, sweep(folder, ["*.down_proj#*"], base={"family": "scalar", "bits": 4}))
    assert [found.matrix for found in everyone] == [0, 1, 2]
    assert [found.sha256 for found in everyone] == [sha256(matrix.tobytes()).hexdigest() for matrix in stack]
    assert timeless(named) == timeless(everyone[2:])
    assert everyone[0].measured == item.measured


def test_a_column_of_vectors_is_one_tensor(tmp_path: Path) -> None:
    vectors = weights(500, 48)
    np.save(tmp_path / "v.npy", vectors)
    (item,), _ = run(tmp_path / "v.npy", sweep(tmp_path, [], base={"family": "scalar", "bits": 8}))
    assert (item.tensor, item.rows, item.sha256) == ("vectors", 500, sha256(vectors.tobytes()).hexdigest())


def test_gptq_is_given_what_comes_into_the_layer(tmp_path: Path) -> None:
    folder = model(tmp_path)
    inputs = tmp_path / "inputs" / "activations.safetensors"
    write_arrays(inputs, {TENSOR: weights(600, 48, seed=9)})
    order = sweep(folder, [], points=[{"family": "gptq", "bits": 3, "group": 16}])
    found, skipped = run(folder, order, activations=inputs)
    assert [item.tensor for item in found] == [TENSOR]
    assert [(item.tensor, "activations" in item.reason) for item in skipped] == [(OTHER, True)]


def test_a_group_that_is_not_there_is_refused(tmp_path: Path) -> None:
    folder = model(tmp_path)
    with pytest.raises(CodecError, match="group 1 of 1"):
        list(measure_group(GroupOrder(folder, sweep(folder, base={"family": "f32"}), "sweep", 1)))


def test_progress_counts_the_groups_points(tmp_path: Path) -> None:
    folder = model(tmp_path)
    order = sweep(folder, base={"family": "scalar"}, axes={"bits": [3, 4, 5]})
    items = list(measure_group(GroupOrder(folder, order, "sweep", 0)))
    phases = [item for item in items if isinstance(item, Phase)]
    assert [(phase.done, phase.total) for phase in phases] == [(0, 3), (1, 3), (2, 3)]
    assert len(items) == 6


def test_a_row_of_the_journal_has_all_that_was_measured(tmp_path: Path) -> None:
    folder = model(tmp_path)
    asked = {"family": "rpq", "subspaces": 4, "centroids": 32, "residual": {"depth": 2, "centroids": 16}}
    order = sweep(folder, points=[asked])
    (found,), _ = run(folder, order)
    row = trial(
        found, job="j", group=3, target="t", versions=versions(), asked_by="test", host="here", time=5.0,
    )  # fmt: skip
    assert (row.residual_depth, row.residual_centroids, row.subspaces, row.group_size) == (2, 16, 4, None)
    assert row.signature == found.params.signature == points(order)[0].params.signature  # type: ignore[union-attr]
    assert row.bits_per_weight == 8 * found.charge.total / (400 * 48)
    charged = row.codes_bytes + row.codebooks_bytes + row.scales_bytes + row.rotation_bytes
    assert charged == found.charge.total
    assert (row.icc_3_1, row.relative_l2) == (found.measured.held_out.icc_3_1, found.measured.held_out.relative_l2)
    assert row.icc_3_1_calibration == found.measured.calibration.icc_3_1
    assert (row.measured_rows, row.calibration_rows) == (200, 200)
    assert '"numpy"' in row.versions
