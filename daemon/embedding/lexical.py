"""A deterministic lexical embedder: text to a unit vector without a model server or a download.

A text's features are its words, its word pairs and the 4-grams of their UTF-8 bytes, identifiers
split at `_` and at capitals. A feature weighs sqrt(count) × IDF, the IDF learned once from the
index's own texts, and is added with hashed signs to S of the DIM components: the sparse
Johnson–Lindenstrauss transform of Kane & Nelson 2014 ("Sparser Johnson-Lindenstrauss Transforms",
block construction), so there is no projection matrix to store. Cosine then estimates the TF-IDF
cosine with a standard error of 1/sqrt(DIM).

Weights are small integers and every sum stays below 2^53, where float64 is exact, so the same text
and model give the same bits on every machine (given one Unicode version: words are found by `re`).
"""

import hashlib
import io
import re
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from actors.errors import CorruptState

FORMAT = 1
DIM = 384
S = 4  # nonzero components per feature; 4 is as good as 32 (benchmarks/embedding.py)
KINDS = 3  # words, pairs, 4-grams
BUCKETS = 1 << 18  # document frequencies are counted per kind and hashed feature
IDF_UNIT = 64  # an IDF of 1.0 as an integer
TF_UNIT = 8

_CAPITALS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WORD = re.compile(r"[^\W_]+")
_GRAM = 4  # bytes

U64 = NDArray[np.uint64]


def features(texts: Sequence[str]) -> tuple[U64, NDArray[np.int64]]:
    """Distinct features of each text and how often each occurs.

    Returns keys (f,) uint64 ascending, `(text × KINDS + kind) << 32 | hash`, and counts (f,)."""
    words: list[int] = []  # CRC-32 of every word, text after text
    lengths: list[int] = []
    strings: list[bytes] = []
    crc32 = zlib.crc32
    for text in texts:
        plain = unicodedata.normalize("NFKC", text)
        found = _WORD.findall(_CAPITALS.sub(" ", plain).lower()) or [plain]
        encoded = " ".join(found).encode("utf-8", "surrogatepass")
        strings.append(b" " + encoded + b" ")
        parts = encoded.split(b" ")
        words += map(crc32, parts)
        lengths.append(len(parts))
    texts_of = np.arange(len(texts), dtype=np.uint64)
    word = np.array(words, np.uint64)  # (w,)
    owner = np.repeat(texts_of, lengths)  # (w,)
    pair = mix(word[:-1] * np.uint64(0x9E3779B97F4A7C15) + word[1:])
    gram, gram_owner = _grams(strings, texts_of)
    inside = owner[:-1] == owner[1:]
    keys = np.concatenate([_key(owner, 0, mix(word)), _key(owner[:-1], 1, pair)[inside], _key(gram_owner, 2, gram)])
    keys.sort()
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)])
    return keys[first], np.diff(np.append(first, len(keys)))


def _grams(strings: list[bytes], texts: U64) -> tuple[U64, U64]:
    """Hash and text of every window of _GRAM bytes that lies within one string."""
    data = np.frombuffer(b"".join(strings), np.uint8).astype(np.uint64)
    text = np.repeat(texts, [len(s) for s in strings])
    n = max(len(data) - _GRAM + 1, 0)
    value = np.zeros(n, np.uint64)
    for i in range(_GRAM):
        value |= data[i : i + n] << np.uint64(8 * i)
    inside = text[:n] == text[len(data) - n :]
    return mix(value[inside]), text[:n][inside]


def mix(x: U64) -> U64:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014): every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _key(text: U64, kind: int, value: U64) -> U64:
    return ((text * np.uint64(KINDS) + np.uint64(kind)) << np.uint64(32)) | (value >> np.uint64(32))


def buckets_of(keys: U64) -> NDArray[np.int64]:
    """Where in the flat (KINDS × BUCKETS) table a feature is counted."""
    kind = (keys >> np.uint64(32)) % np.uint64(KINDS)
    return (kind * np.uint64(BUCKETS) + (keys & np.uint64(BUCKETS - 1))).astype(np.int64)


class LexicalModel:
    """Frozen IDF weights.

    idf        (KINDS × BUCKETS,) uint16, in units of 1/IDF_UNIT, at least 1
    documents  how many texts it was fitted on
    """

    dim = DIM

    def __init__(self, idf: NDArray[np.uint16], documents: int) -> None:
        self.idf = idf
        self.documents = documents
        self.checksum = hashlib.sha256(f"{FORMAT} {DIM} {S} {documents} ".encode() + idf.tobytes()).hexdigest()

    @property
    def identity(self) -> str:
        return f"lexical-{FORMAT}-{self.checksum[:16]}"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, DIM) float32, unit length."""
        keys, counts = features(texts)
        tf = np.rint(TF_UNIT * np.sqrt(counts))
        weight = tf * self.idf[buckets_of(keys)]  # (f,) integers in float64
        row = (keys >> np.uint64(32)) // np.uint64(KINDS) * np.uint64(DIM)
        # Kind and hash decide the components; 16 bits each: 15 for the place in a block, 1 for the sign.
        kind = (keys >> np.uint64(32)) % np.uint64(KINDS)
        bits = mix((kind << np.uint64(32) | keys & np.uint64(0xFFFFFFFF)) + np.uint64(0x9E3779B97F4A7C15))
        block = DIM // S
        sums = np.zeros(len(texts) * DIM)
        for i in range(S):
            part = bits >> np.uint64(16 * i) & np.uint64(0xFFFF)
            place = ((part >> np.uint64(1)) * np.uint64(block) >> np.uint64(15)) + np.uint64(i * block)
            sign = np.where(part & np.uint64(1), 1.0, -1.0)
            sums += np.bincount((row + place).astype(np.int64), sign * weight, len(sums))
        vectors = sums.reshape(len(texts), DIM)
        norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
        unit: NDArray[np.float32] = (vectors / np.maximum(norms, 1.0)[:, None]).astype(np.float32)
        return unit

    def dump(self) -> bytes:
        """The model as an npz file."""
        file = io.BytesIO()
        np.savez_compressed(
            file, format=FORMAT, dim=DIM, documents=self.documents, idf=self.idf, checksum=np.array(self.checksum)
        )
        return file.getvalue()


@lru_cache(maxsize=4)
def load(data: bytes) -> LexicalModel:
    """The model in an npz file. Raises CorruptState."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            written = int(file["format"])
            if written > FORMAT:
                raise CorruptState(
                    f"the lexical model is of format {written}, this lakehouse reads up to {FORMAT}: "
                    "run the newer one, or drop the index and create it again"
                )
            model = LexicalModel(file["idf"], int(file["documents"]))
            checksum = str(file["checksum"])
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptState(f"the lexical model can't be read ({error}): drop the index and create it again") from error
    if model.checksum != checksum or model.idf.shape != (KINDS * BUCKETS,):
        raise CorruptState("the lexical model fails its checksum: drop the index and create it again")
    return model


class LexicalFit:
    """Learns IDF weights from texts, a batch after the other, in 6 MB whatever their number."""

    def __init__(self) -> None:
        self.documents = 0
        self._frequency = np.zeros(KINDS * BUCKETS, np.int64)

    def add(self, documents: int, buckets: NDArray[np.int64], frequency: NDArray[np.int64]) -> None:
        """What `document_frequency` found in a batch."""
        self.documents += documents
        self._frequency[buckets] += frequency

    def model(self) -> LexicalModel:
        """idf = ln((2 + n) / (1/2 + df)): positive even for one text, or none."""
        idf = np.log((2.0 + self.documents) / (0.5 + np.minimum(self._frequency, self.documents)))
        return LexicalModel(np.maximum(np.rint(IDF_UNIT * idf), 1).astype(np.uint16), self.documents)


def document_frequency(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Buckets that occur in the texts, ascending, and in how many feature-document pairs each does."""
    return np.unique(buckets_of(features(texts)[0]), return_counts=True)


# --- jobs of the "embed" lane --------------------------------------------------------------------


def frequency_job(texts: Sequence[str]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    yield document_frequency(texts)


def embed_job(model: bytes, texts: Sequence[str]) -> Iterator[NDArray[np.float32]]:
    yield load(model).embed(texts)
