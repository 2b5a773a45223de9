"""What every model server does, whoever made it: the contract of actors.ports.ModelServer.

A subclass named Test… gives the fixture `setting`. The answers of a server come before its memory
is free and before it has settled, so that a test waits for what must become true.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from actors.errors import Transient, Unavailable
from actors.ports import ModelServer
from schemas.events.profile import LoadedModel

MANY = 11  # texts: more than a request of these tests carries


class Setting(ABC):
    """A model server with what a test needs to know of it, and its misfortunes."""

    server: ModelServer
    model: str  # one that generates
    embedding: str  # one that embeds
    alias: str  # another name for `model`

    @abstractmethod
    async def end(self) -> None:
        """The server is gone: nobody listens at its address."""

    @abstractmethod
    async def busy(self) -> None:
        """From now on the server is too busy to take work."""


async def until(truth: Callable[[], Awaitable[bool]], what: str, seconds: float = 10.0) -> None:
    """Fails when it doesn't become true in time."""
    deadline = time.monotonic() + seconds
    while not await truth():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        await asyncio.sleep(0.01)


async def listed(server: ModelServer, model: str) -> LoadedModel | None:
    found = [loaded for loaded in await server.loaded() if loaded.model == server.canonical(model)]
    assert len(found) <= 1
    return found[0] if found else None


async def until_gone(server: ModelServer, model: str) -> None:
    async def gone() -> bool:
        return await listed(server, model) is None

    await until(gone, f"{model} leaves the list")


class ModelServerContract:
    async def test_a_loaded_model_is_listed_by_its_canonical_name(self, setting: Setting):
        server = setting.server
        await server.load(setting.model, float("inf"))
        loaded = await listed(server, setting.model)
        assert loaded is not None
        assert (loaded.server, loaded.model) == (server.name, server.canonical(setting.model))
        assert loaded.expires_at is None

    async def test_loading_it_again_changes_nothing(self, setting: Setting):
        await setting.server.load(setting.model, float("inf"))
        await setting.server.load(setting.alias, float("inf"))
        assert await listed(setting.server, setting.model) is not None  # once: `listed` counts

    async def test_loading_it_again_renews_its_keep_alive(self, setting: Setting):
        async def remaining(keep_alive_s: float) -> float:
            await setting.server.load(setting.model, keep_alive_s)
            loaded = await listed(setting.server, setting.model)
            assert loaded is not None
            assert loaded.expires_at is not None
            return loaded.expires_at - time.time()

        assert await remaining(100) == pytest.approx(100, abs=10)
        assert await remaining(1000) == pytest.approx(1000, abs=10)
        assert await remaining(50) == pytest.approx(50, abs=10)

    async def test_an_unloaded_model_leaves_the_list(self, setting: Setting):
        await setting.server.load(setting.model, float("inf"))
        await setting.server.unload(setting.alias)
        await until_gone(setting.server, setting.model)

    async def test_unloading_what_is_not_loaded_does_nothing(self, setting: Setting):
        await setting.server.unload(setting.model)
        await setting.server.load(setting.model, float("inf"))
        await setting.server.unload(setting.model)
        await until_gone(setting.server, setting.model)
        await setting.server.unload(setting.model)
        assert await listed(setting.server, setting.model) is None

    async def test_a_model_can_be_loaded_again(self, setting: Setting):
        await setting.server.load(setting.model, float("inf"))
        await setting.server.unload(setting.model)
        await until_gone(setting.server, setting.model)
        await setting.server.load(setting.model, float("inf"))
        assert await listed(setting.server, setting.model) is not None

    async def test_an_embedding_model_is_loaded_and_unloaded_alike(self, setting: Setting):
        await setting.server.load(setting.embedding, float("inf"))
        assert await listed(setting.server, setting.embedding) is not None
        await setting.server.unload(setting.embedding)
        await until_gone(setting.server, setting.embedding)

    async def test_the_size_of_a_model_is_known_or_not_told(self, setting: Setting):
        size = await setting.server.size(setting.model)
        assert size is None or size > 0

    async def test_an_unknown_model_is_a_lookup_error_that_names_it(self, setting: Setting):
        with pytest.raises(LookupError, match="no-such-model"):
            await setting.server.load("no-such-model", float("inf"))
        with pytest.raises(LookupError, match="no-such-model"):
            await setting.server.size("no-such-model")

    async def test_vectors_have_unit_length_and_keep_the_order_of_their_texts(self, setting: Setting):
        await setting.server.load(setting.embedding, float("inf"))
        texts = [f"text number {i} of {i * 7}" for i in range(MANY)]
        vectors = await setting.server.embed(setting.embedding, texts)
        assert vectors.dtype == np.float32
        assert vectors.shape == (MANY, vectors.shape[1])
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        for i in (0, 5, MANY - 1):
            alone = await setting.server.embed(setting.embedding, [texts[i]])
            assert int(np.argmax(vectors @ alone[0])) == i

    async def test_no_texts_are_no_vectors(self, setting: Setting):
        assert len(await setting.server.embed(setting.embedding, [])) == 0

    async def test_a_model_writes_no_more_than_it_may(self, setting: Setting):
        await setting.server.load(setting.model, float("inf"))
        short = await setting.server.generate(setting.model, "once upon a time", max_tokens=2)
        long = await setting.server.generate(setting.model, "once upon a time", max_tokens=40)
        assert 0 < len(short) < len(long)

    async def test_a_server_that_is_away_is_unavailable_and_named(self, setting: Setting):
        server = setting.server
        await setting.end()
        for question in (
            server.loaded(),
            server.size(setting.model),
            server.load(setting.model, float("inf")),
            server.unload(setting.model),
            server.embed(setting.embedding, ["x"]),
            server.generate(setting.model, "x"),
        ):
            with pytest.raises(Unavailable, match=server.url):
                await question

    async def test_a_busy_server_is_transient_and_named(self, setting: Setting):
        server = setting.server
        await setting.busy()
        for work in (
            server.load(setting.model, float("inf")),
            server.embed(setting.embedding, ["x"]),
            server.generate(setting.model, "x"),
        ):
            with pytest.raises(Transient, match=server.url):
                await work

    async def test_a_canonical_name_is_its_own(self, setting: Setting):
        name = setting.server.canonical(setting.model)
        assert setting.server.canonical(setting.alias) == name
        assert setting.server.canonical(name) == name
