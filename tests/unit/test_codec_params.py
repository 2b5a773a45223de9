"""What is refused before any work, and the rows that are held out."""

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.codec.base import CodecError
from actors.codec.params import OPTIONAL, RULES, capped, check, measured_rows, split_rows
from schemas.codec import CodecParams

RESIDUAL = {"depth": 1, "centroids": 256}
SOUND: dict[str, dict[str, Any]] = {
    "pq": {"subspaces": 6},
    "rpq": {"dsub": 64, "residual": RESIDUAL},
    "vq": {"dsub": 2, "rotation": "hadamard"},
    "additive": {"dsub": 4, "residual": RESIDUAL},
    "scalar": {"bits": 4, "group": 64},
    "rotated": {"bits": 4, "rotation": "hadamard"},
    "rabitq": {"rotation": "hadamard"},
    "gptq": {"bits": 2, "group": 128, "clip": "mse", "zero_point": True},
    "bf16": {},
    "f32": {},
}


def params(family: str, **fields: Any) -> CodecParams:
    """Sound for (1536, 384) but for the fields given."""
    given_fields = {"family": family, "calibration_rows": 1024, **SOUND[family], **fields}
    return msgspec.convert({k: v for k, v in given_fields.items() if v is not None}, CodecParams)


def check_it(codec: CodecParams, shape: tuple[int, ...] = (1536, 384)) -> None:
    check(codec, shape, activations=(2000, shape[1]) if codec.family == "gptq" and len(shape) == 2 else None)


def test_every_family_has_rules_and_a_sound_point() -> None:
    assert set(RULES) == set(SOUND)
    for family in SOUND:
        check_it(params(family))


def test_the_rules_speak_of_fields_that_exist() -> None:
    assert set(CodecParams.__struct_fields__) >= OPTIONAL
    for rules in RULES.values():
        assert rules.needs <= rules.takes <= OPTIONAL


@pytest.mark.parametrize("shape", [(0, 384), (1536, 0), (0, 0), (1536,), (2, 3, 4), ()])
def test_zero_dimensions_and_other_ranks_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CodecError, match=r"\(n, d\)"):
        check_it(params("scalar"), shape)


@pytest.mark.parametrize(
    ("family", "fields", "says"),
    [
        ("scalar", {"bits": None}, "scalar needs bits"),
        ("rotated", {"bits": None}, "rotated needs bits"),
        ("gptq", {"bits": None}, "gptq needs bits"),
        ("pq", {"bits": 4}, "pq takes no bits, got 4"),
        ("rabitq", {"bits": 1}, "rabitq takes no bits"),
        ("f32", {"bits": 8}, "f32 takes no bits.*: none"),
        ("scalar", {"centroids": 16}, "scalar takes no centroids"),
        ("rotated", {"group": 64}, "rotated takes no group"),
        ("pq", {"clip": "mse"}, "pq takes no clip"),
        ("bf16", {"zero_point": True}, "bf16 takes no zero_point"),
        ("scalar", {"distance": "adc_i8"}, "scalar takes no distance"),
        ("pq", {"residual": RESIDUAL}, "pq takes no residual"),
        ("scalar", {"residual": RESIDUAL}, "scalar takes no residual"),
        ("rpq", {"residual": None}, "rpq needs residual"),
        ("additive", {"residual": None}, "additive needs residual"),
        ("pq", {"dsub": 64}, "one of subspaces and dsub"),
        ("pq", {"subspaces": None}, "one of subspaces and dsub"),
        ("vq", {"dsub": None}, "one of subspaces and dsub"),
        ("pq", {"subspaces": 385}, "385.*384"),
        ("pq", {"subspaces": None, "dsub": 7}, "7.*384"),
        ("pq", {"subspaces": None, "dsub": 768}, "768.*384"),
        ("vq", {"dsub": 5}, "5.*384"),
        ("additive", {"dsub": None, "subspaces": 7}, "7.*384"),
        ("additive", {"centroids": 4096}, "at most 4096"),
        ("scalar", {"group": 65}, "group = 65.*384.*64"),
        ("scalar", {"bits": 1}, "zero_point = true"),
        ("scalar", {"rotation": "hadamard"}, "rotation = identity, got hadamard"),
        ("rotated", {"rotation": "identity"}, "rotation = hadamard, got identity"),
        ("vq", {"rotation": "opq"}, "identity or hadamard, got opq"),
        ("scalar", {"lane_width": "bf16x32"}, "lane_width = f32x16, got bf16x32"),
        ("rotated", {"lane_width": "u8x64"}, "got u8x64"),
        ("pq", {"rotation": "opq"}, "opq needs lane_width = bf16x32, got f32x16"),
        ("pq", {"rotation": "opq", "lane_width": "bf16x32", "calibration_rows": 383}, "383 < 384"),
        ("pq", {"centroids": 1025}, "centroids = 1025 is more than.*1024 calibration rows"),
        ("pq", {"centroids": 1024}, "centroids = 1024 is as many as.*1024 calibration rows"),
        ("pq", {"calibration_rows": 128}, "centroids = 256.*128 calibration rows"),
        ("rpq", {"residual": {"centroids": 2048}}, "centroids = 2048"),
        ("pq", {"calibration_rows": 1445}, "leave 91 .*92.*calibration_rows <= 1444"),
        ("pq", {"calibration_rows": 1536}, "leave 0 .*calibration_rows <= 1444"),
        ("pq", {"measurement_rows": 600}, "leave 512.*600.*calibration_rows <= 936"),
        ("pq", {"measurement_rows": 91}, "91 is too few"),
        ("scalar", {"calibration_rows": 2}, "2 is too few"),
        ("scalar", {"calibration_rows": 1534}, "leave 2 .*3 are needed"),
    ],
)
def test_refused(family: str, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(CodecError, match=says):
        check_it(params(family, **fields))


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("pq", {"rotation": "opq", "lane_width": "bf16x32", "calibration_rows": 384}),
        ("pq", {"centroids": 1023}),
        ("pq", {"calibration_rows": 1444}),
        ("pq", {"measurement_rows": 512}),
        ("pq", {"subspaces": 5}),  # runs of 77 and 76 columns
        ("vq", {"centroids": 65536, "dsub": 2, "lane_width": "u8x64"}),  # learnt from groups, of which rows have many
        ("scalar", {"bits": 1, "zero_point": True}),
        ("scalar", {"calibration_rows": 1533}),
        ("rotated", {"lane_width": "bf16x32"}),
    ],
)
def test_the_edges_of_what_is_sound(family: str, fields: dict[str, Any]) -> None:
    check_it(params(family, **fields))


@pytest.mark.parametrize("columns", [1, 2, 12, 20, 24, 40, 48, 64, 80, 384, 640, 768, 1024, 1280, 1536, 3072])
def test_orders_of_hadamard_matrices(columns: int) -> None:
    check_it(params("rotated"), (1536, columns))


@pytest.mark.parametrize(("columns", "order", "price"), [(3, 4, "33.3%"), (100, 128, "28.0%"), (1100, 1280, "16.4%")])
def test_an_order_that_does_not_exist_offers_padding_and_its_price(columns: int, order: int, price: str) -> None:
    with pytest.raises(CodecError, match=f"(?s){order} .*{price}"):
        check_it(params("rotated"), (1536, columns))


def test_gptq_needs_activations_of_the_layer() -> None:
    codec = params("gptq")
    for activations in (None, (0, 384), (100, 383), (100,)):
        with pytest.raises(CodecError, match="activations"):
            check(codec, (1536, 384), activations=activations)


@given(st.integers(2, 3000), st.integers(1, 3000), st.integers(0, 3000), st.integers(0, 99), st.sampled_from([*SOUND]))
def test_a_split_is_disjoint_and_of_the_sizes_said_or_refused(n: int, rows: int, held: int, seed: int, f: str) -> None:
    codec = params(f, calibration_rows=rows, measurement_rows=held, seed=seed)
    fewest = measured_rows(codec)
    try:
        calibration, measurement = split_rows(n, codec)
    except CodecError:
        assert rows + max(held, fewest) > n or 0 < held < fewest or rows < 3
        return
    assert len(calibration) == rows
    assert len(measurement) == (held or n - rows) >= fewest
    both = np.concatenate([calibration, measurement])
    assert len(set(both.tolist())) == len(both)
    assert both.min() >= 0
    assert both.max() < n
    assert (np.diff(calibration) > 0).all()
    assert (np.diff(measurement) > 0).all()


def test_the_seed_decides_the_split() -> None:
    first, again, other = (split_rows(1536, params("pq", seed=seed))[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@given(st.integers(200, 9000), st.integers(0, 400))
def test_a_codec_capped_for_a_small_tensor_has_rows_to_measure_on(n: int, held: int) -> None:
    codec = capped(CodecParams(family="rabitq", rotation="hadamard", measurement_rows=held), n)
    if held == 0 or held >= 92:
        calibration, measurement = split_rows(n, codec)
        assert len(calibration) == min(4096, n // 2)
        assert len(measurement) == min(held or n, n - len(calibration))


def test_a_seed_is_one_that_a_table_can_keep() -> None:
    assert params("scalar", seed=2**63 - 1).seed == 2**63 - 1
    for seed in (-1, 2**63, 2**70):
        with pytest.raises(msgspec.ValidationError):
            params("scalar", seed=seed)
