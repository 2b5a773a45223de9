"""deploy/codec/*.yaml: each is read, counted, and yields what it promises on a small tensor."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from actors.codec.checkpoints.source import open_source
from actors.codec.core_sweep import UnknownField, count
from actors.codec.core_trial import PointMeasured, PointSkipped
from actors.codec.sweep import GroupOrder, groups, measure_group
from daemon.cli.sweep_file import read_sweep_file
from schemas.codec import Checkpoint
from tests.unit.codec_matrices import weights

FOLDER = Path(__file__).parents[2] / "deploy" / "codec"
FILES = {  # points, and those that can't be right for 600 vectors of 192
    "baseline_passthrough": (2, 0),
    "pr220_baseline": (1, 0),
    "pr219_overfit": (1, 1),
    "wider_codebook": (5, 4),
    "residual_pq": (3, 0),
    "hadamard": (4, 0),
    "opq": (3, 0),
    "composite": (8, 0),
    "cross_product": (54, 0),
    "best": (15, 0),
}


def measured(name: str, folder: Path, **changed: bool) -> tuple[list[PointMeasured], list[PointSkipped]]:
    vectors = folder / "vectors.npy"
    np.save(vectors, weights(600, 192))
    order = replace(read_sweep_file(FOLDER / f"{name}.yaml"), **changed).order(Checkpoint(str(vectors)))
    found = [
        item
        for group in range(len(groups(open_source(vectors), order, "sweep")))
        for item in measure_group(GroupOrder(vectors, order, "sweep", group))
    ]
    return (
        [item for item in found if isinstance(item, PointMeasured)],
        [item for item in found if isinstance(item, PointSkipped)],
    )


def test_every_file_is_known_here_and_says_what_it_shows() -> None:
    assert {path.stem for path in FOLDER.glob("*")} == set(FILES)
    assert all(len(read_sweep_file(path).about) > 30 for path in FOLDER.glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_each_file_yields_what_it_promises(name: str, tmp_path: Path) -> None:
    points, bad = FILES[name]
    assert count(read_sweep_file(FOLDER / f"{name}.yaml").order(Checkpoint("x"))) == points
    found, skipped = measured(name, tmp_path)
    assert sorted(item.point for item in (*found, *skipped)) == list(range(points))
    assert len(skipped) == bad
    assert all("learnt by heart" in item.reason for item in skipped)
    assert all(item.refused == "" for item in found)


@pytest.mark.slow
def test_the_cross_product_has_every_combination_once_and_learns_six_times(tmp_path: Path) -> None:
    found, _ = measured("cross_product", tmp_path)
    combined = {
        (p.subspaces, p.residual and p.residual.depth, p.rotation, p.lane_width)
        for p in (item.params for item in found)
    }
    assert combined == set(product((6, 12, 24), (1, 2, 3), ("identity", "hadamard"), ("f32x16", "u8x64", "bf16x32")))
    assert sum(not item.fit_shared for item in found) == 6


@pytest.mark.slow
def test_the_overfit_is_measured_when_controls_are_asked_for(tmp_path: Path) -> None:
    (control,), skipped = measured("pr219_overfit", tmp_path, controls=True)
    assert skipped == []
    assert "256 is more than the 128" in control.refused
    assert control.measured.calibration.rows == 128
    assert control.measured.calibration.relative_l2 < 0.01 < 0.1 < control.measured.held_out.relative_l2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("axis: {bits: [4]}", r"bad\.yaml: unknown key axis; there are about, tensors, base, axes, points, controls"),
        ("base: {family: pq}\n12: 3", "unknown key 12"),
        ("base: 3", r"bad\.yaml: Expected `object`.*\$\.base"),
        ("axes: {bits: 4}", r"Expected `array`.*\$\.axes"),
        ("controls: perhaps", r"Expected `bool`.*\$\.controls"),
        ("- a\n- b", "Expected `object`"),
        ("base: {family: [}", r"bad\.yaml: .*line 1"),
        ("", "Expected `object`, got `null`"),
    ],
)
def test_a_file_that_is_none_is_told_by_file_and_key(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=says):
        read_sweep_file(tmp_path / "bad.yaml")


def test_what_is_no_parameter_is_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text("base: {family: pq, subspace: 6}")
    with pytest.raises(UnknownField, match=r"base: no such parameter: subspace; it may be .*subspaces"):
        count(read_sweep_file(tmp_path / "f.yaml").order(Checkpoint("x")))
