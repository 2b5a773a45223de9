"""Row ids: the content hash of a row that brings none, and the 64-bit keys that ids are
compared by.

A content id is blake2b-128 over the row's non-null cells in name order, each with its name and
length, after the cast to the table's types. So column order, missing columns and the file
format don't matter: the same row in two files has the same id, and is stored once.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import cast

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from actors.ingest.core import is_vector

_HEX = 32  # characters of a content id


def content_ids(columns: Mapping[str, pa.Array], rows: int, key: bytes = b"") -> pa.Array:
    """Ids (n,) text of 32 hex digits, from the columns' cells. Every vector is set and of one length.
    With a `key` nobody without it can tell a row's content from its id by trying."""
    if not rows:
        return pa.array([], pa.string())
    digests = b"".join(
        blake2b(row, digest_size=_HEX // 2, key=key).digest() for row in _canonical(columns, rows).to_pylist()
    )
    offsets = np.arange(0, (rows + 1) * _HEX, _HEX, dtype=np.int32)
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(digests.hex().encode()))


def keys_of(ids: pa.Array) -> NDArray[np.uint64]:
    """64-bit keys (n,) of ids without null: the number itself, or blake2b-64 of the text. Two
    of n texts share a key with probability n²/2^65: 3e-6 at ten million."""
    if pa.types.is_integer(ids.type):
        numbers = ids.cast(pa.int64()).to_numpy()
        return cast(NDArray[np.uint64], numbers.view(np.uint64))
    digests = b"".join(blake2b(text, digest_size=8).digest() for text in ids.cast(pa.binary()).to_pylist())
    return np.frombuffer(digests, dtype=np.uint64)


def _canonical(columns: Mapping[str, pa.Array], rows: int) -> pa.Array:
    """Each row as bytes that only an equal row has, binary (n,)."""
    pieces = []
    for name in sorted(columns):
        values = _bytes_of(columns[name])
        if values.null_count == rows:
            continue
        lengths = pc.binary_length(values).cast(pa.string()).cast(pa.binary())
        label = pa.scalar(f"{len(name.encode())}:{name}=".encode(), pa.binary())
        pieces.append(
            pc.binary_join_element_wise(label, lengths, pa.scalar(b":"), values, b"", null_handling="emit_null")
        )
    if not pieces:
        return pa.array([b""] * rows, pa.binary())
    # "skip" would leave out rows that have nothing but nulls.
    return pc.binary_join_element_wise(*pieces, b"", null_handling="replace", null_replacement="")


def _bytes_of(values: pa.Array) -> pa.Array:
    """Each value as bytes, null where it is null."""
    type_ = values.type
    if pa.types.is_string(type_) or pa.types.is_binary(type_):
        return values.cast(pa.binary())
    if is_vector(type_) and not values.null_count:
        lengths = pc.list_value_length(values)
        width = lengths[0].as_py() * 4
        if width and pc.min(lengths).as_py() == pc.max(lengths).as_py():
            flat = np.ascontiguousarray(values.flatten().to_numpy(zero_copy_only=False), dtype="<f4")
            offsets = np.arange(0, (len(values) + 1) * width, width, dtype=np.int32)
            return pa.BinaryArray.from_buffers(
                pa.binary(), len(values), [None, pa.py_buffer(offsets), pa.py_buffer(flat)]
            )
    if pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_boolean(type_):
        return values.cast(pa.string()).cast(pa.binary())
    if pa.types.is_date(type_) or pa.types.is_timestamp(type_) or pa.types.is_decimal(type_):
        return _json_texts(values)
    return pa.array(
        [None if value is None else msgspec.json.encode(value, order="deterministic") for value in values.to_pylist()],
        pa.binary(),
    )


def _json_texts(values: pa.Array) -> pa.Array:
    """Dates, moments (microseconds) and decimals as msgspec writes them in JSON."""
    texts = values.cast(pa.string())
    if pa.types.is_timestamp(values.type):
        texts = pc.replace_substring(texts, " ", "T", max_replacements=1)
        texts = pc.replace_substring(texts, ".000000", "")
    return pc.binary_join_element_wise('"', texts, '"', "").cast(pa.binary())
