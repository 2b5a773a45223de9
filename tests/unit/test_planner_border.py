"""What the planner takes from outside: its section of lakehouse.toml, and states that were kept, exported or made up."""

from pathlib import Path

import pytest

from daemon.config import ConfigError, load


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
