"""Which base is at hand, by its content. A revision is what somebody says of a base; its content is what it is: the
tensors, however they are spread over files, and config.json without what says nothing of the model.

Hashing is the worker's, a chunk of a tensor at a time; a hash is remembered for as long as the files' paths, sizes and
times stay.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread
import msgspec

from actors.gate.adapters import read_small
from actors.gate.exporting import MANIFEST
from actors.gate.keeping import NoGate
from actors.gate.paths import Paths
from actors.gate.phase import Phase
from actors.gate.work import Work
from actors.tensors.checkpoint import Checkpoint, open_checkpoint
from actors.tensors.header import CheckpointError
from actors.tensors.identity import content_sha256, stored_sha256
from schemas.gate import GateFile
from schemas.names import AdapterName, ProfileName, Sha256

CONFIG = "config.json"
OF_THE_SAVING = ("_name_or_path", "transformers_version")
"""Fields of config.json that tell how it was saved, not what the model is."""
ABOVE = 2
"""An adapter of an export lies at most so many folders below the export's manifest."""

State = tuple[tuple[str, int, int], ...]  # path, bytes, time of change in ns


class BaseContents:
    def __init__(self, work: Work, roots: Sequence[str]) -> None:
        self._work = work
        self._paths = Paths(roots)
        self._known: dict[State, Sha256] = {}

    async def at_hand(
        self, job: str, about: ProfileName, given: Path | None, named: Iterable[str]
    ) -> tuple[Path, Sha256] | None:
        """The base that was given, or that all adapters' configurations name as a folder that is there and may be
        read; None: neither. Raises NoGate for a given one that can't be read."""
        base = given or self._named(set(named))
        if base is None:
            return None
        try:
            state = await anyio.to_thread.run_sync(_state, base)
            if state not in self._known:
                (self._known[state],) = await self._work.run(job, about, content_job, base)
        except (CheckpointError, OSError) as error:
            if given is None:
                return None
            raise NoGate(f"the base can't be read: {error}", "a folder with safetensors and config.json") from None
        return base, self._known[state]

    async def recorded(self, adapters: Mapping[AdapterName, Path]) -> dict[str, Sha256 | None]:
        """The content of the base that each adapter was exported for, by its export's manifest; None: nobody says."""
        return await anyio.to_thread.run_sync(
            lambda: {f"adapter {name}": self._recorded(folder) for name, folder in adapters.items()}
        )

    def _recorded(self, folder: Path) -> Sha256 | None:
        for place in (folder, *folder.parents[:ABOVE]):
            try:
                raw = read_small(self._paths.file(str(place / MANIFEST)))
                told = msgspec.json.decode(raw, type=_Recorded)
            except (NoGate, OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            if any((place / file.key).parent == folder for file in told.files):
                return told.base_sha256
        return None

    def _named(self, named: set[str]) -> Path | None:
        try:
            (name,) = named
            return self._paths.folder(name)
        except (ValueError, NoGate):  # several, or none of this machine's that may be read
            return None


class _Recorded(msgspec.Struct):
    """What counts here of an export's manifest."""

    files: list[GateFile]
    base_sha256: Sha256 | None = None


def content_job(base: Path) -> Iterator[Phase | Sha256]:
    """Raises CheckpointError."""
    checkpoint = _whole(base)
    rows: list[tuple[str, str, tuple[int, ...], Sha256 | None]] = [(CONFIG, "", (), _config_sha256(base))]
    done, total = 0, sum(tensor.bytes for tensor in checkpoint.tensors.values())
    for tensor in checkpoint.tensors.values():
        yield Phase("hash", done, total, "bytes")
        rows.append((tensor.name, tensor.dtype, tensor.shape, stored_sha256(tensor)))
        done += tensor.bytes
    yield Phase("hash", done, total, "bytes")
    yield content_sha256(rows)


def _whole(base: Path) -> Checkpoint:
    """Raises CheckpointError where a tensor can't be read."""
    checkpoint = open_checkpoint(base)
    for problem in checkpoint.problems:
        if problem.tensor is not None:
            raise CheckpointError(problem.file, problem.tensor, problem.message)
    return checkpoint


def _config_sha256(base: Path) -> Sha256 | None:
    """Of its fields in their alphabetical order; None: there is none."""
    file = base / CONFIG
    if not file.is_file():
        return None
    raw = read_small(file)
    try:
        fields = msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return hashlib.sha256(raw).hexdigest()
    kept = {name: value for name, value in fields.items() if name not in OF_THE_SAVING}
    return hashlib.sha256(msgspec.json.encode(kept, order="deterministic")).hexdigest()


def _state(base: Path) -> State:
    """Raises CheckpointError, OSError."""
    files = {tensor.file for tensor in _whole(base).tensors.values()}
    if (base / CONFIG).is_file():
        files.add(base / CONFIG)
    stats = ((file, file.stat()) for file in sorted(files))
    return tuple((str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats)
