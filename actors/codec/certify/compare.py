"""A candidate's answers beside a reference's, position by position, and how sure their agreement is.

Positions of one prompt depend on each other, so that intervals come from a bootstrap over prompts (Efron 1979). Where
nothing differs a bootstrap knows no doubt; Clopper & Pearson's bound (1934) for as many independent trials is then the
least that is left: 299 positions without a miss carry 0.99, 2,995 carry 0.999.
"""

from collections.abc import Sequence
from math import log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.codec.base import CodecError
from schemas.certificate import Divergence, Estimate

RESAMPLES = 4000
DRAWN = 1 << 22
"""Numbers of a bootstrap that are in memory at once."""

ALPHA = 0.05
TOP = 5


class StreamError(CodecError):
    """Token streams that can't be compared; there is no certificate."""


class NotFinite(CodecError):
    """A model answers with NaN or infinities: a control fails by it, and of anything else there is no certificate."""


class Prompt(NamedTuple):
    """One prompt's scores, teacher-forced: T positions, of which the last has no next token."""

    kl: NDArray[np.float64]  # (T,) KL(reference || candidate), nats
    reference: NDArray[np.int64]  # (T,) most likely token
    candidate: NDArray[np.int64]  # (T,)
    in_top: NDArray[np.bool_]  # (T,) the reference's is among the candidate's five
    reference_nll: NDArray[np.float64]  # (T - 1,) of the text's own next token, nats
    candidate_nll: NDArray[np.float64]  # (T - 1,)


def score(
    reference: NDArray[np.float32],  # (T, V) logits
    candidate: NDArray[np.float32],  # (T, V)
    tokens: NDArray[np.int64],  # (T,) the text's
) -> Prompt:
    if reference.shape != candidate.shape or len(reference) != len(tokens):
        raise StreamError(
            f"logits {reference.shape} and {candidate.shape} of {len(tokens)} tokens: these aren't of one prompt"
        )
    for name, logits in (("reference", reference), ("candidate", candidate)):
        if not np.isfinite(logits).all():
            raise NotFinite(f"the {name}'s logits aren't finite")
    p, q = _log_softmax(reference), _log_softmax(candidate)
    best = reference.argmax(axis=1)
    wanted = np.take_along_axis(candidate, best[:, None], axis=1)
    before = np.arange(candidate.shape[1]) < best[:, None]  # of equals the first counts, as argmax has it
    rank = ((candidate > wanted) | ((candidate == wanted) & before)).sum(axis=1)
    following = tokens[1:, None]
    return Prompt(
        kl=np.maximum(np.einsum("tv,tv->t", np.exp(p), p - q), 0.0),
        reference=best.astype(np.int64),
        candidate=candidate.argmax(axis=1).astype(np.int64),
        in_top=rank < TOP,
        reference_nll=-np.take_along_axis(p[:-1], following, axis=1)[:, 0],
        candidate_nll=-np.take_along_axis(q[:-1], following, axis=1)[:, 0],
    )


def divergences(
    reference: Sequence[NDArray[np.int64]], candidate: Sequence[NDArray[np.int64]], at_most: int | None = None
) -> list[Divergence]:
    """Where two sets of token streams differ, a stream a prompt; positions count on through all prompts. Raises
    StreamError for no prompts, for unlike numbers of them and for a prompt of unlike lengths."""
    if not reference:
        raise StreamError("no prompts: nothing can be said of two models that were asked nothing")
    if len(reference) != len(candidate):
        raise StreamError(f"{len(reference)} prompts of the reference, {len(candidate)} of the candidate")
    found: list[Divergence] = []
    offset = 0
    for prompt, (one, other) in enumerate(zip(reference, candidate, strict=True)):
        if len(one) != len(other):
            raise StreamError(f"prompt {prompt}: {len(one)} tokens of the reference, {len(other)} of the candidate")
        for place in np.flatnonzero(one != other).tolist():
            if at_most is not None and len(found) == at_most:
                return found
            found.append(Divergence(prompt, offset + place, int(one[place]), int(other[place])))
        offset += len(one)
    return found


def first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens until two free-running streams differ; all of the shorter when they don't."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def estimate(
    hits: NDArray[np.floating] | NDArray[np.integer],  # (n,) of each prompt or query
    totals: NDArray[np.integer],  # (n,) out of so many
    rng: np.random.Generator,
    *,
    trials: bool = True,
) -> Estimate:
    """The share of all hits in all totals; without `trials`, of values between 0 and 1 that are no hits or misses, such
    as cosines, to which a binomial's bound says nothing. Raises StreamError where there is nothing to share."""
    count = int(totals.sum())
    if len(totals) == 0 or count == 0:
        raise StreamError("a share of no positions")
    shares = _resampled(hits, totals, rng)
    low, once, high = np.quantile(shares, [ALPHA / 2, ALPHA, 1 - ALPHA / 2])
    mean = float(hits.sum()) / count
    lower = min(float(once), mean, clopper_pearson(float(hits.sum()), count) if trials else 1.0)
    return Estimate(mean, float(min(low, mean)), float(max(high, mean)), max(0.0, lower), count)


def _resampled(
    hits: NDArray[np.floating] | NDArray[np.integer], totals: NDArray[np.integer], rng: np.random.Generator
) -> NDArray[np.float64]:
    """(RESAMPLES,) shares, or fewer where a resample has no positions."""
    n = len(totals)
    step = max(1, DRAWN // n)
    shares = []
    for start in range(0, RESAMPLES, step):
        few = min(step, RESAMPLES - start)
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=few)  # (few, n): how often each prompt is drawn
        out_of = drawn @ totals
        shares.append((drawn @ hits)[out_of > 0] / out_of[out_of > 0])
    return np.concatenate(shares)


def clopper_pearson(hits: float, trials: int) -> float:
    """One-sided lower 95 % bound of a binomial share: the p for which so many hits or more have a chance of 5 %. Hits
    that are no whole number (of mean recalls) are rounded down."""
    misses = trials - int(np.floor(hits + 1e-9))
    if misses == 0:
        return float(ALPHA ** (1 / trials))
    if misses == trials:
        return 0.0
    j = np.arange(1, misses + 1)
    choose = np.concatenate([[0.0], np.cumsum(np.log((trials - j + 1) / j))])  # log C(trials, j)
    j = np.arange(misses + 1)
    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2
        terms = choose + j * np.log1p(-p) + (trials - j) * log(p)
        largest = terms.max()
        if largest + np.log(np.exp(terms - largest).sum()) > log(ALPHA):  # so few misses are likely enough
            high = p
        else:
            low = p
    return low


def enough(level: float) -> int:
    """Independent trials without a miss that it takes to claim a share: 0.99 takes 299."""
    if level <= 0:
        return 1
    return int(np.ceil(log(ALPHA) / log(level) - 1e-9)) if level < 1 else 2**62


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide
