"""safetensors read and written, against files put together byte by byte from the format's description."""

import hashlib
import json
import math
import struct
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from actors.codec.base import CodecError
from actors.tensors.checkpoint import Checkpoint, open_checkpoint
from actors.tensors.dtypes import BITS, from_float32, to_float32
from actors.tensors.header import CheckpointError, Planned, parse_header
from actors.tensors.shard_writer import TEMPORARY, write_arrays, write_index, write_shard
from actors.tensors.stored import byte_chunks, read_array, read_matrix, row_chunks

Described = dict[str, tuple[str, Sequence[int], bytes]]  # name -> dtype, shape, data


def file_of(described: Described, **more: Any) -> bytes:
    """A sound file, the data in the order given; `more` goes into the header as it is."""
    header: dict[str, Any] = dict(more)
    data = b""
    for name, (dtype, shape, raw) in described.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return with_header(json.dumps(header).encode(), data)


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def matrix(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def written(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


# --- reading ---


def test_a_file_laid_out_by_hand_is_read(tmp_path: Path) -> None:
    path = written(
        tmp_path / "model.safetensors",
        file_of(
            {
                "a": ("F32", (2, 3), floats(1, 2, 3, 4, 5, 6)),
                "empty": ("F16", (0, 4), b""),
                "scalar": ("I64", (), struct.pack("<q", -7)),
            },
            __metadata__={"format": "pt"},
        ),
    )
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.problems == ()
    assert checkpoint.metadata == {"format": "pt"}
    assert read_matrix(checkpoint.tensor("a")).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert list(row_chunks(checkpoint.tensor("empty"))) == []
    assert read_matrix(checkpoint.tensor("scalar")).tolist() == [[-7]]
    assert read_array(checkpoint.tensor("scalar")).tolist() == -7
    assert open_checkpoint(path) == checkpoint


@pytest.mark.parametrize(
    ("dtype", "raw", "values"),
    [
        ("F64", struct.pack("<2d", 1.5, -2), [1.5, -2]),
        ("F16", struct.pack("<2e", 1.5, -2), [1.5, -2]),
        ("BF16", floats(1.5)[2:] + floats(-2)[2:], [1.5, -2]),  # upper halves
        ("I8", struct.pack("<2b", -128, 127), [-128, 127]),
        ("U8", struct.pack("<2B", 0, 255), [0, 255]),
        ("I16", struct.pack("<2h", -300, 300), [-300, 300]),
        ("U16", struct.pack("<2H", 0, 65535), [0, 65535]),
        ("I32", struct.pack("<2i", -70000, 70000), [-70000, 70000]),
        ("U32", struct.pack("<2I", 0, 1 << 24), [0, 1 << 24]),
        ("I64", struct.pack("<2q", -5, 1 << 23), [-5, 1 << 23]),
        ("U64", struct.pack("<2Q", 5, 1 << 23), [5, 1 << 23]),
        ("BOOL", b"\x00\x01", [0, 1]),
    ],
)
def test_every_readable_dtype_becomes_float32(dtype: str, raw: bytes, values: list[float], tmp_path: Path) -> None:
    written(tmp_path / "model.safetensors", file_of({"x": (dtype, (1, 2), raw)}))
    found = read_matrix(open_checkpoint(tmp_path).tensor("x"))
    assert found.dtype == np.float32
    assert found.tolist() == [values]


def test_rows_come_in_chunks_and_experts_one_by_one(tmp_path: Path) -> None:
    stack = matrix(3 * 10, 8).reshape(3, 10, 8)
    written(tmp_path / "model.safetensors", file_of({"x": ("F32", stack.shape, stack.tobytes())}))
    tensor = open_checkpoint(tmp_path).tensor("x")
    chunks = list(row_chunks(tensor, 5, 27, chunk_bytes=4 * 8 * 4))
    assert [row for row, _ in chunks] == [5, 9, 13, 17, 21, 25]
    assert [len(values) for _, values in chunks] == [4, 4, 4, 4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([values for _, values in chunks]), stack.reshape(30, 8)[5:27])
    np.testing.assert_array_equal(read_matrix(tensor, 2), stack[2])
    np.testing.assert_array_equal(read_matrix(tensor, 1, transposed=True), stack[1].T)
    assert read_matrix(tensor, 1, transposed=True).flags.c_contiguous
    with pytest.raises(CheckpointError, match="rows 30 to 40 of 30"):
        read_matrix(tensor, 3)


def test_a_row_longer_than_a_chunk_is_read_alone(tmp_path: Path) -> None:
    rows = matrix(3, 100)
    written(tmp_path / "model.safetensors", file_of({"x": ("F32", rows.shape, rows.tobytes())}))
    chunks = list(row_chunks(open_checkpoint(tmp_path).tensor("x"), chunk_bytes=16))
    assert [values.shape for _, values in chunks] == [(1, 100)] * 3


def shards(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two shards with an index: `a` and `c` in the first, `b` in the second."""
    a, b = matrix(4, 4, 1), matrix(4, 4, 2)
    written(
        folder / "m-1.safetensors",
        file_of({"a": ("F32", (4, 4), a.tobytes()), "c": ("F32", (2,), floats(1, 2))}),
    )
    written(folder / "m-2.safetensors", file_of({"b": ("F32", (4, 4), b.tobytes())}))
    index = {"metadata": {"total_size": 136}, "weight_map": dict.fromkeys("ac", "m-1.safetensors")}
    index["weight_map"]["b"] = "m-2.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return a, b


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    a, b = shards(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.problems == ()
    assert list(checkpoint.tensors) == ["a", "c", "b"]
    np.testing.assert_array_equal(read_matrix(checkpoint.tensor("a")), a)
    np.testing.assert_array_equal(read_matrix(checkpoint.tensor("b")), b)
    assert open_checkpoint(tmp_path / "model.safetensors.index.json") == checkpoint


# --- what is broken names file and tensor, and harms no other ---


def missing(shard: Path) -> None:
    shard.unlink()


def truncated_data(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-1])


def truncated_header(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:20])


def no_header(shard: Path) -> None:
    shard.write_bytes(b"abc")


def huge_header(shard: Path) -> None:
    shard.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")


def not_json(shard: Path) -> None:
    shard.write_bytes(with_header(b'{"b": '))


def unknown_dtype(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes().replace(b'"F32"', b'"F33"'))


def without_the_tensor(shard: Path) -> None:
    shard.write_bytes(file_of({"z": ("F32", (1,), floats(1))}))


def a_folder(shard: Path) -> None:
    shard.unlink()
    shard.mkdir()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (missing, "missing shard"),
        (truncated_data, "truncated: its data ends at byte 64 of the 63 that are there"),
        (truncated_header, "truncated: a header of"),
        (no_header, "3 bytes are no safetensors file"),
        (huge_header, "malformed: a header of"),
        (not_json, "malformed header"),
        (unknown_dtype, "unsupported dtype 'F33'"),
        (without_the_tensor, "the index has it here, the shard doesn't"),
        (a_folder, "can't be read: Is a directory"),
    ],
)
def test_a_damaged_shard_costs_its_own_tensors_alone(damage: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    a, _ = shards(tmp_path)
    damage(tmp_path / "m-2.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    np.testing.assert_array_equal(read_matrix(checkpoint.tensor("a")), a)
    with pytest.raises(CheckpointError, match=r"m-2\.safetensors: b: ") as raised:
        checkpoint.tensor("b")
    assert says in str(raised.value)
    assert {"a", "c"} <= set(checkpoint.tensors)
    assert [problem.tensor for problem in checkpoint.problems] == ["b"]


def test_a_truncated_file_keeps_the_tensors_before_the_cut(tmp_path: Path) -> None:
    a = matrix(4, 4)
    raw = file_of({"a": ("F32", (4, 4), a.tobytes()), "b": ("F32", (4, 4), a.tobytes())})
    written(tmp_path / "model.safetensors", raw[:-40])
    checkpoint = open_checkpoint(tmp_path)
    np.testing.assert_array_equal(read_matrix(checkpoint.tensor("a")), a)
    assert [(problem.tensor, problem.message[:9]) for problem in checkpoint.problems] == [("b", "truncated")]


def test_a_file_that_shrinks_after_it_was_opened_is_an_error_not_a_crash(tmp_path: Path) -> None:
    path = written(tmp_path / "model.safetensors", file_of({"x": ("F32", (4, 4), matrix(4, 4).tobytes())}))
    tensor = open_checkpoint(tmp_path).tensor("x")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="x: truncated since it was opened"):
        read_matrix(tensor)
    path.unlink()
    with pytest.raises(CheckpointError, match="x: can't be read: No such file"):
        read_array(tensor)


@pytest.mark.parametrize(
    ("offsets", "broken"),
    [
        ([[0, 4], [2, 6], [8, 12]], {"t0", "t1"}),
        ([[0, 4], [0, 4], [4, 8]], {"t0", "t1"}),  # the same bytes twice
        ([[0, 12], [2, 6], [6, 10], [12, 16]], {"t0", "t1", "t2"}),  # one that spans two
        ([[4, 8], [0, 4], [8, 12]], set()),  # in another order than the names
    ],
)
def test_overlapping_tensors_are_told_and_the_others_read(
    offsets: list[list[int]], broken: set[str], tmp_path: Path
) -> None:
    header = {
        f"t{i}": {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        for i, (begin, end) in enumerate(offsets)
    }
    written(tmp_path / "model.safetensors", with_header(json.dumps(header).encode(), bytes(16)))
    checkpoint = open_checkpoint(tmp_path)
    assert {problem.tensor for problem in checkpoint.problems if problem.tensor is not None} == broken
    assert set(checkpoint.tensors) == set(header) - broken
    assert all("overlaps t" in problem.message for problem in checkpoint.problems if problem.tensor in broken)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)), max_size=8))
def test_overlaps_are_what_comparing_every_pair_finds(places: list[tuple[int, int]]) -> None:
    spans = {f"t{i}": (begin, begin + length) for i, (begin, length) in enumerate(places)}
    header = {
        name: {"dtype": "I8", "shape": [end - begin], "data_offsets": [begin, end]}
        for name, (begin, end) in spans.items()
    }
    expected = {
        name
        for name, (begin, end) in spans.items()
        for other, (b, e) in spans.items()
        if name != other and max(begin, b) < min(end, e)
    }
    found = parse_header(json.dumps(header).encode(), 30, "f")
    assert set(found.problems) == expected
    assert {entry.name for entry in found.entries} == set(spans) - expected


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "takes 64 bits"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, "no list of"),
        ({"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}, "no list of"),
        ({"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}, "no list of"),
        ({"dtype": "F32", "shape": [1] * 65, "data_offsets": [0, 4]}, "no list of"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}, "takes 32 bits"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0]}, "no [begin, end]"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, "4"]}, "no [begin, end]"),
        ({"dtype": "F32", "shape": [1 << 62] * 60, "data_offsets": [0, 4]}, "takes"),
        ({"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}, "takes 12 bits"),  # ends within a byte
        ({"dtype": None, "shape": [1], "data_offsets": [0, 4]}, "unsupported dtype None"),
        ({"shape": [1], "data_offsets": [0, 4]}, "unsupported dtype"),
        ([1], "described by list"),
    ],
)
def test_a_wrong_entry_is_told_by_its_tensor(entry: object, says: str) -> None:
    good = {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}
    found = parse_header(json.dumps({"bad": entry, "good": good}).encode(), 8, "f")
    assert [sound.name for sound in found.entries] == ["good"]
    assert says in found.problems["bad"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" {}",
        b"[]",
        b"{",
        b'{"a":1}x',
        b"\xff{}",
        b'{"\\ud800": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}',
        b'{"__metadata__": {"a": 1}}',
        b'{"__metadata__": []}',
        b'{"a":' + b"[" * 100_000,
        b'{"a":' + b"9" * 5000 + b"}",
    ],
)
def test_a_malformed_header_is_refused_by_file(raw: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^the/file: malformed header") as raised:
        parse_header(raw, 4, "the/file")
    assert raised.value.tensor is None


def test_a_name_listed_twice_is_no_tensor() -> None:
    """Two parsers could take two different tensors for it."""
    entry = b'{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}'
    raw = b'{"a":%b,"b":%b,"a":%b}' % (entry % (0, 1), entry % (1, 2), entry % (2, 3))
    found = parse_header(raw, 3, "f")
    assert found.problems == {"a": "listed twice in the header"}
    assert [sound.name for sound in found.entries] == ["b"]
    twice = b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}'
    assert parse_header(twice, 1, "f").problems == {"a": "dtype twice in the header"}


def test_bytes_of_no_tensor_are_told_of_the_file(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}).encode()
    assert parse_header(header, 3, "f").file_problem == "bytes 0 to 1 of the data belong to no tensor"
    raw = file_of({"a": ("U8", (2,), b"ab")})
    path = written(tmp_path / "model.safetensors", raw + b"more")
    checkpoint = open_checkpoint(path)
    assert [(problem.tensor, problem.message) for problem in checkpoint.problems] == [
        (None, "bytes 2 to 6 of the data belong to no tensor")
    ]
    assert read_array(checkpoint.tensor("a")).tolist() == [97, 98]


@given(st.data())
def test_whatever_the_header_says_no_tensor_reaches_out_of_the_file(data: st.DataObject) -> None:
    """Fuzzed: bytes of a sound header changed, cut or put in. The answer is a header or a CheckpointError."""
    sound = file_of({"a": ("F32", (2, 2), floats(1, 2, 3, 4)), "b": ("BF16", (3,), bytes(6))}, __metadata__={"k": "v"})
    raw = bytearray(sound[8:-22])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"9", b"-", b'"'])
        )
    with suppress(CheckpointError):
        found = parse_header(bytes(raw), 22, "f")
        reach = 0
        for entry in sorted(found.entries, key=lambda entry: (entry.begin, entry.end)):
            assert reach <= entry.begin <= entry.end <= 22
            assert 8 * (entry.end - entry.begin) == math.prod(entry.shape) * BITS[entry.dtype]
            reach = entry.end


# --- values ---


@pytest.mark.parametrize(
    ("dtype", "raw", "says"),
    [
        ("F32", floats(1, 2, 3, math.nan), "row 1, column 1 is NaN; 1 such in rows 0 to 2"),
        ("F32", floats(1, 2, -math.inf, math.inf), "row 1, column 0 is infinite; 2 such"),
        ("F16", struct.pack("<4e", 1, 2, 3, math.inf), "row 1, column 1 is infinite"),
        ("BF16", floats(1)[2:] * 3 + b"\xc0\x7f", "row 1, column 1 is NaN"),
        ("F64", struct.pack("<4d", 1, 1e300, 3, 4), "row 0, column 1 is infinite as float32"),
    ],
)
def test_nan_and_infinite_weights_name_file_tensor_and_place(dtype: str, raw: bytes, says: str, tmp_path: Path) -> None:
    written(tmp_path / "model.safetensors", file_of({"w.weight": (dtype, (2, 2), raw), "ok": ("F32", (1,), floats(5))}))
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: w\.weight: ") as raised:
        read_matrix(checkpoint.tensor("w.weight"))
    assert says in str(raised.value)
    assert read_matrix(checkpoint.tensor("ok")).tolist() == [[5]]
    assert b"".join(byte_chunks(checkpoint.tensor("w.weight"))) == raw  # a copy is still exact


def test_the_first_bad_row_is_counted_from_the_tensor_not_the_chunk(tmp_path: Path) -> None:
    rows = matrix(50, 4)
    rows[37, 2] = np.nan
    written(tmp_path / "model.safetensors", file_of({"x": ("F32", rows.shape, rows.tobytes())}))
    chunks = row_chunks(open_checkpoint(tmp_path).tensor("x"), chunk_bytes=10 * 16)
    assert [next(chunks)[0] for _ in range(3)] == [0, 10, 20]
    with pytest.raises(CheckpointError, match="row 37, column 2 is NaN"):
        next(chunks)


def test_a_dtype_that_is_no_number_here_can_be_copied_but_not_read(tmp_path: Path) -> None:
    written(tmp_path / "model.safetensors", file_of({"x": ("F8_E4M3", (2, 2), b"abcd"), "y": ("F4", (4,), b"zz")}))
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="x: unsupported dtype F8_E4M3"):
        read_matrix(checkpoint.tensor("x"))
    assert b"".join(byte_chunks(checkpoint.tensor("x"), 3)) == b"abcd"
    assert b"".join(byte_chunks(checkpoint.tensor("y"))) == b"zz"


@given(st.floats(width=32, allow_nan=False, min_value=-(2.0**127), max_value=2.0**127))
def test_bf16_is_the_nearest_of_its_neighbours_ties_to_even(value: float) -> None:
    """Brute force: the two bf16 numbers around the value, compared in float64."""
    low = struct.unpack("<I", struct.pack("<f", value))[0] >> 16
    neighbours = [to_float32(bytearray(struct.pack("<H", low + up)), "BF16")[0] for up in (0, 1)]
    distances = [abs(float(neighbour) - value) for neighbour in neighbours]
    best = low + (0 if distances[0] < distances[1] or (distances[0] == distances[1] and low % 2 == 0) else 1)
    assert struct.unpack("<H", from_float32(np.array([value], np.float32), "BF16"))[0] == best


def test_what_a_type_can_not_hold_is_refused() -> None:
    with pytest.raises(CodecError, match="70000 is beyond what F16 holds"):
        from_float32(np.array([1, 70000], np.float32), "F16")
    with pytest.raises(CodecError, match=r"3\.4.*e\+38 is beyond what BF16 holds"):
        from_float32(np.array([1, np.finfo(np.float32).max], np.float32), "BF16")
    with pytest.raises(CodecError, match="can't be written as I8"):
        from_float32(np.zeros(1, np.float32), "I8")
    assert from_float32(np.array([1.5], np.float32), "F16") == struct.pack("<e", 1.5)
    assert from_float32(np.array([1.5], np.float32), "F64") == struct.pack("<d", 1.5)


# --- places ---


def test_a_folder_without_an_unambiguous_checkpoint_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        open_checkpoint(tmp_path)
    for name in ("x.safetensors", "y.safetensors"):
        written(tmp_path / name, file_of({"a": ("U8", (1,), b"a")}))
    with pytest.raises(CheckpointError, match=r"2 files, x\.safetensors, y\.safetensors …, and no index"):
        open_checkpoint(tmp_path)
    assert list(open_checkpoint(tmp_path / "y.safetensors").tensors) == ["a"]
    with pytest.raises(CheckpointError, match="there is no such file"):
        open_checkpoint(tmp_path / "z.safetensors")


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"weight_map": {"a": 3}}', b'{"weight_map": []}', b"\xff"])
def test_a_malformed_index_is_refused_by_file(raw: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "model.safetensors.index.json", raw)
    with pytest.raises(CheckpointError, match=r"index\.json: malformed index"):
        open_checkpoint(path)


@pytest.mark.parametrize("shard", ["../m.safetensors", "/etc/passwd", "sub/m.safetensors", "..", ".", "", "a\0b"])
def test_an_index_reaches_only_into_its_own_folder(shard: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    written(tmp_path / "m.safetensors", file_of({"a": ("U8", (1,), b"a")}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    checkpoint = open_checkpoint(folder)
    assert not checkpoint.tensors
    assert [problem.tensor for problem in checkpoint.problems] == ["a"]
    assert "isn't in the index's folder" in checkpoint.problems[0].message


def test_a_tensor_in_two_shards_is_the_one_that_the_index_names(tmp_path: Path) -> None:
    _, b = shards(tmp_path)
    written(tmp_path / "m-1.safetensors", file_of({"b": ("U8", (1,), b"?"), "a": ("U8", (1,), b"a")}))
    checkpoint = open_checkpoint(tmp_path)
    np.testing.assert_array_equal(read_matrix(checkpoint.tensor("b")), b)
    told = {problem.tensor: problem.message for problem in checkpoint.problems}
    assert told[None] == "b is here too; taken from m-2.safetensors"
    assert "the shard doesn't" in told["c"]


# --- writing ---


def copied(source: Checkpoint, path: Path, chunk_bytes: int = 1 << 20) -> None:
    planned = [Planned(tensor.name, tensor.dtype, tensor.shape) for tensor in source.tensors.values()]
    write_shard(path, planned, lambda plan: byte_chunks(source.tensor(plan.name), chunk_bytes), source.metadata)


def test_the_bytes_are_those_of_the_format(tmp_path: Path) -> None:
    result = write_arrays(
        tmp_path / "x.safetensors",
        {"b": np.array([1, 2], np.uint8), "a": np.array([[1.5]], np.float32), "s": np.array(7, np.int64)},
        {"format": "np"},
    )
    raw = (tmp_path / "x.safetensors").read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    assert length % 8 == 0
    assert json.loads(raw[8 : 8 + length]) == {
        "__metadata__": {"format": "np"},
        "s": {"dtype": "I64", "shape": [], "data_offsets": [0, 8]},
        "a": {"dtype": "F32", "shape": [1, 1], "data_offsets": [8, 12]},
        "b": {"dtype": "U8", "shape": [2], "data_offsets": [12, 14]},
    }
    assert raw[8 + length :] == struct.pack("<q", 7) + floats(1.5) + b"\x01\x02"
    assert (result.sha256, result.bytes) == (hashlib.sha256(raw).hexdigest(), len(raw))


def test_the_same_tensors_make_the_same_file_whatever_their_order(tmp_path: Path) -> None:
    arrays: dict[str, NDArray[np.generic]] = {
        "b": matrix(3, 3),
        "a": matrix(5, 2),
        "codes": np.arange(9, dtype=np.uint8),
    }
    first = write_arrays(tmp_path / "1", arrays, {"x": "1", "a": "2"})
    second = write_arrays(tmp_path / "2", dict(reversed(arrays.items())), {"a": "2", "x": "1"})
    assert first == second
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_arrays_come_back_whatever_their_strides_and_byte_order(tmp_path: Path) -> None:
    arrays: dict[str, NDArray[np.generic]] = {
        "transposed": matrix(4, 6).T,
        "strided": np.arange(20, dtype=np.int32)[::3],
        "big": np.array([1, 2], ">u2"),
        "bool": np.array([True, False]),
        "none": np.zeros((0, 3), np.float16),
        'ümlaut \\ " name': np.zeros(1),
    }
    write_arrays(tmp_path / "x.safetensors", arrays)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.problems == ()
    for name, array in arrays.items():
        found = read_array(checkpoint.tensor(name))
        assert found.shape == array.shape
        np.testing.assert_array_equal(found, array)
    with pytest.raises(CodecError, match="complex128"):
        write_arrays(tmp_path / "y", {"c": np.zeros(1, complex)})


def test_a_copy_is_exact_for_every_dtype(tmp_path: Path) -> None:
    """Values that no arithmetic would keep: NaN with a payload, a type that can't be read."""
    described: Described = {
        "nan": ("F32", (2,), b"\x01\x00\xc0\x7f\xff\xff\xff\xff"),
        "f8": ("F8_E5M2", (3,), b"\x00\x7f\xff"),
        "bf16": ("BF16", (2, 2), bytes(range(8))),
        "empty": ("I32", (0,), b""),
    }
    written(tmp_path / "model.safetensors", file_of(described, __metadata__={"format": "pt"}))
    copied(open_checkpoint(tmp_path), tmp_path / "copy.safetensors", 3)
    copy = open_checkpoint(tmp_path / "copy.safetensors")
    assert copy.problems == ()
    assert copy.metadata == {"format": "pt"}
    for name, (dtype, shape, raw) in described.items():
        tensor = copy.tensor(name)
        assert (tensor.dtype, tensor.shape, b"".join(byte_chunks(tensor))) == (dtype, tuple(shape), raw)
        assert tensor.offset % (BITS[dtype] // 8) == 0


def test_reading_and_copying_hold_a_chunk_not_the_tensor(tmp_path: Path) -> None:
    size = 8 << 20
    written(tmp_path / "model.safetensors", file_of({"x": ("BF16", (size // 2048, 1024), bytes(size))}))
    source = open_checkpoint(tmp_path)
    tracemalloc.start()
    try:
        for _, values in row_chunks(source.tensor("x"), chunk_bytes=1 << 18):
            assert values.nbytes <= 1 << 18
        copied(source, tmp_path / "copy.safetensors", 1 << 18)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 18
    assert (tmp_path / "copy.safetensors").stat().st_size > size


def test_reading_a_transposed_matrix_does_not_double_it(tmp_path: Path) -> None:
    size = 8 << 20
    written(tmp_path / "model.safetensors", file_of({"x": ("F32", (1024, size // 4096), bytes(size))}))
    tensor = open_checkpoint(tmp_path).tensor("x")
    tracemalloc.start()
    try:
        read_matrix(tensor, transposed=True)
        whole = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert whole < 3 * size


def stops() -> Iterator[bytes]:
    yield b"1234"
    raise OSError("the source failed")


@pytest.mark.parametrize(
    ("chunks", "error", "says"),
    [
        ([b"1234"], CodecError, "x: got 4 of 8 bytes"),
        ([b"1234", b"56789"], CodecError, "x: got more than 8 bytes"),
        (stops(), OSError, "the source failed"),
    ],
)
def test_a_file_is_replaced_whole_or_not_at_all(chunks: Any, error: type[Exception], says: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", b"before")
    with pytest.raises(error, match=says):
        write_shard(path, [Planned("x", "U8", (8,))], lambda _: chunks)
    assert path.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_while_it_is_written_the_name_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.safetensors"

    def chunks(_: Planned) -> Iterator[bytes]:
        assert [file.name[: len(TEMPORARY)] for file in path.parent.iterdir()] == [TEMPORARY]
        yield bytes(8)

    write_shard(path, [Planned("x", "U8", (8,))], chunks)
    assert [file.name for file in path.parent.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize(
    ("planned", "says"),
    [
        ([Planned("x", "U8", (1,)), Planned("x", "I8", (1,))], "two tensors of one file"),
        ([Planned("__metadata__", "U8", (1,))], "__metadata__"),
        ([Planned("x", "F33", (1,))], "unsupported dtype 'F33'"),
        ([Planned("x", "F4", (3,))], "ends within a byte"),
    ],
)
def test_a_plan_that_makes_no_file_is_refused_before_any_work(
    planned: list[Planned], says: str, tmp_path: Path
) -> None:
    with pytest.raises(CodecError, match=says):
        write_shard(tmp_path / "x", planned, lambda _: [b"x"])
    assert list(tmp_path.iterdir()) == []


def test_shards_and_their_index_are_read_as_they_were_written(tmp_path: Path) -> None:
    arrays = {f"t{i}": matrix(4, 4, i) for i in range(4)}
    layout = {"model-1-of-2.safetensors": ["t2", "t0"], "model-2-of-2.safetensors": ["t1", "t3"]}
    for shard, names in layout.items():
        write_arrays(tmp_path / shard, {name: arrays[name] for name in names})
    planned = {shard: [Planned(name, "F32", (4, 4)) for name in names] for shard, names in layout.items()}
    index = tmp_path / "model.safetensors.index.json"
    result = write_index(index, planned)
    assert result.sha256 == hashlib.sha256(index.read_bytes()).hexdigest()
    assert json.loads(index.read_text())["metadata"] == {"total_size": 4 * 64}
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.problems == ()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read_matrix(checkpoint.tensor(name)), array)
    with pytest.raises(CodecError, match="a tensor is in two shards"):
        write_index(index, planned | {"third": planned["model-1-of-2.safetensors"]})
