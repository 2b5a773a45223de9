"""Commands about model profiles: kept and searched with here; the GPU's turns are slot.py's."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from cyclopts import App, Group, Parameter
from cyclopts.validators import Number

from daemon.cli import slot
from daemon.cli.client import Client, segment
from daemon.cli.connection import Connection
from daemon.cli.errors import WRONG_USE, CliError
from daemon.cli.output import Json, configuration, console, moment, print_facts, print_json, print_table
from daemon.cli.search import Query, show
from schemas.config import EF_CONSTRUCTION_BOUNDS, EF_SEARCH_BOUNDS, M_BOUNDS

app = App(name="profile", help="Keep model profiles, activate one on the GPU, search with one.")

FIELDS = Group("The profile", sort_key=10)

Name = Annotated[str, Parameter(help="The profile.")]


@Parameter(name="*", group=FIELDS)
@dataclass(frozen=True, kw_only=True)
class Fields:
    """What a profile is. What isn't given stays as it is, or gets its default."""

    model: str | None = None
    """What to load, as its server names it."""
    server: Literal["ollama", "llamacpp"] | None = None
    """The model server that loads it; default ollama."""
    embedder_kind: Literal["lexical", "ollama", "openai", "none"] | None = None
    """What turns a search's text into vectors; default what its indexes have."""
    embedder_model: str | None = None
    """The embedder's model at its server."""
    index: Annotated[list[str] | None, Parameter(negative="", consume_multiple=True)] = None
    """Indexes that it may search."""
    bucket: str | None = None
    """Its bucket; made at activation when there is none of that name."""
    backend: Literal["hnsw", "lance", "auto"] | None = None
    """What finds the neighbours in its searches; default auto, whatever serves the index."""
    m: Annotated[int | None, Parameter(name=["--m", "-M"], validator=Number(gte=M_BOUNDS[0], lte=M_BOUNDS[1]))] = None
    """Links per node, where nothing is promoted on its indexes."""
    ef_construction: Annotated[
        int | None, Parameter(validator=Number(gte=EF_CONSTRUCTION_BOUNDS[0], lte=EF_CONSTRUCTION_BOUNDS[1]))
    ] = None
    """Candidates while building, likewise."""
    ef_search: Annotated[int | None, Parameter(validator=Number(gte=EF_SEARCH_BOUNDS[0], lte=EF_SEARCH_BOUNDS[1]))] = (
        None
    )
    """Candidates while searching, likewise."""
    adapter: Annotated[list[str] | None, Parameter(negative="", consume_multiple=True)] = None
    """LoRA adapters: NAME, NAME=SCALE, or NAME=SCALE@FOLDER with the PEFT folder that a gate merges."""
    keep_alive: str | None = None
    """How long its model stays unused: 30s, 5m, 2h; default -1, for ever."""
    group: str | None = None
    """Profiles of one group take turns; default `default`."""
    exclusive: Annotated[bool | None, Parameter(negative="--shared")] = None
    """Alone on the GPU, or beside other profiles; default exclusive."""
    persistent: bool | None = None
    """Never evicted for another, only deactivated."""
    file: Path | None = None
    """A whole profile as JSON or TOML; the other options change what it says."""

    def over(self, base: dict[str, Any]) -> dict[str, Any]:
        """A profile's body: `base`, or the file, with what was given on top. Raises CliError."""
        body = dict(base) if self.file is None else _read(self.file)
        plain = {
            "model": self.model,
            "server": self.server,
            "bucket": self.bucket,
            "vector_backend": self.backend,
            "keep_alive": self.keep_alive,
            "group": self.group,
            "exclusive": self.exclusive,
            "persistent": self.persistent,
        }
        body |= {key: None if value == "" else value for key, value in plain.items() if value is not None}
        if self.index is not None:
            body["indexes"] = _words(self.index)
        if self.adapter is not None:
            body["adapters"] = [_adapter(text) for text in _words(self.adapter)]
        graph = {"M": self.m, "ef_construction": self.ef_construction, "ef_search": self.ef_search}
        if given := {key: value for key, value in graph.items() if value is not None}:
            body["hnsw"] = (body.get("hnsw") or {}) | given
        if self.embedder_kind is not None:
            body["embedder"] = {"kind": self.embedder_kind}
        if self.embedder_model is not None:
            if not body.get("embedder"):
                hint = "--embedder-kind ollama or openai"
                raise CliError("--embedder-model says nothing without --embedder-kind.", hint, WRONG_USE)
            body["embedder"] = body["embedder"] | {"model": self.embedder_model}
        return body


@app.command(name="list")
def list_profiles(*, json: Json = False, to: Connection = Connection()) -> None:
    """List profiles."""
    answer = Client(to).get("/vectors/profiles")
    if json:
        print_json(answer)
        return
    print_table(
        ["", "profile", "model", "indexes", "keep-alive", "on the GPU"],
        (
            (
                "●" if one["active"] else "",
                profile["id"],
                _model(profile),
                profile["indexes"],
                _keep_alive(profile),
                _manners(profile) + (f", group {profile['group']}" if profile["group"] != "default" else ""),
            )
            for one in answer["profiles"]
            for profile in [one["profile"]]
        ),
        empty="No profiles yet: lakehouse profile create NAME --model MODEL makes one.",
    )


@app.command(name="show")
def show_profile(profile: Name, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Show a profile."""
    answer = Client(to).get(f"/vectors/profiles/{segment(profile)}")
    if json:
        print_json(answer)
        return
    one = answer["profile"]
    print_facts(
        {
            "profile": one["id"] + (" (active)" if answer["active"] else ""),
            "model": _model(one),
            "codec": answer.get("codec"),
            "adapters": [f"{adapter['name']} × {adapter['scale']:g}" + _folder(adapter) for adapter in one["adapters"]],
            "embedder": _embedder(one),
            "indexes": one["indexes"],
            "backend": one["vector_backend"],
            "configuration": one["hnsw"] and f"{configuration(one['hnsw'])}, where nothing is promoted",
            "bucket": one["bucket"],
            "keep-alive": _keep_alive(one),
            "group": one["group"],
            "on the GPU": _manners(one),
            "created": moment(answer["created"]),
            "changed": moment(answer["changed"]) if answer["changed"] != answer["created"] else "",
        }
    )


@app.command
def create(profile: str, /, *, fields: Fields = Fields(), json: Json = False, to: Connection = Connection()) -> None:
    """Make a profile. It costs nothing until it is activated.

    Parameters
    ----------
    profile
        What to call it.
    """
    body = fields.over({})
    if not body.get("model"):
        raise CliError(
            "A profile needs a --model.", f"lakehouse profile create {profile} --model llama3.2:3b", WRONG_USE
        )
    answer = Client(to).post("/vectors/profiles", _named(profile, body))
    _saved(answer, "made; `lakehouse profile activate` puts it on the GPU", as_json=json)


@app.command(name="set")
def set_fields(
    profile: Name, /, *, fields: Fields = Fields(), json: Json = False, to: Connection = Connection()
) -> None:
    """Change a profile: the options that are given, or all of it with --file.

    An empty text takes an optional one away: --bucket ''. An active profile keeps its models; the
    rest holds from the next activation on."""
    client = Client(to)
    path = f"/vectors/profiles/{segment(profile)}"
    body = fields.over(client.get(path)["profile"] if fields.file is None else {})
    _saved(client.put(path, _named(profile, body)), "saved", as_json=json)


@app.command
def delete(profile: Name, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Delete a profile that isn't active. Its bucket and indexes stay."""
    answer = Client(to).delete(f"/vectors/profiles/{segment(profile)}")
    print_json(answer) if json else console.print(f"deleted {profile}", markup=False)


app.command(slot.activate)
app.command(slot.deactivate)
app.command(slot.active)


@app.command
def search(
    profile: Name,
    text: str | None = None,
    /,
    *,
    index: str | None = None,
    query: Query = Query(),
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Find the nearest rows with a profile's rights: in its indexes, by its embedding model.

    Parameters
    ----------
    text
        What to look for.
    index
        Where to look; may be left out when the profile has one.
    """
    body = query.body(text, f"lakehouse profile search {profile} 'some words'", index=index)
    show(Client(to).post(f"/vectors/profile/{segment(profile)}/search", body), as_json=json)


def _saved(answer: dict[str, Any], done: str, *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        profile = answer["profile"]
        console.print(f"{profile['id']}: {_model(profile)}, {_manners(profile)}; {done}", markup=False)


def _named(profile: str, body: dict[str, Any]) -> dict[str, Any]:
    """The body with the profile's id, which a file may name too."""
    if body.get("id", profile) != profile:
        raise CliError(f"The file describes profile {body['id']}, not {profile}.", "take the id out of it", WRONG_USE)
    return body | {"id": profile}


def _read(file: Path) -> dict[str, Any]:
    """A file's profile, plain or as `show --json` prints it. What its fields may be, the daemon says."""
    try:
        data = file.read_bytes()
        if file.suffix == ".toml":
            return tomllib.loads(data.decode())
        read = msgspec.json.decode(data, type=dict[str, Any])
        inner = read.get("profile")
        return inner if isinstance(inner, dict) else read
    except OSError as error:
        raise CliError(f"{file} can't be read: {error.strerror}.", code=WRONG_USE) from None
    except (ValueError, msgspec.DecodeError) as error:
        kind = "TOML" if file.suffix == ".toml" else "a JSON object"
        hint = "`lakehouse profile show NAME --json` prints one"
        raise CliError(f"{file} is not {kind}: {error}.", hint, WRONG_USE) from None


def _words(given: list[str]) -> list[str]:
    """`a b` and `a,b` alike; an empty one is none."""
    return [word for text in given for word in text.split(",") if word]


def _adapter(text: str) -> dict[str, Any]:
    name, _, scale = text.partition("=")
    scale, _, folder = scale.partition("@")
    try:
        found: dict[str, Any] = {"name": name, "scale": float(scale)} if scale else {"name": name}
    except ValueError:
        hint = "NAME, NAME=SCALE or NAME=SCALE@FOLDER, such as style.gguf=0.5"
        raise CliError(f"{text!r} is no adapter.", hint, WRONG_USE) from None
    return found | ({"folder": folder} if folder else {})


def _folder(adapter: dict[str, Any]) -> str:
    return f" of {adapter['folder']}" if adapter.get("folder") else ""


def _model(profile: dict[str, Any]) -> str:
    return f"{profile['server']}/{profile['model']}"


def _embedder(profile: dict[str, Any]) -> str:
    embedder = profile["embedder"]
    return "" if embedder is None else "/".join(filter(None, (embedder["kind"], embedder["model"])))


def _keep_alive(profile: dict[str, Any]) -> str:
    return "for ever" if profile["keep_alive"] == "-1" else profile["keep_alive"]


def _manners(profile: dict[str, Any]) -> str:
    """How it gets on with others."""
    return ("exclusive" if profile["exclusive"] else "shared") + (", persistent" if profile["persistent"] else "")
