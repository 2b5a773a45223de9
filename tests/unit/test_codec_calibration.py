"""A tensor's step and the files that it makes: every family and every layout round trip, bit for bit where they are
copied; broken tensors; and how much memory it takes."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from actors.codec.artifact import decoded_rows, extra_files, manifest_of
from actors.codec.base import CodecError, Phase
from actors.codec.calibration import TensorOrder, calibrate_tensor
from actors.codec.checkpoints.source import open_source
from actors.codec.family import FAMILIES
from actors.codec.params import capped, split_rows
from actors.codec.restore import decode_checkpoint
from actors.tensors.checkpoint import open_checkpoint
from actors.tensors.dtypes import from_float32
from actors.tensors.header import Planned
from actors.tensors.identity import content_sha256
from actors.tensors.shard_writer import write_arrays, write_index, write_shard
from actors.tensors.stored import byte_chunks, read_matrix
from benchmarks.codec_artifact import make_artifact
from schemas.codec import Checkpoint, CodecParams, Override, Residual, TensorRow

INT8 = CodecParams(family="scalar", bits=8)


def matrix(n: int = 500, d: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def row_of(source: Path, number: int, params: CodecParams, out: Path, activations: Path | None = None) -> TensorRow:
    said = list(calibrate_tensor(TensorOrder(source, number, params, [], activations, out)))
    (row,) = [one for one in said if not isinstance(one, Phase)]
    return row


@pytest.mark.slow
@pytest.mark.parametrize(
    "params",
    [
        CodecParams(family="pq", subspaces=4, centroids=64),
        CodecParams(family="pq", subspaces=4, centroids=64, rotation="opq", lane_width="bf16x32"),
        CodecParams(family="rpq", subspaces=4, centroids=64, residual=Residual(2, 64)),
        CodecParams(family="vq", dsub=2, centroids=64, rotation="hadamard"),
        CodecParams(family="additive", dsub=4, centroids=64, residual=Residual(1, 64), rotation="hadamard"),
        CodecParams(family="scalar", bits=3, group=8, zero_point=True, clip="mse"),
        CodecParams(family="rotated", bits=5, rotation="hadamard"),
        CodecParams(family="rabitq", rotation="hadamard"),
        CodecParams(family="gptq", bits=4, group=16),
        CodecParams(family="bf16"),
        CodecParams(family="f32"),
    ],
    ids=lambda params: f"{params.family}-{params.rotation}",
)
def test_what_is_read_back_is_what_the_family_decodes(params: CodecParams, tmp_path: Path) -> None:
    rows = matrix()
    write_arrays(tmp_path / "model.safetensors", {"layers.0.mlp.up_proj.weight": rows})
    activations = tmp_path / "activations.safetensors"
    write_arrays(activations, {"layers.0.mlp.up_proj.weight": matrix(200, seed=1)})
    out = tmp_path / "tensors" / "000000.safetensors"
    row = row_of(tmp_path / "model.safetensors", 0, params, out, activations)
    assert row.problem == ""
    assert row.params is not None
    family, rng = FAMILIES[params.family], np.random.default_rng(params.seed)
    calibration, _ = split_rows(len(rows), row.params)
    learnt = matrix(200, seed=1) if params.family == "gptq" else np.ascontiguousarray(rows[calibration])
    state = family.fit(learnt, row.params, rng)
    codes = family.encode(state, rows, row.params)
    expected = family.decode(state, codes, row.params)
    assert row.file is not None
    named = replace(row, file=replace(row.file, key="tensors/000000.safetensors"))
    decoded = np.concatenate([part for _, part in decoded_rows(tmp_path, named)])
    np.testing.assert_array_equal(decoded, expected)
    assert row.charge == family.charge(state, codes, row.params)
    error = np.linalg.norm(expected - rows) / np.linalg.norm(rows)
    assert row.measured[0].all_rows.relative_l2 == pytest.approx(error, rel=1e-5)
    again = row_of(tmp_path / "model.safetensors", 0, params, tmp_path / "again", activations)
    assert (tmp_path / "again").read_bytes() == out.read_bytes()
    assert replace(again, fit_s=0, encode_s=0) == replace(row, fit_s=0, encode_s=0)


def mixed(folder: Path) -> dict[str, Planned]:
    """Two shards with tensors of every number type, a GPT-2 layer and a stack of experts."""
    values = {
        "model.embed_tokens.weight": ("F16", (300, 32)),
        "model.layers.0.self_attn.q_proj.weight": ("BF16", (200, 32)),
        "model.layers.0.mlp.up_proj.weight": ("F64", (200, 32)),
        "model.layers.0.mlp.experts.gate_proj.weight": ("F32", (3, 200, 32)),
        "model.norm.weight": ("F32", (32,)),
        "h.0.attn.c_attn.weight": ("F32", (48, 144)),
        "model.layers.0.self_attn.positions": ("I64", (128,)),
        "model.layers.0.codes.weight": ("U8", (100, 64)),
    }
    planned = {name: Planned(name, dtype, shape) for name, (dtype, shape) in values.items()}
    rng = np.random.default_rng(4)
    raw = {}
    for name, (dtype, shape) in values.items():
        if dtype in ("I64", "U8"):
            raw[name] = rng.integers(0, 200, shape).astype({"I64": np.int64, "U8": np.uint8}[dtype]).tobytes()
        else:
            raw[name] = from_float32(rng.normal(size=shape).astype(np.float32), dtype)
    shards: dict[str, list[Planned]] = {}
    for number, part in enumerate((list(values)[:4], list(values)[4:])):
        shard = f"model-{number + 1:05d}-of-00002.safetensors"
        shards[shard] = [planned[name] for name in part]
        write_shard(folder / shard, shards[shard], lambda tensor: [raw[tensor.name]], {"format": "pt"})
    write_index(folder / "model.safetensors.index.json", shards)
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["X"], "model_type": "gpt2", "n_embd": 32, "n_layer": 1, "vocab_size": 300})
    )
    return planned


def test_a_checkpoint_is_itself_again_but_for_what_was_quantised(tmp_path: Path) -> None:
    planned = mixed(tmp_path / "model")
    manifest = make_artifact(tmp_path / "model", INT8, tmp_path / "artifact")
    assert {row.name for row in manifest.tensors} == set(planned)
    assert len(manifest.tensors) == len(planned)
    quantised = {row.name for row in manifest.tensors if row.params is not None}
    assert quantised == {name for name in planned if "proj" in name or "c_attn" in name}
    list(decode_checkpoint(tmp_path / "artifact", tmp_path / "decoded"))
    before, after = open_checkpoint(tmp_path / "model"), open_checkpoint(tmp_path / "decoded")
    assert after.problems == ()
    assert sorted(path.name for path in (tmp_path / "decoded").iterdir()) == sorted(
        path.name for path in (tmp_path / "model").iterdir()
    )
    for name, tensor in before.tensors.items():
        here = after.tensor(name)
        assert (here.dtype, here.shape, here.file.name) == (tensor.dtype, tensor.shape, tensor.file.name)
        if name not in quantised:
            assert b"".join(byte_chunks(here)) == b"".join(byte_chunks(tensor))
            continue
        for expert in range(tensor.shape[0] if len(tensor.shape) == 3 else 1):
            # a scale a row of output units; GPT-2's Conv1D keeps those as columns
            there = read_matrix(tensor, expert, transposed="c_attn" in name)
            restored = read_matrix(here, expert, transposed="c_attn" in name)
            step = np.abs(there).max(axis=1, keepdims=True) / 127
            assert (np.abs(there - restored) <= 0.55 * step + 0.01 * np.abs(there)).all(), name
    experts = next(row for row in manifest.tensors if row.matrices == 3)
    assert len(experts.measured) == 3
    stacked = sum(8 * row.charge.total for row in manifest.tensors if row.charge)
    assert manifest.bits_per_weight == pytest.approx(stacked / sum(np.prod(planned[name].shape) for name in quantised))


def test_a_target_s_hash_is_of_its_tensors_however_they_lie() -> None:
    rows = [("b", "F32", (2,), "1" * 64), ("a", "F32", (3,), "2" * 64)]
    assert content_sha256(rows) == content_sha256(rows[::-1])
    assert content_sha256(rows) != content_sha256([rows[0], ("a", "F16", (3,), "2" * 64)])
    assert content_sha256(rows) != content_sha256([rows[0], ("a", "F32", (3,), "3" * 64)])


def test_a_file_that_isn_t_what_was_written_isn_t_decoded(tmp_path: Path) -> None:
    mixed(tmp_path / "model")
    make_artifact(tmp_path / "model", INT8, tmp_path / "artifact")
    file = tmp_path / "artifact" / "tensors" / "000001.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(CodecError, match="fails its checksum"):
        list(decode_checkpoint(tmp_path / "artifact", tmp_path / "decoded"))
    assert not (tmp_path / "decoded").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".decoded")] == []
    file.unlink()
    with pytest.raises(CodecError, match="000001"):
        list(decode_checkpoint(tmp_path / "artifact", tmp_path / "decoded"))


def test_broken_tensors_have_rows_that_say_why_and_no_files(tmp_path: Path) -> None:
    planned = mixed(tmp_path / "model")
    second = tmp_path / "model" / "model-00002-of-00002.safetensors"
    second.unlink()
    first = tmp_path / "model" / "model-00001-of-00002.safetensors"
    tensor = open_checkpoint(tmp_path / "model").tensors["model.layers.0.mlp.experts.gate_proj.weight"]
    raw = bytearray(first.read_bytes())
    place = tensor.offset + 4 * (200 * 32 + 5 * 32 + 7)  # of the second expert
    raw[place : place + 4] = np.float32("inf").tobytes()
    first.write_bytes(raw)
    manifest = make_artifact(tmp_path / "model", INT8, tmp_path / "artifact")
    assert {row.name for row in manifest.tensors} == set(planned)
    problems = {row.name: row.problem for row in manifest.tensors if row.problem}
    assert len(problems) == 5
    assert "row 205, column 7 is infinite" in problems["model.layers.0.mlp.experts.gate_proj.weight"]
    assert "no such file" in problems["model.norm.weight"]
    assert all(row.file is None for row in manifest.tensors if row.problem)
    with pytest.raises(CodecError, match="lacks 5 of 8 tensors"):
        list(decode_checkpoint(tmp_path / "artifact", tmp_path / "decoded"))


@pytest.mark.parametrize(
    "params",
    [CodecParams(family="rotated", bits=4, rotation="hadamard"), CodecParams(family="vq", dsub=2, centroids=64)],
    ids=lambda params: params.family,
)
def test_a_tensor_whose_values_can_t_be_coded_is_copied_and_says_so(params: CodecParams, tmp_path: Path) -> None:
    rows = matrix() * np.float32(1e-4)
    rows[split_rows(len(rows), capped(params, len(rows)))[1][0]] *= np.float32(1e6)  # of those that nothing learns from
    write_arrays(tmp_path / "model.safetensors", {"layers.0.mlp.up_proj.weight": rows})
    row = row_of(tmp_path / "model.safetensors", 0, params, tmp_path / "out")
    assert (row.route, row.rule, row.problem, row.matrices, row.measured) == ("passthrough", "parameters", "", 0, [])
    assert "can't be had for it: " in row.reason
    assert "calibrate on rows like these" in row.reason
    copied = open_checkpoint(tmp_path / "out").tensor("layers.0.mlp.up_proj.weight")
    np.testing.assert_array_equal(read_matrix(copied), rows)


def test_an_override_changes_a_tensor_s_way(tmp_path: Path) -> None:
    mixed(tmp_path / "model")
    overrides = [Override("*embed*", "quantise"), Override("*.q_proj.*", "skip")]
    manifest = make_artifact(tmp_path / "model", INT8, tmp_path / "artifact", overrides)
    rows = {row.name: row for row in manifest.tensors}
    assert rows["model.embed_tokens.weight"].params is not None
    assert rows["model.layers.0.self_attn.q_proj.weight"].rule == "override *.q_proj.*"
    assert manifest.overrides == overrides


def test_gptq_says_which_tensor_has_no_activations(tmp_path: Path) -> None:
    write_arrays(tmp_path / "model.safetensors", {"layers.0.mlp.up_proj.weight": matrix()})
    write_arrays(tmp_path / "a.safetensors", {"layers.9.mlp.up_proj.weight": matrix()})
    params = CodecParams(family="gptq", bits=4)
    row = row_of(tmp_path / "model.safetensors", 0, params, tmp_path / "out", tmp_path / "a.safetensors")
    assert (row.route, row.rule) == ("passthrough", "parameters")
    assert "no such tensor" in row.reason


def test_what_a_loader_needs_goes_along(tmp_path: Path) -> None:
    needed = {"config.json", "tokenizer.json", "1_Pooling/config.json", "spm.model"}
    for name in (*needed, "README.md", "model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert {path.relative_to(tmp_path).as_posix() for path in extra_files(tmp_path)} == needed


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    mixed(tmp_path / "model")
    manifest = make_artifact(tmp_path / "model", INT8, tmp_path / "artifact")
    again = manifest_of(
        artifact="benchmark", target=Checkpoint(str(tmp_path / "model")), params=INT8, overrides=[],
        rows=manifest.tensors, extra=manifest.extra,
    )  # fmt: skip
    assert msgspec.json.decode(msgspec.json.encode(manifest), type=type(manifest)) == again
    assert manifest.measured is True


MEMORY = """
import resource, sys
from pathlib import Path
from actors.codec.calibration import TensorOrder, calibrate_tensor
from actors.codec.family import FAMILIES
from schemas.codec import CodecParams
import msgspec
folder, params, number = Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=CodecParams), int(sys.argv[3])
before = int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])
list(calibrate_tensor(TensorOrder(folder, number, params, [], None, folder / "out")))
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
print((peak - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "params",
    [
        CodecParams(family="scalar", bits=4, group=64, clip="mse"),
        CodecParams(family="rotated", bits=4, rotation="hadamard"),
        CodecParams(family="vq", dsub=2, rotation="hadamard"),
        CodecParams(family="f32"),
    ],
    ids=lambda params: params.family,
)
def test_a_tensor_takes_three_times_its_size_in_memory_at_most(params: CodecParams, tmp_path: Path) -> None:
    rows, columns = 24_000, 1024
    write_arrays(tmp_path / "model.safetensors", {"layers.0.mlp.up_proj.weight": matrix(rows, columns)})
    assert _peak(tmp_path, params) <= 3 * 4 * rows * columns


@pytest.mark.slow
def test_a_copied_tensor_takes_no_memory(tmp_path: Path) -> None:
    write_arrays(tmp_path / "model.safetensors", {"model.embed_tokens.weight": matrix(48_000, 1024)})
    assert _peak(tmp_path, INT8) < 48 << 20  # of 192 MiB


def _peak(folder: Path, params: CodecParams) -> int:
    """Bytes beyond what the imports take, of a process of its own."""
    command = [sys.executable, "-c", MEMORY, str(folder), msgspec.json.encode(params).decode(), "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"OPENBLAS_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_open_source_numbers_every_tensor(tmp_path: Path) -> None:
    mixed(tmp_path / "model")
    assert [item.number for item in open_source(tmp_path / "model").items] == list(range(8))
