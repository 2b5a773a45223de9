"""Merges against dense sums in float64: an adapter directory, a base checkpoint, a cut to a rank; and refusals."""

import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from actors.gate.adapters import open_adapter, open_adapters
from actors.gate.base_merge import write_base
from actors.gate.core_lora import Unmergeable, cut
from actors.gate.merging import Merge, Weighted, write_adapter
from actors.tensors.checkpoint import open_checkpoint
from actors.tensors.dtypes import from_float32, to_float32
from actors.tensors.shard_writer import write_arrays
from actors.tensors.stored import read_array
from schemas.gate import MergeReport
from tests.unit.gate_adapters import SHAPES, dense, factors, read_all, write_adapter_folder, write_base_folder

Dense = dict[str, NDArray[np.float64]]


def merge_of(folders: dict[str, Path], weights: dict[str, float], rank: int | None = None) -> Merge:
    return Merge([Weighted(adapter, weights[adapter.name]) for adapter in open_adapters(folders)], rank)


def close(found: Dense, expected: Dense, tolerance: float = 3e-7) -> None:
    """Relative to the whole matrix: float32 keeps 6e-8 of each factor."""
    assert found.keys() == expected.keys()
    for module, delta in expected.items():
        assert np.linalg.norm(found[module] - delta) <= tolerance * np.linalg.norm(delta), module


def added(*parts: tuple[float, Dense]) -> Dense:
    total: Dense = {}
    for weight, deltas in parts:
        for module, delta in deltas.items():
            total[module] = total.get(module, np.zeros_like(delta)) + weight * delta
    return total


# --- as an adapter ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_a_merge_is_the_weighted_sum(tmp_path: Path, dtype: str) -> None:
    a, b, c = (write_adapter_folder(tmp_path / name, seed, dtype=dtype) for seed, name in enumerate("abc"))
    merge = merge_of({"a": a, "b": b, "c": c}, {"a": 0.3, "b": 0.0, "c": 1.7})
    report = write_adapter(merge, tmp_path / "out")
    assert report == MergeReport(mode="exact", rank=8, modules=3)  # what weighs 0 takes no ranks
    close(dense(tmp_path / "out", 1.0), added((0.3, dense(a)), (1.7, dense(c))))
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (8, 8, "org/base")
    assert config["target_modules"] == sorted(SHAPES)


def test_rslora_and_patterns_are_folded_in(tmp_path: Path) -> None:
    ranks = {"model.layers.0.q": 2, "model.layers.0.up": 4, "model.layers.1.q": 9}
    config = {
        "use_rslora": True,
        "rank_pattern": {"layers.0.q": 2, r".*\.1\.q": 9},
        "alpha_pattern": {"up": 3, "0.q": 16},
    }
    a = write_adapter_folder(tmp_path / "a", 1, ranks=ranks, config=config)
    b = write_adapter_folder(tmp_path / "b", 2, modules=["model.layers.1.q"])
    scales = {"model.layers.0.q": 16 / math.sqrt(2), "model.layers.0.up": 3 / 2, "model.layers.1.q": 8 / 3}
    of_a = {module: scales[module] * left @ right for module, (left, right) in factors(a).items()}
    report = write_adapter(merge_of({"a": a, "b": b}, {"a": 0.5, "b": 2.0}), tmp_path / "out")
    assert report.rank == 13  # of all modules; zeros after the ranks that one has
    assert {left.shape[1] for left, _ in factors(tmp_path / "out").values()} == {13}
    close(dense(tmp_path / "out", 1.0), added((0.5, of_a), (2.0, dense(b))))


@given(st.integers(1, 6), st.integers(1, 6), st.floats(0.01, 10), st.integers(0, 10_000))
def test_a_cut_is_the_nearest_of_its_rank(rank: int, wanted: int, size: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    b, a = (size * rng.standard_normal(shape).astype(np.float32) for shape in ((9, rank), (rank, 7)))
    left, right, error = cut(b, a, wanted)
    assert left.shape == (9, min(wanted, rank))
    whole = b.astype(np.float64) @ a.astype(np.float64)
    sigma = np.linalg.svd(whole, compute_uv=False)
    expected = np.sqrt((sigma[wanted:] ** 2).sum() / (sigma**2).sum())
    assert error == pytest.approx(expected, abs=1e-7)
    assert np.linalg.norm(whole - left.astype(np.float64) @ right) / np.linalg.norm(whole) == pytest.approx(
        error, abs=1e-6
    )


def test_a_cut_tells_its_error_of_every_module(tmp_path: Path) -> None:
    a, b = (write_adapter_folder(tmp_path / name, seed) for seed, name in enumerate("ab"))
    weights = {"a": 0.6, "b": 0.4}
    report = write_adapter(merge_of({"a": a, "b": b}, weights, 5), tmp_path / "out")
    whole = added((0.6, dense(a)), (0.4, dense(b)))
    found = dense(tmp_path / "out", 1.0)
    assert [each.module for each in report.errors] == sorted(SHAPES)
    for each in report.errors:
        measured = np.linalg.norm(whole[each.module] - found[each.module]) / np.linalg.norm(whole[each.module])
        assert (each.rank, each.error) == (8, pytest.approx(measured, rel=1e-4))
    assert (report.mode, report.rank, report.error) == ("svd", 5, max(each.error for each in report.errors))
    with pytest.raises(Unmergeable, match=r"rank 5, .* of 3 modules lose more than max_error 0\.01"):
        write_adapter(merge_of({"a": a, "b": b}, weights, 5), tmp_path / "refused", 0.01)
    same = write_adapter(merge_of({"a": a, "b": b}, weights, 8), tmp_path / "same", 0.0)
    assert (same.rank, same.error) == (8, 0.0)


# --- into the base ------------------------------------------------------------------------------


def based(merge: Merge, base: Path, out: Path, **more: Any) -> MergeReport:
    *shards, report = write_base(merge, base, out, **more)
    assert isinstance(report, MergeReport)
    assert [done for done, _ in shards] == list(range(len(shards)))  # type: ignore[misc]
    return report


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_base_gets_the_sum_added(tmp_path: Path, dtype: str, shards: int, transposed: bool) -> None:
    config = {"fan_in_fan_out": transposed}
    a, b = (write_adapter_folder(tmp_path / name, seed, config=config) for seed, name in enumerate("ab"))
    before = write_base_folder(tmp_path / "base", dtype=dtype, shards=shards, transposed=transposed)
    based(merge_of({"a": a, "b": b}, {"a": 0.6, "b": 0.4}), tmp_path / "base", tmp_path / "out")
    deltas = added((0.6, dense(a)), (0.4, dense(b)))
    after = read_all(tmp_path / "out")
    assert after.keys() == before.keys()
    for name, weight in before.items():
        delta = deltas.get(name.removesuffix(".weight"))
        if delta is None:
            assert (after[name] == weight).all()
            continue
        exact = weight + (delta.T if transposed else delta)
        rounded = to_float32(bytearray(from_float32(exact.astype(np.float32), dtype)), dtype).reshape(exact.shape)
        spacing = {"F32": 1e-6, "F16": 2**-10, "BF16": 2**-7}[dtype]
        np.testing.assert_allclose(after[name], rounded, rtol=spacing, atol=2e-6)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {path.name for path in (tmp_path / "base").iterdir()}
    assert {t.dtype for t in open_checkpoint(tmp_path / "out").tensors.values()} == {dtype}


@pytest.mark.parametrize("transposed", [False, True])
def test_a_base_in_float64_keeps_its_digits(tmp_path: Path, transposed: bool) -> None:
    adapter = write_adapter_folder(tmp_path / "a", 0, config={"fan_in_fan_out": transposed})
    write_base_folder(tmp_path / "base", transposed=transposed)
    before = {name: value.astype(np.float64) + 1e-12 for name, value in read_all(tmp_path / "base").items()}
    write_arrays(tmp_path / "base/model.safetensors", before)
    based(merge_of({"a": adapter}, {"a": 1e-9}), tmp_path / "base", tmp_path / "out")
    deltas = dense(adapter, 2e-9)
    tensors = open_checkpoint(tmp_path / "out").tensors
    for module, delta in deltas.items():
        after = np.asarray(read_array(tensors[f"{module}.weight"]))
        expected = before[f"{module}.weight"] + (delta.T if transposed else delta)
        assert after.dtype == np.float64
        np.testing.assert_allclose(after, expected, rtol=0, atol=1e-14)


def test_a_checkpoint_saved_without_its_first_names_is_found(tmp_path: Path) -> None:
    a = write_adapter_folder(
        tmp_path / "a", 0, modules=["lm.model.layers.0.q"], shapes={"lm.model.layers.0.q": (24, 16)}
    )
    before = write_base_folder(tmp_path / "base")
    based(merge_of({"a": a}, {"a": 1.0}), tmp_path / "base", tmp_path / "out")
    after = read_all(tmp_path / "out")
    assert [name for name in after if not (after[name] == before[name]).all()] == ["model.layers.0.q.weight"]


def test_bases_that_are_none_are_refused(tmp_path: Path) -> None:
    a = write_adapter_folder(tmp_path / "a", 0)
    merge = merge_of({"a": a}, {"a": 1.0})
    quantised = {"quantization_config": {"quant_method": "gptq"}}
    write_base_folder(tmp_path / "quantised", config=quantised)
    with pytest.raises(Unmergeable, match=r"quantised \(gptq\)"):
        based(merge, tmp_path / "quantised", tmp_path / "out")
    based(merge, tmp_path / "quantised", tmp_path / "allowed", allow_quantised=True)
    other = write_adapter_folder(tmp_path / "other", 0, shapes={**SHAPES, "model.layers.1.q": (24, 18)})
    write_base_folder(tmp_path / "base")
    with pytest.raises(Unmergeable, match=r"\[24, 16\], the adapters' model.layers.1.q is \[24, 18\]"):
        based(merge_of({"o": other}, {"o": 1.0}), tmp_path / "base", tmp_path / "out")
    away = write_adapter_folder(tmp_path / "away", 0, modules=["x"], shapes={"x": (2, 3)})
    with pytest.raises(Unmergeable, match=r"no tensor x\.weight"):
        based(merge_of({"o": away}, {"o": 1.0}), tmp_path / "base", tmp_path / "out")
    tied = write_adapter_folder(tmp_path / "tied", 0, modules=["model.layers.0.q"])
    packed = tmp_path / "packed"
    write_base_folder(packed)

    arrays: dict[str, NDArray[np.generic]] = {
        **read_all(packed),
        "model.layers.0.q.weight": np.zeros((24, 16), np.int8),
    }
    write_arrays(packed / "model.safetensors", arrays)
    with pytest.raises(Unmergeable, match=r"quantised \(I8\)"):
        based(merge_of({"o": tied}, {"o": 1.0}), packed, tmp_path / "out", allow_quantised=True)


@pytest.mark.parametrize(("model_type", "fits"), [("gpt2", False), ("llama", True)])
def test_a_square_layer_that_is_stored_the_other_way_round_is_refused(
    tmp_path: Path, model_type: str, fits: bool
) -> None:
    """Its shape doesn't tell, and an adapter of a linear layer beside it says what holds for that one."""
    name = "h.0.attn.c_proj"
    a = write_adapter_folder(tmp_path / "a", 0, modules=[name], shapes={name: (16, 16)})
    write_arrays(tmp_path / "base/model.safetensors", {f"{name}.weight": np.zeros((16, 16), np.float32)})
    (tmp_path / "base/config.json").write_text(json.dumps({"model_type": model_type}))
    merge = merge_of({"a": a}, {"a": 1.0})
    if fits:
        based(merge, tmp_path / "base", tmp_path / "out")
    else:
        with pytest.raises(Unmergeable, match=r"c_proj of a gpt2 is stored \(in, out\).* fan_in_fan_out"):
            based(merge, tmp_path / "base", tmp_path / "out")


def test_two_modules_of_one_tensor_are_refused(tmp_path: Path) -> None:
    shapes = {"model.layers.0.q": (24, 16), "lm.model.layers.0.q": (24, 16)}
    a = write_adapter_folder(tmp_path / "a", 0, modules=list(shapes), shapes=shapes)
    write_base_folder(tmp_path / "base")
    with pytest.raises(Unmergeable, match=r"both the base's model\.layers\.0\.q\.weight"):
        based(merge_of({"a": a}, {"a": 1.0}), tmp_path / "base", tmp_path / "out")


# --- what is refused ----------------------------------------------------------------------------

NAME = "base_model.model.model.layers.0.q"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"config": {"use_dora": True}}, "DoRA rescales"),
        ({"extra": {f"{NAME}.lora_magnitude_vector": np.ones(24, np.float32)}}, "DoRA rescales"),
        ({"config": {"modules_to_save": ["lm_head"]}}, "whole modules"),
        ({"extra": {"base_model.model.lm_head.weight": np.ones((2, 2), np.float32)}}, "whole module"),
        ({"config": {"bias": "lora_only"}}, "trained biases"),
        ({"config": {"lora_bias": True}}, "biases"),
        ({"config": {"init_lora_weights": "pissa_niter_16"}}, "changes the base's weights"),
        ({"config": {"layer_replication": [[0, 1]]}}, "replicated"),
        ({"config": {"trainable_token_indices": [1]}}, "rows of the embedding"),
        ({"config": {"something_new": {"on": 1}}}, "something_new .* not known here"),
        ({"config": {"peft_type": "LOHA"}}, "'LOHA'"),
        ({"config": {"r": "four"}}, "can't be read"),
        ({"config": {"rank_pattern": {"(": 2}}}, "can't be read"),
        ({"config": {"r": 8}}, "has rank 4, its configuration says 8"),
        ({"extra": {"base_model.model.e.lora_embedding_A": np.ones((4, 9), np.float32)}}, "embedding"),
        ({"extra": {f"{NAME}2.lora_A.weight": np.ones((4, 16), np.float32)}}, "without the other factor"),
        ({"extra": {f"{NAME}2.lora_A.weight": np.ones((4, 2, 1, 1), np.float32),
                    f"{NAME}2.lora_B.weight": np.ones((3, 4, 1, 1), np.float32)}}, "no linear layer"),
        ({"extra": {f"{NAME}2.lora_A.weight": np.ones((4, 2), np.float32),
                    f"{NAME}2.lora_B.weight": np.ones((3, 5), np.float32)}}, "different ranks"),
        ({"extra": {f"{NAME}2.lora_A.weight": np.ones((4, 2), np.int8)}}, r"quantised \(I8\)"),
    ],
)  # fmt: skip
def test_an_adapter_that_is_no_plain_lora_is_refused(tmp_path: Path, more: dict[str, Any], says: str) -> None:
    folder = write_adapter_folder(tmp_path / "a", 0, **more)
    with pytest.raises(Unmergeable, match=f"adapter style.*{says}"):
        open_adapter("style", folder)


@pytest.mark.parametrize(
    "other", ["base_model.model.model.layers.0.q.lora_A.default.weight", "model.layers.0.q.lora_A.weight"]
)
def test_two_tensors_of_one_factor_are_refused(tmp_path: Path, other: str) -> None:
    folder = write_adapter_folder(tmp_path / "a", 0, extra={other: np.zeros((4, 16), np.float32)})
    with pytest.raises(Unmergeable, match=r"adapter a has .*lora_A.*, two of one factor"):
        open_adapters({"a": folder})


def test_folders_that_are_no_adapters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Unmergeable, match="has no adapter_model"):
        open_adapter("a", tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(Unmergeable, match="pickle"):
        open_adapter("a", tmp_path)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"config": {"base_model_name_or_path": "org/other"}}, "different base: 'org/base' and 'org/other'"),
        ({"config": {"revision": "abc"}}, "different revision: '' and 'abc'"),
        ({"config": {"fan_in_fan_out": True}}, "different fan_in_fan_out"),
        ({"shapes": {**SHAPES, "model.layers.0.up": (41, 16)}}, "40 × 16 in adapter a, 41 × 16 in b"),
    ],
)
def test_adapters_that_don_t_belong_together_are_refused(tmp_path: Path, more: dict[str, Any], says: str) -> None:
    a = write_adapter_folder(tmp_path / "a", 0)
    b = write_adapter_folder(tmp_path / "b", 1, **more)
    with pytest.raises(Unmergeable, match=says):
        open_adapters({"a": a, "b": b})


def test_nothing_but_zeros_is_no_merge(tmp_path: Path) -> None:
    a = write_adapter_folder(tmp_path / "a", 0)
    with pytest.raises(Unmergeable, match="every adapter weighs 0"):
        merge_of({"a": a}, {"a": 0.0})


# --- memory -------------------------------------------------------------------------------------


def test_a_merge_takes_no_more_memory_than_its_largest_module(tmp_path: Path) -> None:
    shapes = {"large": (5000, 3000), "m2": (3000, 5000), "m3": (3000, 3000)}
    folders = {
        name: write_adapter_folder(
            tmp_path / name,
            seed,
            ranks=32 * (seed + 1),
            modules=list(shapes),
            shapes=shapes,
            config={"r": 32 * (seed + 1)},
        )
        for seed, name in enumerate("ab")
    }
    merge = merge_of(folders, {"a": 0.6, "b": 0.4})
    tracemalloc.start()
    try:
        write_adapter(merge, tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    largest = 4 * 96 * (5000 + 3000)  # bytes of B' and A'
    assert peak <= 1.2 * largest


def test_a_base_takes_no_more_memory_than_its_largest_weight(tmp_path: Path) -> None:
    shapes = {"large": (3000, 2000), "m2": (2000, 3000)}
    a = write_adapter_folder(tmp_path / "a", 0, ranks=8, modules=list(shapes), shapes=shapes, config={"r": 8})
    (tmp_path / "base").mkdir()
    weights = {f"{name}.weight": np.ones(shape, np.float32) for name, shape in shapes.items()}
    write_arrays(tmp_path / "base" / "model.safetensors", weights)
    merge = merge_of({"a": a}, {"a": 1.0})
    tracemalloc.start()
    try:
        based(merge, tmp_path / "base", tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 1.2 * 4 * 3000 * 2000
