"""Who leaves for a profile: the rules one by one, and the whole against a brute-force oracle."""

from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.profile.core import Member
from actors.profile.core_eviction import (
    EXACT,
    Memory,
    Plan,
    cheapest,
    cost,
    known_sizes,
    no_room,
    plan,
    reclaimed,
    unshared,
    unwelcome,
)
from schemas.events.base import Refusal
from schemas.events.profile import LoadedModel, ModelRef

GIB = 1 << 30
NOW = 1000.0


def ref(name: str) -> ModelRef:
    return ModelRef("ollama", name)


def run(name: str, size: float = 4, vram: float | None = -1, expires: float | None = None) -> LoadedModel:
    on_gpu = size if vram == -1 else vram
    return LoadedModel("ollama", name, int(size * GIB), None if on_gpu is None else int(on_gpu * GIB), expires)


def who(profile: str, *needs: str, group: str = "g", exclusive: bool = True, persistent: bool = False) -> Member:
    return Member(profile, tuple(ref(need) for need in needs), group, exclusive, persistent)


def memory(
    free: float | None = 100, headroom: float = 0, load_s: dict[str, float] | None = None, **sizes: float
) -> Memory:
    return Memory(
        None if free is None else int(free * GIB),
        int(headroom * GIB),
        {ref(name): int(size * GIB) for name, size in sizes.items()},
        {ref(name): seconds for name, seconds in (load_s or {}).items()},
    )


def names(found: Plan | Refusal) -> tuple[list[str], list[str], list[str]]:
    assert isinstance(found, Plan), found
    return (
        [each.model for each in found.evict],
        [each.model for each in found.load],
        [each.model for each in found.keep],
    )


# --- the rules ---------------------------------------------------------------------------------


def test_an_exclusive_target_is_alone() -> None:
    target = who("t", "t")
    found = plan(target, [run("a"), run("x")], [target, who("a", "a", exclusive=False)], "a", memory(), NOW)
    assert names(found) == (["a", "x"], ["t"], [])


def test_an_exclusive_resident_leaves_for_any_target() -> None:
    target = who("t", "t", exclusive=False, group="other")
    members = [target, who("a", "a", "e"), who("c", "c", exclusive=False, group="third")]
    found = plan(target, [run("a"), run("e"), run("c"), run("x")], members, "a", memory(), NOW)
    assert names(found) == (["a", "e"], ["t"], [])


def test_a_shared_embedder_stays_and_a_same_model_isnt_touched() -> None:
    target = who("t", "t", "e")
    members = [target, who("a", "a", "e"), who("b", "t")]
    assert names(plan(target, [run("a"), run("e")], members, "a", memory(), NOW)) == (["a"], ["t"], ["e"])
    assert names(plan(target, [run("t"), run("e")], members, "b", memory(0), NOW)) == ([], [], ["t", "e"])


def test_members_of_a_group_take_turns_and_other_groups_stay() -> None:
    target = who("t", "t", exclusive=False)
    members = [
        target,
        who("a", "a", "e", exclusive=False),
        who("b", "b", "e", exclusive=False, group="other"),
    ]
    found = plan(target, [run("a"), run("b"), run("e"), run("x")], members, "a", memory(), NOW)
    assert names(found) == (["a"], ["t"], [])  # e is b's too


def test_persistent_members_stay_unless_exclusive_against_exclusive() -> None:
    target = who("t", "t")
    loose = who("p", "p", "e", exclusive=False, persistent=True)
    found = plan(target, [run("p"), run("e"), run("x")], [target, loose], None, memory(), NOW)
    assert names(found) == (["x"], ["t"], [])
    strict = who("p", "p", persistent=True)
    refused = plan(target, [run("p")], [target, strict], "p", memory(), NOW)
    assert isinstance(refused, Refusal)
    assert refused.status == "conflict"
    assert "deactivate p" in refused.hint
    assert names(plan(strict, [run("p")], [target, strict], "p", memory(), NOW)) == ([], [], ["p"])
    assert names(plan(target, [], [target, strict], None, memory(), NOW)) == ([], ["t"], [])


@pytest.mark.parametrize("half", [run("t", 4, 2), run("t", expires=NOW)], ids=["partial", "stopping"])
def test_a_needed_model_that_is_half_there_leaves_and_is_loaded(half: LoadedModel) -> None:
    target = who("t", "t")
    assert names(plan(target, [half], [target], "t", memory(0, t=2), NOW)) == (["t"], ["t"], [])


def test_on_a_machine_that_allows_it_a_partial_model_is_whole() -> None:
    target = who("t", "t")
    assert names(plan(target, [run("t", 4, 0)], [target], None, memory(), NOW, allow_partial=True)) == ([], [], ["t"])


def test_what_may_stay_leaves_only_for_room_and_cheapest_first() -> None:
    target = who("t", "t", exclusive=False)
    running = [run("slow"), run("quick"), run("old", expires=NOW)]
    load_s = {"slow": 30.0, "quick": 3.0}
    assert names(plan(target, running, [target], None, memory(8, t=8, load_s=load_s), NOW))[0] == []
    assert names(plan(target, running, [target], None, memory(4, t=8, load_s=load_s), NOW))[0] == ["old"]
    assert names(plan(target, running, [target], None, memory(0, t=8, load_s=load_s), NOW))[0] == ["old", "quick"]
    assert names(plan(target, running, [target], None, memory(0, t=9, load_s=load_s), NOW))[0] == [
        "old",
        "quick",
        "slow",
    ]


def test_of_equal_cost_the_one_that_would_leave_soonest_goes() -> None:
    target = who("t", "t", exclusive=False)
    running = [run("a"), run("b", expires=NOW + 60), run("c", expires=NOW + 30)]
    assert names(plan(target, running, [target], None, memory(0, t=4), NOW))[0] == ["c"]


@pytest.mark.parametrize("exclusive", [True, False])
def test_only_the_active_profile_makes_way_for_nobody(exclusive: bool) -> None:
    """A model of it that was preloaded, or that a user's client has loaded, blocks no one."""
    target, keeper = who("t", "t", exclusive=exclusive), who("p", "p", persistent=True)
    members, free = [target, keeper], memory(20, t=4)
    assert names(plan(target, [run("p")], members, None, free, NOW)) == (["p"], ["t"], [])
    refused = plan(target, [run("p")], members, "p", free, NOW)
    assert isinstance(refused, Refusal)
    assert refused.reason == "profile 'p' is active, persistent and exclusive, with ollama/p in memory"


# --- admission ---------------------------------------------------------------------------------


def test_what_cant_fit_is_refused_with_the_arithmetic() -> None:
    target = who("t", "t", "e", exclusive=False)
    members = [target, who("p", "p", exclusive=False, persistent=True, group="other")]
    refused = plan(target, [run("a", 6.1), run("p", 3)], members, None, memory(2, 0.3, t=9, e=0.3), NOW)
    assert isinstance(refused, Refusal)
    assert refused.status == "invalid"
    assert refused.reason == (
        "profile 't' needs 9.6 GiB of GPU memory (t 9.0 GiB + e 307 MiB + headroom 307 MiB), but 8.1 GiB can be had: "
        "2.0 GiB free + 6.1 GiB of models that may leave (a 6.1 GiB); persistent profiles keep p 3.0 GiB"
    )
    assert refused.hint.startswith("nothing was unloaded; lakehouse profile deactivate p, which is persistent; or use")
    alone = plan(target, [run("a", 6.1)], members, None, memory(2, 0.3, t=9, e=0.3), NOW)
    assert isinstance(alone, Refusal)
    assert "persistent" not in alone.reason + alone.hint


def test_headroom_is_needed_to_the_byte() -> None:
    target = who("t", "t")
    exactly = Memory(10 * GIB, GIB, {ref("t"): 13 * GIB})
    assert isinstance(plan(target, [run("a", 4)], [target], None, exactly, NOW), Plan)
    assert isinstance(
        plan(target, [run("a", 4)], [target], None, Memory(10 * GIB, GIB + 1, exactly.sizes), NOW), Refusal
    )


def test_without_a_reading_nothing_is_checked_and_it_is_said() -> None:
    target = who("t", "t")
    found = plan(target, [run("a")], [target], None, memory(None, t=1000), NOW)
    assert names(found) == (["a"], ["t"], [])
    assert isinstance(found, Plan)
    assert found.blind == "GPU memory can't be read"


def test_a_model_of_unknown_size_counts_as_nothing_and_that_is_said() -> None:
    target = who("t", "t", "e", exclusive=False)
    found = plan(target, [], [target], None, memory(8, t=4), NOW)
    assert isinstance(found, Plan)
    assert found.blind == "how much memory ollama/e will take isn't known"
    assert plan(target, [run("e")], [target], None, memory(8, t=4), NOW).blind == "", "it is there"  # type: ignore[union-attr]
    refused = plan(target, [], [target], None, memory(3, t=4), NOW)
    assert isinstance(refused, Refusal)
    assert "(t 4.0 GiB + e ? + headroom 0 MiB)" in refused.reason


def test_of_two_sizes_the_larger_counts() -> None:
    a, b, c, d = (ref(name) for name in "abcd")
    told = {a: 5, b: 3, c: None}
    assert known_sizes(told, {a: 4, b: 4, c: 7, d: 1}) == {a: 5, b: 4, c: 7, d: 1}
    assert known_sizes({c: None}, {}) == {}


def test_a_model_whose_server_says_nothing_frees_what_it_was_known_to_need() -> None:
    target = who("t", "t")
    assert isinstance(plan(target, [run("a", vram=None)], [target], None, memory(0, t=5, a=5), NOW), Plan)
    assert isinstance(plan(target, [run("a", vram=None)], [target], None, memory(0, t=5, a=4), NOW), Refusal)


# --- against an oracle -------------------------------------------------------------------------

NAMES = ["a", "b", "c", "d", "e", "f"]
models = st.lists(
    st.builds(run, st.sampled_from(NAMES), st.integers(1, 9), st.just(-1), st.sampled_from([None, NOW, NOW + 9])),
    unique_by=lambda model: model.model,
    max_size=6,
)
profiles = st.lists(
    st.builds(
        lambda name, needs, group, exclusive, persistent: who(
            name, *needs, group=group, exclusive=exclusive, persistent=persistent
        ),
        st.sampled_from(["p", "q", "r", "s"]),
        st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True),
        st.sampled_from(["g", "h"]),
        st.booleans(),
        st.booleans(),
    ),
    unique_by=lambda each: each.profile,
    min_size=1,
    max_size=4,
)
loads = st.dictionaries(st.sampled_from(NAMES), st.floats(0.1, 60), max_size=4)


def acceptable(
    gone: set[str], target: Member, running: list[LoadedModel], members: list[Member], active: str | None
) -> bool:
    """The rules, said over the outcome: who is left, and may these be together?"""
    left = [model.model for model in running if model.model not in gone]
    needs = {need.model for need in target.needs}
    before = {model.model for model in running}
    others = [each for each in members if each.profile != target.profile]
    mine = {need.model for each in others if each.profile == active for need in each.needs[:1]}
    resident = [
        each
        for each in others
        if each.profile == active or (each.needs[0].model in before and each.needs[0].model not in mine)
    ]
    for model in running:
        name = model.model
        holders = [each for each in resident if ref(name) in each.needs]
        persists = any(each.persistent and (each.profile == active or not each.exclusive) for each in holders)
        if name in needs:
            half = model.expires_at is not None and model.expires_at <= NOW
            if half != (name in gone):
                return False
        elif persists and name in gone:
            return False
        elif not persists and name in left:
            if target.exclusive or any(each.exclusive for each in holders):
                return False
            if holders and all(each.group == target.group for each in holders):
                return False
    return True


@pytest.mark.slow
@given(models, profiles, st.integers(0, 3), st.booleans(), st.integers(0, 20), loads)
@settings(max_examples=400, deadline=None)
def test_the_plan_is_the_cheapest_of_all_acceptable_ones(
    running: list[LoadedModel], members: list[Member], which: int, held: bool, free: int, load_s: dict[str, float]
) -> None:
    target = members[which % len(members)]
    active = members[0].profile if held else None
    known = memory(free, 1, load_s, **dict.fromkeys(NAMES, 5.0))
    found = plan(target, running, members, active, known, NOW)

    def short(gone: set[str]) -> int:
        load = [need for need in target.needs if need.model not in {model.model for model in running} - gone]
        needed = len(load) * 5 * GIB + GIB if load else 0
        return needed - free * GIB - sum(reclaimed(model, known) for model in running if model.model in gone)

    def price(gone: set[str]) -> float:
        return sum(cost(model, known, NOW) for model in running if model.model in gone)

    here = [model.model for model in running]
    sets = [set(each) for each in chain.from_iterable(combinations(here, count) for count in range(len(here) + 1))]
    fine = [gone for gone in sets if acceptable(gone, target, running, members, active)]
    fit = [
        gone
        for gone in fine
        if short(gone) <= 0 or all(need.model in here and need.model not in gone for need in target.needs)
    ]
    if isinstance(found, Refusal) and found.status == "conflict":
        blocker = next(each for each in members if f"profile {each.profile!r} " in found.reason)
        assert blocker.persistent
        assert blocker.profile == active
        assert blocker.exclusive
        assert blocker.needs[0] not in target.needs
        return
    if isinstance(found, Refusal):
        assert fit == []
        return
    gone = {model.model for model in found.evict}
    assert gone in fit
    assert price(gone) == pytest.approx(min(price(each) for each in fit))
    assert {need.model for need in found.load} == {need.model for need in target.needs} - (set(here) - gone)
    assert {need.model for need in found.keep} == {need.model for need in target.needs} & (set(here) - gone)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.floats(0.1, 60)), min_size=EXACT + 1, max_size=EXACT + 8),
    st.integers(1, 60),
)
@settings(deadline=None)
def test_beyond_the_exact_the_set_is_enough_and_nobody_leaves_for_nothing(
    each: list[tuple[int, float]], short: int
) -> None:
    running = [run(f"m{n}", size) for n, (size, _) in enumerate(each)]
    known = memory(load_s={f"m{n}": seconds for n, (_, seconds) in enumerate(each)})
    chosen = cheapest(running, short * GIB, known, NOW)
    if chosen is None:
        assert sum(size for size, _ in each) < short
        return
    freed = sum(reclaimed(model, known) for model in chosen)
    assert freed >= short * GIB
    assert all(freed - reclaimed(model, known) < short * GIB for model in chosen)


# --- going and coming beside others ------------------------------------------------------------


def test_a_deactivated_profile_leaves_what_others_need() -> None:
    others = [
        who("b", "b", "e", exclusive=False),
        who("c", "c", "x", exclusive=False),  # not resident
        who("twin", "a", "y"),  # the same model is no reason to stay
    ]
    running = [run("a"), run("e"), run("x"), run("y"), run("b")]
    refs = [ref("a"), ref("e"), ref("x"), ref("y"), ref("z")]
    assert [model.model for model in unshared(refs, running, others, None)] == ["a", "x", "y"]
    assert [model.model for model in unshared([ref("a")], running, others, "twin")] == []


def test_nothing_is_loaded_beside_an_exclusive_profile_but_its_own_and_persistent_ones() -> None:
    members = [who("a", "a", "e"), who("p", "p", exclusive=False, persistent=True), who("n", "n", exclusive=False)]
    running = [run("a")]
    refused = unwelcome(ref("n"), running, members, "a")
    assert isinstance(refused, Refusal)
    assert "exclusive profile 'a'" in refused.reason
    assert unwelcome(ref("x"), running, members, None) is not None
    assert unwelcome(ref("e"), running, members, "a") is None
    assert unwelcome(ref("p"), running, members, "a") is None
    assert unwelcome(ref("x"), [run("n")], members, "n") is None


def test_an_exclusive_profiles_model_isnt_loaded_beside_strangers() -> None:
    members = [who("a", "a", "e"), who("p", "p", exclusive=False, persistent=True)]
    refused = unwelcome(ref("a"), [run("x")], members, None)
    assert isinstance(refused, Refusal)
    assert "profile activate a" in refused.hint
    assert unwelcome(ref("a"), [run("e"), run("p")], members, None) is None
    assert unwelcome(ref("a"), [], members, None) is None


def test_no_room_beside() -> None:
    refused = no_room(ref("t"), memory(4, 0.5, t=4))
    assert isinstance(refused, Refusal)
    assert "4.0 GiB + 512 MiB headroom = 4.5 GiB, but 4.0 GiB" in refused.reason
    assert no_room(ref("t"), memory(4.5, 0.5, t=4)) is None
    assert no_room(ref("t"), memory(None, t=4)) is None
