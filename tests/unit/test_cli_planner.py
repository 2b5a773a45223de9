"""`lakehouse planner`: what is asked of the daemon, and what is shown of its answers."""

from pathlib import Path

import pytest

from schemas.config import HnswConfig, HnswEffort
from schemas.events.index import Explanation, Hit, SearchResult, Step
from schemas.events.planner import PlannerExport, PlannerLearned, PlannerStatus
from schemas.http import ErrorBody
from schemas.planner import Criticality, Estimate, PlannerExplanation, PlannerGain
from tests.unit.cli_daemon import CliDaemon, Run

GAIN = PlannerGain(
    412, Estimate(1.08, 1.03, 1.13), Estimate(-0.0004, -0.0021, 0.0012), Estimate(-0.02, -0.04, 0.0), "helps"
)
STATUS = PlannerStatus(
    "docs", True, "on", "measured on 412 queries: it helps", 41_000, 0.62, 310.0, 21.4, 12, 87, 940, 0, 1900, 2,
    1_700_000_000.0, 2.4, GAIN,
)  # fmt: skip


def test_status_shows_what_was_measured(daemon: CliDaemon, run: Run) -> None:
    daemon.answers["GET /planner/{index}"] = STATUS
    code, out, _ = run("planner", "status", "docs")
    assert code == 0
    words = " ".join(out.split())
    for said in (
        "planner on", "because measured on 412", "queries 41,000", "by a pattern 0.6200", "of which planning 21.4 µs",
        "patterns 87", "labels 1,900", "helps, on 412", "times as fast 1.08 (1.03 to 1.13)",
        "recall, more -0.0004 (-0.0021 to +0.0012)", "under target, more -2.00% (-4.00% to +0.00%)",
    ):  # fmt: skip
        assert said in words
    code, out, _ = run("planner", "status", "docs", "--json")
    assert '"queries_processed": 41000' in out


def test_learn_mode_and_reset(daemon: CliDaemon, run: Run) -> None:
    daemon.answers["POST /planner/{index}/learn"] = PlannerLearned("docs", 1200, 300, 100, 57, 1.9, "here")
    code, out, _ = run("planner", "learn", "docs")
    assert (code, out.strip()) == (0, "docs: 57 patterns from 1,200 queries and 300 labels, 1.9 s")
    daemon.answers["PUT /planner/{index}"] = STATUS
    assert run("planner", "mode", "docs", "on")[0] == 0
    assert daemon.seen[-1][2].mode == "on"
    assert run("planner", "mode", "docs", "sometimes")[0] == 2
    daemon.answers["POST /planner/{index}/reset"] = STATUS
    code, out, _ = run("planner", "reset", "docs")
    assert (code, out.strip()) == (0, "docs: forgotten; the planner starts anew, on")
    daemon.answers["POST /planner/{index}/learn"] = (409, ErrorBody("conflict", "index 'docs' has 3 queries", "wait"))
    code, _, err = run("planner", "learn", "docs")
    assert code == 1
    assert "has 3 queries" in err


def test_what_is_exported_can_be_imported(daemon: CliDaemon, run: Run, tmp_path: Path) -> None:
    daemon.answers["POST /planner/{index}/export"] = PlannerExport("docs", b"learnt")
    assert run("planner", "export", "docs", str(tmp_path / "learnt"))[0] == 0
    daemon.answers["POST /planner/{index}/import"] = STATUS
    assert run("planner", "import", "docs", str(tmp_path / "learnt"))[0] == 0
    assert daemon.seen[-1][2].state == b"learnt"
    code, _, err = run("planner", "import", "docs", str(tmp_path / "missing"))
    assert code == 1
    assert "can't be read: No such file or directory." in err
    (tmp_path / "noise").write_bytes(b"\xa0\xff")
    code, _, err = run("planner", "import", "docs", str(tmp_path / "noise"))
    assert code == 1
    assert "noise is no planner's state: it isn't text." in " ".join(err.split())


@pytest.mark.parametrize("pattern", [None, 7])
def test_a_search_explains_what_was_planned(daemon: CliDaemon, run: Run, pattern: int | None) -> None:
    decided = "DefaultWithAdaptation" if pattern is None else "PatternApplied"
    planned = PlannerExplanation(
        "on", True, decided, 80, 50, "graph", "graph", pattern, 0.83, 0.9, 20.0,
        [Criticality("embed", 90.0, 0.0, 1.0), Criticality("filter", 10.0, 80.0, 0.11)],
    )  # fmt: skip
    explained = Explanation(
        2, HnswConfig(), "graph", 80, 900, None, [Step("graph", 90.0)], 3, HnswEffort(80), planned
    )  # fmt: skip
    daemon.answers["POST /vectors/search"] = SearchResult("docs", 2, [[Hit("a", 0.1)]], 99.0, explained)
    code, out, _ = run("search", "docs", "words", "--explain")
    words = " ".join(out.split())
    assert code == 0
    assert f"on, acted, {decided}" in words
    assert "graph, effort 80; without it graph, effort 50" in words
    assert "critical embed 1.00, filter 0.11" in words
    assert ("pattern 7, similarity 0.83" in words) == (pattern is not None)
