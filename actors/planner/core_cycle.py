"""One background cycle: from trajectories and labels to patterns, weights, adapter and calibration.

boundary test → quality filter → k-means → patterns → upsert, consolidate, evict → efforts and weights from the labels →
BaseLoRA on what is left over, by the quantile loss, held by EWC++ → calibration to the recall that is to be held.

After a shift labels of the queries before it tell nothing of those after it: nothing is chosen until there are enough
new ones, and of the old ones some are kept to see whether their task is forgotten.

Values in, values out; the same input and seed give the same output.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.planner import core_ewc, core_lora, core_predictor
from actors.planner.config import PlannerConfig
from actors.planner.core_boundary import Shift, shift
from actors.planner.core_ewc import Memory
from actors.planner.core_kmeans import kmeans
from actors.planner.core_labels import LEAST_LABELS, RUNGS, Calibration, Labels, calibrated, enough
from actors.planner.core_lora import Lora, quantile_loss, quantile_slope
from actors.planner.core_patterns import Bank, confidence_of, consolidated, evicted, upserted
from actors.planner.core_predictor import Weights
from actors.planner.core_ring import Trajectories

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

TAU = 0.75
"""An undershoot of the effort costs three times an overshoot."""
EPOCHS = 5
BATCH = 32
REFERENCE = 1000
"""Plans that are kept of a cycle, to tell a shift of the next one's from."""
LEAST_WEIGHT = 1e-3
"""Of a pattern, however many shifts it has seen: without any, two could not be merged by weight."""
EARLIER = 200
"""Labels of earlier tasks that are kept: the newest before the last shift."""
STEP = 256  # labels whose gradients are in memory at a time


class Learned(NamedTuple):
    """All that a cycle reads and writes."""

    bank: Bank
    weights: Weights
    adapter: Lora
    memory: Memory
    calibration: Calibration | None  # None until there are labels enough
    reference: F32  # (r, h) plans of the last cycle
    earlier: Labels  # of the task before

    @classmethod
    def untrained(cls, config: PlannerConfig) -> "Learned":
        hidden, rank = config.hidden_dim, config.base_lora_rank
        adapter = core_lora.base(hidden, rank, np.random.default_rng(config.seed))
        memory = core_ewc.Memory.empty(2 * rank * hidden, config.ewc_lambda)
        none = np.empty((0, hidden), np.float32)
        return cls(Bank.empty(hidden), Weights.untrained(), adapter, memory, None, none, Labels.empty(hidden))


class Cycle(NamedTuple):
    learned: Learned
    labels: Labels
    shift: Shift | None
    clusters: int


def readout(hidden: int, seed: int) -> F32:
    """v, (h,): how an adapted embedding is read as an effort; signs, fixed by the seed."""
    return np.random.default_rng(seed + 1).choice(np.array([-1.0, 1.0], np.float32), hidden)


def cycle(
    learned: Learned, seen: Trajectories, labels: Labels, target: float, config: PlannerConfig, recent: int = 0
) -> Cycle:
    """`target`: recall of the index; `recent`: so many of the newest came after a shift that the watch has told, 0: it
    told of none. `seen` mustn't be empty."""
    rng = np.random.default_rng(config.seed)
    newest = seen.plans[-recent:]
    moved = shift(learned.reference, newest, config.ewc_boundary_threshold, rng)
    if moved is not None and moved.shifted:
        learned = learned._replace(
            memory=learned.memory.consolidated(learned.adapter.flat()),
            bank=learned.bank._replace(weight=np.maximum(learned.bank.weight / 2, LEAST_WEIGHT)),
            calibration=None,
            earlier=labels.newest(EARLIER) if labels.size else learned.earlier,
        )
        labels = Labels.empty(config.hidden_dim)
    bank = learned.bank
    good = seen.where(seen.quality >= config.quality_threshold)
    new, clusters = patterns(good, config, rng) if good.size else (Bank.empty(config.hidden_dim), 0)
    if learned.calibration is not None and bank.size:  # until labels tell; there may be none here of what others learnt
        new = new._replace(effort=bank.effort[(new.centroids @ bank.centroids.T).argmax(axis=1)])
    bank = consolidated(upserted(bank, new, config.consolidation_threshold), config.consolidation_threshold)
    bank = evicted(bank, config.pattern_clusters)
    learned = learned._replace(bank=bank, reference=newest[-REFERENCE:])
    if labels.size >= LEAST_LABELS and bank.size:
        learned = taught(learned, labels, held(labels, target), config, rng)
    return Cycle(learned, labels, moved, clusters)


def taught(learned: Learned, labels: Labels, recall: float, config: PlannerConfig, rng: np.random.Generator) -> Learned:
    """With everything that labels tell: the patterns' efforts, weights, adapter, λ, calibration. `recall`: the mean to
    hold."""
    told, weights, predicted, by_pattern = core_predictor.fitted(labels, learned.bank, recall)
    wanted, v = labels.sufficient(), readout(config.hidden_dim, config.seed)
    adapter, memory = trained(learned.adapter, learned.memory, labels.plans, predicted, wanted, v, config, rng)
    predicted = predicted + adapter.delta(labels.plans) @ v
    earlier = learned.earlier
    if earlier.size:
        base = core_predictor.predicted(earlier, told, weights)
        before, after = (
            quantile_loss(base + one.delta(earlier.plans) @ v, earlier.sufficient(), TAU)
            for one in (learned.adapter, adapter)
        )
        memory = memory.adapted(before, after, config.ewc_max_lambda)
    others = enough(~by_pattern)
    calibration = calibrated(labels.where(others), predicted[others], recall)
    return learned._replace(bank=told, weights=weights, adapter=adapter, memory=memory, calibration=calibration)


def held(labels: Labels, target: float) -> float:
    """The mean recall that the planner is to hold: that without it. It was tuned to the target, and who set it higher
    wants more."""
    return float(max(labels.at(labels.default.astype(np.float64))[0].mean(), min(target, labels.recall[:, -1].mean())))


def patterns(seen: Trajectories, config: PlannerConfig, rng: np.random.Generator) -> tuple[Bank, int]:
    """Patterns that are confident enough, and how many clusters there were. Their effort is for labels to tell."""
    found = kmeans(seen.plans, config.pattern_clusters, rng, config.kmeans_max_iterations, config.kmeans_convergence)
    kept: list[tuple[F32, float, int, float, float]] = []
    for number, centroid in enumerate(found.centroids):
        own = seen.where(found.labels == number)
        confidence = confidence_of(own.quality)
        length = float(np.linalg.norm(centroid))
        if own.size and length > 0 and confidence >= config.pattern_confidence_threshold:
            kept.append(
                (centroid / length, confidence, own.size, float(own.quality.mean()), float(own.latency_us.mean()))
            )
    if not kept:
        return Bank.empty(config.hidden_dim), len(found.centroids)
    centroids, confidences, counts, qualities, latencies = zip(*kept, strict=True)
    bank = Bank(
        np.stack(centroids).astype(np.float32),
        np.full(len(kept), RUNGS[-1], np.float32),
        np.array(confidences, np.float32),
        np.array(counts, np.float64),
        np.zeros(len(kept)),
        np.array(qualities, np.float32),
        np.array(latencies, np.float32),
    )
    return bank, len(found.centroids)


def trained(
    adapter: Lora,
    memory: Memory,
    plans: F32,  # (n, h)
    predicted: F64,  # (n,) without the adapter
    wanted: F64,  # (n,)
    v: F32,  # (h,)
    config: PlannerConfig,
    rng: np.random.Generator,
) -> tuple[Lora, Memory]:
    """BaseLoRA after EPOCHS over the labels, and the Fisher diagonal after one more look at them."""
    rank = len(adapter.down)
    for _ in range(EPOCHS):
        order = rng.permutation(len(plans))
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            x = plans[some]
            slopes = quantile_slope(predicted[some] + adapter.delta(x) @ v, wanted[some], TAU)
            adapter = adapter.stepped(adapter.batch_gradients(x, slopes, v), config.base_lora_lr)
            if memory.tasks:
                hold = core_lora.of_flat(memory.gradient(adapter.flat()), rank)
                adapter = adapter.stepped(hold, memory.limit(config.base_lora_lr))
    slopes = quantile_slope(predicted + adapter.delta(plans) @ v, wanted, TAU)
    up_v = adapter.up @ v  # (r,)
    for start in range(0, len(plans), STEP):
        x, slope = plans[start : start + STEP], slopes[start : start + STEP]
        s = adapter.scale * slope[:, None, None]
        down = s * up_v[None, :, None] * x[:, None, :]  # (n, r, h)
        up = s * (x @ adapter.down.T)[:, :, None] * v
        gradients = np.concatenate([down.reshape(len(x), -1), up.reshape(len(x), -1)], axis=1)
        memory = memory.observed(gradients.astype(np.float32))
    return adapter, memory
