"""One background cycle: from trajectories and labels to patterns, weights, adapter and calibration.

boundary test → quality filter → k-means → patterns → upsert, consolidate, evict → efforts and weights from the labels →
BaseLoRA on what is left over, by the quantile loss, held by EWC++ → calibration to the recall that is to be held.

Values in, values out; the same input and seed give the same output.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.planner import core_ewc, core_lora
from actors.planner.config import PlannerConfig
from actors.planner.core_boundary import Shift, shift
from actors.planner.core_ewc import Memory
from actors.planner.core_kmeans import kmeans
from actors.planner.core_labels import RUNGS, Calibration, Labels, calibrated
from actors.planner.core_lora import Lora, quantile_loss, quantile_slope
from actors.planner.core_patterns import Bank, confidence_of, consolidated, evicted, upserted
from actors.planner.core_predictor import Weights, fitted
from actors.planner.core_ring import Trajectories

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

TAU = 0.75
"""An undershoot of the effort costs three times an overshoot."""
EPOCHS = 5
BATCH = 32
LEAST_LABELS = 30
"""Fewer say nothing about effort: the planner then chooses what would be chosen without it."""
REFERENCE = 1000
"""Plans that are kept of a cycle, to tell a shift of the next one's from."""
AFTER_SHIFT = 200
"""Labels that outlive a shift: the newest."""
LEAST_WEIGHT = 1e-3
"""Of a pattern, however many shifts it has seen: without any, two could not be merged by weight."""
STEP = 256  # labels whose gradients are in memory at a time


class Learned(NamedTuple):
    """All that a cycle reads and writes."""

    bank: Bank
    weights: Weights
    adapter: Lora
    memory: Memory
    calibration: Calibration | None  # None until there are labels enough
    reference: F32  # (r, h) plans of the last cycle

    @classmethod
    def untrained(cls, config: PlannerConfig) -> "Learned":
        hidden, rank = config.hidden_dim, config.base_lora_rank
        adapter = core_lora.base(hidden, rank, np.random.default_rng(config.seed))
        memory = core_ewc.Memory.empty(2 * rank * hidden, config.ewc_lambda)
        none = np.empty((0, hidden), np.float32)
        return cls(Bank.empty(hidden), Weights.untrained(), adapter, memory, None, none)


class Cycle(NamedTuple):
    learned: Learned
    labels: Labels
    shift: Shift | None
    clusters: int
    stored: int  # patterns of this cycle that were confident enough
    loss_before: float  # quantile loss over the labels, without the adapter's step and with it
    loss_after: float


def readout(hidden: int, seed: int) -> F32:
    """v, (h,): how an adapted embedding is read as an effort; signs, fixed by the seed."""
    return np.random.default_rng(seed + 1).choice(np.array([-1.0, 1.0], np.float32), hidden)


def cycle(
    learned: Learned, seen: Trajectories, labels: Labels, target: float, default: float, config: PlannerConfig
) -> Cycle:
    """`default`: log2 of the effort without a planner; the recall that it has on the labels is what is held, but no
    more than `target` needs. `seen` mustn't be empty."""
    rng = np.random.default_rng(config.seed)
    moved = shift(learned.reference, seen.plans, config.ewc_boundary_threshold, rng)
    bank, memory = learned.bank, learned.memory
    if moved is not None and moved.shifted:
        memory = memory.consolidated(learned.adapter.flat())
        bank = bank._replace(weight=np.maximum(bank.weight / 2, LEAST_WEIGHT))
        labels = Labels(*(values[-AFTER_SHIFT:] for values in labels))
    good = seen.where(seen.quality >= config.quality_threshold)
    new, clusters = patterns(good, config, rng) if good.size else (Bank.empty(config.hidden_dim), 0)
    bank = consolidated(upserted(bank, new, config.consolidation_threshold), config.consolidation_threshold)
    bank = evicted(bank, config.pattern_clusters)
    step = learned._replace(bank=bank, memory=memory, reference=seen.plans[-REFERENCE:])
    before = after = 0.0
    if labels.size >= LEAST_LABELS and bank.size:
        told, weights, predicted = fitted(labels, bank)
        wanted, v = labels.sufficient(), readout(config.hidden_dim, config.seed)
        before = quantile_loss(predicted + learned.adapter.delta(labels.plans) @ v, wanted, TAU)
        adapter, memory = trained(learned.adapter, memory, labels.plans, predicted, wanted, v, config, rng)
        predicted = predicted + adapter.delta(labels.plans) @ v
        after = quantile_loss(predicted, wanted, TAU)
        memory = memory.adapted(before, after, config.ewc_max_lambda)
        hold = held(labels, default, target)
        step = step._replace(
            bank=told,
            weights=weights,
            adapter=adapter,
            memory=memory,
            calibration=calibrated(labels, predicted, hold),
        )
    return Cycle(step, labels, moved, clusters, new.size, before, after)


def held(labels: Labels, default: float, target: float) -> float:
    """The mean recall that the planner is to hold: that of the default effort. It was tuned to the target, and who
    set it higher wants more."""
    return float(max(labels.at(np.full(labels.size, default))[0].mean(), min(target, labels.recall[:, -1].mean())))


def patterns(seen: Trajectories, config: PlannerConfig, rng: np.random.Generator) -> tuple[Bank, int]:
    """Patterns that are confident enough, and how many clusters there were. Their effort is that of their queries
    until labels tell what it should have been."""
    found = kmeans(seen.plans, config.pattern_clusters, rng, config.kmeans_max_iterations, config.kmeans_convergence)
    kept: list[tuple[F32, float, float, int, float, float]] = []
    for number, centroid in enumerate(found.centroids):
        own = seen.where(found.labels == number)
        confidence = confidence_of(own.quality)
        length = float(np.linalg.norm(centroid))
        if own.size and length > 0 and confidence >= config.pattern_confidence_threshold:
            effort = own.effort[own.effort > 0]
            used = float(np.quantile(effort, 0.5)) if len(effort) else float(RUNGS[0])
            kept.append(
                (centroid / length, used, confidence, own.size, float(own.quality.mean()), float(own.latency_us.mean()))
            )
    if not kept:
        return Bank.empty(config.hidden_dim), len(found.centroids)
    centroids, efforts, confidences, counts, qualities, latencies = zip(*kept, strict=True)
    bank = Bank(
        np.stack(centroids).astype(np.float32),
        np.array(efforts, np.float32),
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
