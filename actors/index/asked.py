"""From what a query says to vectors: the check at the border of a search."""

import math
import struct
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from actors.ports import Embedder
from schemas.documents.index import IndexDocument
from schemas.events.base import Refusal
from schemas.events.index import Search
from schemas.names import Backend


class Embedding(Protocol):
    document: IndexDocument
    embedder: Embedder | None


async def query_vectors(index: Embedding, query: Search) -> NDArray[np.float32] | Refusal:
    """(q, d) float32, finite."""
    if query.mode == "hybrid" and query.vector is not None:
        return _packed(index.document, [query.vector])
    if query.text is not None:
        if index.embedder is None:
            hint = f"give a vector of {index.document.dim} numbers"
            return Refusal("invalid", f"index {index.document.index!r} has vectors and no embedder", hint)
        try:
            return await index.embedder.embed([query.text])
        except ValueError as error:
            return Refusal("unavailable", f"the embedder gave no usable vector: {error}", "look at the model server")
    given = [query.vector or []] if query.vectors is None else query.vectors
    if not given:
        return Refusal("invalid", "vectors is empty", "give at least one")
    return _packed(index.document, given)


def wrong(query: Search) -> Refusal | None:
    """What is wrong with what is asked, before any index is looked at."""
    given = (query.text is not None) + (query.vector is not None) + (query.vectors is not None)
    if query.mode == "vector" and given != 1:
        return Refusal("invalid", "a search needs exactly one of text, vector and vectors")
    if query.mode != "vector" and (query.text is None or query.vectors is not None):
        return Refusal("invalid", f"a search by {query.mode} needs text", "text: the words to look for")
    if query.mode == "text" and query.vector is not None:
        return Refusal("invalid", "a search by text takes no vector", "mode: hybrid takes both")
    if query.mode != "vector" and query.version is not None:
        return Refusal("invalid", "version goes with mode vector: texts are searched as they are today")
    return None


def foreign(query: Search, backend: Backend, graph: bool) -> Refusal | None:
    """An effort that the backend doesn't know. `graph`: an ef means something to it."""
    if backend == "hnsw" and (query.nprobes is not None or query.refine_factor is not None):
        hint = "ef_search is what a graph takes; or ask Lance: backend: lance"
        return Refusal("invalid", f"index {query.index!r} is searched by a graph, which has no nprobes", hint)
    if query.ef_search is not None and not graph:
        hint = "nprobes and refine_factor are what it takes"
        return Refusal("invalid", f"index {query.index!r} is searched by Lance without graphs: it has no ef", hint)
    return None


def _packed(document: IndexDocument, given: list[list[float]]) -> NDArray[np.float32] | Refusal:
    name, dim = document.index, document.dim
    for vector in given:
        if len(vector) != dim:
            hint = f"give a vector of {dim} numbers"
            return Refusal("invalid", f"a query has {len(vector)} dimensions, index {name!r} has {dim}", hint)
    pack = struct.Struct(f"{dim}f").pack  # half the time of np.array
    try:
        queries = np.frombuffer(b"".join([pack(*vector) for vector in given]), np.float32).reshape(-1, dim)
    except (struct.error, OverflowError):
        return Refusal("invalid", "a query holds something that is no float32 number")
    if not math.isfinite(float(np.vdot(queries, queries))):
        return Refusal("invalid", "a query's numbers are not finite, or too large")
    return queries
