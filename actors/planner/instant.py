"""The instant loop of one index: what happens to every query, synchronously, in some tens of microseconds.

`before` embeds the plan, looks for the nearest patterns and chooses; `after` remembers what came of it; `told` takes a
label. No clock and no chance: the same calls give the same choices.
"""

from collections.abc import Sequence
from operator import mul
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.planner import core_lora
from actors.planner.config import PlannerConfig
from actors.planner.core_bandit import Bandit
from actors.planner.core_cycle import TAU, Learned, readout
from actors.planner.core_embedding import OPERATORS, PlanEmbedding, decade_of
from actors.planner.core_gain import MOST as MOST_PAIRS
from actors.planner.core_gain import Pair
from actors.planner.core_labels import FULL, RUNGS, Labels, between
from actors.planner.core_lora import Lora
from actors.planner.core_predictor import nearest, smoothed
from actors.planner.core_ring import UNKNOWN, Ring, quality_of
from actors.planner.core_terrain import Terrain

F32 = NDArray[np.float32]

SURE = 0.8
ALIKE = 0.7
"""Of the nearest patterns, the first that is surer than the one and as like as the other supplies the effort."""
LEAST, MOST = float(RUNGS[0]), float(RUNGS[-1])
EXACT = frozenset({"exact", "exact_all"})

Kind = Literal["PatternApplied", "DefaultWithAdaptation", "Default"]
"""Default: there are no labels yet to choose an effort by, or it has a filter."""


class Choice(NamedTuple):
    """What was decided for one query."""

    kind: Kind
    effort: float  # log2
    default_effort: float  # log2, without the planner
    strategy: str
    default_strategy: str
    decade: int  # of the filter's selectivity
    similarity: float  # to the pattern that was applied, or else the nearest; 0 without one
    confidence: float  # of that one
    pattern: int  # -1: none applied
    predicted: float  # log2 of the effort for full recall, before calibration
    plan: F32  # (h,)
    query: F32  # (d,)


class Instant:
    def __init__(self, config: PlannerConfig, dim: int, target: float) -> None:
        self.config = config
        self.target = target
        self.embedding = PlanEmbedding(dim, config.hidden_dim, config.seed)
        self.ring = Ring(config.max_trajectories, config.hidden_dim)
        self.bandit = Bandit({})
        self.labels = Labels.empty(config.hidden_dim)
        self.pairs = np.empty((0, 4))  # (n, 4), see Pair
        self.micro = core_lora.micro(config.hidden_dim, config.micro_lora_rank, np.random.default_rng(config.seed + 2))
        self.queries = 0
        self.hits = 0  # by a pattern
        self.latency_us = 0.0  # sum
        self.default_effort = float(RUNGS[4])  # log2, that queries came with last
        self.terrain = Terrain.unknown(dim)
        self._readout = readout(config.hidden_dim, config.seed)
        self.adopt(Learned.untrained(config))

    def adopt(self, learned: Learned) -> None:
        """What a background cycle made. The adapter that learns at once starts again from there."""
        self.learned = learned
        bank = learned.bank
        self._efforts, self._confidences = bank.effort.tolist(), bank.confidence.tolist()
        self._labels = bank.labels.tolist()
        self._w = learned.weights.w.tolist()
        self.micro = core_lora.micro(
            self.config.hidden_dim, self.config.micro_lora_rank, np.random.default_rng(self.config.seed + 2)
        )
        self._stack()

    def adapt(self, micro: Lora) -> None:
        """Go on with an adapter that was kept."""
        self.micro = micro
        self._stack()

    def before(
        self,
        query: F32,  # (d,)
        operators: Sequence[str],
        k: int,
        selectivity: float,
        default_effort: float,  # log2
        default_strategy: str,
        strategies: Sequence[str] = (),
    ) -> Choice:
        plan = self.embedding.embed(query, operators, k, selectivity)
        decade = decade_of(selectivity)
        strategy = default_strategy
        if len(strategies) > 1:
            strategy = self.bandit.choose(decade, strategies, EXACT, default_strategy, self.target)
        self.default_effort = default_effort
        calibration, m = self.learned.calibration, len(self._efforts)
        if selectivity < 1 or calibration is None or m == 0:  # a filter's effort follows from it: the graph is widened
            return Choice(
                "Default", default_effort, default_effort, strategy, default_strategy, decade, 0.0, 0.0, -1,
                default_effort, plan, query,
            )  # fmt: skip
        product = self._matrix.dot(plan)  # (m + r + r',): similarities, then both adapters' down x
        places = nearest(product[:m])
        similar = [product.item(place) for place in places]
        kind: Kind = "DefaultWithAdaptation"
        pattern, likeness, confidence = -1, similar[0], self._confidences[places[0]]
        for place, alike in zip(places, similar, strict=True):
            if alike < ALIKE:
                break
            if self._confidences[place] > SURE:
                kind, pattern, likeness, confidence = "PatternApplied", place, alike, self._confidences[place]
                break
        if pattern >= 0:
            predicted = self._efforts[pattern]
        else:
            efforts, labels = [self._efforts[p] for p in places], [self._labels[p] for p in places]
            f = (*smoothed(similar, efforts, labels), *self.terrain.features(query))
            predicted = self.learned.weights.b + sum(map(mul, self._w, f)) + float(product[m:].dot(self._read))
        effort = calibration.shift + calibration.slope * predicted
        effort = min(max(effort, LEAST), MOST)
        return Choice(
            kind, effort, default_effort, strategy, default_strategy, decade, likeness, confidence, pattern, predicted,
            plan, query,
        )  # fmt: skip

    def after(
        self,
        choice: Choice,
        us: Sequence[tuple[str, float]],  # operators' times
        effort: float,  # log2, that it took; 0: exact
        latency_us: float,
        megabytes: float,
        cache_hits: float,
    ) -> int:
        """The trajectory's number, by which a later sample of its recall is noted."""
        times = np.zeros(len(OPERATORS), np.float32)
        for name, took in us:
            place = PLACES.get(name)
            if place is not None:
                times[place] += took
        self.queries += 1
        self.hits += choice.pattern >= 0
        self.latency_us += latency_us
        quality = quality_of(latency_us, megabytes, cache_hits, UNKNOWN, self.target)
        return self.ring.add(choice.plan, times, effort, latency_us, megabytes, cache_hits, UNKNOWN, quality)

    def played(self, choice: Choice, strategy: str, us: float) -> None:
        """A strategy answered."""
        self.bandit.timed(choice.decade, strategy, us)

    def told(self, choice: Choice, recall: F32, us: F32, own_us: float) -> None:
        """A label: recall and time (e,) of the query at every rung. `own_us`: what choosing took."""
        self.labels = self.labels.with_one(choice.plan, recall, us, self.terrain.features(choice.query))
        if choice.kind == "Default":  # nothing was chosen: nothing to compare, nothing to learn at once
            return
        efforts = np.array([choice.default_effort, choice.effort])
        recalls, times = (between(np.stack([values, values]), efforts) for values in (recall, us))
        self.compared(Pair(times[0], times[1] + own_us, recalls[0], recalls[1]))
        full = recall > FULL
        wanted = float(RUNGS[int(full.argmax()) if full.any() else -1])
        slope = float(core_lora.quantile_slope(np.array([choice.predicted]), np.array([wanted]), TAU)[0])
        gradients = self.micro.gradients(choice.plan, np.float32(slope) * self._readout)
        self.micro = self.micro.stepped(gradients, self.config.micro_lora_lr)
        self._stack()

    def compared(self, pair: Pair) -> None:
        self.pairs = np.concatenate([self.pairs, np.array(pair)[None]])[-MOST_PAIRS:]

    def _stack(self) -> None:
        """One product for patterns and both adapters."""
        base, micro, v = self.learned.adapter, self.micro, self._readout
        self._matrix = np.concatenate([self.learned.bank.centroids, base.down, micro.down])
        self._read = np.concatenate([base.up @ v * base.scale, micro.up @ v * micro.scale]).astype(np.float32)


PLACES = {name: place for place, name in enumerate(OPERATORS)}
