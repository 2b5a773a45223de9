"""Texts that every machine has: its Python documentation, as the built-in lexical embedder sees it."""

import argparse
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from daemon.demo.corpus import harvest, questions
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


def looked_for(description: str | None) -> tuple[list[str], list[int], list[str]]:
    """All texts, and of the functions that are looked for by first sentences their places among them and these
    sentences; how many, the command line says."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    rows = harvest(args.rows).rows
    asked = questions(rows, args.queries, args.seed)
    return [row.text for row in rows], [place for place, _ in asked], [text for _, text in asked]


def docstrings(rows: int) -> NDArray[np.float32]:
    """(n, 384), n at most `rows`: there are as many as are installed."""
    texts = [row.text for row in harvest(rows).rows]
    return embedded(fitted(texts), texts)
