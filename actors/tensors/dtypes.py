"""The number types of safetensors: how wide they are, and which of them become float32 and come from it."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from actors.errors import Unfit

BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
"""Every type that the format names: such a tensor can be copied whatever it means."""

NUMPY: Mapping[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype("?"), "U8": np.dtype("u1"), "I8": np.dtype("i1"), "U16": np.dtype("<u2"), "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"), "I32": np.dtype("<i4"), "U64": np.dtype("<u8"), "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8"),
}  # fmt: skip
"""Those that numpy has; bf16 is turned by hand below."""

READABLE = frozenset(NUMPY) | {"BF16"}
"""Those whose values can be read as float32 (integers above 2^24 and float64 are rounded to it)."""

_NAMES = {dtype: name for name, dtype in NUMPY.items()}


def name_of(array: NDArray[np.generic]) -> str:
    """safetensors' name of a numpy array's type."""
    try:
        return _NAMES[array.dtype.newbyteorder("<")]
    except (KeyError, TypeError):
        raise Unfit(f"safetensors has no type for numpy's {array.dtype}; it has {', '.join(NUMPY)}") from None


def to_float32(raw: bytearray, dtype: str) -> NDArray[np.float32]:
    """(k,) float32 of k stored values; float32 itself is not copied. What is too large for float32 becomes inf."""
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return np.frombuffer(raw, NUMPY[dtype]).astype(np.float32, copy=False)


def from_float32(values: NDArray[np.float32], dtype: str) -> bytes:
    """The stored bytes of finite values, rounded to the nearest, ties to even. Raises Unfit where one is too
    large for the type: an inf in a checkpoint is found long after."""
    if dtype == "F32":
        return values.astype("<f4", copy=False).tobytes()
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        halves = ((bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16).astype("<u2")
        _refuse_infinite((halves & 0x7F80) == 0x7F80, values, dtype)
        return halves.tobytes()
    if dtype in ("F16", "F64"):
        with np.errstate(over="ignore"):
            stored = values.astype(NUMPY[dtype])
        _refuse_infinite(~np.isfinite(stored), values, dtype)
        return stored.tobytes()
    raise Unfit(f"float32 can't be written as {dtype}; F16, BF16, F32 and F64 can")


def _refuse_infinite(infinite: NDArray[np.bool_], values: NDArray[np.float32], dtype: str) -> None:
    if infinite.any():
        raise Unfit(f"{values[infinite].ravel()[0]:.6g} is beyond what {dtype} holds")
