"""The slot's table, transition by transition; what a profile needs; what reports mean; when memory is free."""

import itertools
import math
from typing import get_args

import pytest

from actors.profile.core import (
    MEANING,
    TRANSITIONS,
    Happened,
    ModelRef,
    Undefined,
    embedder_ref,
    gib,
    keep_alive_s,
    member,
    step,
)
from actors.profile.core_reconcile import decide, presence, why
from actors.profile.core_settle import STEADY_S, Sample, awaited, freed, owed, settled, shortfall, taken
from actors.profile.core_vram import changed, report
from actors.urls import address
from schemas.events.index import EmbedderKind, EmbedderSpec
from schemas.events.profile import Gpu, GpuProcess, GpuReading, LoadedModel, ServerReport, SlotInfo, SlotState
from schemas.profile import ModelProfile

GIB, MIB = 1 << 30, 1 << 20
NOW = 1000.0
A, B = ModelRef("ollama", "a:latest"), ModelRef("ollama", "b:latest")

# --- the table ---------------------------------------------------------------------------------

DEFINED = {
    ("empty", "load begun"): "loading",
    ("empty", "unload begun"): "unloading",
    ("loading", "loaded"): "ready",
    ("loading", "load failed"): "unloading",
    ("loading", "in doubt"): "unknown",
    ("loading", "seen ready"): "ready",
    ("loading", "seen empty"): "empty",
    ("ready", "load begun"): "loading",
    ("ready", "unload begun"): "unloading",
    ("ready", "model lost"): "empty",
    ("ready", "in doubt"): "unknown",
    ("unloading", "unloaded"): "empty",
    ("unloading", "unload stuck"): "unknown",
    ("unloading", "in doubt"): "unknown",
    ("unloading", "seen ready"): "ready",
    ("unloading", "seen empty"): "empty",
    ("unknown", "unload begun"): "unloading",
    ("unknown", "seen ready"): "ready",
    ("unknown", "seen empty"): "empty",
}
"""Written down a second time: a change of the table is a decision, not a slip."""

EVERY = list(itertools.product(get_args(SlotState), get_args(Happened)))


@pytest.mark.parametrize(("state", "happened"), EVERY, ids=" - ".join)
def test_every_transition(state: SlotState, happened: Happened) -> None:
    after = DEFINED.get((state, happened))
    if after is None:
        with pytest.raises(Undefined, match=f"the slot is {state}: '{happened}' can't happen"):
            step(state, happened)
    else:
        assert step(state, happened) == after


def test_the_tables_shape() -> None:
    assert set(TRANSITIONS) == set(get_args(SlotState))
    assert set(MEANING) == set(get_args(Happened)) == {happened for _, happened in DEFINED}
    for state in TRANSITIONS:  # no state is a trap, none is out of reach
        reached, pending = {state}, [state]
        while pending:
            for after in TRANSITIONS[pending.pop()].values():
                if after not in reached:
                    reached.add(after)
                    pending.append(after)
        assert reached == set(TRANSITIONS)
    into_ready = {(state, happened) for (state, happened), after in DEFINED.items() if after == "ready"}
    assert {happened for _, happened in into_ready} == {"loaded", "seen ready"}, "ready is only what was seen"
    assert "load begun" not in TRANSITIONS["unknown"], "nothing is loaded beside what is in doubt"


# --- what a profile needs ----------------------------------------------------------------------


class Server:
    def __init__(self, url: str, suffix: str, *default_for: EmbedderKind) -> None:
        self.url, self._suffix, self.default_for = url, suffix, default_for

    def canonical(self, model: str) -> str:
        return model if ":" in model else model + self._suffix


SERVERS = {"ollama": Server("http://o:1", ":latest", "ollama"), "llamacpp": Server("http://l:2/", "", "openai")}
ELSEWHERE = SERVERS | {"llamacpp": Server("http://l:2", "")}
"""With an [embedding] openai_url that is none of the model servers'."""


@pytest.mark.parametrize(
    ("server", "spec", "needs"),
    [
        ("ollama", None, []),
        ("ollama", EmbedderSpec("lexical"), []),
        ("ollama", EmbedderSpec("none"), []),
        ("ollama", EmbedderSpec("ollama", "e"), [ModelRef("ollama", "e:latest")]),
        ("ollama", EmbedderSpec("ollama", "e", "http://o:1/"), [ModelRef("ollama", "e:latest")]),
        ("ollama", EmbedderSpec("ollama", "e", "http://elsewhere:1"), []),
        ("ollama", EmbedderSpec("ollama", "m:latest"), []),  # its own model: once
        ("ollama", EmbedderSpec("openai", "e"), [ModelRef("llamacpp", "e")]),  # whatever the profile's server is
        ("ollama", EmbedderSpec("openai", "e", "http://o:1"), [ModelRef("ollama", "e:latest")]),
        ("ollama", EmbedderSpec("ollama", "e", "http://l:2"), []),  # which doesn't speak Ollama's API
        ("llamacpp", EmbedderSpec("openai", "e", "HTTP://L:2"), [ModelRef("llamacpp", "e")]),
        ("llamacpp", EmbedderSpec("openai", "e"), [ModelRef("llamacpp", "e")]),
        ("llamacpp", EmbedderSpec("openai", "e", "http://l:2/v1"), [ModelRef("llamacpp", "e")]),
        ("llamacpp", EmbedderSpec("openai", "e", "https://api.example.com/v1"), []),
        ("llamacpp", EmbedderSpec("ollama", "e"), [ModelRef("ollama", "e:latest")]),
    ],
)
def test_needs(server: str, spec: EmbedderSpec | None, needs: list[ModelRef]) -> None:
    profile = ModelProfile(id="p", model="m", server=server, embedder=spec, group="g", persistent=True)  # type: ignore[arg-type]
    found = member(profile, SERVERS)  # type: ignore[arg-type]
    assert found.needs == (ModelRef(server, SERVERS[server].canonical("m")), *needs)  # type: ignore[arg-type]
    assert (found.profile, found.group, found.exclusive, found.persistent) == ("p", "g", True, True)


def test_an_embedder_without_a_name_or_a_server_is_nobodys() -> None:
    assert embedder_ref(EmbedderSpec("ollama"), SERVERS) is None  # type: ignore[arg-type]
    assert embedder_ref(EmbedderSpec("ollama", "e"), {}) is None


def test_an_embedder_without_a_url_is_ours_when_its_default_is() -> None:
    assert embedder_ref(EmbedderSpec("openai", "e"), ELSEWHERE) is None  # type: ignore[arg-type]
    here = EmbedderSpec("openai", "e", "http://l:2")
    assert embedder_ref(here, ELSEWHERE) == ModelRef("llamacpp", "e")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://127.0.0.1:8080", "http://localhost:8080/v1/", True),
        ("http://GPU.lan", "http://gpu.lan:80/", True),
        ("https://gpu.lan", "https://gpu.lan:443", True),
        ("http://gpu.lan/ollama", "http://gpu.lan/ollama/", True),
        ("http://gpu.lan", "https://gpu.lan", False),
        ("http://gpu.lan:8080", "http://gpu.lan:8081", False),
        ("http://gpu.lan/one", "http://gpu.lan/other", False),
        ("http://gpu:port", "http://gpu:port", True),  # nonsense is itself
    ],
)
def test_the_same_server(one: str, other: str, same: bool) -> None:
    assert (address(one) == address(other)) is same


@pytest.mark.parametrize(
    ("text", "seconds"), [("-1", math.inf), ("0s", 0.0), ("30s", 30.0), ("5m", 300.0), ("2h", 7200.0)]
)
def test_keep_alive(text: str, seconds: float) -> None:
    assert keep_alive_s(text) == seconds


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 MiB"), (256 * MIB, "256 MiB"), (GIB - 1, "1024 MiB"), (GIB, "1.0 GiB"), (37 * GIB + GIB // 4, "37.2 GiB")],
)
def test_sizes_as_people_read_them(size: int, text: str) -> None:
    """37.2 GiB + 256 MiB are 37.5 GiB; with 0.2 GiB they wouldn't be."""
    assert gib(size) == text


@pytest.mark.parametrize("text", ["", "5", "m", "-5m", "1d", "1.5h"])
def test_no_keep_alive(text: str) -> None:
    with pytest.raises(ValueError, match="keep-alive"):
        keep_alive_s(text)


# --- what reports mean -------------------------------------------------------------------------


def model(
    ref: ModelRef = A, size: int | None = 4 * GIB, vram: int | None = 4 * GIB, expires: float | None = None
) -> LoadedModel:
    return LoadedModel(ref.server, ref.model, size, vram, expires)


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, "unseen"),
        ([], "gone"),
        ([model(B)], "gone"),
        ([model()], "whole"),
        ([model(vram=None)], "whole"),  # llama.cpp doesn't say
        ([model(vram=3 * GIB)], "partial"),
        ([model(vram=0)], "partial"),
        ([model(expires=NOW + 1)], "whole"),
        ([model(expires=NOW)], "stopping"),
        ([model(vram=0, expires=NOW - 9)], "stopping"),
    ],
)
def test_presence(listed: list[LoadedModel] | None, expected: str) -> None:
    assert presence(A, {"ollama": listed}, NOW) == expected
    assert presence(A, {}, NOW) == "unseen"


def test_a_machine_without_a_gpu_may_allow_models_on_the_cpu() -> None:
    assert presence(A, {"ollama": [model(vram=0)]}, NOW, allow_partial=True) == "whole"


@pytest.mark.parametrize("state", get_args(SlotState))
@pytest.mark.parametrize("kinds", list(itertools.product(["whole", "partial", "stopping", "gone", "unseen"], repeat=2)))
@pytest.mark.parametrize("freed", [True, False])
def test_what_is_decided_can_happen_and_is_true(state: SlotState, kinds: tuple[str, str], freed: bool) -> None:
    """Over everything that two models can look like, in every state."""
    happened = decide(state, "p", dict(zip((A, B), kinds, strict=True)), freed=freed)  # type: ignore[arg-type]
    after = state if happened is None else step(state, happened)
    if state == "empty":
        assert after == "empty"
    elif set(kinds) == {"whole"}:
        assert after == "ready"
    elif {"unseen", "stopping"} & set(kinds):
        assert after == "unknown"
    elif "gone" in kinds:
        left = {"whole", "partial"} & set(kinds)  # told to leave, before the slot is empty
        assert after == ("empty" if freed or left or state == "ready" else "unknown")
    else:
        assert after == "unknown"


def test_a_slot_that_no_profile_holds_is_never_made_ready() -> None:
    assert decide("unknown", None, {A: "whole"}) == "seen empty"
    assert decide("unknown", None, {A: "stopping"}) is None
    assert decide("unknown", None, {}) == "seen empty"


def test_why_says_it_for_every_model() -> None:
    seen = {"ollama": [model(B, vram=3 * GIB)], "llamacpp": None}
    found = {A: "gone", B: "partial", ModelRef("llamacpp", "c"): "unseen"}
    assert why(found, seen, {"llamacpp": "llama.cpp at x: connection refused"}) == (  # type: ignore[arg-type]
        "ollama/a:latest left the memory; ollama/b:latest: 3.0 GiB of its 4.0 GiB are on the GPU; "
        "llama.cpp at x: connection refused"
    )


# --- when memory is free -----------------------------------------------------------------------


def gpus(free: float, *processes: tuple[int, float], total: float = 24.0) -> GpuReading:
    """GiB; processes as (pid, GiB)."""
    of = [GpuProcess(pid, "", int(used * GIB)) for pid, used in processes] if processes else None
    return GpuReading([Gpu(0, "x", "u", int(total * GIB), int((total - free) * GIB), int(free * GIB), of)], "nvml")


NONE = GpuReading([], "none", "no driver")


def samples(*pairs: tuple[float, float]) -> list[Sample]:
    return [Sample(at, gpus(free)) for at, free in pairs]


HELD = [model(size=8 * GIB, vram=8 * GIB)]


def test_equal_readings_before_anything_came_free_are_no_rest() -> None:
    debt = owed(gpus(10), HELD)
    assert not settled(debt, samples((0, 10), (0.02, 10)), 32 * MIB)
    assert not settled(debt, samples((0, 10), (1, 10), (14, 10)), 32 * MIB)


def test_memory_that_came_free_and_rests() -> None:
    debt = owed(gpus(10), HELD)
    assert not settled(debt, samples((0, 18)), 32 * MIB)  # one reading says nothing of rest
    assert settled(debt, samples((0, 10), (0.02, 18), (0.06, 18.01)), 32 * MIB)
    assert not settled(debt, samples((0, 10), (0.02, 17.5), (0.06, 18)), 32 * MIB)
    assert not settled(debt, samples((0, 14), (0.3, 14)), 32 * MIB)  # freed in steps


def test_a_server_that_claimed_too_much_costs_a_pause_only() -> None:
    debt = owed(gpus(10), HELD)
    assert settled(debt, samples((0, 10), (1, 15), (2, 15), (1 + STEADY_S, 15)), 32 * MIB)
    assert not settled(debt, samples((0, 15), (1, 12), (2, 15), (1 + STEADY_S, 15)), 32 * MIB)
    assert not settled(debt, samples((0, 13), (1, 13), (9, 13)), 32 * MIB)  # less than half: something is stuck


def test_memory_that_never_was_readable_is_at_rest() -> None:
    assert settled(owed(NONE, HELD), [Sample(0, NONE)], 0)


def test_a_driver_that_falls_silent_in_the_middle_says_nothing_about_rest() -> None:
    assert not settled(owed(gpus(10), HELD), [Sample(0, gpus(10)), Sample(1, NONE)], 0)
    assert not settled(owed(gpus(10), HELD), [Sample(0, gpus(10)), Sample(1, NONE), Sample(9, NONE)], 0)
    back = [Sample(0, gpus(10)), Sample(1, NONE), Sample(2, gpus(18)), Sample(3, gpus(18))]
    assert settled(owed(gpus(10), HELD), back, 0)
    assert not settled(owed(NONE, HELD), [], 0)


def test_models_elsewhere_owe_nothing_here() -> None:
    assert owed(gpus(23), HELD).expected is None  # 1 GiB is used, they claim 8
    assert owed(gpus(10), [model(size=None, vram=None)]).expected is None
    assert settled(owed(gpus(23), HELD), samples((0, 23), (0.02, 23)), 32 * MIB)
    assert owed(gpus(10), HELD).expected == 8 * GIB


def test_a_server_that_doesnt_say_where_a_model_is_may_have_it_on_the_cpu() -> None:
    debt = owed(gpus(10), [model(vram=None), model(B, 8 * GIB, 8 * GIB)])
    assert (debt.expected, debt.reported) == (12 * GIB, 8 * GIB)
    assert settled(debt, samples((0, 22), (0.02, 22)), 32 * MIB)
    assert not settled(debt, samples((0, 18), (1, 18)), 32 * MIB)
    assert settled(debt, samples((0, 18), (1, 18), (STEADY_S, 18)), 32 * MIB)
    assert not settled(debt, samples((0, 13), (1, 13), (STEADY_S, 13)), 32 * MIB)
    assert awaited(debt) == 14 * GIB


def test_a_load_that_no_list_shows_must_have_come_to_rest() -> None:
    debt = owed(gpus(10), [LoadedModel("llamacpp", "a")], unlisted=True)
    assert debt.expected is None
    assert not settled(debt, samples((0, 10), (0.02, 10)), 32 * MIB)
    assert not settled(debt, samples((0, 10), (1, 12), (STEADY_S, 12)), 32 * MIB)
    assert settled(debt, samples((0, 12), (1, 12), (STEADY_S, 12)), 32 * MIB)
    assert settled(owed(NONE, HELD, unlisted=True), [Sample(0, NONE)], 0)


def test_what_others_free_meanwhile_isnt_counted() -> None:
    debt = owed(gpus(10), HELD)
    assert not settled(debt, samples((0, 18), (0.02, 18)), 32 * MIB, others=3 * GIB)
    assert settled(debt, samples((0, 21), (0.02, 21)), 32 * MIB, others=3 * GIB)
    assert settled(debt, samples((0, 15), (0.02, 15)), 32 * MIB, others=-3 * GIB)


def test_a_load_that_was_broken_off_owes_what_has_gone_since_before_it() -> None:
    unlisted = [LoadedModel("ollama", "a:latest")]
    assert taken(gpus(18), gpus(12), unlisted).expected == 6 * GIB
    assert taken(gpus(18), gpus(12), HELD).expected == 8 * GIB
    assert taken(gpus(12), gpus(12), unlisted).expected is None
    assert taken(None, gpus(12), unlisted).expected is None
    assert taken(NONE, gpus(12), HELD).expected == 8 * GIB


def test_a_new_programs_memory_is_no_loss() -> None:
    before, after = gpus(10, (1, 8.0), (2, 6.0)), gpus(12, (2, 6.0), (3, 6.0))
    assert freed(before, after) == 8 * GIB
    assert freed(gpus(10), gpus(12, (3, 6.0))) == 2 * GIB  # who was there before can't be known
    assert freed(before, NONE) is None


def test_what_is_awaited_and_what_is_short() -> None:
    debt = owed(gpus(10), HELD)
    assert awaited(debt) == 14 * GIB
    assert awaited(owed(NONE, HELD)) is None
    assert shortfall(debt, gpus(12)) == (2 * GIB, 8 * GIB)
    assert shortfall(debt, NONE) is None


# --- the report --------------------------------------------------------------------------------

SLOT = SlotInfo("empty", None, None, NOW)


def test_the_report_adds_up() -> None:
    servers = [
        ServerReport("ollama", "http://o", True, models=[model(size=8 * GIB, vram=6 * GIB), model(B, vram=None)]),
        ServerReport("llamacpp", "http://l", False, "connection refused"),
    ]
    vram = report(gpus(10), servers, SLOT, NOW)
    assert (vram.total, vram.used, vram.free) == (24 * GIB, 14 * GIB, 10 * GIB)
    assert (vram.accounted, vram.unaccounted) == (6 * GIB, 8 * GIB)
    assert report(gpus(20), servers, SLOT, NOW).unaccounted == 0
    blind = report(NONE, servers, SLOT, NOW)
    assert (blind.gpus, blind.reason, blind.used, blind.accounted, blind.unaccounted) == (
        [],
        "no driver",
        None,
        6 * GIB,
        None,
    )


def test_only_what_matters_is_told() -> None:
    def at(free: float, *models: LoadedModel) -> object:
        return report(gpus(free), [ServerReport("ollama", "http://o", True, models=list(models))], SLOT, NOW)

    before = at(10, model(expires=NOW))
    assert changed(None, before)  # type: ignore[arg-type]
    assert not changed(before, at(10.2, model(expires=NOW + 5)))  # type: ignore[arg-type]
    assert changed(before, at(10.3, model()))  # type: ignore[arg-type]
    assert changed(before, at(10))  # type: ignore[arg-type]
    assert changed(before, at(10, model(vram=GIB)))  # type: ignore[arg-type]
    assert changed(before, report(NONE, [], SLOT, NOW))  # type: ignore[arg-type]
