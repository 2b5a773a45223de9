"""Choices of the gate's cores that no other test would miss, a case each: which weights are strengths, whose events
count, where a floor begins, where a search ends, which pattern holds, what one step of training sees."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.gate import core, core_mlp
from actors.gate.adapters import open_adapter, open_adapters
from actors.gate.core_lora import Unmergeable
from actors.gate.core_minimise import MOST, compass
from actors.gate.training import Trained, read_gate, train_job
from schemas.gate import AdapterWeight, MixSource
from schemas.profile import Adapter, ModelProfile
from tests.unit.gate_adapters import SHAPES, write_adapter_folder
from tests.unit.test_gate_core import PROFILE, events, run, weights

# --- weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "by"),
    [
        ("explicit", [1, 1]),
        ("static_loss", [1, 1]),
        ("static_mean", [0.5, 2]),
        ("uniform", [0.5, 2]),
        ("dynamic", [0.5, 2]),
    ],
)
def test_what_is_given_or_found_by_loss_is_a_strength_and_a_gate_s_word_is_scaled(
    source: MixSource, by: list[float]
) -> None:
    scaled = ModelProfile(id="p", model="base", adapters=[Adapter("code", 0.5), Adapter("prose", 2.0)])
    assert core.scales(scaled, source) == by


@pytest.mark.parametrize("foreign_first", [True, False])
def test_events_of_another_run_never_count(foreign_first: bool) -> None:
    gate, other = run(), run(run="r0", mean_weights=[1.0, 0.0, 0.0])
    parts = [events(other), events(gate)] if foreign_first else [events(gate), events(other)]
    found = core.resolve(PROFILE, gate, [*parts[0], *parts[1]])
    assert found is not None
    assert (weights(found[0]), found[1]) == ([0.2, 0.3, 0.5], "static_mean")


def test_the_floor_itself_is_reached() -> None:
    output = [AdapterWeight("code", 0.75), AdapterWeight("prose", 0.25), AdapterWeight("law", 0.0)]
    assert weights(core.route(output, PROFILE.adapters, "floor", 0.25)) == [0.75, 0.25, 0]
    assert weights(core.route(output, PROFILE.adapters, "floor", 0.2501)) == [0.75, 0, 0]


# --- static_loss's search -----------------------------------------------------------------------


def tried(loss: Callable[[Any], float], start: list[float], *, free: bool) -> list[np.ndarray]:
    """Weights that a search asks for, and no more than a little beyond MOST of them."""
    asked: list[np.ndarray] = []

    def heard(w: np.ndarray) -> float:
        asked.append(w.copy())
        return loss(w)

    for _ in islice(compass(heard, [np.array(start)], free=free), MOST + 100):
        pass
    return asked


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("start", [[1.0, 0.0], [0.1, 0.9], [0.3, 0.7]])
def test_no_weight_below_0_is_tried(start: list[float], free: bool) -> None:
    asked = tried(lambda w: float(w[0]), start, free=free)  # draws the first one down
    assert len(asked) > 1
    assert min(w.min() for w in asked) >= 0
    if not free:
        np.testing.assert_allclose([w.sum() for w in asked], 1)


def test_a_search_without_a_minimum_ends() -> None:
    asked = tried(lambda w: -float(w.sum()), [0.5, 0.5], free=True)
    assert MOST - 4 <= len(asked) < MOST + 4  # the last round is gone through: two directions of two weights


# --- adapters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "alpha"), [({"q": 3, "layers.0.q": 16}, 3), ({"layers.0.q": 16, "q": 3}, 16), ({"r": 5, "q": 3}, 3)]
)
def test_the_first_pattern_that_fits_holds_as_in_peft(tmp_path: Path, patterns: dict[str, int], alpha: float) -> None:
    folder = write_adapter_folder(tmp_path / "a", 0, config={"alpha_pattern": patterns})
    assert open_adapter("a", folder).modules["model.layers.0.q"].alpha == alpha


def test_a_third_adapter_is_compared_with_the_second_too(tmp_path: Path) -> None:
    """The first has no such module."""
    up = "model.layers.0.up"
    a = write_adapter_folder(tmp_path / "a", 0, modules=["model.layers.0.q"])
    b = write_adapter_folder(tmp_path / "b", 1, modules=[up])
    c = write_adapter_folder(tmp_path / "c", 2, modules=[up], shapes={**SHAPES, up: (41, 16)})
    with pytest.raises(Unmergeable, match=r"layers\.0\.up is 40 × 16 in adapter a, 41 × 16 in c"):
        open_adapters({"a": a, "b": b, "c": c})


# --- training -----------------------------------------------------------------------------------


def corpus(m: int = 60, d: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (m, d) that lie apart by their adapter, and whose it is: two in three are the first's."""
    y = (np.arange(m) % 3 == 0).astype(np.int64)
    x = np.random.default_rng(5).standard_normal((m, d)) + np.where(y == 1, 2.0, -2.0)[:, None]
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), y


def trained(file: Path, seed: int) -> Trained:
    x, y = corpus()
    embeddings = file.with_suffix(".npy")
    np.save(embeddings, x)
    (said,) = train_job(embeddings, y, 2, seed, file)
    assert isinstance(said, Trained)
    return said


def test_mean_weights_are_over_every_prompt(tmp_path: Path) -> None:
    said = trained(tmp_path / "gate.safetensors", 42)
    p = core_mlp.probabilities(read_gate(tmp_path / "gate.safetensors"), corpus()[0].astype(np.float64))
    np.testing.assert_allclose(said.mean_weights, p.mean(axis=0), rtol=1e-12)
    assert np.abs(p - p.mean(axis=0)).min() > 0.01  # no prompt alone, nor those of one adapter, would give it


def test_the_seed_that_was_asked_for_makes_the_gate(tmp_path: Path) -> None:
    x, y = corpus()
    for seed in (7, 42):
        trained(tmp_path / f"{seed}.safetensors", seed)
        expected = core_mlp.fit(x.astype(np.float64), y, 2, seed).mlp
        found = read_gate(tmp_path / f"{seed}.safetensors")
        assert all((a == b).all() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("prompts", "batch"), [(60, 16), (12, 10)])
def test_a_step_sees_a_batch_of_the_recipe_s_size(monkeypatch: pytest.MonkeyPatch, prompts: int, batch: int) -> None:
    """Or all there are to train on, where those are fewer: of 12 prompts one of each adapter is held out."""
    sizes: list[int] = []
    true = core_mlp.loss_and_gradient

    def seen(mlp: Any, x: Any, y: Any, entropy: float) -> Any:
        assert len(np.unique(x, axis=0)) == len(x)  # none twice
        sizes.append(len(x))
        return true(mlp, x, y, entropy)

    monkeypatch.setattr(core_mlp, "loss_and_gradient", seen)
    x, y = corpus(prompts)
    core_mlp.fit(x.astype(np.float64), y, 2, 42)
    assert sizes == [batch] * 200
