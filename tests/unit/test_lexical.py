"""The lexical embedder: features against a plain re-count, bit-identical vectors, and that it finds things."""

import hashlib
import io
import zlib
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.errors import CorruptState
from daemon.embedding import lexical

TEXTS = [
    "Read a CSV file into a table.",
    "Write the table as a Parquet file, compressed.",
    "Open a socket and listen for HTTP requests.",
    "class ThreadPoolExecutor: run calls in a pool of threads",
    "Größe der Datei in Bytes: naïve Zählung",
    "日本語のテキストを検索する",
    "",
    "!!!",
]


def fitted(texts: list[str]) -> lexical.LexicalModel:
    fit = lexical.LexicalFit()
    fit.add(len(texts), *lexical.document_frequency(texts))
    return fit.model()


@pytest.fixture(scope="module")
def model() -> lexical.LexicalModel:
    return fitted(TEXTS)


def mix(x: int) -> int:
    """splitmix64's finaliser on a Python integer."""
    mask = (1 << 64) - 1
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
    return x ^ x >> 31


def counted(words: list[str]) -> Counter[tuple[int, int]]:
    """(kind, 32-bit hash) → count, one feature after the other."""
    found: Counter[tuple[int, int]] = Counter()
    crcs = [zlib.crc32(w.encode()) for w in words]
    for crc in crcs:
        found[0, mix(crc) >> 32] += 1
    for a, b in pairwise(crcs):
        found[1, mix((a * 0x9E3779B97F4A7C15 + b) & (1 << 64) - 1) >> 32] += 1
    data = f" {' '.join(words)} ".encode()
    for i in range(len(data) - 3):
        found[2, mix(int.from_bytes(data[i : i + 4], "little")) >> 32] += 1
    return found


WORDS = st.lists(st.sampled_from(["read", "csv", "a", "table", "größe", "日本", "x1"]), min_size=1, max_size=12)


@given(st.lists(WORDS, min_size=1, max_size=5))
def test_features_are_words_pairs_and_four_grams_counted_per_text(texts):
    keys, counts = lexical.features([" ".join(words) for words in texts])
    found = {(int(k >> 32), int(k) & 0xFFFFFFFF): int(c) for k, c in zip(keys, counts, strict=True)}
    expected = {
        (text * lexical.KINDS + kind, value): n
        for text, words in enumerate(texts)
        for (kind, value), n in counted(words).items()
    }
    assert found == expected
    assert np.all(keys[1:] > keys[:-1])


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("readCSVFile", "read CSV file"),
        ("read_csv_file", "Read csv FILE"),
        ("HTTPServer.serve_forever()", "http server serve forever"),
        ("ﬁle", "file"),  # a ligature
        ("café", "cafe\u0301"),  # composed and decomposed
    ],
)
def test_spellings_of_the_same_words_are_the_same_text(model, text, same):
    assert np.array_equal(model.embed([text]), model.embed([same]))


@settings(deadline=None)
@given(st.lists(st.text(), max_size=6))
def test_a_vector_is_unit_finite_and_independent_of_its_batch(model, texts):
    vectors = model.embed(texts)
    assert vectors.shape == (len(texts), lexical.DIM)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    for text, vector in zip(texts, vectors, strict=True):
        assert np.array_equal(model.embed([text])[0], vector)


def test_vectors_are_the_same_bits_on_every_machine(model):
    """Fails when anything about features, weights or projection changes: then FORMAT must too."""
    found = hashlib.sha256(model.embed(TEXTS).tobytes()).hexdigest()
    assert found == "02be737aa46445a0d9a5ec045694a1eb53a722520aac1392448a0a95f1f8828b"
    assert model.identity == "lexical-1-0752e4d9e60435e4"


def test_a_rare_word_decides_over_a_frequent_one():
    texts = [f"the file number {i}" for i in range(200)] + ["the walrus"]
    model = fitted(texts)
    scores = model.embed(["the walrus file"])[0] @ model.embed(texts).T
    assert int(np.argmax(scores)) == 200


def test_fitting_in_batches_is_fitting_at_once():
    fit = lexical.LexicalFit()
    for i in range(0, len(TEXTS), 3):
        batch = TEXTS[i : i + 3]
        fit.add(len(batch), *lexical.document_frequency(batch))
    assert fit.model().identity == fitted(TEXTS).identity
    assert fit.documents == len(TEXTS)


def test_a_model_fitted_on_nothing_still_embeds():
    vectors = lexical.LexicalFit().model().embed(["alpha beta", "beta alpha", "gamma"])
    assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2]


def test_a_model_comes_back_from_its_bytes(model):
    again = lexical.load(model.dump())
    assert again.identity == model.identity
    assert again.documents == len(TEXTS)
    assert np.array_equal(again.embed(TEXTS), model.embed(TEXTS))


def repacked(model: lexical.LexicalModel, **changes: object) -> bytes:
    with np.load(io.BytesIO(model.dump())) as file:
        arrays = {**file, **changes}
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": lexical.FORMAT + 1}, "newer one"),
        ({"documents": 7_000}, "checksum"),
        ({"idf": np.ones(3, np.uint16)}, "checksum"),
    ],
)
def test_a_newer_or_altered_model_is_refused(model, changes, words):
    with pytest.raises(CorruptState, match=words):
        lexical.load(repacked(model, **changes))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 torn", b"no archive at all"])
def test_what_is_no_model_is_refused(data):
    with pytest.raises(CorruptState, match="can't be read"):
        lexical.load(data)


def test_a_torn_model_is_refused(model):
    data = model.dump()
    with pytest.raises(CorruptState, match="can't be read"):
        lexical.load(data[: len(data) // 2])
