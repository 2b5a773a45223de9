"""What a llama.cpp server says about its models, read into values: `GET /models` of both modes and
`GET /props` of single mode. Pure; who asks the server is llamacpp.py.

A router lists every model it could run, each with a status, and starts a process of its own on a
port of its own for each that runs; `status.args` are that process's arguments. A single-mode server
lists its one model without a status.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import PurePath

import msgspec

from schemas.names import Bytes, ModelName

RUNNING = ("loading", "loaded", "sleeping")
"""Statuses with a process. A sleeping one (--sleep-idle-seconds) has given its memory back."""

_SHARD = re.compile(r"-\d{5}-of-(\d{5})$")
_UNFIT = re.compile(r"[^A-Za-z0-9._:/@+-]")


class Status(msgspec.Struct):
    value: str
    args: list[str] = []
    failed: bool = False
    exit_code: int = 0


class Meta(msgspec.Struct):
    size: int | None = None
    n_ctx: int | None = None


class Entry(msgspec.Struct):
    id: str
    aliases: list[str] = []
    status: Status | None = None
    meta: Meta | None = None


class Listing(msgspec.Struct):
    """`GET /models`."""

    data: list[Entry]


class Props(msgspec.Struct):
    """`GET /props` of single mode."""

    model_path: str = ""
    is_sleeping: bool = False


class Model(msgspec.Struct, frozen=True, kw_only=True):
    id: str  # as requests name it
    name: ModelName  # as we do
    aliases: tuple[str, ...] = ()
    router: bool
    status: str
    failed: bool = False  # its process ended badly
    exit_code: int = 0
    size: Bytes | None = None  # of its tensors
    context_length: int | None = None
    port: int = 0  # of its process; another start is another port
    file: str = ""  # on the server's machine
    adapters: tuple[str, ...] = ()  # LoRA files that its process gets

    @property
    def running(self) -> bool:
        return self.status in RUNNING


def read_models(listing: Listing, props: Props | None) -> list[Model]:
    """Every model of the server. `props` are single mode's."""
    return [
        _routed(entry, entry.status) if entry.status is not None else _single(entry, props or Props())
        for entry in listing.data
    ]


def is_single(listing: Listing) -> bool:
    return any(entry.status is None for entry in listing.data)


def find_model(models: Sequence[Model], wanted: str) -> Model | None:
    """By its id before its other names, and by its file last."""
    ways: list[Callable[[Model], bool]] = [
        lambda m: wanted == m.id,
        lambda m: wanted == m.name or wanted in m.aliases,
        lambda m: plain(wanted) == m.name,
        lambda m: bool(m.file) and wanted in (m.file, PurePath(m.file).name, plain(m.file)),
    ]
    return next((model for way in ways for model in models if way(model)), None)


def plain(model: str) -> ModelName:
    """A GGUF file's name without folder, ending and number of shards, as a router names the files of
    its --models-dir; any other name as it is. What a ModelName can't hold becomes `_`."""
    name = model
    while name.lower().endswith(".gguf"):
        name = _SHARD.sub("", PurePath(name).name[: -len(".gguf")])
    return _UNFIT.sub("_", name).lstrip("._:/@+-") or "model"


def shards(file: str) -> list[str]:
    """The files of a model, given its first: `x-00001-of-00003.gguf` has three."""
    path = PurePath(file)
    found = _SHARD.search(path.stem)
    if found is None:
        return [file]
    count, base = int(found[1]), _SHARD.sub("", path.stem)
    return [str(path.with_name(f"{base}-{number:05}-of-{count:05}{path.suffix}")) for number in range(1, count + 1)]


def adapter_names(path: str) -> tuple[str, str, str]:
    """By which a profile may name a LoRA file."""
    file = PurePath(path)
    return file.stem, file.name, path


def _routed(entry: Entry, status: Status) -> Model:
    file = _argument(status.args, "--model")
    meta = entry.meta or Meta()
    return Model(
        id=entry.id,
        name=plain(entry.id),
        aliases=tuple(entry.aliases),
        router=True,
        status=status.value,
        failed=status.failed,
        exit_code=status.exit_code,
        size=meta.size,
        context_length=meta.n_ctx,
        port=int(_argument(status.args, "--port") or 0),
        file=file,
        adapters=_adapters(status.args),
    )


def _single(entry: Entry, props: Props) -> Model:
    meta = entry.meta or Meta()
    return Model(
        id=entry.id,
        name=plain(entry.id),
        aliases=tuple(entry.aliases),
        router=False,
        status="sleeping" if props.is_sleeping else "loaded",
        size=meta.size,
        context_length=meta.n_ctx,
        file=props.model_path,
    )


def _argument(args: Sequence[str], option: str) -> str:
    return args[args.index(option) + 1] if option in args[:-1] else ""


def _adapters(args: Sequence[str]) -> tuple[str, ...]:
    plainly = _argument(args, "--lora").split(",")
    scaled = [part.rpartition(":")[0] for part in _argument(args, "--lora-scaled").split(",")]
    return tuple(path for path in (*plainly, *scaled) if path)
