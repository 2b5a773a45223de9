"""Held-out text: prompts apart by blank lines."""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.errors import Unfit
from schemas.names import Sha256

FEWEST = 8
"""Prompts that a bootstrap over prompts is worth something on."""

SHORTEST = 2
"""Tokens: one to read and one to predict."""

MOST_BYTES = 64 << 20


class TextError(Unfit):
    """The text is no basis for a measurement; says what it has and what it takes."""


def read_texts(path: Path, at_most: int) -> tuple[list[str], Sha256]:
    """The first `at_most` prompts, and the sha256 of the whole file."""
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise TextError(f"{path.name} has {size >> 20} MiB, at most {MOST_BYTES >> 20} are read: give a part of it")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"{path.name} is no UTF-8 text: byte {error.start}") from None
    texts = [part.strip() for part in re.split(r"\n[ \t\r]*\n", text) if part.strip()][:at_most]
    if len(texts) < FEWEST:
        raise TextError(
            f"{path.name} has {len(texts)} prompts, a measurement takes {FEWEST} or more: put blank lines between them"
        )
    return texts, hashlib.sha256(raw).hexdigest()


def tokenised(texts: list[str], tokenizer: Any, at_most: int) -> list[NDArray[np.int64]]:
    """(T,) token ids of each prompt that is long enough, cut after `at_most`."""
    ids = [np.asarray(tokenizer(text, truncation=True, max_length=at_most)["input_ids"], np.int64) for text in texts]
    kept = [one for one in ids if len(one) >= SHORTEST]
    if len(kept) < FEWEST:
        raise TextError(f"{len(kept)} of {len(texts)} prompts have {SHORTEST} tokens or more; {FEWEST} are needed")
    return kept
