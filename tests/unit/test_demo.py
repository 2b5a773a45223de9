"""The demo's own decisions: how rows are split, what is asked, which figures are before and after."""

from typing import Any

import pytest

from daemon.demo import corpus, tuning
from daemon.demo.corpus import Definition
from daemon.demo.run import FIRST_ROWS, split


def row(i: int, doc: str = "Return the answer to everything.", name: str = "answer") -> Definition:
    return Definition(f"m{i}:{name}", "p", f"m{i}", name, "function", "()", f"m{i}.{name}()\n{doc}", "m.py", 1)


@pytest.mark.parametrize("many", [2, 3, 1000, 1801, 20_000])
def test_the_sample_and_the_rest_are_all_rows_in_order(many):
    rows = [row(i) for i in range(many)]
    first, rest = split(rows)
    assert sorted(first + rest, key=rows.index if many < 1000 else lambda r: int(r.module[1:])) == rows
    assert len(first) == min(FIRST_ROWS, many // 2)
    assert first[0] is rows[0]


@pytest.mark.parametrize(
    ("doc", "asked"),
    [
        ("Return the Answer to it all. More of it.", "Return the   to it all."),
        ("Works on version 3.11 of it\nand newer.\n\nParameters\n----------", "Works on version 3.11 of it and newer."),
        ("No full stop at all\n\nSecond paragraph.", "No full stop at all"),
        ("Is this the answer? Yes.", "Is this the  ?"),
        ("The answers aren't the name", "The answers aren't the name"),
    ],
)
def test_a_question_is_the_first_sentence_without_the_name(doc, asked):
    assert corpus.question(row(0, doc)) == asked


def test_questions_are_drawn_from_functions_and_say_enough():
    rows = [
        row(0, "answer two words."),
        row(1, "Three good words here."),
        Definition("m", "p", "m", "", "module", "", "m\nA module with many words.", "m.py", 1),
    ]
    assert corpus.questions(rows, 10, seed=1) == [(1, "Three good words here.")]
    many = [row(i, f"Find thing number {i} in it.") for i in range(50)]
    assert corpus.questions(many, 5, seed=1) == corpus.questions(many, 5, seed=1)
    assert corpus.questions(many, 5, seed=1) != corpus.questions(many, 5, seed=2)


def point(trial: str, proposer: str, ef: int, M: int = 16, build: str = "b") -> dict[str, Any]:
    return {
        "trial": trial,
        "proposer": proposer,
        "M": M,
        "ef_construction": 100,
        "ef_search": ef,
        "build": build,
        "build_s": 2.0,
        "chosen": ef != 50,
    }


def entry(trial: str, ef: int, M: int = 16) -> dict[str, Any]:
    return {"trial": trial, "config": {"M": M, "ef_construction": 100, "ef_search": ef}}


def test_before_is_what_was_live_when_the_campaign_began_and_after_what_is_promoted():
    points = [
        point("t-3", "exploit", 90, 24, "c"),
        point("t-2", "champion", 50, build="again"),
        point("t-1", "champion", 200),
        point("t-1", "champion", 50),
    ]
    outcome = tuning.Outcome(points, [entry("t-3", 90, 24), entry("t-1", 200)])
    assert outcome.before == points[3]  # nothing earlier was promoted: the default was live
    assert outcome.ef_only == points[2]
    assert outcome.after == points[0]
    assert outcome.trials == 3
    assert outcome.build_s == 6.0


def test_an_earlier_campaigns_promotion_is_the_before_of_the_next():
    points = [point("t-9", "champion", 70), point("t-9", "champion", 50)]
    outcome = tuning.Outcome(points, [entry("t-9", 50), entry("t-1", 70), entry("t-0", 50)])
    assert outcome.before == points[0]
    assert outcome.after == points[1]


def test_without_a_promotion_there_is_no_after():
    outcome = tuning.Outcome([point("t-1", "champion", 50)], [])
    assert outcome.after is None
    assert outcome.before is not None
