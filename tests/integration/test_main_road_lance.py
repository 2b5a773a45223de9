"""The main road on Lance, end to end on a real daemon: an index on disk is tuned, promoted, searched all
the while and rolled back; one that either backend may serve is tried on both."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from actors.backends import lance_store
from tests.integration.house import House, HttpError, house
from tests.integration.test_main_road import ROWS, parquet, search, vectors

pytestmark = pytest.mark.skipif(not lance_store.available(), reason="pylance isn't installed")


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(
        tmp_path_factory.mktemp("lance-road"),
        agent__enabled=False,
        agent__max_trials_per_campaign=3,
        agent__harness_queries=100,
    ) as made:
        parquet(made.folder / "first.parquet", ROWS, seed=1)
        made.ingest(made.folder / "first.parquet", "points", id_column="id")
        for name, backend in (("points", "lance"), ("either", "auto")):
            body = {"name": name, "dataset": "points", "column": "embedding", "metric": "l2", "backend": backend}
            made.call("POST", "/vectors/indexes", body)
            made.index_ready(name, ROWS)
        yield made


def tune(road: House, index: str, **more: Any) -> Any:
    return road.call("POST", "/vectors/hnsw/autotune", {"index_name": index, **more})


def test_tuning_promotes_without_a_failed_query_explains_and_rolls_back(road: House) -> None:
    failures: list[str] = []
    stop = threading.Event()

    def load() -> None:
        queries = vectors(50, 9)
        turn = 0
        while not stop.is_set():
            try:
                if len(search(road, queries[turn % 50])["queries"][0]) != 10:
                    failures.append("too few hits")
            except Exception as error:
                failures.append(repr(error))
            turn += 1

    reader = threading.Thread(target=load)
    reader.start()
    try:
        asked = [{"index_type": "IVF_FLAT", "partitions": 4}, {"index_type": "IVF_RQ", "partitions": 8}]
        outcome = tune(road, "points", lance=asked)[-1]
        assert outcome["type"] == "autotune.finished", outcome
        trials = road.call("GET", "/vectors/trials/points")["points"]
        assert {(point["backend"], point["index_type"]) for point in trials} == {
            ("lance", "IVF_FLAT"),
            ("lance", "IVF_RQ"),
        }
        holding = next(p for p in trials if p["chosen"] and p["recall_lower"] >= 0.95)
        if outcome["outcome"] != "promoted":
            road.call("POST", f"/vectors/hnsw/promote/points/{holding['trial']}?promoted_by=test")
        current = road.call("GET", "/vectors/hnsw/promoted/points")["current"]
        assert (current["config"]["backend"], current["recall_lower"] >= 0.95) == ("lance", True)
        road.until(
            lambda: road.call("GET", "/vectors/hnsw/promoted/points")["current"]["generation"] is not None,
            "the promotion knows its generation",
            60,
        )
    finally:
        stop.set()
        reader.join()
    assert not failures
    assert search(road, vectors(ROWS, 1)[17])["queries"][0][0]["id"] == 17
    why = road.call("GET", "/vectors/why/points")
    assert {"promotion", "trial", "proposal", "commit", "file"} <= {link["what"] for link in why["links"]}
    before = road.call("GET", "/vectors/indexes/points")["generation"]
    road.call("POST", "/vectors/hnsw/rollback/points?reason=test")
    road.until(lambda: road.call("GET", "/vectors/indexes/points")["generation"] > before, "the rollback serves", 60)
    assert road.call("GET", "/vectors/indexes/points")["config"]["backend"] == "lance"
    assert search(road, vectors(ROWS, 1)[17])["queries"][0][0]["id"] == 17


def test_ivf_pq_under_the_target_is_refused(road: House) -> None:
    outcome = tune(
        road, "points", lance=[{"index_type": "IVF_PQ", "partitions": 4, "sub_vectors": 1}], min_recall=0.999
    )
    assert outcome[-1]["outcome"] == "infeasible"
    trial = next(line["trial"] for line in outcome if line["type"] == "trial.completed")
    with pytest.raises(HttpError) as caught:
        road.call("POST", f"/vectors/hnsw/promote/points/{trial}")
    assert caught.value.status == 422
    assert "does not hold recall@10 0.999" in caught.value.body["reason"]


def test_the_agent_proposes_on_lance_and_can_be_replayed(road: House) -> None:
    outcome = tune(road, "points", agent=True)[-1]
    assert outcome["type"] == "autotune.finished", outcome
    trials = road.call("GET", "/vectors/trials/points?limit=1000")["points"]
    assert {"champion"} < {point["proposer"] for point in trials if point["campaign"] == outcome["campaign"]}
    replayed = road.call("GET", "/vectors/replay/points")
    assert replayed["proposals"]
    assert all(one["same"] for one in replayed["proposals"])


def test_an_index_that_either_may_serve_is_tried_on_both(road: House) -> None:
    road.call("POST", "/vectors/lance/migrate/either", {})
    road.until(lambda: "lance" in road.call("GET", "/vectors/indexes/either")["companions"], "a store is there", 60)
    outcome = tune(road, "either", agent=True)[-1]
    assert outcome["type"] == "autotune.finished", outcome
    trials = road.call("GET", "/vectors/trials/either?limit=1000")["points"]
    of_lance = next(point for point in trials if point["proposer"] == "backend")
    assert of_lance["backend"] == "lance"
    compared = [point for point in trials if point["proposer"] == "backend" and point["chosen"]]
    assert compared[0]["champion_ratio"] > 1 or compared[0]["recall_lower"] < 0.95


def test_a_grid_of_the_other_backend_is_refused(road: House) -> None:
    with pytest.raises(HttpError) as caught:
        tune(road, "points", grid=[{"ef_construction": 20, "ef_search": 30}])
    assert caught.value.status == 422
    assert "may be served by lance" in caught.value.body["reason"]


@pytest.mark.parametrize("index", ["points", "either"])
def test_what_was_written_is_found_and_what_was_deleted_is_not_from_the_answer_on(road: House, index: str) -> None:
    path = f"/vectors/lance/{{}}/{index}"
    if index == "either":  # a graph serves it, and a store is beside it
        road.call("POST", path.format("migrate"), {})
        road.until(lambda: "lance" in road.call("GET", "/vectors/indexes/either")["companions"], "a store is there", 60)
    queries = vectors(20, 77)
    for number, query in enumerate(queries.tolist(), 900_000):
        wanted = {"index": index, "vector": query, "k": 1, "columns": []}
        row = {"id": number, "embedding": query, "group": 0}
        road.call("POST", path.format("append"), {"rows": [row]})
        assert road.call("POST", "/vectors/search", wanted)["queries"][0][0]["id"] == number
        road.call("POST", path.format("delete"), {"ids": [number]})
        assert road.call("POST", "/vectors/search", wanted)["queries"][0][0]["id"] != number
