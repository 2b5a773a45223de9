"""A drift on a real daemon: the promotion that serves badly is taken back, and only then does the
agent tune, against what came back."""

from pathlib import Path
from typing import Any

from tests.integration.house import House, house
from tests.integration.test_main_road import parquet, vectors

ROWS = 4000


def test_the_agent_tunes_what_came_back_and_not_what_drifted(tmp_path: Path) -> None:
    settings = {"agent__min_new_rows": 1_000_000, "agent__cooldown_s": 0, "agent__max_trials_per_campaign": 2}
    with house(tmp_path, index__sample_share=1.0, **settings) as made:
        parquet(made.folder / "first.parquet", ROWS, seed=1)
        made.ingest(made.folder / "first.parquet", "points", id_column="id")
        body = {"name": "points", "dataset": "points", "column": "embedding", "metric": "l2"}
        made.call("POST", "/vectors/indexes", body)
        made.index_ready("points", ROWS)
        grid = [{"M": 16, "ef_construction": 160, "ef_search": 200}, {"M": 4, "ef_construction": 10, "ef_search": 11}]
        made.call("POST", "/vectors/hnsw/autotune", {"index_name": "points", "grid": grid})
        points = made.call("GET", "/vectors/trials/points")["points"]
        good = next(point for point in points if point["M"] == 16 and point["ef_search"] == 200)
        bad = min(points, key=lambda point: point["recall"])
        assert bad["recall"] < 0.9
        promote(made, good)
        promote(made, bad)

        queries = vectors(50, 9)

        def taken_back() -> bool:
            for query in queries:
                made.call("POST", "/vectors/search", {"index": "points", "vector": [float(x) for x in query]})
            return bool(promoted(made)["rolled_back"])

        made.until(taken_back, "the bad promotion is taken back", 60)
        assert promoted(made)["rolled_back"][0]["trial"] == bad["trial"]
        made.until(lambda: bool(tuned(made)), "the agent has tuned after the drift", 120)

        trials = made.call("GET", "/vectors/trials/points", None)["points"]
        after = [point for point in trials if point["trigger_tag"] == "recall.drifted" and point["chosen"]]
        champions = [point for point in after if point["proposer"] == "champion"]
        assert champions
        for champion in champions:
            assert (champion["M"], champion["ef_construction"]) == (good["M"], good["ef_construction"])
        assert promoted(made)["current"]["recall_lower"] >= 0.95


def promote(made: House, point: dict[str, Any]) -> None:
    """And waits until it serves."""
    path = f"/vectors/hnsw/promote/points/{point['trial']}?ef_search={point['ef_search']}&force=true"
    made.call("POST", path)
    made.until(lambda: promoted(made)["current"]["generation"] is not None, f"{point['trial']} serves", 60)


def promoted(made: House) -> Any:
    return made.call("GET", "/vectors/hnsw/promoted/points")


def tuned(made: House) -> list[Any]:
    """Verdicts of campaigns after a drift."""
    decisions = made.call("GET", "/vectors/agent/status")["decisions"]
    drifts = {d["campaign"] for d in decisions if d["action"] == "started" and d["reason"].startswith("live recall")}
    over = ("promoted", "kept", "infeasible", "failed")
    return [
        d for d in decisions if d["campaign"] in drifts and d["action"] in over and "trials are as many" in d["reason"]
    ]
