"""Detection of personal data against labelled columns, and its parts one by one."""

import random
import uuid
from collections.abc import Iterator

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.ingest.pii.detect import detect
from actors.ingest.pii.evidence import posterior
from actors.ingest.pii.hints import hint, words
from actors.ingest.pii.national import SCHEMES, is_valid
from schemas.events.dataset import PiiFinding, PiiKind
from tests.unit.pii_columns import GENUINE, NATIONAL, NEGATIVE, labelled


def kinds(name: str, values: object) -> list[PiiKind]:
    array = values if isinstance(values, pa.Array) else pa.array(values)
    return [found.kind for found in detect(name, array)]


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "rows"), [(11, 120), (12, 40), (13, 12)])
def test_precision_and_recall_by_column(seed: int, rows: int) -> None:
    """Told kinds against labelled ones: at least 0.95 each, whatever the length of the table."""
    told = right = genuine = 0
    wrong = []
    for column in labelled(seed, rows):
        found = set(kinds(column.name, column.values.drop_null()))
        told += len(found)
        genuine += column.kind is not None
        right += column.kind in found
        if found != ({column.kind} - {None}):
            wrong.append((column.what, column.name, found))
    assert right >= 0.95 * told, wrong
    assert right >= 0.95 * genuine, wrong


def test_the_labelled_set_is_wide_enough() -> None:
    assert len({what for what, *_ in GENUINE}) >= 20
    assert len({kind for *_, kind, _ in GENUINE}) == 9
    assert len(NATIONAL) >= 20
    assert len(NEGATIVE) >= 30


def test_published_examples() -> None:
    """Numbers from the documents that define them, not from our generators."""
    assert kinds("x", ["DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819"]) == ["iban"]
    assert kinds("x", ["4111 1111 1111 1111", "5555555555554444", "378282246310005"]) == ["credit_card"]
    assert kinds("taxid", ["86095742719", "47036892816", "65929970489"]) == ["national_id"]
    assert kinds("nino", ["RSSMRA85T10A562S"]) == ["national_id"]
    assert kinds("who", ["2001:db8::ff00:42:8329", "192.0.2.146"]) == ["ip_address"]
    assert kinds("Tel.", ["+1 650-253-0000", "030 1234567"]) == ["phone"]
    assert kinds("adr", ["10 Downing Street, London SW1A 2AA", "1600 Pennsylvania Ave NW"] * 5) == ["street_address"]


def test_books_are_no_patients() -> None:
    """ISBN-10 and the NHS have the same check digit."""
    numbers = ["0306406152", "0198526636", "0131103628", "0201896834"]
    assert kinds("isbn", numbers) == []
    assert kinds("nhs_number", numbers) == ["national_id"]
    assert kinds("c", [*numbers, "080442957X"]) == []


def test_a_column_of_two_kinds_tells_both_with_their_shares() -> None:
    found = detect(
        "contact", pa.array([f"u{i}@example.com" for i in range(60)] + [f"+4930{2000000 + i}" for i in range(40)])
    )
    assert {f.kind: (f.share, f.sampled, f.matched) for f in found} == {
        "email": (0.6, 100, 60),
        "phone": (0.4, 100, 40),
    }


def test_the_share_counts_values_not_different_values() -> None:
    (found,) = detect("c", pa.array(["a@example.com"] * 30 + ["b@example.com"] * 20 + ["none given"] * 50))
    assert (found.share, found.sampled, found.matched) == (0.5, 100, 50)


def test_a_few_addresses_among_other_text_are_told() -> None:
    (found,) = detect("remark", pa.array(["nothing"] * 480 + [f"x{i}@example.com" for i in range(20)]))
    assert (found.kind, found.share) == ("email", 0.04)
    assert detect("remark", pa.array(["write to x@example.com or call"] * 50)) == []


def test_many_candidates_are_extrapolated_from_those_looked_at() -> None:
    rng = random.Random(0)
    values = [f"{rng.getrandbits(40):x}@example.com" if i % 2 else f"{i}@bad..example.com" for i in range(3000)]
    rng.shuffle(values)
    (found,) = detect("email", pa.array(values))
    assert 0.42 < found.share < 0.58
    assert found.matched == round(found.share * 3000)


def test_numbers_with_gaps_are_numbers() -> None:
    assert kinds("phone", pa.array([4915112345678.0, 4915112345679.0])) == ["phone"]
    assert kinds("phone", pa.array([4915112345678.5, 4915112345679.0])) == []
    assert kinds("cpr", pa.array([101801234, 2311791234, 1005850001])) == ["national_id"]  # the first lost its zero


def test_nested_values_and_json_are_looked_into() -> None:
    rows = [{"contact": {"mail": f"u{i}@example.com", "age": i}, "tags": ["a", "b"]} for i in range(9)]
    (found,) = detect("customer", pa.array(rows))
    assert (found.column, found.kind, found.detail) == ("customer", "email", "at contact.mail")
    (found,) = detect("payload", pa.array(['{"to":[{"iban":"DE89370400440532013000"}]}'] * 5))
    assert (found.kind, found.detail) == ("iban", "at to.iban")
    long = [f'{{"n":{i},"mail":"u{i}@example.com","text":"{"x" * 900}' for i in range(9)]  # as the sample cuts them
    (found,) = detect("payload", pa.array(long))
    assert (found.kind, found.detail, found.sampled) == ("email", "at mail", 9)
    assert kinds("mails", pa.array([["a@example.com", "b@example.com"]] * 3)) == ["email"]
    assert kinds("v", pa.array([[0.5, 1.0]] * 3)) == []


@pytest.mark.parametrize(
    "array",
    [
        pa.array([], pa.string()),
        pa.array([True, False]),
        pa.array([b"a@example.com"]),
        pa.array(["", " "]),
        pa.array([float("nan"), float("inf")]),
        pa.array([-(2**63), 2**63 - 1]),
        pa.array([2**64 - 1], pa.uint64()),
        pa.nulls(0),
        pa.array([], pa.list_(pa.string())),
    ],
    ids=str,
)
def test_what_can_hold_nothing_holds_nothing(array: pa.Array) -> None:
    assert detect("email phone iban", array) == []


@pytest.mark.slow
@given(st.text(max_size=30), st.lists(st.text(max_size=60), max_size=20))
@settings(max_examples=150, deadline=None)
def test_any_text_gets_an_honest_answer(name: str, values: list[str]) -> None:
    texts = [value.encode("utf-8", "ignore").decode() for value in values]
    for found in detect(name, pa.array(texts, pa.string())):
        assert 0.5 <= found.confidence <= 1
        assert 0 < found.matched <= found.sampled <= len(texts)
        assert found.share == pytest.approx(found.matched / found.sampled, abs=1e-4)


@pytest.mark.slow
@given(st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_order_does_not_matter(rng: random.Random) -> None:
    values = [f"u{i}@example.com" for i in range(50)] + [str(uuid.UUID(int=i)) for i in range(50)]
    shuffled = values.copy()
    rng.shuffle(shuffled)
    assert detect("c", pa.array(shuffled)) == detect("c", pa.array(values))


def schemes() -> Iterator[tuple[str, str, float]]:
    for scheme in SCHEMES:
        shape = {"fi.hetu": "dddddd-dddL", "se.personnummer": "d" * 10, "cl.rut": "d" * 9}.get(scheme.name)
        if not scheme.written or shape:
            yield scheme.name, shape or NATIONAL.get(scheme.name, ""), scheme.chance


@pytest.mark.parametrize(("name", "shape", "chance"), [s for s in schemes() if s[1]])
def test_no_scheme_is_passed_by_chance_more_often_than_it_says(name: str, shape: str, chance: float) -> None:
    rng = random.Random(0)
    draw = {"d": "0123456789", "L": "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
    numbers = ("".join(rng.choice(draw.get(c, c)) for c in shape) for _ in range(4000))
    assert sum(is_valid(name, number) for number in numbers) / 4000 <= chance * 1.1


def test_evidence_grows_with_values_and_falls_with_failures() -> None:
    few, more = posterior("none", 2, 2, 0.1), posterior("none", 6, 6, 0.1)
    assert posterior("none", 1, 1, 0.1) < 0.5 < few < more < 1
    assert posterior("none", 300, 1000, 0.1) < 0.01
    assert posterior("against", 5, 5, 0.5) < 0.1 < posterior("for", 5, 5, 0.5)
    assert posterior("none", 1000, 1000, 0.9) == posterior("none", 12, 12, 0.9) < 0.5
    assert posterior("for", 0, 0, 0.1) == 0


@pytest.mark.parametrize(
    ("column", "kind", "said"),
    [
        ("customerEMail_2", "email", "for"),
        ("E-Mail", "email", "for"),
        ("Téléphone mobile", "phone", "for"),
        ("IPAddress", "ip_address", "for"),
        ("order_phone", "phone", "for"),
        ("order_no", "phone", "against"),
        ("telefon", "national_id", "against"),
        ("product_name", "person_name", "against"),
        ("firstName", "person_name", "for"),
        ("Straße", "street_address", "for"),
        ("recipient", "ip_address", "none"),
    ],
)
def test_hints(column: str, kind: PiiKind, said: str) -> None:
    assert hint(column, kind) == said, words(column)


def test_findings_tell_the_column_by_its_name() -> None:
    assert all(isinstance(f, PiiFinding) and f.column == "k" for f in detect("k", pa.array(["a@example.com"] * 3)))
