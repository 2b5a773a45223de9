"""What the planner takes from outside: its section of lakehouse.toml, and states that were kept or exported."""

import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from actors.planner import state
from actors.planner.config import PlannerConfig
from actors.planner.core_cycle import Learned, cycle
from actors.planner.core_ewc import Task
from actors.planner.core_labels import LADDER, Labels
from actors.planner.core_patterns import Bank
from actors.planner.core_terrain import Terrain
from actors.planner.planners import Planned
from daemon.config import ConfigError, load
from schemas.documents.planner import ArmState, PlannerDocument
from schemas.planner import Block

RUNGS = len(LADDER)


def read(folder: Path, text: str) -> None:
    (folder / "lakehouse.toml").write_text(f"[planner]\n{text}\n")
    load(folder / "lakehouse.toml", {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("min_trajectories = 20000", "planner.min_trajectories must be no more than max_trajectories, 10000"),
        ("min_trajectories = 99999999999999999999", "planner.min_trajectories"),
        ("seed = -1", "planner.seed"),
        ("seed = 99999999999999999999999", "planner.seed"),
        ("ewc_lambda = inf", "planner.ewc_lambda"),
        ("ewc_lambda = 0", "planner.ewc_lambda"),
        ("ewc_lambda = 20000", "planner.ewc_lambda must be no more than ewc_max_lambda, 15000"),
        ("ewc_max_lambda = inf", "planner.ewc_max_lambda"),
        ("background_interval_s = 1e-9", "planner.background_interval_s"),
        ("background_interval_s = inf", "planner.background_interval_s"),
        ("kmeans_max_iterations = 1000000000000", "planner.kmeans_max_iterations"),
        ("max_trajectories = 1000000\nhidden_dim = 4096", "planner.hidden_dim must be at most 268"),
        ("max_trajectories = 1000000\npattern_clusters = 10000", "planner.pattern_clusters must be at most 268"),
    ],
)
def test_what_cannot_work_is_refused_by_its_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, text)
    assert said in str(refused.value)


def test_the_ends_of_the_ranges_are_taken(tmp_path: Path) -> None:
    read(tmp_path, "hidden_dim = 16\nmicro_lora_rank = 64\nmax_trajectories = 100\nmin_trajectories = 100\nseed = 0")
    read(tmp_path, "max_trajectories = 1000000\newc_lambda = 100\newc_max_lambda = 100\nbackground_interval_s = 1")


# --- states ---

DIM, CONFIG = 8, PlannerConfig(hidden_dim=16, pattern_clusters=4, max_trajectories=200, min_trajectories=10)


@pytest.fixture(scope="module")
def document() -> PlannerDocument:
    """Of an index that has learnt, as it is kept."""
    planned = Planned(CONFIG, DIM, 0.95, "shadow")
    instant, rng = planned.instant, np.random.default_rng(0)
    for query in rng.standard_normal((120, DIM)).astype(np.float32):
        choice = instant.before(query, ("graph",), 10, 1.0, 6.0, "graph")
        instant.after(choice, [("graph", 9.0)], 6.0, 60.0, 0.01, 1.0)
        instant.told(choice, np.linspace(0.8, 1, RUNGS, dtype=np.float32), np.ones(RUNGS, np.float32))
    instant.terrain = Terrain.of(rng.standard_normal((50, DIM)).astype(np.float32), rng)
    instant.adopt(cycle(instant.learned, instant.ring.look(), instant.labels, 0.95, CONFIG).learned)
    instant.bandit.timed(0, "exact", 50.0)
    assert instant.learned.calibration is not None
    return state.document_of("docs", planned, CONFIG, state.Moment.of(instant))


def with_array(document: PlannerDocument, name: str, values: Any, kind: str = "f4") -> PlannerDocument:
    made = np.asarray(values, {"f4": "<f4", "f8": "<f8"}[kind])
    block = Block(kind, list(made.shape), made.tobytes())  # type: ignore[arg-type]
    return msgspec.structs.replace(document, arrays={**document.arrays, name: block})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("weights", np.full(9, np.nan)),
        ("bank.centroids", np.full((4, 16), np.nan)),
        ("bank.centroids", np.full((4, 16), 1e20)),
        ("calibration", [np.nan, np.nan]),
        ("calibration", [1.0, 2.0, 3.0]),
        ("labels.recall", np.full((120, RUNGS), np.nan)),
        ("micro", np.full(64, np.nan)),
        ("reference", np.full((60, 16), np.nan)),
        ("terrain.offset", np.zeros(60)),
        ("terrain.offset", np.zeros((3, 3))),
        ("terrain.offset", 1.0),
        ("terrain.matrix", np.zeros((5000, DIM))),
        ("seen.effort", np.zeros((60, 2))),
        ("task.0.optimum", np.zeros(3)),
    ],
)
def test_arrays_that_a_search_would_stumble_over_dont_fit(document: PlannerDocument, name: str, values: Any) -> None:
    assert state.planned_of(document, CONFIG).instant.learned.bank.size
    with pytest.raises(state.Unfit, match="don't fit"):
        state.planned_of(with_array(document, name, values), CONFIG)


@pytest.mark.parametrize(
    "more",
    [
        {"arms": {"x": {}}},
        {"arms": {"7": {}}},
        {"arms": {"0": {"exact": ArmState(-5, 1, 1, 1, 1)}}},
        {"arms": {"0": {"exact": ArmState(1, 1e300, 1, 1, 1)}}},
        {"queries": -7},
        {"queries": 1, "hits": 2},
        {"ewc_lambda": -1.0},
        {"dim": 0},
    ],
)
def test_what_contradicts_itself_doesnt_fit(document: PlannerDocument, more: dict[str, Any]) -> None:
    with pytest.raises(state.Unfit):
        state.planned_of(msgspec.structs.replace(document, **more), CONFIG)


def test_more_than_is_kept_is_cut(document: PlannerDocument) -> None:
    rng, wide = np.random.default_rng(1), document
    unit = rng.standard_normal((500, 16))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for name in ("effort", "confidence", "weight", "labels", "quality", "latency_us"):
        wide = with_array(wide, f"bank.{name}", np.ones(500), "f8" if name in ("weight", "labels") else "f4")
    wide = with_array(with_array(wide, "bank.centroids", unit), "pairs", np.ones((5000, 4)))
    for name, shape in (("plans", (16,)), ("recall", (RUNGS,)), ("us", (RUNGS,)), ("default", ()), ("static", (6,))):
        wide = with_array(wide, f"labels.{name}", np.ones((5000, *shape)))
    instant = state.planned_of(with_array(wide, "reference", np.ones((5000, 16))), CONFIG).instant
    assert (instant.learned.bank.size, instant.labels.size, len(instant.pairs)) == (4, 2000, 1000)
    assert len(instant.learned.reference) == 1000


def test_a_file_that_is_no_export_says_why(document: PlannerDocument) -> None:
    whole = state.exported(document)
    for file, said in (
        (whole[:-9], "cut short"),
        (b"", "cut short"),
        (whole + b"x", "follows"),
        (b"garbage", "unpacked"),
        (zlib.compress(bytes(state.LARGEST + 1)), "more than 64 MB"),
        (zlib.compress(b"[]"), "object"),
    ):
        with pytest.raises(ValueError, match=said):
            state.imported(file)


def test_patterns_of_long_ago_can_still_be_merged() -> None:
    """Each shift halves their weight: a pattern that has seen a thousand shifts weighs something."""
    rng, config = np.random.default_rng(2), CONFIG
    learned = Learned.untrained(config)
    old = np.eye(16, dtype=np.float32)[[0, 0]] + np.float32(0.01) * rng.standard_normal((2, 16)).astype(np.float32)
    old /= np.linalg.norm(old, axis=1, keepdims=True)
    few = np.full(2, 5e-324)
    bank = Bank(old, *(np.ones(2, np.float32),) * 2, few, np.zeros(2), *(np.ones(2, np.float32),) * 2)
    instant = Planned(config, DIM, 0.95, "shadow").instant
    for query in rng.standard_normal((60, DIM)).astype(np.float32):
        instant.after(instant.before(query, ("graph",), 10, 1.0, 6.0, "graph"), [], 6.0, 60.0, 0.01, 1.0)
    elsewhere = -instant.ring.look().plans
    made = cycle(learned._replace(bank=bank, reference=elsewhere), instant.ring.look(), instant.labels, 0.9, config)
    assert made.shift is not None
    assert made.shift.shifted
    assert np.isfinite(made.learned.bank.centroids).all()
    assert (made.learned.bank.weight > 0).all()


@pytest.mark.parametrize(("dim", "tasks"), [(384, 10), (1536, 5)])
def test_what_is_exported_of_a_full_planner_fits_a_message(dim: int, tasks: int) -> None:
    """As base64, which is a third longer."""
    config, rng = PlannerConfig(), np.random.default_rng(0)

    def some(*shape: int) -> Any:
        values = rng.standard_normal(shape).astype(np.float32)
        return values / np.linalg.norm(values, axis=-1, keepdims=True) if len(shape) > 1 else values

    planned = Planned(config, dim, 0.95, "shadow")
    instant = planned.instant
    known = tuple(Task(some(4096), np.full(4096, float(number), np.float32)) for number in range(10))
    memory = instant.learned.memory._replace(tasks=known)
    bank = Bank(some(100, 256), some(100), some(100), np.ones(100), np.ones(100), some(100), some(100))
    instant.adopt(instant.learned._replace(bank=bank, reference=some(1000, 256), memory=memory))
    instant.terrain = Terrain(some(65, dim), some(32))
    instant.labels = Labels(some(2000, 256), some(2000, RUNGS), some(2000, RUNGS), some(2000), some(2000, 6))
    instant.pairs = np.ones((1000, 4))
    packed = state.exported(state.document_of("docs", planned, config, state.Moment.of(instant)))
    assert 4 * len(packed) / 3 < 1 << 20
    back = state.planned_of(state.imported(packed), config).instant
    assert back.learned.bank.size == 100
    assert [int(task.fisher[0]) for task in back.learned.memory.tasks] == list(range(10 - tasks, 10))
    assert back.labels.plans[-1] == pytest.approx(instant.labels.plans[-1], abs=1e-3)
    assert np.abs(back.terrain.matrix - instant.terrain.matrix).max() < 1e-3
