"""Every embedder gives unit vectors in order, the same for the same text; servers' failures become
Transient or a ValueError with names."""

from collections.abc import AsyncIterator, Sequence

import msgspec
import numpy as np
import pytest
from aiohttp import web

from actors.errors import CorruptState, Transient
from actors.ports import Embedder
from daemon.compute import WorkerCompute
from daemon.embedding import factory as factory_module
from daemon.embedding.config import EmbeddingConfig
from daemon.embedding.factory import EmbedderFactory
from daemon.models.config import ModelsConfig
from schemas.events.index import EmbedderSpec
from tests.ollama_server import DIM, Counted, ollama
from tests.openai_server import OpenAIPlay, openai

TEXTS = ["read a csv file", "write a parquet table", "open a socket", "parse command line arguments"]
SERVERS = ["ollama", "openai"]
MODEL = "all-minilm"
KEY = "s3cret"


@pytest.fixture
def kind() -> str:
    """Of the tests that don't run for several."""
    return "lexical"


@pytest.fixture
async def openai_server() -> AsyncIterator[OpenAIPlay]:
    async with openai(MODEL) as running:
        yield running


@pytest.fixture
async def server(kind: str, openai_server: OpenAIPlay) -> AsyncIterator[Counted]:
    """The one that an embedder of `kind` asks."""
    if kind != "ollama":
        yield openai_server
        return
    async with ollama() as running:
        yield running


@pytest.fixture
async def compute() -> AsyncIterator[WorkerCompute]:
    worker = WorkerCompute("embed")
    yield worker
    await worker.aclose()


class Fitted:
    """A factory over the test server, and embedders made by it."""

    def __init__(self, server: Counted, compute: WorkerCompute) -> None:
        self.server = server
        self.compute = compute
        self.factories: list[EmbedderFactory] = []

    def factory(self, **config: object) -> EmbedderFactory:
        given = {"openai_url": self.server.url, "batch": 4, "attempts": 2}
        models = ModelsConfig(ollama_url=self.server.url)
        made = EmbedderFactory(msgspec.convert({**given, **config}, EmbeddingConfig), models, self.compute)
        self.factories.append(made)
        return made

    async def make(self, kind: str, **config: object) -> Embedder:
        embedder, _ = await self.factory(**config).fit(spec(kind), batches([TEXTS]))
        return embedder

    async def aclose(self) -> None:
        for factory in self.factories:
            await factory.aclose()


@pytest.fixture
async def fitted(server: Counted, compute: WorkerCompute) -> AsyncIterator[Fitted]:
    made = Fitted(server, compute)
    yield made
    await made.aclose()


def spec(kind: str, **fields: object) -> EmbedderSpec:
    return msgspec.convert({"kind": kind, "model": "" if kind == "lexical" else MODEL, **fields}, EmbedderSpec)


async def batches(texts: Sequence[Sequence[str]]) -> AsyncIterator[Sequence[str]]:
    for batch in texts:
        yield batch


@pytest.mark.parametrize("kind", ["lexical", *SERVERS])
class TestEveryEmbedder:
    async def test_vectors_are_unit_float32_one_per_text(self, fitted, kind):
        embedder = await fitted.make(kind)
        vectors = await embedder.embed(TEXTS)
        assert vectors.shape == (len(TEXTS), embedder.dim)
        assert vectors.dtype == np.float32
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)

    async def test_the_order_of_many_texts_is_kept(self, fitted, kind):
        embedder = await fitted.make(kind)
        texts = [f"{text} number {i}" for i in range(300) for text in TEXTS]
        vectors = await embedder.embed(texts)
        for i in (0, 1, 7, 600, len(texts) - 1):
            assert np.allclose((await embedder.embed([texts[i]]))[0], vectors[i], atol=1e-6)

    async def test_the_nearest_text_is_the_one_that_shares_words(self, fitted, kind):
        embedder = await fitted.make(kind)
        scores = (await embedder.embed(["parquet table"]))[0] @ (await embedder.embed(TEXTS)).T
        assert int(np.argmax(scores)) == 1

    async def test_ones_revision_is_its_own(self, fitted, kind):
        embedder = await fitted.make(kind)
        assert bool(await embedder.revision()) == (kind == "ollama"), "no other server tells it"
        assert await embedder.revision() == await embedder.revision()

    async def test_no_texts_are_no_vectors(self, fitted, kind):
        embedder = await fitted.make(kind)
        assert (await embedder.embed([])).shape == (0, embedder.dim)

    async def test_a_loaded_embedder_is_the_fitted_one(self, fitted, kind, tmp_path):
        factory = fitted.factory()
        embedder, data = await factory.fit(spec(kind), batches([TEXTS]))
        path = tmp_path / "embedder.npz"
        path.write_bytes(data or b"")
        again = await factory.load(spec(kind, dim=embedder.dim), path if data else None)
        assert again.identity == embedder.identity
        assert np.array_equal(await again.embed(TEXTS), await embedder.embed(TEXTS))


@pytest.mark.parametrize("kind", ["ollama"])
async def test_a_model_that_is_gone_has_no_revision(fitted, server, kind):
    embedder = await fitted.make(kind)
    server.change(models={})
    with pytest.raises(ValueError, match="ollama pull all-minilm"):
        await embedder.revision()


class TestLexical:
    async def test_large_batches_run_in_the_worker_with_the_same_result(self, fitted, monkeypatch):
        embedder = await fitted.make("lexical")
        texts = [f"{text} number {i}" for i in range(200) for text in TEXTS]
        assert fitted.compute.pid is None
        in_worker = await embedder.embed(texts)
        assert fitted.compute.pid is not None
        monkeypatch.setattr(factory_module, "INLINE_CHARS", 1_000_000)
        assert np.array_equal(await embedder.embed(texts), in_worker)

    async def test_the_worker_outlives_a_batch(self, fitted):
        embedder = await fitted.make("lexical")
        texts = TEXTS * 200
        await embedder.embed(texts)
        pid = fitted.compute.pid
        await embedder.embed(texts)
        assert fitted.compute.pid == pid

    async def test_fitting_reads_no_more_texts_than_it_needs(self, fitted, monkeypatch):
        monkeypatch.setattr(factory_module, "FIT_TEXTS", 5)
        read = []

        async def endless() -> AsyncIterator[Sequence[str]]:
            while True:
                read.append(1)
                yield TEXTS[:3]

        _, data = await fitted.factory().fit(spec("lexical"), endless())
        assert len(read) == 2
        assert factory_module.lexical.load(data).documents == 5

    async def test_another_dimension_is_refused(self, fitted):
        with pytest.raises(ValueError, match="384 dimensions, not 100"):
            await fitted.factory().fit(spec("lexical", dim=100), batches([]))

    async def test_a_lost_model_is_corrupt_state(self, fitted):
        with pytest.raises(CorruptState, match="create it again"):
            await fitted.factory().load(spec("lexical"), None)

    async def test_an_index_over_vectors_has_none(self, fitted):
        with pytest.raises(ValueError, match="no embedder"):
            await fitted.factory().load(spec("none"), None)


@pytest.mark.parametrize("kind", SERVERS)
class TestServers:
    async def test_texts_travel_in_batches_with_bounded_concurrency(self, fitted, server, kind):
        embedder = await fitted.make(kind, concurrency=2)
        server.requests.clear()
        await embedder.embed([f"text {i}" for i in range(22)])
        assert sorted(map(len, server.requests)) == [2, 4, 4, 4, 4, 4]
        assert server.most_in_flight == 2

    async def test_the_dimension_is_found_at_the_first_call(self, fitted, kind):
        assert (await fitted.make(kind)).dim == DIM

    async def test_loading_with_a_known_dimension_asks_nobody(self, fitted, server, kind):
        await fitted.factory().load(spec(kind, dim=DIM), None)
        assert server.requests == []

    @pytest.mark.parametrize("status", [429, 500, 503])
    async def test_a_busy_server_is_asked_again(self, fitted, server, kind, status):
        embedder = await fitted.make(kind)
        server.failures = [web.json_response({"error": "busy"}, status=status)]
        assert (await embedder.embed(TEXTS)).shape == (len(TEXTS), DIM)

    async def test_a_server_that_stays_broken_is_transient_with_its_words(self, fitted, server, kind):
        embedder = await fitted.make(kind)
        server.failures = [web.json_response({"error": "no memory"}, status=500) for _ in range(9)]
        with pytest.raises(Transient, match=f"{kind} model '{MODEL}' at {server.url}: 500 no memory"):
            await embedder.embed(["x"])
        assert len(server.failures) == 7  # attempts = 2

    async def test_a_model_that_a_router_has_not_loaded_is_transient(self, fitted, server, kind):
        embedder = await fitted.make(kind)
        words = {"error": {"code": 400, "message": "model is not loaded", "type": "invalid_request_error"}}
        server.failures = [web.json_response(words, status=400) for _ in range(9)]
        with pytest.raises(Transient, match="400 model is not loaded"):
            await embedder.embed(TEXTS)
        assert len(server.failures) == 8, "it is no use to ask again at once"

    async def test_a_server_that_is_away_is_transient(self, fitted, kind):
        factory = fitted.factory(attempts=1)
        embedder = await factory.load(spec(kind, dim=DIM, url="http://127.0.0.1:9"), None)
        with pytest.raises(Transient, match=r"127\.0\.0\.1:9"):
            await embedder.embed(["x"])

    async def test_an_unknown_model_is_refused_in_the_servers_words(self, fitted, kind):
        factory = fitted.factory()
        with pytest.raises(ValueError, match=r"'nope' at http.*404"):
            await factory.fit(spec(kind, model="nope"), batches([]))

    async def test_no_model_is_refused(self, fitted, kind):
        with pytest.raises(ValueError, match="needs the name of a model"):
            await fitted.factory().fit(spec(kind, model=""), batches([]))

    async def test_a_text_that_is_too_long_is_named_and_never_cut(self, fitted, kind):
        embedder = await fitted.make(kind)
        texts = [*TEXTS, *TEXTS, "x" * 1001, *TEXTS]
        with pytest.raises(ValueError, match=r"context length \(text 8, 1001 characters\)"):
            await embedder.embed(texts)

    async def test_a_text_whose_vector_is_nan_is_named(self, fitted, server, kind):
        embedder = await fitted.make(kind)
        with pytest.raises(ValueError, match=r"NaN \(text 2, 3 characters\)"):
            await embedder.embed(["a", "b", "NaN", "c"])
        assert server.requests[-1] == ["NaN"]

    @pytest.mark.parametrize(
        ("alter", "words"),
        [
            (lambda vectors: vectors[:-1], "3 vectors came back for 4 texts"),
            (lambda vectors: [v[:-1] for v in vectors], "have 31 dimensions, not 32"),
            (lambda vectors: [vectors[0][:-1], *vectors[1:]], "can't be read"),
            (lambda vectors: [[0.0] * DIM, *vectors[1:]], "all zeros"),
            (lambda vectors: [[1e400] * DIM, *vectors[1:]], "can't be read|isn't finite"),
            (lambda vectors: [["x"] * DIM, *vectors[1:]], "can't be read"),
        ],
    )
    async def test_an_unusable_answer_is_refused(self, fitted, server, kind, alter, words):
        embedder = await fitted.make(kind)
        server.alter = alter
        with pytest.raises(ValueError, match=words):
            await embedder.embed(TEXTS)


async def test_an_api_key_is_read_from_its_file(openai_server, compute, tmp_path):
    fitted = Fitted(openai_server, compute)
    openai_server.key = KEY
    key_file = tmp_path / "key"
    key_file.write_text(KEY + "\n")
    assert (await fitted.make("openai", openai_key_file=str(key_file))).dim == DIM
    with pytest.raises(ValueError, match="401 Invalid API Key"):
        await fitted.make("openai")
    with pytest.raises(ValueError, match="can't be read"):
        await fitted.make("openai", openai_key_file=str(tmp_path / "none"))
    await fitted.aclose()
