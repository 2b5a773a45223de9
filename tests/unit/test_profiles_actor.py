"""Profiles on a real registry and the in-memory bus: kept, protected while active, and searched
with their rights. The slot and the searcher are stand-ins that count what they are asked."""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import numpy as np
import pytest

from actors.base import Actor, Origin, handles
from actors.errors import Refused
from actors.profile.profiles import Profiles
from daemon.bus.heads import MemoryHeads
from daemon.bus.memory import MemoryBus
from daemon.clock import SystemClock
from daemon.runtime import Runtime
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.registry import DocumentRegistry
from schemas.config import HnswConfig
from schemas.documents.base import Document
from schemas.documents.index import IndexDocument
from schemas.documents.profile import ProfileDocument
from schemas.events.base import CommandRefused, Message, Refusal
from schemas.events.index import (
    EmbedderKind,
    EmbedderSpec,
    Hit,
    IndexDropped,
    IndexServed,
    Search,
    SearchResult,
    ServeIndex,
)
from schemas.events.profile import (
    CreateProfile,
    DeleteProfile,
    GetProfile,
    GetSlot,
    ListProfiles,
    LoadedModel,
    ProfileDeleted,
    ProfileSaved,
    ReplaceProfile,
    SearchProfile,
    SlotInfo,
)
from schemas.profile import Adapter, ModelProfile

NOMIC = EmbedderSpec("ollama", "nomic", "", 3)
CODER = ModelProfile(id="coder", model="qwen", embedder=NOMIC, indexes=["code", "docs"])
WRITER = ModelProfile(id="writer", model="llama3", indexes=["notes"])


class VramSlot(Actor):
    """Says what it is told to say."""

    def __init__(self) -> None:
        self.info = SlotInfo("empty", None, None, 0.0)
        self.asked = 0

    @handles
    async def on_get(self, query: GetSlot) -> Sequence[SlotInfo]:
        assert not query.look, "a look at the model servers takes too long for a search"
        self.asked += 1
        return (self.info,)


class Searcher(Actor):
    """Keeps what it was asked."""

    def __init__(self) -> None:
        self.searches: list[Search] = []

    @handles
    async def on_search(self, query: Search) -> Sequence[SearchResult | Refusal]:
        self.searches.append(query)
        if query.filter == "bad":
            return (Refusal("invalid", "the filter can't be used"),)
        return (SearchResult(query.index, 3, [[Hit("a", 0.1)]], 5.0),)


class Catalog(Actor):
    """Keeps what it was asked to serve, and serves all but index `small`."""

    def __init__(self) -> None:
        self.served: list[ServeIndex] = []

    @handles
    async def on_serve(self, command: ServeIndex) -> Sequence[IndexServed | Refusal]:
        self.served.append(command)
        if command.index == "small":
            return (Refusal("invalid", "Lance isn't installed", "pip install 'lakehouse[lance]'"),)
        return (IndexServed(command.index, HnswConfig(), 3, 4),)


class Server:
    """The names of a model server: Ollama's have a tag."""

    def __init__(self, name: Any, url: str) -> None:
        self.name, self.url = name, url
        self.default_for: Collection[EmbedderKind] = ["ollama" if name == "ollama" else "openai"]

    def canonical(self, model: str) -> str:
        return model if ":" in model or self.name != "ollama" else f"{model}:latest"

    async def loaded(self) -> list[LoadedModel]:
        raise AssertionError("profiles leave the servers alone")

    async def size(self, model: str) -> int | None:
        raise AssertionError

    async def load(self, model: str, keep_alive_s: float, adapters: Sequence[Adapter] = ()) -> None:
        raise AssertionError

    async def unload(self, model: str) -> None:
        raise AssertionError

    async def embed(self, model: str, texts: Sequence[str]) -> Any:
        return np.zeros((len(texts), 3), np.float32)

    async def generate(
        self, model: str, prompt: str, *, max_tokens: int = 128, adapters: Sequence[Adapter] | None = None
    ) -> str:
        raise AssertionError


class Loads(DocumentRegistry):
    """Counts what is read of it."""

    loads = 0

    async def load(self, kind: type[Any], name: str) -> Any:
        self.loads += 1
        return await super().load(kind, name)

    async def all(self, kind: type[Any]) -> Any:
        self.loads += 1
        return await super().all(kind)


class House:
    def __init__(self, folder: Path) -> None:
        self.registry = Loads(ObjectBuckets({"primary": "memory://"}, folder), MemoryHeads())
        self.bus = MemoryBus(clock=SystemClock())
        self.slot, self.searcher, self.catalog = VramSlot(), Searcher(), Catalog()
        servers = {
            "ollama": Server("ollama", "http://127.0.0.1:11434"),
            "llamacpp": Server("llamacpp", "http://127.0.0.1:8080"),
        }
        self.profiles = Profiles(self.registry, self.bus, self.bus.clock, servers)  # type: ignore[arg-type]

    async def index(self, name: str, embedder: EmbedderSpec = NOMIC, **more: Any) -> None:
        document = IndexDocument(
            index=name, dataset="d", column="text", metric="cosine", backend="hnsw", bucket="primary",
            target_recall=0.95, embedder=embedder, embedder_key=None, dim=3, created=1.0,
            **{"config": HnswConfig(), **more},
        )  # fmt: skip
        await self.registry.save(name, document, expected=None)

    def holds(self, profile: str | None, state: Any = "ready", **more: Any) -> None:
        self.slot.info = SlotInfo(state, profile, more.pop("target", None), 1.0, **more)

    async def refused(self, request: Any) -> Refusal:
        with pytest.raises(Refused) as caught:
            await self.bus.ask(request)
        return caught.value.refusal


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    await house.index("code")
    await house.index("docs", EmbedderSpec("lexical", dim=3))
    await house.index("notes", EmbedderSpec("lexical", dim=3))
    async with Runtime(house.bus, [house.profiles, house.slot, house.searcher, house.catalog]):
        yield house


@pytest.fixture
async def made(house: House) -> House:
    for profile in (CODER, WRITER):
        await house.bus.ask(CreateProfile(profile))
    return house


def delivered(times: int = 1) -> Origin:
    return Origin("m1", "m1", 1.0, times)


# --- kept --------------------------------------------------------------------------------------


async def test_a_profile_is_made_shown_replaced_and_deleted(house: House) -> None:
    info = await house.bus.ask(CreateProfile(CODER))
    assert (info.profile, info.active, info.created) == (CODER, False, info.changed)
    assert await house.bus.ask(GetProfile("coder")) == info
    await house.bus.ask(CreateProfile(WRITER))
    assert [each.profile for each in (await house.bus.ask(ListProfiles())).profiles] == [CODER, WRITER]
    wider = msgspec.structs.replace(CODER, model="qwen:32b", indexes=["code"])
    replaced = await house.bus.ask(ReplaceProfile(wider))
    assert (replaced.profile, replaced.created) == (wider, info.created)
    assert replaced.changed > info.changed
    assert await house.bus.ask(DeleteProfile("coder")) == ProfileDeleted("coder")
    assert [each.profile.id for each in (await house.bus.ask(ListProfiles())).profiles] == ["writer"]
    again = await house.bus.ask(CreateProfile(CODER))
    assert again.created > info.created


async def test_facts_are_told(house: House) -> None:
    heard = []
    async with aclosing(house.bus.listen("lakehouse.evt.profile.>")) as facts:  # type: ignore[type-var]
        listening = anext(facts)
        async with anyio.create_task_group() as group:

            async def hear() -> None:
                heard.append((await listening).message)
                heard.extend([(await anext(facts)).message for _ in range(2)])

            group.start_soon(hear)
            await anyio.lowlevel.checkpoint()
            await house.bus.ask(CreateProfile(CODER))
            await house.bus.ask(ReplaceProfile(CODER))
            await house.bus.ask(DeleteProfile("coder"))
    assert heard == [ProfileSaved(CODER, created=True), ProfileSaved(CODER, created=False), ProfileDeleted("coder")]


async def test_what_is_there_isn_t_made_and_what_isn_t_isn_t_replaced_or_deleted(made: House) -> None:
    said = await made.refused(CreateProfile(msgspec.structs.replace(CODER, model="other")))
    assert (said.status, said.hint) == ("conflict", "lakehouse profile set coder changes it")
    other = msgspec.structs.replace(CODER, id="other")
    for request in (ReplaceProfile(other), DeleteProfile("other"), GetProfile("other"), SearchProfile("other")):
        said = await made.refused(request)
        assert (said.status, "no profile 'other'" in said.reason) == ("not_found", True)
    assert (await made.bus.ask(GetProfile("coder"))).profile == CODER


async def test_a_command_delivered_again_says_the_same_and_changes_nothing(house: House) -> None:
    actor = house.profiles
    first = await actor.on_create(CreateProfile(CODER), delivered())
    assert await actor.on_create(CreateProfile(CODER), delivered(2)) == first
    found = await house.registry.load(ProfileDocument, "coder")
    changed = ReplaceProfile(msgspec.structs.replace(CODER, model="other"))
    first = await actor.on_replace(changed, delivered())
    assert await actor.on_replace(changed, delivered(2)) == first
    assert (await house.registry.load(ProfileDocument, "coder"))[1] == found[1] + 1
    (late,) = await actor.on_create(CreateProfile(CODER), delivered(2))
    assert isinstance(late, Refusal), "the profile is another by now"
    assert await actor.on_delete(DeleteProfile("coder"), delivered()) == (ProfileDeleted("coder"),)
    assert await actor.on_delete(DeleteProfile("coder"), delivered(2)) == (ProfileDeleted("coder"),)


async def test_a_refusal_that_nobody_waits_for_names_the_profile(made: House) -> None:
    async with aclosing(made.bus.listen("lakehouse.evt.command.refused")) as refusals:  # type: ignore[type-var]
        heard: list[Message] = []

        async def hear() -> None:
            for _ in range(2):
                heard.append((await anext(refusals)).message)

        async with anyio.create_task_group() as group:
            group.start_soon(hear)
            await anyio.lowlevel.checkpoint()
            await made.bus.publish(CreateProfile(CODER))
            with anyio.fail_after(5):
                while not heard:  # noqa: ASYNC110 - it is the world that changes
                    await anyio.sleep(0.01)
            await made.bus.publish(DeleteProfile("other"))
    assert [(each.command, each.about) for each in heard if isinstance(each, CommandRefused)] == [
        ("profile.create", "coder"),
        ("profile.delete", "other"),
    ]


# --- active ------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["loading", "ready", "unloading", "unknown"])
async def test_the_active_profile_stays_and_keeps_what_is_in_memory(made: House, state: str) -> None:
    made.holds("coder", state)
    assert [each.active for each in (await made.bus.ask(ListProfiles())).profiles] == [True, False]
    said = await made.refused(DeleteProfile("coder"))
    assert (said.status, said.hint) == ("conflict", "deactivate it first: lakehouse profile deactivate coder")
    for field, value, words in (
        ("model", "llama3", "its model can't change from qwen to llama3"),
        ("server", "llamacpp", "its server can't change from ollama to llamacpp"),
        ("embedder", None, "its embedder can't change from ollama nomic to none"),
    ):
        said = await made.refused(ReplaceProfile(msgspec.structs.replace(CODER, **{field: value})))
        assert (said.status, words in said.reason) == ("conflict", True), said
    rest = msgspec.structs.replace(CODER, indexes=["code"], keep_alive="5m", hnsw=HnswConfig(8, 50, 50))
    assert (await made.bus.ask(ReplaceProfile(rest))).active
    assert await made.bus.ask(DeleteProfile("writer")) == ProfileDeleted("writer"), "another's turn is no matter"


async def test_a_profile_that_the_slot_unloads_for_counts_as_active(made: House) -> None:
    made.holds("writer", "unloading", target="coder")
    assert (await made.refused(DeleteProfile("coder"))).status == "conflict"
    made.holds("coder", "empty")  # whose models were there last
    assert await made.bus.ask(DeleteProfile("coder")) == ProfileDeleted("coder")


@pytest.mark.parametrize("asked", [ReplaceProfile(msgspec.structs.replace(CODER, model="x")), DeleteProfile("coder")])
async def test_who_saved_meanwhile_is_not_overwritten(
    made: House, monkeypatch: pytest.MonkeyPatch, asked: ReplaceProfile | DeleteProfile
) -> None:
    theirs = ProfileDocument(profile=msgspec.structs.replace(CODER, indexes=["docs"]), created=1, changed=2)
    found = await made.registry.load(ProfileDocument, "coder")
    slot = made.profiles._slot

    async def slot_while_another_saves(origin: Origin) -> SlotInfo:
        await made.registry.save("coder", theirs, expected=found[1])
        return await slot(origin)

    monkeypatch.setattr(made.profiles, "_slot", slot_while_another_saves)
    assert (await made.refused(asked)).status == "conflict"
    assert (await made.registry.load(ProfileDocument, "coder"))[0] == theirs


# --- sense -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"indexes": ["a", "b", "a"]}, "names 'a' twice in indexes"),
        ({"server": "llamacpp", "adapters": [Adapter("x"), Adapter("x", 0.5)]}, "names 'x' twice in adapters"),
        (
            {"adapters": [Adapter("x"), Adapter("y", 1, "/y")]},
            "has adapters (x), which its server ollama doesn't take",
        ),
        ({"vector_backend": "lance", "hnsw": HnswConfig()}, "has hnsw settings, and its vector_backend is lance"),
        ({"embedder": EmbedderSpec("ollama")}, "the ollama embedder of profile 'odd' names no model"),
        ({"embedder": EmbedderSpec("openai", "m", "127.0.0.1:8")}, "must begin with http:// or https://"),
        ({"embedder": EmbedderSpec("lexical", "m")}, "runs on no model server, and embedder.model names one"),
        ({"embedder": EmbedderSpec("none", "", "http://x")}, "runs on no model server, and embedder.url names one"),
    ],
)
async def test_what_makes_no_sense_is_refused_when_made_and_when_replaced(
    made: House, more: dict[str, Any], words: str
) -> None:
    odd = ModelProfile(id="odd", model="m", **more)
    for request in (CreateProfile(odd), ReplaceProfile(odd)):
        said = await made.refused(request)
        assert (said.status, words in said.reason, bool(said.hint)) == ("invalid", True, True), said


@pytest.mark.parametrize(
    "more",
    [
        {"server": "llamacpp", "adapters": [Adapter("x"), Adapter("y")]},
        {"server": "llamacpp", "embedder": NOMIC},  # two servers, one GPU
        {"embedder": EmbedderSpec("openai", "m", "https://elsewhere/v1")},
        {"vector_backend": "lance"},
        {"vector_backend": "auto", "hnsw": HnswConfig()},
        {"vector_backend": "hnsw", "hnsw": HnswConfig()},
        {"embedder": EmbedderSpec("none"), "keep_alive": "30s", "persistent": True, "exclusive": False},
    ],
)
async def test_what_makes_sense_is_kept(house: House, more: dict[str, Any]) -> None:
    profile = ModelProfile(id="fine", model="m", **more)
    assert (await house.bus.ask(CreateProfile(profile))).profile == profile


# --- search ------------------------------------------------------------------------------------


async def test_a_search_reaches_the_searcher_as_it_was_asked(made: House) -> None:
    asked: dict[str, Any] = {"k": 3, "ef_search": 7, "filter": "x", "columns": ["c"], "explain": True}
    asked |= {"mode": "hybrid", "backend": "lance", "nprobes": 8, "refine_factor": 2, "version": 5}
    result = await made.bus.ask(SearchProfile("coder", "code", text="a", vector=[1.0, 0, 0], **asked))
    assert result == SearchResult("code", 3, [[Hit("a", 0.1)]], 5.0)
    await made.bus.ask(SearchProfile("writer", vectors=[[1.0, 0, 0]]))
    assert made.searcher.searches == [
        Search("code", text="a", vector=[1.0, 0, 0], **asked),
        Search("notes", vectors=[[1.0, 0, 0]]),
    ]
    assert {field.name for field in msgspec.structs.fields(SearchProfile)} - {"profile"} == {
        field.name for field in msgspec.structs.fields(Search)
    }, "what a search can be asked, it can be asked with a profile"
    assert (await made.refused(SearchProfile("coder", "code", vector=[1.0], filter="bad"))).status == "invalid"


async def test_a_search_reads_nothing_and_asks_the_slot_only_when_it_must(made: House) -> None:
    made.holds("coder")
    await made.bus.ask(SearchProfile("coder", "docs", text="x"))  # the index is known from here on
    await made.bus.ask(SearchProfile("coder", "code", text="x"))
    for search, asked in (
        (SearchProfile("coder", "docs", text="lexical"), 0),
        (SearchProfile("coder", "code", vector=[1.0, 0, 0]), 0),
        (SearchProfile("coder", "code", text="x"), 1),
    ):
        made.registry.loads = made.slot.asked = 0
        await made.bus.ask(search)
        assert (made.registry.loads, made.slot.asked) == (0, asked), search


async def test_a_search_goes_by_the_newest_profile(made: House) -> None:
    search = SearchProfile("writer", "notes", vector=[1.0])
    await made.bus.ask(search)
    await made.bus.ask(ReplaceProfile(msgspec.structs.replace(WRITER, indexes=["code"])))
    assert (await made.refused(search)).status == "forbidden"
    await made.bus.ask(DeleteProfile("writer"))
    assert (await made.refused(search)).status == "not_found"
    await made.bus.ask(CreateProfile(WRITER))
    await made.bus.ask(search)


async def test_a_restart_and_another_process_s_change_are_seen(made: House) -> None:
    document, revision = await made.registry.load(ProfileDocument, "writer")
    narrow = msgspec.structs.replace(WRITER, indexes=["code"])
    await made.registry.save("writer", msgspec.structs.replace(document, profile=narrow), expected=revision)
    again = Profiles(made.registry, made.bus, made.bus.clock, made.profiles._servers)
    await again.start()
    (said,) = await again.on_search(SearchProfile("writer", "notes", vector=[1.0]), delivered())
    assert isinstance(said, Refusal)
    await made.bus.ask(SearchProfile("writer", "notes", vector=[1.0]))
    await made.profiles.on_refresh()
    assert (await made.refused(SearchProfile("writer", "notes", vector=[1.0]))).status == "forbidden"
    await made.registry.delete(ProfileDocument, "coder")
    await made.profiles.on_refresh()
    assert (await made.refused(SearchProfile("coder", "code", vector=[1.0]))).status == "not_found"


async def test_a_refresh_doesn_t_bring_back_what_was_deleted_meanwhile(
    made: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = made.registry.all

    async def late(kind: type[Any]) -> Any:
        found = await everything(kind)
        await made.bus.ask(DeleteProfile("writer"))
        return found

    monkeypatch.setattr(made.registry, "all", late)
    await made.profiles.on_refresh()
    assert (await made.refused(SearchProfile("writer", "notes", vector=[1.0]))).status == "not_found"


@pytest.mark.parametrize(("profile", "index", "owner"), [("coder", "notes", "writer"), ("writer", "code", "coder")])
async def test_no_profile_reaches_another_s_index(made: House, profile: str, index: str, owner: str) -> None:
    made.holds("coder")
    for asked in ({"text": "x"}, {"vector": [1.0, 0, 0]}):
        said = await made.refused(SearchProfile(profile, index, **asked))
        assert said.status == "forbidden"
        assert f"index '{index}' is not one of profile '{profile}'" in said.reason
        assert f"it belongs to {owner}" in said.reason
        assert f"with profile {owner}" in said.hint
    assert made.searcher.searches == []
    said = await made.refused(SearchProfile(profile, "nowhere", text="x"))
    assert (said.status, said.reason) == ("not_found", "there is no index 'nowhere'")


async def test_an_index_may_be_left_out_when_there_is_one(made: House) -> None:
    assert (await made.bus.ask(SearchProfile("writer", text="x"))).index == "notes"
    said = await made.refused(SearchProfile("coder", text="x"))
    assert (said.status, said.hint) == ("invalid", "name one of code, docs")
    await made.bus.ask(ReplaceProfile(msgspec.structs.replace(WRITER, indexes=[])))
    said = await made.refused(SearchProfile("writer", text="x"))
    assert (said.status, "has no index" in said.reason) == ("invalid", True)


@pytest.mark.parametrize(
    ("profile", "state", "words"),
    [
        (None, "empty", "the slot is empty"),
        ("coder", "empty", "the slot is empty"),
        ("writer", "ready", "the slot is held by writer (ready)"),
        ("coder", "loading", "its slot is loading"),
        ("coder", "unknown", "its slot is unknown (ollama is away)"),
        ("coder", "unloading", "its slot is unloading"),
    ],
)
async def test_a_text_that_takes_the_profile_s_model_needs_the_profile_ready(
    made: House, profile: str | None, state: str, words: str
) -> None:
    made.holds(profile, state, reason="ollama is away" if state == "unknown" else "")
    said = await made.refused(SearchProfile("coder", "code", text="x"))
    assert (said.status, words in said.reason) == ("conflict", True), said
    assert "ollama/nomic:latest" in said.reason
    assert made.searcher.searches == []
    await made.bus.ask(SearchProfile("coder", "docs", text="x"))
    await made.bus.ask(SearchProfile("coder", "code", vector=[1.0, 0, 0]))
    made.holds("coder")
    await made.bus.ask(SearchProfile("coder", "code", text="x"))
    assert len(made.searcher.searches) == 3


@pytest.mark.parametrize(
    ("embedder", "index", "server", "status"),
    [
        (None, NOMIC, "ollama", "invalid"),
        (EmbedderSpec("ollama", "other"), NOMIC, "ollama", "invalid"),
        (EmbedderSpec("ollama", "nomic:latest"), NOMIC, "ollama", "conflict"),  # one model, two spellings
        (None, EmbedderSpec("ollama", "m"), "ollama", "conflict"),  # the profile's own model embeds
        (EmbedderSpec("openai", "e"), EmbedderSpec("openai", "e", "", 3), "llamacpp", "conflict"),
        (None, EmbedderSpec("openai", "e", "", 3), "ollama", "invalid"),  # llama.cpp's, beside a profile at Ollama
        (None, EmbedderSpec("openai", "e", "https://api.example.com", 3), "ollama", None),  # isn't on this GPU
        (None, EmbedderSpec("ollama", "nomic", "http://elsewhere:1"), "ollama", None),
        (None, EmbedderSpec("none"), "ollama", None),
    ],
)
async def test_which_model_a_text_takes_is_told_by_the_index(
    house: House, embedder: EmbedderSpec | None, index: EmbedderSpec, server: Any, status: str | None
) -> None:
    await house.index("mine", index)
    await house.bus.ask(
        CreateProfile(ModelProfile(id="p", model="m", server=server, embedder=embedder, indexes=["mine"]))
    )
    search = SearchProfile("p", text="x")
    if status is None:
        assert (await house.bus.ask(search)).index == "mine"
    else:
        assert (await house.refused(search)).status == status
    assert house.slot.asked == 1 + (status == "conflict")  # the one: when it was made


async def test_an_index_that_is_gone_is_refused(made: House) -> None:
    await made.bus.ask(ReplaceProfile(msgspec.structs.replace(WRITER, indexes=["notes", "gone"])))
    assert (await made.refused(SearchProfile("writer", "gone", text="x"))).status == "not_found"


@pytest.mark.parametrize("own", ["hnsw", "lance"])
async def test_a_profile_s_searches_go_through_its_backend(made: House, own: Any) -> None:
    other = "lance" if own == "hnsw" else "hnsw"
    await made.bus.ask(ReplaceProfile(msgspec.structs.replace(WRITER, vector_backend=own)))
    await made.bus.ask(SearchProfile("writer", text="x"))
    await made.bus.ask(SearchProfile("writer", text="x", backend=own))
    assert [search.backend for search in made.searcher.searches] == [own, own]
    said = await made.refused(SearchProfile("writer", text="x", backend=other))
    assert said.status == "invalid"
    assert said.reason == f"profile 'writer' searches {own}, and the search asks for {other}"
    assert said.hint == f"leave backend out, or set vector_backend of writer to {other} or auto"
    await made.bus.ask(ReplaceProfile(msgspec.structs.replace(WRITER, vector_backend="auto")))
    await made.bus.ask(SearchProfile("writer", text="x"))
    await made.bus.ask(SearchProfile("writer", text="x", backend=other))
    assert [search.backend for search in made.searcher.searches[2:]] == [None, other]


@pytest.mark.parametrize(
    ("asked", "needs"),
    [
        ({"text": "x", "mode": "text"}, False),  # words are no vector
        ({"text": "x", "mode": "hybrid", "vector": [1.0, 0, 0]}, False),
        ({"text": "x", "mode": "hybrid"}, True),
        ({"text": "x"}, True),
    ],
)
async def test_only_a_text_that_becomes_a_vector_takes_the_profile_s_model(
    made: House, asked: dict[str, Any], needs: bool
) -> None:
    search = SearchProfile("coder", "code", **asked)
    if needs:
        assert (await made.refused(search)).status == "conflict"
    else:
        assert (await made.bus.ask(search)).index == "code"
    assert made.slot.asked == 2 + needs  # the two: when the profiles were made


async def test_the_backend_that_a_profile_names_is_seen_to_when_it_is_made_and_replaced(house: House) -> None:
    held = HnswConfig(8, 50, 50)
    await house.index("shared", config=held, own=HnswConfig())  # another profile's configuration holds there
    profile = ModelProfile(id="p", model="m", vector_backend="lance", indexes=["notes", "shared", "to-come"])
    await house.bus.ask(CreateProfile(profile))
    served = [ServeIndex("notes", None, "lance"), ServeIndex("shared", held, "lance")]
    assert house.catalog.served == served, "what holds there is left as it is"
    assert (await house.refused(CreateProfile(profile))).status == "conflict"
    assert house.catalog.served == served, "nothing is built for a profile that isn't made"
    wider = msgspec.structs.replace(profile, vector_backend="hnsw", indexes=["code"])
    await house.bus.ask(ReplaceProfile(wider))
    assert house.catalog.served[2:] == [ServeIndex("code", None, "hnsw")]
    await house.bus.ask(ReplaceProfile(msgspec.structs.replace(wider, vector_backend="auto")))
    assert len(house.catalog.served) == 3


async def test_a_backend_that_an_index_cant_have_is_said_at_once(house: House) -> None:
    await house.index("small")
    profile = ModelProfile(id="p", model="m", vector_backend="lance", indexes=["notes", "small"])
    said = await house.refused(CreateProfile(profile))
    assert (said.status, said.reason) == ("invalid", "index 'small': Lance isn't installed")
    assert said.hint == "pip install 'lakehouse[lance]'"
    assert (await house.refused(GetProfile("p"))).status == "not_found"
    plain = msgspec.structs.replace(profile, vector_backend="auto")
    await house.bus.ask(CreateProfile(plain))
    assert (await house.refused(ReplaceProfile(profile))).reason == said.reason
    assert (await house.bus.ask(GetProfile("p"))).profile == plain


def test_a_profile_that_an_older_version_stored_is_read() -> None:
    stored = {
        "type": "profile", "created": 1.0, "changed": 2.0,
        "profile": {"id": "p", "model": "m", "vector_backend": "hnsw", "hnsw": {"M": 8, "ef_search": 50}},
    }  # fmt: skip
    document = msgspec.json.decode(msgspec.json.encode(stored), type=ProfileDocument)
    assert (document.profile.vector_backend, document.profile.hnsw) == ("hnsw", HnswConfig(8))


async def test_an_index_made_anew_is_looked_at_anew(made: House) -> None:
    await made.bus.ask(SearchProfile("writer", text="x"))
    found = await made.registry.load(IndexDocument, "notes")
    await made.registry.delete(IndexDocument, "notes")
    await made.profiles.on_index_dropped(IndexDropped("notes"))
    assert (await made.refused(SearchProfile("writer", text="x"))).status == "not_found"
    again: Document = msgspec.structs.replace(found[0], embedder=NOMIC)
    await made.registry.save("notes", again, expected=None)
    assert (await made.refused(SearchProfile("writer", text="x"))).status == "invalid", "it takes a model now"


async def test_many_searches_run_at_once(made: House) -> None:
    made.holds("coder")
    results: list[SearchResult] = []

    async def search(number: int) -> None:
        results.append(await made.bus.ask(SearchProfile("coder", "code", text=f"{number}")))

    async with anyio.create_task_group() as group:
        for number in range(300):
            group.start_soon(search, number)
    assert len(results) == 300


async def test_while_one_makes_way_for_another_only_the_one_that_holds_the_slot_is_active(house: House) -> None:
    for name in ("leaving", "coming"):
        await house.bus.ask(CreateProfile(ModelProfile(id=name, model="m")))
    house.holds("leaving", "unloading", target="coming")
    listed = await house.bus.ask(ListProfiles())
    assert {each.profile.id: each.active for each in listed.profiles} == {"leaving": True, "coming": False}
    for name in ("leaving", "coming"):
        assert (await house.refused(DeleteProfile(name))).status == "conflict", "it is being changed all the same"
