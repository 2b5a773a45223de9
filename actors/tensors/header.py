"""The header of a safetensors file: checked entry by entry, and made.

The format (https://github.com/huggingface/safetensors#format): 8 bytes little-endian N; N bytes of JSON that begin
with `{` and may end in spaces, {name: {dtype, shape, data_offsets: [begin, end]}}, `__metadata__` a map of text to
text; then the data, which offsets count from. No name twice, no overlap, no hole; C order, little-endian; empty and
0-rank tensors are fine.

A file whose tensors can't be told at all is a CheckpointError. What is wrong with one tensor is said of that one, so
that the others stay usable.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import msgspec

from actors.errors import Unfit
from actors.tensors.dtypes import BITS

LENGTH_BYTES = 8
MOST_BYTES = 100_000_000
"""Of a header; the reference reader's limit."""
MOST_AXES = 64  # numpy's
METADATA = "__metadata__"


class CheckpointError(Unfit):
    """A tensor, or a file, can't be used. That tensor, or the file's tensors, get a manifest row that says so; the
    rest of the checkpoint is done."""

    def __init__(self, file: str, tensor: str | None, problem: str) -> None:
        super().__init__(f"{file}: {tensor}: {problem}" if tensor is not None else f"{file}: {problem}")
        self.file = file
        self.tensor = tensor
        self.problem = problem

    def __reduce__(self) -> tuple[Any, ...]:
        """It comes out of worker processes, and what an exception is made again of by default is its words alone."""
        return type(self), (self.file, self.tensor, self.problem)


class Entry(msgspec.Struct, frozen=True):
    """One tensor's place in a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int  # bytes, from the start of the data
    end: int


class Header(msgspec.Struct, frozen=True):
    entries: tuple[Entry, ...]  # the sound ones, in order of their data
    problems: Mapping[str, str]  # the others: name -> what is wrong
    file_problem: str | None  # what harms no tensor: holes, bytes that nobody owns
    metadata: Mapping[str, str]


class _Object(dict[str, Any]):
    """A JSON object that remembers which of its keys came twice."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.twice = {name for name, times in Counter(name for name, _ in pairs).items() if times > 1}


def header_bytes(start: bytes, file_bytes: int, file: str) -> int:
    """N, from the first 8 bytes of a file."""
    if len(start) < LENGTH_BYTES:
        raise CheckpointError(file, None, f"{file_bytes} bytes are no safetensors file; its header's length takes 8")
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if length > MOST_BYTES:
        raise CheckpointError(file, None, f"malformed: a header of {length} bytes; at most {MOST_BYTES} are read")
    if length > file_bytes - LENGTH_BYTES:
        raise CheckpointError(file, None, f"truncated: a header of {length} bytes in a file of {file_bytes}")
    return length


def parse_header(raw: bytes, data_bytes: int, file: str) -> Header:
    """raw: the N bytes of the header; data_bytes: how many the file has after it."""
    if raw[:1] != b"{":
        raise CheckpointError(file, None, f"malformed header: begins with {raw[:1]!r}, not with a brace")
    try:
        listed = json.loads(raw.decode("utf-8"), object_pairs_hook=_Object)
        "".join(listed).encode("utf-8")  # a lone surrogate, \\ud800, is no text
    except (ValueError, RecursionError) as error:
        raise CheckpointError(file, None, f"malformed header: {error}") from None
    metadata = listed.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(file, None, f"malformed header: {METADATA} is no map of text to text")
    problems = {}
    entries = []
    for name, described in listed.items():
        if name in listed.twice:
            problems[name] = "listed twice in the header"
            continue
        entry = _entry(name, described, data_bytes)
        if isinstance(entry, Entry):
            entries.append(entry)
        else:
            problems[name] = entry
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    problems |= _overlaps(entries)
    sound = tuple(entry for entry in entries if entry.name not in problems)
    unowned = None if problems else _unowned(sound, data_bytes)
    return Header(sound, problems, unowned, dict(metadata))


def _entry(name: str, described: object, data_bytes: int) -> Entry | str:
    """The entry, or what is wrong with it."""
    if not isinstance(described, _Object):
        return f"described by {type(described).__name__}, not by dtype, shape and data_offsets"
    if described.twice:
        return f"{', '.join(sorted(described.twice))} twice in the header"
    dtype, shape, offsets = (described.get(field) for field in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in BITS:
        return f"unsupported dtype {dtype!r:.40}; safetensors has {', '.join(BITS)}"
    if not isinstance(shape, list) or len(shape) > MOST_AXES or not all(_is_count(length) for length in shape):
        return f"shape {shape!r:.80} is no list of at most {MOST_AXES} lengths"
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        return f"data_offsets {offsets!r:.80} are no [begin, end]"
    begin, end = offsets
    bits = prod(shape) * BITS[dtype]
    if bits % 8 or end - begin != bits // 8:
        return f"{dtype} of shape {shape!r:.80} takes {bits} bits, its data_offsets {offsets!r:.80} hold others"
    if end > data_bytes:
        return f"truncated: its data ends at byte {end} of the {data_bytes} that are there"
    return Entry(name, dtype, tuple(shape), begin, end)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _overlaps(entries: Sequence[Entry]) -> dict[str, str]:
    """Every tensor that shares bytes with another, given them by begin: it is enough to compare each with the one
    before it that reaches furthest."""
    problems: dict[str, str] = {}
    furthest: Entry | None = None
    for entry in entries:
        if entry.begin == entry.end:
            continue
        if furthest is not None and entry.begin < furthest.end:
            problems.setdefault(furthest.name, f"overlaps {entry.name}, which begins at byte {entry.begin}")
            problems.setdefault(entry.name, f"overlaps {furthest.name}, which ends at byte {furthest.end}")
        if furthest is None or entry.end > furthest.end:
            furthest = entry
    return problems


def _unowned(entries: Sequence[Entry], data_bytes: int) -> str | None:
    """Where bytes belong to no tensor, which the format forbids."""
    reach = 0
    for entry in entries:
        if entry.begin > reach:
            return f"bytes {reach} to {entry.begin} of the data belong to no tensor"
        reach = max(reach, entry.end)
    return f"bytes {reach} to {data_bytes} of the data belong to no tensor" if reach < data_bytes else None


class Planned(msgspec.Struct, frozen=True):
    """A tensor to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        if self.dtype not in BITS:
            raise Unfit(f"{self.name}: unsupported dtype {self.dtype!r}; safetensors has {', '.join(BITS)}")
        bits = prod(self.shape) * BITS[self.dtype]
        if bits % 8:
            raise Unfit(f"{self.name}: {self.dtype} of shape {self.shape} ends within a byte")
        return bits // 8


def lay_out(tensors: Sequence[Planned], metadata: Mapping[str, str]) -> tuple[tuple[Planned, ...], bytes]:
    """The tensors in the order of their data, and the file's beginning up to it. Widest types first, then by name,
    the header padded to 8 bytes: so every value is aligned, and the same tensors make the same bytes."""
    ordered = tuple(sorted(tensors, key=lambda tensor: (-BITS.get(tensor.dtype, 0), tensor.name)))
    described: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    begin = 0
    for tensor in ordered:
        if tensor.name in described or tensor.name == METADATA:
            raise Unfit(f"two tensors of one file are named {tensor.name!r}")
        offsets = [begin, begin + tensor.bytes]
        described[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        begin += tensor.bytes
    raw = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    return ordered, len(raw).to_bytes(LENGTH_BYTES, "little") + raw
