"""A planner of one index as a registry document, and back. What is large and approximate is kept as float16: plans of
labels, trajectories and the reference, and what is remembered of earlier tasks.
"""

import zlib
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.planner import core_embedding, core_ewc, core_lora
from actors.planner.config import PlannerConfig
from actors.planner.core_bandit import Arm
from actors.planner.core_cycle import Learned
from actors.planner.core_embedding import OPERATORS
from actors.planner.core_labels import LADDER, Calibration, Labels
from actors.planner.core_patterns import Bank
from actors.planner.core_predictor import FEATURES, Weights
from actors.planner.core_ring import Trajectories
from actors.planner.core_terrain import FEATURES as STATIC
from actors.planner.core_terrain import Terrain
from actors.planner.instant import Instant
from actors.planner.planners import Planned
from schemas.documents.planner import ArmState, PlannerDocument
from schemas.names import IndexName
from schemas.planner import Block

EXPORTED_LABELS = 300


class Unfit(ValueError):
    """The document is of other dimensions, or of another configuration; the planner starts anew."""


class Moment(NamedTuple):
    """What the next search may change, copied: the rest are values."""

    seen: Trajectories
    labels: Labels
    arms: dict[str, dict[str, ArmState]]

    @classmethod
    def of(cls, instant: Instant) -> "Moment":
        arms = {
            str(decade): {name: ArmState(**msgspec.structs.asdict(arm)) for name, arm in contexts.items()}
            for decade, contexts in instant.bandit.contexts.items()
        }
        return cls(instant.ring.look(), instant.labels, arms)


def document_of(index: IndexName, planned: Planned, config: PlannerConfig, moment: Moment) -> PlannerDocument:
    """Some 15 ms, so not on the event loop; the moment is to be taken there."""
    instant, (seen, labels, arms) = planned.instant, moment
    learned = instant.learned
    arrays = {f"bank.{name}": _block(values) for name, values in learned.bank._asdict().items()}
    arrays |= {f"seen.{name}": _block(values, half=name == "plans") for name, values in seen._asdict().items()}
    for kind, some in (("labels", labels), ("earlier", learned.earlier)):
        arrays |= {f"{kind}.{name}": _block(values, half=name == "plans") for name, values in some._asdict().items()}
    arrays |= {
        "adapter": _block(learned.adapter.flat()),
        "micro": _block(instant.micro.flat()),
        "weights": _block(np.append(learned.weights.w, learned.weights.b)),
        "reference": _block(learned.reference, half=True),
        "fisher": _block(learned.memory.fisher),
        "pairs": _block(instant.pairs.astype(np.float32)),
        "terrain.matrix": _block(instant.terrain.matrix),
        "terrain.offset": _block(instant.terrain.offset),
    }
    for number, task in enumerate(learned.memory.tasks):
        arrays[f"task.{number}.optimum"] = _block(task.optimum)
        arrays[f"task.{number}.fisher"] = _block(task.fisher)
    if learned.calibration is not None:
        arrays["calibration"] = _block(np.array(learned.calibration))
    return PlannerDocument(
        index=index,
        dim=instant.embedding.dim,
        hidden_dim=config.hidden_dim,
        seed=config.seed,
        embedding=core_embedding.VERSION,
        mode=planned.mode,
        backend=planned.backend,
        why=planned.why,
        target=instant.target,
        arrays=arrays,
        arms=arms,
        ewc_lambda=learned.memory.strength,
        queries=instant.queries,
        hits=instant.hits,
        dropped=instant.ring.dropped,
        latency_us=instant.latency_us,
        cycles=planned.cycles,
        learned=planned.learned,
        cycle_s=planned.cycle_s,
        looks=planned.looks,
    )


def planned_of(document: PlannerDocument, config: PlannerConfig) -> Planned:
    """Raises Unfit."""
    if (document.hidden_dim, document.seed) != (config.hidden_dim, config.seed):
        raise Unfit(f"it is of hidden_dim {document.hidden_dim} and seed {document.seed}")
    if document.embedding != core_embedding.VERSION:
        raise Unfit(f"its plans are embedded by version {document.embedding}, here it is {core_embedding.VERSION}")
    planned = Planned(config, document.dim, document.target, document.mode)
    instant, arrays = planned.instant, {name: _array(block) for name, block in document.arrays.items()}
    try:
        tasks: list[core_ewc.Task] = []
        while f"task.{len(tasks)}.optimum" in arrays:
            number = len(tasks)
            tasks.append(core_ewc.Task(arrays[f"task.{number}.optimum"], arrays[f"task.{number}.fisher"]))
        memory = core_ewc.Memory(tuple(tasks), arrays["fisher"], document.ewc_lambda)
        _check(arrays, document.dim, config)
        bank = Bank(**{name: arrays[f"bank.{name}"] for name in Bank._fields})
        adapter = core_lora.of_flat(arrays["adapter"], config.base_lora_rank)
        weights = Weights(arrays["weights"][:-1], float(arrays["weights"][-1]))
        calibration = Calibration(*arrays["calibration"].tolist()) if "calibration" in arrays else None
        instant.terrain = Terrain(arrays["terrain.matrix"], arrays["terrain.offset"])
        earlier = Labels(**{name: arrays[f"earlier.{name}"] for name in Labels._fields})
        instant.adopt(Learned(bank, weights, adapter, memory, calibration, arrays["reference"], earlier))
        instant.adapt(core_lora.of_flat(arrays["micro"], config.micro_lora_rank))
        instant.labels = Labels(**{name: arrays[f"labels.{name}"] for name in Labels._fields})
        instant.pairs = arrays["pairs"].astype(np.float64)
        instant.ring.refill(Trajectories(**{name: arrays[f"seen.{name}"] for name in Trajectories._fields}))
    except (KeyError, ValueError) as error:
        raise Unfit(f"its arrays don't fit: {error}") from error
    for decade, arms in document.arms.items():
        instant.bandit.contexts[int(decade)] = {n: Arm(**msgspec.structs.asdict(arm)) for n, arm in arms.items()}
    instant.queries, instant.hits, instant.latency_us = document.queries, document.hits, document.latency_us
    instant.ring.dropped = document.dropped
    planned.backend = document.backend
    planned.why, planned.cycles = document.why, document.cycles
    planned.learned, planned.cycle_s, planned.looks = document.learned, document.cycle_s, document.looks
    planned.compared = planned.judged = len(instant.pairs)
    return planned


def exported(document: PlannerDocument) -> bytes:
    """Without trajectories, and with the newest labels alone, so that it fits a message."""
    kept = {}
    for name, block in document.arrays.items():
        if name.startswith("seen."):
            kept[name] = _block(_array(block)[:0], half=block.dtype == "f2")
        elif name.startswith("labels."):
            kept[name] = _block(_array(block)[-EXPORTED_LABELS:], half=block.dtype == "f2")
        else:
            kept[name] = block
    return zlib.compress(msgspec.json.encode(msgspec.structs.replace(document, arrays=kept)))


LARGEST = 64 << 20
"""Bytes that an import may unfold to."""


def imported(state: bytes) -> PlannerDocument:
    """Raises ValueError for what no planner exported."""
    unfold = zlib.decompressobj()
    try:
        plain = unfold.decompress(state, LARGEST)
    except zlib.error as error:
        raise ValueError(f"it can't be unpacked: {error}") from None
    if unfold.unconsumed_tail or unfold.unused_data or not unfold.eof:
        raise ValueError("it is too large, or cut short")
    return msgspec.json.decode(plain, type=PlannerDocument)


def _check(arrays: dict[str, NDArray[Any]], dim: int, config: PlannerConfig) -> None:
    """Shapes, once, at the border. Raises ValueError, KeyError."""
    h, rungs = config.hidden_dim, len(LADDER)
    m, n, old, seen = (len(arrays[name]) for name in ("bank.effort", "labels.plans", "earlier.plans", "seen.quality"))
    wanted: dict[str, tuple[int, ...]] = {
        "bank.centroids": (m, h),
        **{f"bank.{name}": (m,) for name in Bank._fields if name != "centroids"},
        "labels.plans": (n, h),
        "labels.recall": (n, rungs),
        "labels.us": (n, rungs),
        "labels.default": (n,),
        "labels.static": (n, STATIC),
        "earlier.plans": (old, h),
        "earlier.recall": (old, rungs),
        "earlier.us": (old, rungs),
        "earlier.default": (old,),
        "earlier.static": (old, STATIC),
        "seen.plans": (seen, h),
        "seen.us": (seen, len(OPERATORS)),
        "weights": (FEATURES + 1,),
        "adapter": (2 * config.base_lora_rank * h,),
        "fisher": (2 * config.base_lora_rank * h,),
        "micro": (2 * config.micro_lora_rank * h,),
        "reference": (len(arrays["reference"]), h),
        "pairs": (len(arrays["pairs"]), 4),
        "terrain.matrix": (len(arrays["terrain.matrix"]), dim),
    }
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} is {arrays[name].shape}, not {shape}")


_KINDS: dict[str, Any] = {"f2": np.dtype("<f2"), "f4": np.dtype("<f4"), "f8": np.dtype("<f8")}


def _block(values: NDArray[Any], half: bool = False) -> Block:
    if half:
        return Block("f2", list(values.shape), values.astype("<f2").tobytes())
    kind: Literal["f4", "f8"] = "f8" if values.dtype == np.float64 else "f4"
    return Block(kind, list(values.shape), np.ascontiguousarray(values, _KINDS[kind]).tobytes())


def _array(block: Block) -> NDArray[Any]:
    """float16 comes back as float32. Raises ValueError."""
    values: NDArray[Any] = np.frombuffer(block.data, _KINDS[block.dtype]).reshape(block.shape)
    if np.isinf(values).any():
        raise ValueError("an infinite number")
    wide: NDArray[Any] = values.astype(np.float64 if block.dtype == "f8" else np.float32)
    return wide
