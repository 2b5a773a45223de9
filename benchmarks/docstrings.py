"""Texts that every machine has: its Python documentation, as the built-in lexical embedder sees it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from daemon.demo.corpus import harvest
from daemon.embedding import lexical
from daemon.embedding.lexical import LexicalFit, LexicalModel

BATCH = 512


def fitted(texts: Sequence[str]) -> LexicalModel:
    fit = LexicalFit()
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        fit.add(len(batch), *lexical.document_frequency(batch))
    return fit.model()


def embedded(model: LexicalModel, texts: Sequence[str]) -> NDArray[np.float32]:
    """(n, 384)"""
    return np.vstack([model.embed(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)])


def docstrings(rows: int) -> NDArray[np.float32]:
    """(n, 384), n at most `rows`: there are as many as are installed."""
    texts = [row.text for row in harvest(rows).rows]
    return embedded(fitted(texts), texts)
