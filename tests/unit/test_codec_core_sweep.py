"""A sweep's points: counted before they are made, in a fixed order, in groups that share what is learnt."""

from itertools import product
from typing import Any

import msgspec
import pytest

from actors.codec.base import CodecError
from actors.codec.core import Route, route_checkpoint
from actors.codec.core_sweep import (
    MOST_IN_GROUP,
    TooManyPoints,
    UnknownField,
    as_measured,
    as_sweep,
    count,
    plan,
    points,
)
from actors.codec.params import learnt
from schemas.codec import Checkpoint, CodecParams
from schemas.events.codec import MOST_POINTS, ProbeRowcount, SweepCodec

TARGET = Checkpoint("/models/a")


def sweep(**fields: Any) -> SweepCodec:
    return SweepCodec(TARGET, **fields)


def routes(*more: tuple[str, tuple[int, ...]]) -> list[tuple[int, Route]]:
    tensors = [
        ("embeddings.word_embeddings.weight", (5000, 64)),
        ("encoder.layer.0.intermediate.dense.weight", (256, 64)),
        ("encoder.layer.0.intermediate.dense.bias", (256,)),
        ("encoder.layer.0.output.dense.weight", (64, 256)),
        ("encoder.layer.0.attention.self.query.weight", (64, 64)),
        *more,
    ]
    return list(enumerate(route_checkpoint((name, shape, "F32") for name, shape in tensors)))


def test_the_grid_is_the_product_of_the_axes_over_the_base_the_last_the_fastest() -> None:
    axes = {"bits": [3, 4], "group": [None, 64], "clip": ["absmax", "mse"]}
    order = sweep(base={"family": "scalar", "seed": 7}, axes=axes, points=[{"family": "f32"}])
    made = points(order)
    assert count(order) == len(made) == 9
    assert [point.number for point in made] == list(range(9))
    expected = [
        CodecParams(family="scalar", seed=7, bits=bits, group=group, clip=clip)  # type: ignore[arg-type]
        for bits, group, clip in product(*axes.values())  # type: ignore[call-overload]
    ]
    assert [point.params for point in made] == [*expected, CodecParams(family="f32")]
    assert made == points(order)


def test_a_base_alone_is_one_point() -> None:
    assert [point.params for point in points(sweep(base={"family": "bf16"}))] == [CodecParams(family="bf16")]


def test_too_many_points_are_refused_by_their_number_before_any_is_made() -> None:
    huge = {"seed": list(range(100_000)), "calibration_rows": list(range(1, 100_001)), "family": ["f32", "bf16"]}
    with pytest.raises(TooManyPoints, match=r"20,000,000,000 points.*10,000") as refused:
        count(sweep(axes=huge))
    assert refused.value.count == 20_000_000_000
    edge = {"seed": list(range(MOST_POINTS // 2)), "family": ["f32", "bf16"]}
    assert count(sweep(axes=edge)) == len(points(sweep(axes=edge))) == MOST_POINTS
    with pytest.raises(TooManyPoints, match="10,001"):
        plan(sweep(axes=edge, points=[{"family": "f32"}]), routes())
    with pytest.raises(TooManyPoints, match="12,000"):
        count(sweep(points=[{"family": "f32"}] * 12_000))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"base": {"famly": "pq"}}, r"base: no such parameter: famly; it may be family, .*seed"),
        ({"axes": {"bit": [1]}}, "axes: no such parameter: bit; it may be"),
        ({"points": [{"family": "f32"}, {"width": 3}]}, r"points\[1\]: no such parameter: width"),
        (
            {"base": {"residual": {"dept": 2}}},
            r"base\.residual: no such parameter: dept; it may be depth, centroids",
        ),
        ({"axes": {"residual": [None, {"depth": 1}, {"k": 2}]}}, r"axes\.residual: no such parameter: k"),
        ({"points": [{"residual": {"k": 2}}]}, r"points\[0\]\.residual: no such parameter: k"),
    ],
)
def test_a_name_that_is_no_parameter_is_named_with_those_that_are(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UnknownField, match=says):
        count(sweep(**fields))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "no points"),
        ({"axes": {"bits": []}, "base": {"family": "f32"}}, "axes.bits has no values"),
        ({"axes": {"bits": [4]}, "base": {"bits": 3}}, "bits is both"),
    ],
)
def test_a_sweep_without_sense_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(CodecError, match=says):
        count(sweep(**fields))


def test_what_are_no_parameters_is_kept_with_the_reason_and_told_of_once() -> None:
    order = sweep(base={"family": "scalar"}, axes={"bits": [4, 9, "many"]}, points=[{"bits": 4}])
    made = points(order)
    assert [point.params is None for point in made] == [False, True, True, True]
    assert "bits" in made[1].reason
    assert "family" in made[3].reason
    groups = plan(order, routes())
    numbers = [point.number for group in groups for point in group.points]
    assert sorted(numbers) == [0, 0, 0, 1, 2, 3]  # the one sound point on three tensors


def test_without_globs_all_that_calibration_would_quantise_is_measured() -> None:
    groups = plan(sweep(base={"family": "f32"}), routes())
    assert [group.item for group in groups] == [1, 3, 4]
    assert all(dict(routes())[group.item].name == group.tensor for group in groups)


def test_globs_choose_and_one_that_matches_nothing_is_refused() -> None:
    base = {"family": "f32"}
    groups = plan(sweep(base=base, tensors=["*.QUERY.*", "*.output.*"]), routes())
    assert [group.item for group in groups] == [3, 4]
    with pytest.raises(CodecError, match=r"'\*\.quary\.\*' matches none of 5 tensors"):
        plan(sweep(base=base, tensors=["*.query.*", "*.quary.*"]), routes())
    with pytest.raises(CodecError, match=r"embeddings\.word_embeddings\.weight, which isn't quantised: .*looked up"):
        plan(sweep(base=base, tensors=["*embeddings*"]), routes())
    with pytest.raises(CodecError, match=r"'\*\.query\.\*#1' matches .*query.weight, which has 1 matrices"):
        plan(sweep(base=base, tensors=["*.query.*#1"]), routes())
    with pytest.raises(CodecError, match="none of the target's 1 tensors"):
        plan(sweep(base=base), routes()[:1])


def test_points_that_share_what_is_learnt_are_one_group() -> None:
    order = sweep(
        base={"family": "rpq"},
        axes={
            "subspaces": [6, 12, 24],
            "residual": [{"depth": depth} for depth in (1, 2, 3)],
            "rotation": ["identity", "hadamard"],
            "lane_width": ["f32x16", "u8x64", "bf16x32"],
        },
        tensors=["*query*"],
    )
    groups = plan(order, routes())
    assert count(order) == sum(len(group.points) for group in groups) == 54
    assert [len(group.points) for group in groups] == [9] * 6
    for group in groups:
        params = [point.params for point in group.points if point.params]
        assert len({(p.subspaces, p.rotation) for p in params}) == 1
        assert [p.residual.depth for p in params if p.residual] == [1, 2, 3] * 3
        assert [p.lane_width for p in params] == sorted(p.lane_width for p in params)
    assert plan(order, routes()) == groups


def test_what_learns_nothing_is_in_groups_of_no_more_points_than_may_be_lost() -> None:
    axes = {"bits": [2, 3, 4, 5, 6, 7, 8], "clip": ["absmax", "mse"], "group": [None, 2, 4, 8, 16]}
    order = sweep(base={"family": "scalar"}, axes=axes, points=[{"family": "bf16"}], tensors=["*query*"])
    groups = plan(order, routes())
    assert [len(group.points) for group in groups] == [MOST_IN_GROUP] * 4 + [7]
    assert sorted(p.number for group in groups for p in group.points) == list(range(71))


@pytest.mark.parametrize(
    ("field", "value", "same"),
    [
        ("distance", "adc_i8", True),
        ("lane_width", "u8x64", True),
        ("measurement_rows", 200, True),
        ("residual", {"depth": 3}, True),
        ("residual", {"depth": 2, "centroids": 16}, False),
        ("rotation", "hadamard", False),
        ("subspaces", 4, False),
        ("centroids", 17, False),
        ("calibration_rows", 512, False),
        ("seed", 1, False),
    ],
)
def test_what_a_fit_depends_on(field: str, value: object, same: bool) -> None:
    base = {"family": "rpq", "subspaces": 6, "residual": {"depth": 2}}
    one, other = (msgspec.convert(fields, CodecParams) for fields in (base, {**base, field: value}))
    assert (learnt(one) == learnt(other)) == same


def test_additive_stages_are_refined_together_so_each_depth_learns_anew() -> None:
    fields = {"family": "additive", "dsub": 4}
    one, other = (msgspec.convert({**fields, "residual": {"depth": d}}, CodecParams) for d in (1, 2))
    assert learnt(one) != learnt(other)


def test_a_probe_is_a_sweep_over_rows_of_the_largest_tensor_or_the_one_named() -> None:
    odd = ("blocks[0].mlp.fc1.weight", (64, 256))
    probe = ProbeRowcount(TARGET, rows=(128, 64), asked_by="cli")
    order = as_sweep(probe)
    assert order.controls
    assert order.asked_by == "cli"
    assert [point.params for point in points(order)] == [
        CodecParams(family="pq", subspaces=6, calibration_rows=rows) for rows in (128, 64)
    ]
    groups = plan(order, routes(odd), "probe")
    assert {group.item for group in groups} == {1}  # of those of 16,384 weights the one with most rows
    named = plan(as_sweep(ProbeRowcount(TARGET, tensor=odd[0])), routes(odd), "probe")
    assert {group.tensor for group in named} == {odd[0]}


def test_rows_are_capped_for_small_tensors_but_in_a_probe() -> None:
    route = routes()[1][1]
    params = CodecParams(family="pq", subspaces=6, calibration_rows=4096)
    assert as_measured(params, route, "sweep").calibration_rows == 128
    assert as_measured(params, route, "probe").calibration_rows == 4096
