"""What the gate decides: corpora, mixes, which weights are put in, which adapters a prompt gets."""

import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.gate import core
from actors.gate.core import NoMix
from actors.gate.core_minimise import compass
from actors.gate.core_modelfile import Unquotable, modelfile
from schemas.documents.gate import GateEvent
from schemas.events.index import EmbedderSpec
from schemas.gate import AdapterWeight, Example, GateRun
from schemas.profile import Adapter, ModelProfile

NAMES = ["code", "prose", "law"]
PROFILE = ModelProfile(id="p", model="base", server="llamacpp", adapters=[Adapter(name) for name in NAMES])


def run(**more: Any) -> GateRun:
    given: dict[str, Any] = {
        "run": "r1", "profile": "p", "mode": "trained", "adapters": NAMES, "samples": [4, 5, 6], "base_model": "base",
        "base_revision": "", "embedder": EmbedderSpec(), "embedder_identity": "lexical:1", "input_dim": 384,
        "hidden_dim": 64, "seed": 42, "steps": 200, "corpus_sha256": "0" * 64, "train_loss": 0.1, "held_out_loss": 0.2,
        "uniform_loss": math.log(3), "mean_weights": [0.2, 0.3, 0.5], "created": 1.0,
    }  # fmt: skip
    return GateRun(**{**given, **more})


def events(of: GateRun) -> list[GateEvent]:
    return core.events_of(of, 1.0)


def weights(found: Any) -> list[float]:
    return [one.weight for one in found]


# --- mixes --------------------------------------------------------------------------------------


def test_a_mix_has_every_declared_adapter_in_the_declared_order() -> None:
    mix = core.parse_mix("law:1, code:0.5", NAMES)
    assert mix == [AdapterWeight("code", 0.5), AdapterWeight("prose", 0.0), AdapterWeight("law", 1.0)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no NAME:WEIGHT"),
        ("code", "no NAME:WEIGHT"),
        ("code:1,", "no NAME:WEIGHT"),
        ("code:1,code:2", "'code' twice"),
        ("Code:1", "no adapter's name"),
        ("9code:1", "no adapter's name"),
        ("a" * 33 + ":1", "no adapter's name"),
        ("poem:1", "'poem'; declared are code, prose, law"),
        ("code:-1", "'-1'; a number from 0 on"),
        ("code:nan", "'nan'"),
        ("code:inf", "'inf'"),
        ("code:x", "'x'"),
        ("code:", "''"),
        ("code:0,prose:0", "every weight"),
    ],
)
def test_what_is_no_mix_is_told(text: str, says: str) -> None:
    with pytest.raises(NoMix, match=says):
        core.parse_mix(text, NAMES)


@given(st.lists(st.floats(0, 1e6), min_size=3, max_size=3).filter(any))
def test_a_mix_is_read_as_it_was_written(values: list[float]) -> None:
    text = ",".join(f"{name}:{value!r}" for name, value in zip(NAMES, values, strict=True))
    assert weights(core.parse_mix(text, NAMES)) == values


def test_adapters_that_a_gate_can_have() -> None:
    assert core.declared(PROFILE) == NAMES
    with pytest.raises(NoMix, match="has 1 adapters"):
        core.declared(ModelProfile(id="p", model="m", adapters=[Adapter("code")]))
    with pytest.raises(NoMix, match=r"'style\.gguf'"):
        core.declared(ModelProfile(id="p", model="m", adapters=[Adapter("code"), Adapter("style.gguf")]))


# --- the corpus ---------------------------------------------------------------------------------


def test_examples_are_numbered_in_the_declared_order() -> None:
    examples = [Example("a", "law"), Example("b", "code")]
    assert core.labels(examples, NAMES).tolist() == [2, 0]
    with pytest.raises(NoMix, match="0 examples, and 3 adapters"):
        core.labels([], NAMES)
    with pytest.raises(NoMix, match="'poem'; declared are code, prose, law"):
        core.labels([Example("a", "poem")], NAMES)


def test_fewer_than_four_prompts_of_an_adapter_are_too_few() -> None:
    assert core.learnable(np.repeat([0, 1, 2], 4), 3)
    assert not core.learnable(np.array([0] * 40 + [1] * 4 + [2] * 3), 3)
    assert not core.learnable(np.repeat([0, 1], 4), 3)


def test_a_corpus_is_told_by_its_pairs() -> None:
    one = core.corpus_sha256([Example("ab", "c")])
    assert one == core.corpus_sha256([Example("ab", "c")])
    assert one != core.corpus_sha256([Example("a", "bc")])


# --- fixed weights ------------------------------------------------------------------------------


def test_static_mean_shows_its_drift() -> None:
    p = np.array([[0.2, 0.8], [0.6, 0.4]])
    np.testing.assert_allclose(core.static_mean(p, 2), [0.4, 0.6])
    assert core.static_mean(p * 1.1, 2).sum() == pytest.approx(1.1)
    with pytest.raises(NoMix, match=r"0 prompts .* 2 adapters"):
        core.static_mean(np.empty((0, 2)), 2)
    with pytest.raises(NoMix, match="3 wide, 2 adapters"):
        core.static_mean(np.ones((4, 3)), 2)


def test_nothing_is_put_in_without_a_gate_that_is_of_use() -> None:
    one = ModelProfile(id="p", model="base", adapters=[Adapter("code")])
    gate = run()
    assert core.resolve(PROFILE, None, []) is None
    assert core.resolve(one, gate, events(gate)) is None
    assert core.resolve(PROFILE, run(mode="diverged"), []) is None
    assert core.resolve(PROFILE, run(base_model="other"), []) is None
    assert core.resolve(PROFILE, run(adapters=["prose", "code", "law"]), []) is None


@pytest.mark.parametrize(
    ("embedder", "fits"),
    [
        (EmbedderSpec("ollama", "nomic", "http://h:1"), True),
        (EmbedderSpec("ollama", "nomic", "http://h:1", 768), True),
        (EmbedderSpec("ollama", "nomic", "http://h:1", 384), False),
        (EmbedderSpec("ollama", "other", "http://h:1"), False),
        (EmbedderSpec("ollama", "nomic", "http://h:2"), False),
        (EmbedderSpec("openai", "nomic", "http://h:1"), False),
        (EmbedderSpec(), False),
        (None, True),
    ],
)
def test_a_gate_is_of_the_embedder_that_it_was_trained_with(embedder: EmbedderSpec | None, fits: bool) -> None:
    gate = run(embedder=EmbedderSpec("ollama", "nomic", "http://h:1", 768))
    profile = msgspec.structs.replace(PROFILE, embedder=embedder)
    assert (core.misfit(profile, gate) is None, core.resolve(profile, gate, events(gate)) is not None) == (fits, fits)


def test_a_trained_gate_gives_its_recorded_means_else_uniform() -> None:
    gate = run()
    found = core.resolve(PROFILE, gate, events(run(run="r0", mean_weights=[1.0, 0.0, 0.0])) + events(gate))
    assert found is not None
    assert (weights(found[0]), found[1]) == ([0.2, 0.3, 0.5], "static_mean")
    for recorded in ([], events(gate)[:2], events(run(mean_weights=[None, 0.3, 0.5]))):
        found = core.resolve(PROFILE, gate, recorded)
        assert found is not None
        assert (weights(found[0]), found[1]) == ([1 / 3] * 3, "uniform")
    found = core.resolve(PROFILE, run(mode="uniform"), [])
    assert found is not None
    assert (weights(found[0]), found[1]) == ([1 / 3] * 3, "uniform")


def test_an_explicit_mix_always_wins_and_needs_no_gate() -> None:
    gate = run()
    for live in (None, gate, run(mode="diverged")):
        found = core.resolve(PROFILE, live, events(gate), "prose:2")
        assert found is not None
        assert (weights(found[0]), found[1]) == ([0, 2, 0], "explicit")
    with pytest.raises(NoMix):
        core.resolve(PROFILE, gate, events(gate), "poem:1")


def test_the_banner_tells_of_a_gate_s_weights_alone() -> None:
    gate = run()
    found = core.resolve(PROFILE, gate, events(gate))
    assert found is not None
    assert core.banner(*found, gate) == "gate r1 puts in code 0.2, prose 0.3, law 0.5 (static_mean over 15 prompts)"
    assert core.banner(core.parse_mix("code:1", NAMES), "explicit", gate) == ""
    assert core.banner(found[0], "dynamic", gate) == ""
    assert "\n" not in core.banner(*found, gate)


def test_a_gate_of_another_embedder_is_refused_even_of_the_same_width() -> None:
    assert core.other_embedder(run(), "lexical:1", 384) is None
    said = core.other_embedder(run(), "lexical:2", 384)
    assert said is not None
    assert "lexical:1 (384 dimensions)" in said
    assert "lexical:2 (384 dimensions)" in said


# --- routing ------------------------------------------------------------------------------------


def test_a_prompt_gets_the_best_adapter_or_all_above_the_floor() -> None:
    adapters = [Adapter("code", 2.0), Adapter("prose"), Adapter("law")]
    output = [AdapterWeight("code", 0.6), AdapterWeight("prose", 0.35), AdapterWeight("law", 0.05)]
    assert weights(core.route(output, adapters, "top1", 0.1)) == [2.0, 0, 0]
    assert weights(core.route(output, adapters, "floor", 0.1)) == [1.2, 0.35, 0]
    assert weights(core.route(output, adapters, "floor", 0.9)) == [1.2, 0, 0]


# --- static_loss's search -----------------------------------------------------------------------


def found_by(loss: Callable[[Any], float], starts: list[Any], *, free: bool) -> tuple[Any, float, int]:
    """The search's end; on the way it counts its evaluations."""
    search, counted = compass(loss, starts, free=free), []
    try:
        while True:
            counted.append(next(search))
    except StopIteration as end:
        found: tuple[Any, float, int] = end.value
    assert counted == list(range(1, found[2] + 1))
    return found


@pytest.mark.parametrize("target", [[0.7, 0.3], [0.0, 1.0], [0.2, 0.5, 0.3], [0.1, 0.2, 0.3, 0.4]])
def test_the_search_finds_a_minimum_on_the_simplex(target: list[float]) -> None:
    goal, n = np.array(target), len(target)
    found, value, evaluated = found_by(lambda w: float(((w - goal) ** 2).sum()), [np.full(n, 1 / n)], free=False)
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()
    np.testing.assert_allclose(found, goal, atol=0.03)
    assert evaluated < 200
    assert value < 0.002


def test_the_search_is_free_where_it_may_be() -> None:
    goal = np.array([1.4, 0.6])
    found, _, _ = found_by(lambda w: float(((w - goal) ** 2).sum()), [np.array([0.5, 0.5])], free=True)
    np.testing.assert_allclose(found, goal, atol=0.03)
    found, _, _ = found_by(lambda w: float(((w + 1) ** 2).sum()), [np.array([0.5, 0.5])], free=True)
    np.testing.assert_allclose(found, 0, atol=1e-9)


def test_the_search_is_no_worse_than_its_starts_and_survives_nan() -> None:
    starts = [np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([0.5, 0.5])]
    table = {1.0: 0.3, 0.0: 0.2, 0.5: 0.9}
    found, value, _ = found_by(lambda w: table.get(float(w[0]), float("nan")), starts, free=False)
    assert (found.tolist(), value) == ([0.0, 1.0], 0.2)


# --- Modelfile ----------------------------------------------------------------------------------


def parsed(text: str) -> list[tuple[str, str]]:
    """As Ollama's parser reads it: a value ends at a line break at which it is closed."""
    found: list[tuple[str, str]] = []
    lines = text.split("\n")
    while lines:
        line = lines.pop(0)
        if not line:
            continue
        name, _, value = line.partition(" ")
        if name == "PARAMETER":
            name, _, value = value.partition(" ")
        while not _closed(value):
            value += "\n" + lines.pop(0)
        found.append((name, value[3:-3] if value.startswith('"""') else value.strip('"')))
    return found


def _closed(value: str) -> bool:
    value = value.strip()
    if value.startswith('"""'):
        return len(value) >= 6 and value.endswith('"""')
    return not value.startswith('"') or (len(value) >= 2 and value.endswith('"'))


TEXTS = st.text(st.characters(blacklist_categories=("Cc", "Cs"))) | st.text(st.sampled_from('"\n\t aF{}`\\$'))


@given(TEXTS, TEXTS, TEXTS)
def test_no_text_becomes_an_instruction(template: str, system: str, stop: str) -> None:
    try:
        text = modelfile("llama3.2:3b", "./adapter", template=template, system=system, parameters={"stop": [stop]})
    except Unquotable:
        assert '"""' in template + "|" + system + "|" + stop
        return
    expected = [("FROM", "llama3.2:3b"), ("ADAPTER", "./adapter")]
    expected += [("TEMPLATE", template)] if template else []
    expected += [("stop", stop)]
    expected += [("SYSTEM", system)] if system else []
    assert parsed(text) == expected


@pytest.mark.parametrize(
    "given",
    [
        {"from_": "a\nSYSTEM x"},
        {"from_": ""},
        {"from_": 'a"b'},
        {"adapter": "./x\ny"},
        {"system": 'a """ b'},
        {"system": "nul\0"},
        {"parameters": {"stop\nFROM": ["x"]}},
        {"parameters": {"Stop": ["x"]}},
    ],
)
def test_what_can_t_be_quoted_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(Unquotable):
        modelfile(**{"from_": "m", "adapter": "./a", **given})
