"""A checkpoint of one or many safetensors files: where its tensors lie.

`open_checkpoint` reads headers alone and sorts tensors into those that can be read (by actors.tensors.stored)
and problems that name file and tensor.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from actors.tensors.header import LENGTH_BYTES, CheckpointError, Header, header_bytes, parse_header
from actors.tensors.stored import StoredTensor

INDEX_SUFFIX = ".safetensors.index.json"


class Problem(msgspec.Struct, frozen=True):
    """What can't be used, and why. tensor None: said of the file, and harms no tensor."""

    file: str
    tensor: str | None
    message: str


class Checkpoint(msgspec.Struct, frozen=True):
    tensors: Mapping[str, StoredTensor]  # by shard, then in the order of their data
    problems: tuple[Problem, ...]
    metadata: Mapping[str, str]  # of all shards together

    def tensor(self, name: str) -> StoredTensor:
        """Raises CheckpointError with the reason where it can't be used."""
        if name in self.tensors:
            return self.tensors[name]
        for problem in self.problems:
            if problem.tensor == name:
                raise CheckpointError(problem.file, name, problem.message)
        raise CheckpointError("checkpoint", name, f"no such tensor among {len(self.tensors)}")


def open_checkpoint(path: Path) -> Checkpoint:
    """path: a safetensors file, an index, or a directory with either. Raises CheckpointError where not even the
    names of its tensors can be told."""
    target = _locate(path)
    if not target.name.endswith(INDEX_SUFFIX):
        header, start = _read_header(target)
        found = {entry.name: entry for entry in _stored(header, start, target)}
        return Checkpoint(found, tuple(_problems(header, target)), header.metadata)
    return _open_sharded(target)


def _locate(path: Path) -> Path:
    if not path.is_dir():
        return path
    for preferred in ("model" + INDEX_SUFFIX, "model.safetensors"):
        if (path / preferred).exists():
            return path / preferred
    for pattern in ("*" + INDEX_SUFFIX, "*.safetensors"):
        found = sorted(path.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(file.name for file in found[:4])
            raise CheckpointError(str(path), None, f"{len(found)} files, {names} …, and no index; name one")
    raise CheckpointError(str(path), None, "no *.safetensors file in it")


def _read_header(file: Path) -> tuple[Header, int]:
    """The header and where the data starts."""
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            length = header_bytes(opened.read(LENGTH_BYTES), size, str(file))
            raw = opened.read(length)
    except FileNotFoundError:
        raise CheckpointError(str(file), None, "missing shard: there is no such file") from None
    except OSError as error:
        raise CheckpointError(str(file), None, f"can't be read: {error.strerror}") from None
    start = LENGTH_BYTES + length
    return parse_header(raw, size - start, str(file)), start


def _stored(header: Header, start: int, file: Path) -> Iterator[StoredTensor]:
    for entry in header.entries:
        yield StoredTensor(entry.name, file, entry.dtype, entry.shape, start + entry.begin, entry.end - entry.begin)


def _problems(header: Header, file: Path) -> Iterator[Problem]:
    if header.file_problem is not None:
        yield Problem(str(file), None, header.file_problem)
    for name, message in header.problems.items():
        yield Problem(str(file), name, message)


def _open_sharded(index: Path) -> Checkpoint:
    """A tensor is taken from the shard that the index names; one that the index doesn't know from where it is."""
    shards = _read_index(index)
    owner = {name: shard for shard, names in shards.items() for name in names}
    tensors: dict[str, StoredTensor] = {}
    problems: list[Problem] = []
    metadata: dict[str, str] = {}
    for shard, names in sorted(shards.items()):
        file = index.parent / shard
        if shard in ("", "..") or "\0" in shard or Path(shard).name != shard:
            problems += [
                Problem(str(index), name, f"its shard {shard!r} isn't in the index's folder") for name in names
            ]
            continue
        try:
            header, start = _read_header(file)
        except CheckpointError as error:
            problems += [Problem(str(file), name, error.problem) for name in names]
            continue
        metadata |= header.metadata
        problems += _problems(header, file)
        for tensor in _stored(header, start, file):
            if owner.get(tensor.name, shard) != shard:
                problems.append(Problem(str(file), None, f"{tensor.name} is here too; taken from {owner[tensor.name]}"))
            elif tensor.name in tensors:
                problems.append(Problem(str(file), None, f"{tensor.name} is here too, and the index doesn't tell"))
            else:
                tensors[tensor.name] = tensor
        absent = names - {entry.name for entry in header.entries} - set(header.problems)
        problems += [Problem(str(file), name, "the index has it here, the shard doesn't") for name in sorted(absent)]
    return Checkpoint(tensors, tuple(problems), metadata)


def _read_index(index: Path) -> dict[str, set[str]]:
    """Shard -> names of its tensors."""
    try:
        decoded = msgspec.json.decode(index.read_bytes(), type=_Index)
    except OSError as error:
        raise CheckpointError(str(index), None, f"can't be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(str(index), None, f"malformed index: {error}") from None
    shards: dict[str, set[str]] = {}
    for name, shard in decoded.weight_map.items():
        shards.setdefault(shard, set()).add(name)
    return shards


class _Index(msgspec.Struct):
    weight_map: dict[str, str]
