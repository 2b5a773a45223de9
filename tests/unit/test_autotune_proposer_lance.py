"""The ε-greedy rule on Lance: the same journal, the same proposal, and none that can't be built."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.autotune.facts import Facts, backends_of, best_known, other_backend, serves_as_wanted
from actors.autotune.grid import by_lance, grid_of
from actors.autotune.proposer import exhausted, journal_champion, propose
from actors.autotune.replay import replay
from actors.autotune.spaces import LanceSpace, Policy, lance_by_rule
from actors.backends.lance_rules import first_config, resolve
from schemas.config import DEFAULT_CONFIG, HnswConfig, IndexConfig, LanceBuild, LanceConfig, LanceEffort
from schemas.documents.index import GenerationDocument, IndexDocument
from schemas.documents.promotion import PromotionDocument, PromotionEntry
from schemas.documents.trial import TrialPoint
from schemas.events.autotune import LancePoint, Proposal, RunTrial, StartAutotune
from schemas.events.index import BuildGeneration, EmbedderSpec
from schemas.names import Backend, VectorBackend
from tests.unit.tuning_surface import lance_point, point, run

RULE = Policy(0.95, backends=("lance",), dim=64, rows=100_000)
DEFAULT = first_config(resolve(100_000, 64))


def order_of(proposal: Proposal, number: int, champion: str | None) -> RunTrial:
    return RunTrial(
        trial=f"t-{number}", campaign="c-1", index="docs", proposal=proposal, target_recall=0.95, harness=None,
        asked_by="agent", trigger="m", trigger_tag="t", champion_trial=champion,
    )  # fmt: skip


def journal_of(
    proposals: int, rule: Policy = RULE, index: str = "docs", live: IndexConfig = DEFAULT
) -> list[TrialPoint]:
    """A journal as a campaign writes it."""
    first = Proposal(live, "champion", "champion", extra=[live.effort])
    journal = run(order_of(first, 0, None), live, rows=rule.rows)
    for number in range(1, proposals + 1):
        proposal = propose(index, journal, rule)
        if proposal is None:
            break
        journal += run(order_of(proposal, number, "t-0"), live, rows=rule.rows)
    return journal


@settings(max_examples=20, deadline=None)
@given(index=st.sampled_from(["docs", "a"]), epsilon=st.floats(0, 1), trials=st.integers(0, 12))
def test_replay_makes_every_proposal_again(index: str, epsilon: float, trials: int) -> None:
    rule = msgspec.structs.replace(RULE, epsilon=epsilon)
    journal = journal_of(trials, rule, index)
    report = replay(index, journal, RULE)
    assert len(report.proposals) == trials
    assert all(proposal.same for proposal in report.proposals)
    assert all(isinstance(proposal.replayed, LanceConfig) for proposal in report.proposals)
    assert report.next == propose(index, journal, RULE)


def test_replay_sees_rows_that_were_tampered_with() -> None:
    journal = journal_of(4)
    forged = [
        msgspec.structs.replace(p, partitions=(p.partitions or 0) + 1) if p.trial == "t-2" else p for p in journal
    ]
    assert next(p.trial for p in replay("docs", forged, RULE).proposals if not p.same) == "t-2"
    graph = point(trial="t-2", proposer="exploit", policy=journal[-1].policy, journal_rows=2)
    assert not replay("docs", [*journal[:2], graph], RULE).proposals[0].same


def test_a_journal_of_graphs_alone_is_replayed_as_it_was() -> None:
    """Rows of before Lance: their policy names neither backends nor rows."""
    old = msgspec.json.encode({"target_recall": 0.95, "epsilon": 0.25}).decode()
    rule = msgspec.json.decode(old, type=Policy)
    proposal = propose("docs", [point()], rule)
    assert proposal is not None
    assert isinstance(proposal.config, HnswConfig)


def test_no_build_twice_and_everything_there_is_in_the_end() -> None:
    rule = Policy(0.95, backends=("lance",), dim=16, rows=3000)
    journal = journal_of(200, rule, live=first_config(resolve(3000, 16)))
    builds = [p.config.build for p in journal if p.chosen]
    assert len(set(builds)) == len(builds)
    assert set(builds) == set(LanceSpace(rule).builds())
    assert propose("docs", journal, rule) is None


@given(rows=st.integers(1, 2_000_000), dim=st.integers(1, 2048))
def test_everything_proposed_can_be_built(rows: int, dim: int) -> None:
    for build in LanceSpace(Policy(0.95, backends=("lance",), dim=dim, rows=rows)).builds():
        again = resolve(rows, dim, build.index_type, build.partitions, build.sub_vectors or None)
        assert again == build
        assert msgspec.convert(msgspec.to_builtins(first_config(build)), LanceConfig) == first_config(build)


def test_dimensions_that_a_type_does_not_allow_leave_it_out() -> None:
    assert {build.index_type for build in lance_by_rule(100_000, 65)} == {"IVF_FLAT", "IVF_PQ", "IVF_HNSW_SQ"}
    assert {build.index_type for build in lance_by_rule(100, 64)} == {"IVF_FLAT", "IVF_HNSW_SQ"}
    subs = {b.sub_vectors for b in LanceSpace(RULE).builds() if b.index_type == "IVF_PQ"}
    assert subs == {16, 8, 4}


def test_exploit_is_one_step_from_the_champion() -> None:
    greedy = msgspec.structs.replace(RULE, epsilon=0.0)
    champion = lance_point(LanceConfig("IVF_PQ", 62, 8, 20, 10))
    seen = {propose(f"index-{i}", [champion], greedy).config.build for i in range(100)}  # type: ignore[union-attr]
    assert seen == {
        LanceBuild("IVF_PQ", 31, 8), LanceBuild("IVF_PQ", 124, 8),
        LanceBuild("IVF_PQ", 62, 4), LanceBuild("IVF_PQ", 62, 16),
        LanceBuild("IVF_RQ", 62), LanceBuild("IVF_FLAT", 62), LanceBuild("IVF_HNSW_SQ", 1),
    }  # fmt: skip


def test_a_champion_that_misses_in_all_its_cells_needs_what_keeps_more_of_a_vector() -> None:
    greedy = msgspec.structs.replace(RULE, epsilon=0.0)
    champion = lance_point(LanceConfig("IVF_PQ", 62, 8, 62, 20), recall_lower=0.9)
    seen = {propose(f"index-{i}", [champion], greedy).config.build for i in range(100)}  # type: ignore[union-attr]
    assert {build.index_type for build in seen} == {"IVF_PQ", "IVF_RQ", "IVF_FLAT", "IVF_HNSW_SQ"}
    assert LanceBuild("IVF_PQ", 62, 16) in seen
    assert LanceBuild("IVF_PQ", 124, 8) not in seen
    assert LanceBuild("IVF_PQ", 62, 4) not in seen


def test_the_search_goes_on_where_the_champion_is() -> None:
    """Of `auto`: a graph was live, and Lance's default beat it."""
    both = msgspec.structs.replace(RULE, backends=("hnsw", "lance"))
    graph = point(rows=100_000)
    won = lance_point(DEFAULT, trial="t-2", proposer="backend", champion_trial="t-1", champion_ratio=0.8,
                      champion_ratio_high=0.85)  # fmt: skip
    lost = msgspec.structs.replace(won, champion_ratio=1.8, champion_ratio_high=1.85)
    assert isinstance(propose("docs", [graph, won], both).config, LanceConfig)  # type: ignore[union-attr]
    assert isinstance(propose("docs", [graph, lost], both).config, HnswConfig)  # type: ignore[union-attr]
    assert journal_champion([graph, won], 0.95) is won
    only = msgspec.structs.replace(RULE, backends=("hnsw",))
    again = propose("docs", [graph, won], only)
    assert again is not None
    assert isinstance(again.config, HnswConfig), "one that may not serve is no place to step from"


def test_neighbourhood_exhausted() -> None:
    champion = lance_point(DEFAULT)
    assert not exhausted([champion], RULE)
    near = LanceSpace(RULE).steps(champion)
    tried = [
        lance_point(first_config(b), trial=f"t-{i}", recall_lower=0.1, proposer="exploit") for i, b in enumerate(near)
    ]  # type: ignore[arg-type]
    assert exhausted([champion, *tried], RULE)


# --- facts -------------------------------------------------------------------------------------


def index(backend: VectorBackend, companions: list[Backend] | None = None, **more: object) -> IndexDocument:
    document = IndexDocument(
        index="docs", dataset="rows", column="v", metric="l2", backend=backend, target_recall=0.95,
        embedder=EmbedderSpec(kind="none"), embedder_key=None, dim=64, config=HnswConfig(), created=0.0,
        companions=companions or [],
    )  # fmt: skip
    return msgspec.structs.replace(document, **more)


def generation(config: IndexConfig) -> GenerationDocument:
    return GenerationDocument(
        index="docs", generation=3, config=config, key="k", sha256="0" * 64, bytes=1, version=1, rows=100_000,
        build_s=1.0, reason="", library="l", built=0.0,
    )  # fmt: skip


def entry(config: IndexConfig, trial: str = "t-1") -> PromotionEntry:
    return PromotionEntry(
        config=config, trial=trial, recall=0.97, recall_lower=0.96, p50_us=1.0, promoted_by="agent", note="",
        time=0.0, cause=trial,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("wish", "companions", "serving", "may"),
    [
        ("hnsw", ["lance"], "hnsw", ["hnsw"]),
        ("lance", ["hnsw"], "lance", ["lance"]),
        ("auto", [], "hnsw", ["hnsw"]),
        ("auto", ["lance"], "hnsw", ["hnsw", "lance"]),
        ("auto", ["hnsw"], "lance", ["lance", "hnsw"]),
        ("auto", [], None, ["hnsw"]),
    ],
)
def test_what_may_be_tried(
    wish: VectorBackend, companions: list[Backend], serving: Backend | None, may: list[Backend]
) -> None:
    assert backends_of(index(wish, companions), serving) == may


def facts(points: list[TrialPoint], rows: int = 1000, config: IndexConfig = DEFAULT_CONFIG, **more: object) -> Facts:
    values = {"backends": ("hnsw", "lance"), "dim": 64, "rows": rows, **more}
    return Facts(0.95, config, True, points, **values)  # type: ignore[arg-type]


def test_the_other_backend_is_due_at_first_and_when_the_rows_doubled() -> None:
    assert other_backend(facts([point()])) == "lance"
    assert other_backend(facts([point()], backends=("hnsw",))) is None
    tried = [point(), lance_point(DEFAULT, trial="t-2", proposer="backend", rows=1000)]
    assert other_backend(facts(tried, 1999)) is None
    assert other_backend(facts(tried, 2000)) == "lance"
    assert other_backend(facts(tried, 1000, config=DEFAULT)) is None
    assert other_backend(facts(tried, 2000, config=DEFAULT)) == "hnsw"


def test_the_other_backend_begins_where_it_was_best() -> None:
    assert best_known(facts([]), "hnsw") == DEFAULT_CONFIG
    assert best_known(facts([], 100_000), "lance") == DEFAULT
    flat = first_config(LanceBuild("IVF_FLAT", 4))
    assert best_known(facts([], lance=flat), "lance") == flat
    promoted = first_config(LanceBuild("IVF_RQ", 9))
    document = PromotionDocument(index="docs", current=entry(HnswConfig(8)), history=[entry(promoted)])
    assert best_known(facts([], lance=flat, promotion=document), "lance") == promoted


def test_what_should_serve() -> None:
    graph, lance = HnswConfig(8), first_config(LanceBuild("IVF_RQ", 9))
    head = PromotionDocument(index="docs", current=entry(lance), history=[entry(graph)])
    assert serves_as_wanted(index("hnsw"), generation(graph), head)
    assert not serves_as_wanted(index("hnsw"), generation(lance), head)
    assert serves_as_wanted(index("lance"), generation(lance), head)
    assert not serves_as_wanted(index("lance"), generation(graph), head)
    assert serves_as_wanted(index("auto"), generation(lance), head)
    assert serves_as_wanted(index("auto"), generation(graph), head), "too large for memory, say: it isn't on its way"
    order = BuildGeneration("docs", 4, lance, "promoted")
    assert not serves_as_wanted(index("auto", building=order), generation(graph), head)
    assert serves_as_wanted(index("lance"), generation(lance), None), "whatever the rule gave"
    assert not serves_as_wanted(index("lance", lance=DEFAULT), generation(lance), None)
    assert not serves_as_wanted(index("lance"), generation(graph), None)
    assert serves_as_wanted(index("hnsw"), generation(HnswConfig()), None)


# --- grids -------------------------------------------------------------------------------------


def test_the_default_grid_of_an_index_that_lance_serves_is_one_of_each_type() -> None:
    grid = grid_of(StartAutotune("docs"), "lance", 100_000, 64, 400)
    assert [proposal.config for proposal in grid] == [
        first_config(resolve(100_000, 64, kind)) for kind in ("IVF_RQ", "IVF_FLAT", "IVF_PQ", "IVF_HNSW_SQ")
    ]
    assert grid[0].rule == "grid: IVF_RQ, 62 partitions"
    assert {p.config.backend for p in grid_of(StartAutotune("docs"), "hnsw", 100_000, 64, 400)} == {"hnsw"}


def test_a_grid_of_lance_points() -> None:
    asked = [LancePoint("IVF_RQ", 64), LancePoint("IVF_PQ", sub_vectors=16), LancePoint("IVF_RQ", 64)]
    grid = grid_of(StartAutotune("docs", lance=asked, objective="recall_first"), "hnsw", 100_000, 64, 400)
    assert [proposal.config.build for proposal in grid] == [LanceBuild("IVF_RQ", 64), LanceBuild("IVF_PQ", 62, 16)]
    assert grid[0].extra == [LanceEffort(64, 8)], "what it can reach at all"
    with pytest.raises(ValueError, match="65 dimensions are no multiple of 8"):
        grid_of(StartAutotune("docs", lance=asked), "hnsw", 100_000, 65, 400)
    assert by_lance([]) == []
