"""A planner of one index as a registry document, and back. What is large and approximate is kept as float16: plans of
labels, trajectories and the reference.
"""

import zlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.planner import core_embedding, core_ewc, core_lora
from actors.planner.config import PlannerConfig
from actors.planner.core_bandit import Arm
from actors.planner.core_cycle import REFERENCE, Learned
from actors.planner.core_embedding import OPERATORS
from actors.planner.core_gain import MOST as MOST_PAIRS
from actors.planner.core_labels import LADDER, Calibration, Labels
from actors.planner.core_labels import MOST as MOST_LABELS
from actors.planner.core_patterns import Bank, evicted
from actors.planner.core_predictor import FEATURES, Weights
from actors.planner.core_ring import Trajectories
from actors.planner.core_terrain import AXES, CENTROIDS, Terrain
from actors.planner.core_terrain import FEATURES as STATIC
from actors.planner.instant import Instant
from actors.planner.planners import Planned
from schemas.documents.planner import ArmState, PlannerDocument
from schemas.names import IndexName
from schemas.planner import Block

KEPT = 1000
"""Trajectories that outlive a restart: the newest. All ten thousand would be 7 MB a revision."""
EXPORTED = ((300, 200, 10), (300, 100, 5), (150, 50, 2), (100, 50, 0))
"""Labels, plans of the reference, and earlier tasks: the first that fit."""
FITS = 720_000
"""Bytes of a state that a message carries, which is base64 there."""
MAY_BE_UNKNOWN = "seen.recall"
"""The only array in which a NaN means something."""
DECADES = frozenset(("-1", "0", "1", "2", "3", "4"))
MOST_LOG_US = 60.0
"""No mean time is beyond e to this, in microseconds."""


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
        return cls(instant.ring.look(KEPT), instant.labels, arms)


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
    """Raises Unfit. What is more than is kept here is cut to it."""
    if (document.hidden_dim, document.seed) != (config.hidden_dim, config.seed):
        own = f"{config.hidden_dim} and {config.seed}"
        raise Unfit(f"it is of hidden_dim {document.hidden_dim} and seed {document.seed}, not {own}")
    if document.embedding != core_embedding.VERSION:
        raise Unfit(f"its plans are embedded by version {document.embedding}, here it is {core_embedding.VERSION}")
    try:
        arrays = {name: _array(name, block) for name, block in document.arrays.items()}
        _check(arrays, document.dim, config)
        contexts = {_decade(name): {n: _arm(arm) for n, arm in arms.items()} for name, arms in document.arms.items()}
        _check_counts(document)
    except (KeyError, ValueError) as error:
        raise Unfit(f"its arrays don't fit: {error}") from error
    planned = Planned(config, document.dim, document.target, document.mode)
    instant = planned.instant
    tasks = [
        core_ewc.Task(arrays[f"task.{number}.optimum"], arrays[f"task.{number}.fisher"])
        for number in range(_tasks(arrays))
    ]
    memory = core_ewc.Memory(tuple(tasks[-core_ewc.MAX_TASKS :]), arrays["fisher"], document.ewc_lambda)
    bank = evicted(Bank(**{name: arrays[f"bank.{name}"] for name in Bank._fields}), config.pattern_clusters)
    adapter = core_lora.of_flat(arrays["adapter"], config.base_lora_rank)
    weights = Weights(arrays["weights"][:-1], float(arrays["weights"][-1]))
    calibration = Calibration(*arrays["calibration"].tolist()) if "calibration" in arrays else None
    instant.terrain = Terrain(arrays["terrain.matrix"], arrays["terrain.offset"])
    earlier, labels = (
        Labels(**{name: arrays[f"{kind}.{name}"][-MOST_LABELS:] for name in Labels._fields})
        for kind in ("earlier", "labels")
    )
    instant.adopt(Learned(bank, weights, adapter, memory, calibration, arrays["reference"][-REFERENCE:], earlier))
    instant.adapt(core_lora.of_flat(arrays["micro"], config.micro_lora_rank))
    instant.labels = labels
    instant.pairs = arrays["pairs"].astype(np.float64)[-MOST_PAIRS:]
    instant.ring.refill(Trajectories(**{name: arrays[f"seen.{name}"] for name in Trajectories._fields}))
    instant.bandit.contexts.update(contexts)
    instant.queries, instant.hits, instant.latency_us = document.queries, document.hits, document.latency_us
    instant.ring.dropped = document.dropped
    planned.backend = document.backend
    planned.why, planned.cycles = document.why, document.cycles
    planned.learned, planned.cycle_s, planned.looks = document.learned, document.cycle_s, document.looks
    planned.compared = planned.judged = len(instant.pairs)
    return planned


def exported(document: PlannerDocument) -> bytes:
    """Without trajectories and pairs, and with as many of the newest labels, plans of the reference and earlier tasks
    as fit a message. Of very many dimensions even the fewest don't: then it goes as far as the bus carries it."""
    for labels, plans, tasks in EXPORTED:
        cut = _cut(document.arrays, labels, plans, tasks)
        packed = zlib.compress(msgspec.json.encode(msgspec.structs.replace(document, arrays=cut)))
        if len(packed) <= FITS:
            break
    return packed


def _cut(arrays: dict[str, Block], labels: int, plans: int, tasks: int) -> dict[str, Block]:
    newest = {"seen": 0, "pairs": 0, "labels": labels, "earlier": labels // 2, "reference": plans}
    first = max(0, _tasks(arrays) - tasks)
    kept = {}
    for name, block in arrays.items():
        kind, _, rest = name.partition(".")
        if kind == "task":
            number, _, field = rest.partition(".")
            if int(number) >= first:
                kept[f"task.{int(number) - first}.{field}"] = block
        elif kind in newest:
            values = _array(name, block)
            kept[name] = _block(values[max(0, len(values) - newest[kind]) :], half=block.dtype == "f2")
        else:  # axes and centroids are of unit length
            kept[name] = _block(_array(name, block), half=True) if name == "terrain.matrix" else block
    return kept


LARGEST = 64 << 20
"""Bytes that an import may unfold to."""


def imported(state: bytes) -> PlannerDocument:
    """Raises ValueError for what no planner exported."""
    unfold = zlib.decompressobj()
    try:
        plain = unfold.decompress(state, LARGEST)
    except zlib.error as error:
        raise ValueError(f"it can't be unpacked: {error}") from None
    if unfold.unconsumed_tail:
        raise ValueError(f"it unfolds to more than {LARGEST >> 20} MB")
    if unfold.unused_data or not unfold.eof:
        raise ValueError("it is cut short" if not unfold.eof else "something follows it")
    return msgspec.json.decode(plain, type=PlannerDocument)


def _check(arrays: dict[str, NDArray[Any]], dim: int, config: PlannerConfig) -> None:
    """Shapes, and what a search would stumble over, once, at the border. Raises ValueError, KeyError."""
    h, rungs, adapter = config.hidden_dim, len(LADDER), 2 * config.base_lora_rank * config.hidden_dim
    m, seen, axes = (len(arrays[name]) for name in ("bank.effort", "seen.quality", "terrain.offset"))
    wanted: dict[str, tuple[int, ...]] = {
        **{f"bank.{name}": (m,) for name in Bank._fields},
        "bank.centroids": (m, h),
        **{
            f"{kind}.{name}": (len(arrays[f"{kind}.default"]), *shape)
            for kind in ("labels", "earlier")
            for name, shape in zip(Labels._fields, ((h,), (rungs,), (rungs,), (), (STATIC,)), strict=True)
        },
        **{f"seen.{name}": (seen,) for name in Trajectories._fields},
        "seen.plans": (seen, h),
        "seen.us": (seen, len(OPERATORS)),
        "weights": (FEATURES + 1,),
        "adapter": (adapter,),
        "fisher": (adapter,),
        **{f"task.{number}.{name}": (adapter,) for number in range(_tasks(arrays)) for name in core_ewc.Task._fields},
        "micro": (2 * config.micro_lora_rank * h,),
        "reference": (len(arrays["reference"]), h),
        "pairs": (len(arrays["pairs"]), 4),
        "terrain.offset": (axes,),
        "terrain.matrix": (len(arrays["terrain.matrix"]), dim),
        **({"calibration": (2,)} if "calibration" in arrays else {}),
    }
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} is {arrays[name].shape}, not {shape}")
    if not (
        axes < len(arrays["terrain.matrix"]) <= AXES[-1] + CENTROIDS + 1 or axes == len(arrays["terrain.matrix"]) == 0
    ):
        raise ValueError(f"terrain.matrix has {len(arrays['terrain.matrix'])} rows, {axes} of them axes")
    lengths = np.linalg.norm(arrays["bank.centroids"].astype(np.float64), axis=1)
    if m and (abs(lengths - 1).max() > 0.01 or arrays["bank.weight"].min() <= 0):
        raise ValueError("a pattern isn't of unit length, or weighs nothing")


def _tasks(arrays: Mapping[str, object]) -> int:
    """How many earlier tasks are remembered: numbered from 0."""
    number = 0
    while f"task.{number}.optimum" in arrays:
        number += 1
    return number


def _check_counts(document: PlannerDocument) -> None:
    """Raises ValueError."""
    if not 0 <= document.hits <= document.queries or min(document.dropped, document.cycles, document.latency_us) < 0:
        raise ValueError("its counts contradict each other")
    if document.dim < 1 or document.ewc_lambda < 0:
        raise ValueError(f"dim is {document.dim}, ewc_lambda {document.ewc_lambda}")


def _decade(name: str) -> int:
    if name not in DECADES:
        raise ValueError(f"{name!r} is no decade of selectivity")
    return int(name)


def _arm(arm: ArmState) -> Arm:
    sane = min(arm.n, arm.samples, arm.recall, arm.squares) >= 0 and abs(arm.log_us) <= MOST_LOG_US * arm.n + 1e-9
    if not sane:
        raise ValueError("a strategy's record is impossible")
    return Arm(**msgspec.structs.asdict(arm))


_KINDS: dict[str, Any] = {"f2": np.dtype("<f2"), "f4": np.dtype("<f4"), "f8": np.dtype("<f8")}


def _block(values: NDArray[Any], half: bool = False) -> Block:
    if half:
        return Block("f2", list(values.shape), values.astype("<f2").tobytes())
    kind: Literal["f4", "f8"] = "f8" if values.dtype == np.float64 else "f4"
    return Block(kind, list(values.shape), np.ascontiguousarray(values, _KINDS[kind]).tobytes())


def _array(name: str, block: Block) -> NDArray[Any]:
    """float16 comes back as float32. Raises ValueError."""
    if not block.shape:
        raise ValueError(f"{name} is a number, not an array")
    values: NDArray[Any] = np.frombuffer(block.data, _KINDS[block.dtype]).reshape(block.shape)
    if np.isinf(values).any() or (name != MAY_BE_UNKNOWN and np.isnan(values).any()):
        raise ValueError(f"{name} holds what is no finite number")
    wide: NDArray[Any] = values.astype(np.float64 if block.dtype == "f8" else np.float32)
    return wide
