"""The whole configuration: one frozen tree, decoded once at start from lakehouse.toml and the
environment (LAKEHOUSE_<SECTION>__<KEY>). An actor or adapter gets its own section only.

The defaults here are the documentation too: lakehouse.toml is rendered from this tree by
daemon/config_file.py. Where things lie inside the state directory is daemon/state_dir.py.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from actors.autotune.config import AgentConfig
from actors.codec.config import CodecConfig
from actors.gate.config import GateConfig
from actors.index.config import IndexConfig
from actors.ingest.config import IngestConfig, SourceConfig, WatchConfig
from actors.lineage.config import LineageConfig
from actors.planner.config import PlannerConfig
from actors.profile.config import SlotConfig
from actors.sql.config import SqlConfig
from daemon.embedding.config import EmbeddingConfig
from daemon.http.config import HttpConfig
from daemon.models.config import ModelsConfig
from schemas.names import BucketName
from schemas.secret import decode_hook

ENV_PREFIX = "LAKEHOUSE_"
DEFAULT_FILE = "lakehouse.toml"
URLS = ("file://", "s3://")
Role = Literal["control", "work", "serve"]


class ConfigError(Exception):
    """The configuration can't be used. One sentence: file, key, what is wrong, what was meant.
    The daemon doesn't start."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the sections that have no module of their own."""


class DaemonConfig(Section, frozen=True):
    state_dir: str = "./data"
    """Everything that the daemon keeps; relative to the folder of lakehouse.toml."""
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{0,63}$")] = ""
    """What this process calls itself in events and logs; the host's name when empty."""
    roles: Annotated[tuple[Role, ...], Meta(min_length=1)] = ("control", "work", "serve")
    """Which actors run here; `lakehouse run --role` overrides."""
    drain_s: Annotated[float, Meta(gt=0, le=300)] = 20.0
    """At SIGTERM, running jobs get so many seconds to finish before they are handed back."""


class NatsConfig(Section, frozen=True):
    url: str = ""
    """NATS server or cluster, comma-separated; empty starts a private nats-server."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """Port of the private server on loopback; 0 takes a free one."""
    user: str = "lakehouse"
    """User name at a server of your own."""
    password_file: str = ""
    """File with the password; empty: a generated one in the state directory, for the private server."""
    credentials_file: str = ""
    """NATS .creds file instead of user and password, for a server of your own."""
    replicas: Annotated[int, Meta(ge=1, le=5)] = 1
    """Copies of every stream in a cluster of your own: 3 survive the loss of one server."""


class BucketConfig(Section, frozen=True):
    name: BucketName
    """How datasets and indexes refer to it."""
    url: str
    """`file:///folder` or `s3://bucket/prefix`."""
    options: dict[str, str] = {}
    """Of the object store: endpoint, region, path_style; credentials by the names of environment variables
    (access_key_id_env, secret_access_key_env, session_token_env) or by credentials_file."""


class StorageConfig(Section, frozen=True):
    buckets: list[BucketConfig] = []
    """Named stores. `primary` and `rescue` always exist, below the state directory unless named here."""
    allowed_roots: list[str] = []
    """Folders below which `file://` buckets may be made at run time, besides `buckets` in the state directory."""
    profile_root: str = ""
    """`file:///folder` or `s3://bucket/prefix`: where profiles' buckets are made, and where it is kept which
    others were made at run time; empty: the state directory."""
    profile_options: dict[str, str] = {}
    """Options of the object store of profile_root, as a bucket's."""


class LogConfig(Section, frozen=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lines below this level are dropped."""
    format: Literal["auto", "console", "json"] = "auto"
    """auto: console on a terminal, JSON lines otherwise."""


class Config(Section, frozen=True):
    daemon: DaemonConfig = DaemonConfig()
    nats: NatsConfig = NatsConfig()
    http: HttpConfig = HttpConfig()
    storage: StorageConfig = StorageConfig()
    ingest: IngestConfig = IngestConfig()
    embedding: EmbeddingConfig = EmbeddingConfig()
    index: IndexConfig = IndexConfig()
    agent: AgentConfig = AgentConfig()
    planner: PlannerConfig = PlannerConfig()
    models: ModelsConfig = ModelsConfig()
    slot: SlotConfig = SlotConfig()
    codec: CodecConfig = CodecConfig()
    gate: GateConfig = GateConfig()
    lineage: LineageConfig = LineageConfig()
    sql: SqlConfig = SqlConfig()
    log: LogConfig = LogConfig()
    sources: list[SourceConfig] = []
    watch: list[WatchConfig] = []

    @property
    def state_dir(self) -> Path:
        """Absolute after `load`."""
        return Path(self.daemon.state_dir)

    def buckets(self) -> list[BucketConfig]:
        """The configured buckets, and `primary` and `rescue` where the file doesn't name them."""
        named = {bucket.name for bucket in self.storage.buckets}
        builtin = [
            BucketConfig(name=name, url=(self.state_dir / "buckets" / name).absolute().as_uri())
            for name in ("primary", "rescue")
            if name not in named
        ]
        return builtin + self.storage.buckets

    @property
    def profile_root(self) -> str:
        """URL of the place below which profiles' buckets are made."""
        return self.storage.profile_root or (self.state_dir / "buckets" / "profiles").absolute().as_uri()


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration from `path`, from $LAKEHOUSE_CONFIG, from ./lakehouse.toml, or the
    defaults, with the environment on top. A path that was named must exist. Raises ConfigError."""
    file = find_file(path, environ)
    tree = _read(file) if file else {}
    config = _decode(tree, str(file or DEFAULT_FILE))  # the file's own mistakes first
    overrides = _overrides(environ)
    if overrides:
        for section, values in overrides.items():
            tree.setdefault(section, {}).update(values)
        config = _decode(tree, "the environment")
    _check_buckets(config, str(file or DEFAULT_FILE))
    _check_sources(config, str(file or DEFAULT_FILE))
    base = file.parent if file else Path.cwd()
    state_dir = str((base / Path(config.daemon.state_dir).expanduser()).resolve())
    watch = [
        msgspec.structs.replace(one, path=str((base / Path(one.path).expanduser()).resolve())) for one in config.watch
    ]
    daemon = msgspec.structs.replace(config.daemon, state_dir=state_dir)
    return msgspec.structs.replace(config, daemon=daemon, watch=watch)


def find_file(path: Path | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The file that `load` reads, or None for the defaults. Raises ConfigError when one was
    named and isn't there."""
    named = path or (Path(environ["LAKEHOUSE_CONFIG"]) if environ.get("LAKEHOUSE_CONFIG") else None)
    if named is not None:
        if not named.is_file():
            raise ConfigError(f"{named}: there is no such file; `lakehouse init` writes one")
        return named
    return Path(DEFAULT_FILE) if Path(DEFAULT_FILE).is_file() else None


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not TOML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} can't be read: {error}") from None


def _decode(tree: dict[str, Any], origin: str) -> Config:
    try:
        return msgspec.convert(tree, Config, dec_hook=decode_hook)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{origin}: {_explain(str(error))}") from None


def _explain(message: str) -> str:
    """msgspec's words ("… unknown field `enabld` - at `$.agent`") as a sentence about a key."""
    what, _, at = message.partition(" - at `$")
    path = at.rstrip("`").lstrip(".")
    unknown = re.search(r"unknown field `(.+)`", what)
    if unknown is None:
        first, _, rest = what.partition(" ")
        if (owner := _struct_at(path)) and first in owner.__struct_fields__:  # a struct's own rule names its key
            return f"{path}.{first} {rest}"
        return f"{path or 'the file'}: {what[0].lower()}{what[1:]}"
    key, owner = unknown[1], _struct_at(path)
    known = list(owner.__struct_fields__) if owner else []
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    where = f"{path}.{key}" if path else f"[{key}]"
    hint = f'; did you mean "{near[0]}"?' if near else f"; known are {', '.join(known)}"
    return f"{where} is not a known {'key' if path else 'section'}{hint}"


def _struct_at(path: str) -> type[msgspec.Struct] | None:
    """The struct that holds the keys below a path such as `agent` or `storage.buckets[0]`."""
    found: Any = Config
    for part in filter(None, re.sub(r"\[[^]]*\]", "", path).split(".")):
        found = next((f.type for f in msgspec.structs.fields(found) if f.name == part), None)
        while found is not None and get_origin(found) is not None:
            found = get_args(found)[0]
        if not (isinstance(found, type) and issubclass(found, msgspec.Struct)):
            return None
    return found  # type: ignore[no-any-return]


def _overrides(environ: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """LAKEHOUSE_AGENT__EPSILON=0.1 as {"agent": {"epsilon": 0.1}}; lists are written as JSON."""
    found: dict[str, dict[str, Any]] = {}
    sections = {f.name: f.type for f in msgspec.structs.fields(Config) if get_origin(f.type) is None}
    names = {
        f"{ENV_PREFIX}{section}__{field.name}".upper(): (section, field)
        for section, struct in sections.items()
        for field in msgspec.structs.fields(struct)
    }
    for variable, text in environ.items():
        if not variable.startswith(ENV_PREFIX) or "__" not in variable:
            continue
        if variable not in names:
            near = difflib.get_close_matches(variable, names, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{variable} in the environment is not a known key{hint}")
        section, field = names[variable]
        try:
            value = msgspec.json.decode(text) if text[:1] in ("[", "{") else text
            field_value = msgspec.to_builtins(msgspec.convert(value, field.type, strict=False))
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise ConfigError(f"{variable} in the environment: {error}") from None
        found.setdefault(section, {})[field.name] = field_value
    return found


def _check_buckets(config: Config, origin: str) -> None:
    names = [bucket.name for bucket in config.storage.buckets]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f'{origin}: storage.buckets names "{name}" twice')
    for bucket in config.storage.buckets:
        if not bucket.url.startswith(URLS):
            raise ConfigError(
                f'{origin}: storage.buckets "{bucket.name}": url must begin with file:// or s3://, got "{bucket.url}"'
            )
    root = config.storage.profile_root
    if root and not root.startswith(URLS):
        raise ConfigError(f'{origin}: storage.profile_root must begin with file:// or s3://, got "{root}"')
    for bucket in config.storage.buckets:
        if bucket.url.rstrip("/") == root.rstrip("/"):
            raise ConfigError(
                f'{origin}: storage.profile_root "{root}" is the bucket "{bucket.name}" itself; '
                f'name a place of its own, such as "{root.rstrip("/")}/profiles"'
            )


def _check_sources(config: Config, origin: str) -> None:
    names = [source.name for source in config.sources]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f'{origin}: sources names "{name}" twice')
