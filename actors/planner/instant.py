"""The instant loop of one index: what happens to every query, synchronously, in some tens of microseconds.

`before` embeds the plan, looks for the nearest patterns and chooses; `after` remembers what came of it; `told` takes a
label. No clock and no chance: the same calls give the same choices.
"""

from collections.abc import Sequence
from operator import mul
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.planner import core_lora
from actors.planner.config import PlannerConfig
from actors.planner.core_bandit import Bandit
from actors.planner.core_cycle import TAU, Learned, readout
from actors.planner.core_embedding import OPERATORS, PlanEmbedding, decade_of
from actors.planner.core_gain import MOST as MOST_PAIRS
from actors.planner.core_gain import Pair
from actors.planner.core_labels import FULL, RUNGS, Label, Labels
from actors.planner.core_lora import Lora
from actors.planner.core_predictor import applied, nearest, smoothed
from actors.planner.core_ring import UNKNOWN, Ring, quality_of
from actors.planner.core_terrain import Terrain
from schemas.planner import Decided

F32 = NDArray[np.float32]

LEAST, MOST = float(RUNGS[0]), float(RUNGS[-1])
NO_FILTER = -1
"""Decade of a query without one."""
EXACT = frozenset({"exact", "exact_all"})


class Choice(NamedTuple):
    """What was decided for one query."""

    kind: Decided  # Default: there are no labels yet to choose an effort by, or it has a filter
    effort: float  # log2
    default_effort: float  # log2, without the planner
    strategy: str
    default_strategy: str
    decade: int  # of the filter's selectivity, or NO_FILTER
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
        self.labelled = 0  # queries that were
        self._labels = Labels.empty(config.hidden_dim)
        self._newest: list[Label] = []
        self.pairs = np.empty((0, 4))  # (n, 4), see Pair
        self.micro = core_lora.micro(config.hidden_dim, config.micro_lora_rank, np.random.default_rng(config.seed + 2))
        self.queries = 0
        self.hits = 0  # by a pattern
        self.latency_us = 0.0  # sum
        self.terrain = Terrain.unknown(dim)
        self._readout = readout(config.hidden_dim, config.seed)
        self.adopt(Learned.untrained(config))

    def adopt(self, learned: Learned) -> None:
        """What a background cycle made. The adapter that learns at once starts again from there."""
        self.learned = learned
        bank = learned.bank
        self._efforts, self._confidences = bank.effort.tolist(), bank.confidence.tolist()
        self._counts = bank.labels.tolist()
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
        decade = decade_of(selectivity) if selectivity < 1 else NO_FILTER
        strategy = default_strategy
        if len(strategies) > 1:
            strategy = self.bandit.choose(decade, strategies, EXACT, default_strategy, self.target)
        calibration, m = self.learned.calibration, len(self._efforts)
        if selectivity < 1 or calibration is None or m == 0:  # a filter's effort follows from it: the graph is widened
            return Choice(
                "Default", default_effort, default_effort, strategy, default_strategy, decade, 0.0, 0.0, -1,
                default_effort, plan, query,
            )  # fmt: skip
        product = self._matrix.dot(plan)  # (m + r + r',): similarities, then both adapters' down x
        places = nearest(product[:m])
        similar = [product.item(place) for place in places]
        pattern = applied(places, similar, self._confidences)
        if pattern >= 0:
            kind: Decided = "PatternApplied"
            predicted = effort = self._efforts[pattern]
            nearest_one = pattern
        else:
            kind, nearest_one = "DefaultWithAdaptation", places[0]
            efforts, labels = [self._efforts[p] for p in places], [self._counts[p] for p in places]
            f = (*smoothed(similar, efforts, labels), *self.terrain.features(query))
            predicted = self.learned.weights.b + sum(map(mul, self._w, f)) + float(product[m:].dot(self._read))
            effort = calibration.shift + calibration.slope * predicted
        return Choice(
            kind, min(max(effort, LEAST), MOST), default_effort, strategy, default_strategy, decade,
            similar[places.index(nearest_one)], self._confidences[nearest_one], pattern, predicted, plan, query,
        )  # fmt: skip

    def after(
        self,
        choice: Choice,
        us: Sequence[tuple[str, float]],  # operators and their times, microseconds
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

    @property
    def labels(self) -> Labels:
        if self._newest:
            self._labels, self._newest = self._labels.with_all(Labels.of(self._newest)), []
        return self._labels

    @labels.setter
    def labels(self, labels: Labels) -> None:
        self._labels, self._newest = labels, []

    def told(self, choice: Choice, recall: F32, us: F32) -> None:
        """A label: recall and time (e,) of the query at every rung."""
        self.labelled += 1
        static = self.terrain.features(choice.query)
        self._newest.append(Label(choice.plan, recall, us, choice.default_effort, static))
        if choice.kind != "DefaultWithAdaptation":  # the adapter had no part in it
            return
        full = recall > FULL
        wanted = float(RUNGS[int(full.argmax()) if full.any() else -1])
        slope = float(core_lora.quantile_slope(np.array([choice.predicted]), np.array([wanted]), TAU)[0])
        gradients = self.micro.gradients(choice.plan, np.float32(slope) * self._readout)
        self.micro = self.micro.stepped(gradients, self.config.micro_lora_lr)
        self._stack()

    def compared(self, pair: Pair) -> None:
        """A query was run again with and without what was chosen."""
        self.pairs = np.concatenate([self.pairs, np.array(pair)[None]])[-MOST_PAIRS:]

    def _stack(self) -> None:
        """One product for patterns and both adapters."""
        base, micro, v = self.learned.adapter, self.micro, self._readout
        self._matrix = np.concatenate([self.learned.bank.centroids, base.down, micro.down])
        self._read = np.concatenate([base.up @ v * base.scale, micro.up @ v * micro.scale]).astype(np.float32)


PLACES = {name: place for place, name in enumerate(OPERATORS)}
