"""An encoder's function: the embeddings of held-out texts beside the reference's, and which texts are near which."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.codec.base import CodecError
from actors.codec.certify import column, compare
from actors.torch_models import libraries, quiet
from schemas.certificate import EncoderFunction, Estimate

BATCH = 16
NEAREST = 10
FEWEST = 50
"""Texts: among fewer, the nearest ten are often the same by chance."""

Embeddings = NDArray[np.float32]  # (n, d), unit length


def embed(model: Any, tokenizer: Any, texts: Sequence[str], tokens: int, *, cls: bool) -> Embeddings:
    """Mean over a text's tokens, or its first one where the model's own pooling says so."""
    torch, _ = libraries()
    found = []
    with quiet():
        for start in range(0, len(texts), BATCH):
            batch = tokenizer(
                list(texts[start : start + BATCH]),
                padding=True,
                truncation=True,
                max_length=tokens,
                return_tensors="pt",
            )
            hidden = model(**batch).last_hidden_state.float()  # (b, T, d)
            mask = batch["attention_mask"][..., None].float()
            pooled = hidden[:, 0] if cls else (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            found.append(torch.nn.functional.normalize(pooled, dim=1).numpy())
    embeddings: Embeddings = np.concatenate(found)
    if not np.isfinite(embeddings).all():
        raise compare.NotFinite("embeddings aren't finite")
    return embeddings


def by_first_token(folder: Path) -> bool:
    """What sentence-transformers' pooling module says; without one, the mean. Raises CodecError for another pooling:
    embeddings that nobody uses would be compared."""
    config = folder / "1_Pooling" / "config.json"
    if not config.is_file():
        return False
    told = json.loads(config.read_bytes())
    modes = {name.removeprefix("pooling_mode_") for name, on in told.items() if name.startswith("pooling_mode_") and on}
    if isinstance(told.get("pooling_mode"), str):
        modes = {told["pooling_mode"]}
    if modes <= {"mean_tokens", "mean"}:
        return False
    if modes <= {"cls_token", "cls"}:
        return True
    raise CodecError(f"{config}: pooling by {', '.join(sorted(modes))} isn't measured here; by mean or cls is")


def shares(reference: Embeddings, candidate: Embeddings, rng: np.random.Generator) -> dict[str, Estimate]:
    """Mean cosine, and the share of the 10 nearest texts that stay so; by the gate's names, and `top1`."""
    n = len(reference)
    ones = np.ones(n, np.int64)
    cosines = np.einsum("nd,nd->n", reference, candidate, dtype=np.float64)
    k = min(NEAREST, n - 1)
    here, there = (column.truth(one, np.arange(n), k, "cosine") for one in (reference, candidate))
    kept = np.array([len(np.intersect1d(a, b)) for a, b in zip(here, there, strict=True)])
    return {
        "cosine": compare.estimate(np.clip(cosines, 0, 1), ones, rng, trials=False),
        "neighbours": compare.estimate(kept, k * ones, rng),
        "top1": compare.estimate((here[:, 0] == there[:, 0]).astype(np.int64), ones, rng),
    }


def function(
    reference: Embeddings, candidate: Embeddings, floor: Embeddings, rng: np.random.Generator
) -> EncoderFunction:
    found = shares(reference, candidate, rng)
    cosines = np.einsum("nd,nd->n", reference, candidate, dtype=np.float64)
    return EncoderFunction(
        texts=len(reference),
        cosine=found["cosine"],
        worst_cosine=float(cosines.min()),
        neighbours=found["neighbours"],
        top1_neighbour=found["top1"],
        noise_floor_cosine=float(np.einsum("nd,nd->n", reference, floor, dtype=np.float64).mean()),
    )
