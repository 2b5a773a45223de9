"""The parts around detection: the sample, the masks, what a policy makes of findings."""

import re
from datetime import UTC, date, datetime
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.ingest.core import BadFile
from actors.ingest.ids import content_ids
from actors.ingest.pii.masking import masked, masked_content, masked_reason, masked_text
from actors.ingest.pii.policy import Protection, merged, policy_for, protect, worth_keeping
from actors.ingest.pii.sampling import LEAST, LONGEST, MOST, NESTED, Sampler
from schemas.documents.dataset import DatasetDocument
from schemas.events.dataset import PiiFinding, PiiKind


def sampled(values: pa.Array, ingest: str = "m1", batch: int = 1000, columns: int = 1) -> list[Any]:
    sampler = Sampler(ingest, [f"c{i}" for i in range(columns)])
    for start in range(0, len(values), batch):
        part = values.slice(start, batch)
        sampler.see({"c0": part}, len(part))
    found: list[Any] = sampler.sample("c0").to_pylist()
    return found


def test_the_sample_is_drawn_from_the_whole_input() -> None:
    """Every tenth of the input has its share in the sample, within 5 standard deviations."""
    n = 100_000
    chosen = np.array(sampled(pa.array(range(n))))
    assert len(chosen) == len(set(chosen.tolist())) == MOST
    per_tenth = np.bincount(chosen * 10 // n, minlength=10)
    assert abs(per_tenth - MOST / 10).max() < 5 * np.sqrt(MOST * 0.1 * 0.9)


def test_an_ingest_always_draws_the_same_and_another_draws_otherwise() -> None:
    values = pa.array(range(20_000))
    assert sampled(values) == sampled(values)
    assert sampled(values) != sampled(values, "m2")


@given(
    st.lists(st.none() | st.integers(0, 9), max_size=300),
    st.integers(1, 50),
)
@settings(max_examples=80, deadline=None)
def test_a_short_input_is_the_sample_without_its_nulls(values: list[int | None], batch: int) -> None:
    assert sorted(sampled(pa.array(values, pa.int64()), batch=batch)) == sorted(v for v in values if v is not None)


def test_a_sparse_column_has_as_good_a_sample() -> None:
    values = pa.array([n if n % 100 == 0 else None for n in range(200_000)])
    assert len(sampled(values)) == 2000


def test_memory_is_bounded_by_columns_and_characters() -> None:
    assert len(sampled(pa.array(range(50_000)), columns=1000)) == LEAST
    assert {len(text) for text in sampled(pa.array(["x" * 100_000] * 3))} == {LONGEST}
    rows = pa.array([["x" * 1000]] * 5000)
    assert len(sampled(rows)) == NESTED


LEFT: dict[PiiKind, str] = {
    "email": r"\*\*\*@\*\*\*\.[A-Za-z]+",
    "phone": r"\*\*\*\d\d",
    "credit_card": r"\*{4}\d{4}",
    "iban": r"[A-Za-z]{2}\*{4}\w{4}",
    "ip_address": r"\d{1,3}\.\d{1,3}\.\*\.\*|[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{1,4}:\*",
    "date_of_birth": r"(?:19|20)\d\d-\*\*-\*\*",
}
"""All that a mask may leave of a value."""

pieces = st.sampled_from(
    ["a@b.de", "+49 30", "1234", "4111 1111", "DE89", "37040044", "1984", "-02-", ".", " ", "::1", "Ünal"]
)


@pytest.mark.slow
@given(st.sampled_from([*LEFT, "person_name", "street_address", "national_id"]), st.lists(pieces | st.text(max_size=5)))
@settings(max_examples=400, deadline=None)
def test_nothing_but_what_is_said_is_left_of_a_value(kind: PiiKind, parts: list[str]) -> None:
    value = "".join(parts)
    if "\x00" in value or not value.isprintable():
        return
    left = masked_text(value, [kind])
    assert left == "***" or not value.strip() or re.fullmatch(LEFT.get(kind, r"\*\*\*"), left), (value, left)


@pytest.mark.parametrize(
    ("kind", "value", "left"),
    [
        ("email", "Jane.Doe+x@mail.example.co.uk", "***@***.uk"),
        ("email", "jane at example", "***"),
        ("phone", "+49 (0)30 1234-567", "***67"),
        ("credit_card", "4111-1111-1111-1234", "****1234"),
        ("iban", "de89 3704 0044 0532 0130 00", "de****3000"),
        ("ip_address", "203.0.113.7", "203.0.*.*"),
        ("ip_address", "2001:db8:1:2::7", "2001:db8:*"),
        ("date_of_birth", "3.2.1984", "1984-**-**"),
        ("date_of_birth", "19840203", "***"),
        ("person_name", "Jane Doe", "***"),
        ("national_id", "078-05-1120", "***"),
        ("street_address", "10 Downing Street", "***"),
    ],
)
def test_masks(kind: PiiKind, value: str, left: str) -> None:
    assert masked_text(f" {value} ", [kind]) == left


def test_a_mask_keeps_type_length_nulls_and_empty_texts() -> None:
    assert masked(pa.array(["a@b.de", None, "", "+49 30 123"]), ["email", "phone"]).to_pylist() == [
        "***@***.de", None, "", "***23",
    ]  # fmt: skip
    born = pa.array([date(1984, 2, 3), None])
    assert masked(born, ["date_of_birth"]).to_pylist() == [date(1984, 1, 1), None]
    moment = pa.array([datetime(1984, 2, 3, 4, tzinfo=UTC)], pa.timestamp("us", "UTC"))
    assert masked(moment, ["date_of_birth"]).to_pylist() == [datetime(1984, 1, 1, tzinfo=UTC)]
    for array in (pa.array([4111111111111111]), pa.array([1.5]), pa.array([["a@b.de"]]), pa.array([{"m": "a@b.de"}])):
        result = masked(array, ["email"])
        assert (result.type, result.null_count) == (array.type, 1)


KINDS: dict[str, list[PiiKind]] = {"mail": ["email"], "card": ["credit_card"]}


@pytest.mark.parametrize(
    ("content", "delimiter", "shown"),
    [
        ('1;"x;y";a@b.de', ";", '1;"x;y";***@***.de'),
        ("1,2,a@b.de,4", ",", None),
        ("1,a@b.de", ",", None),
        ('1,"2,a@b.de', ",", None),
        ('1,"two\nlines",a@b.de', ",", '1,"two\nlines",***@***.de'),
        ('{"n":1,"mail":"a@b.de","card":4111111111111111}', "", '{"n":1,"mail":"***@***.de","card":null}'),
        ('{"n":1,"mail":"a@b.d', "", None),
        ('["a@b.de"]', "", None),
        ("a@b.de", "", None),
    ],
)
def test_a_refused_row_is_shown_without_personal_data(content: str, delimiter: str, shown: str | None) -> None:
    told = masked_content(content, KINDS, ["n", "t", "mail"], delimiter)
    assert told == shown if shown else told.startswith("(not shown")


def test_reasons_do_not_quote() -> None:
    assert masked_reason("expected an integer, found 'it\\'s a@b.de'") == "expected an integer, found '***'"
    assert masked_reason("id 'a@b.de' is already on line 2") == "id '***' is already on line 2"
    assert masked_reason("id 4111111111111111 is already in the dataset") == "id *** is already in the dataset"
    assert masked_reason("expected 3 columns, found 2") == "expected 3 columns, found 2"


def finding(column: str = "mail", kind: PiiKind = "email", **fields: Any) -> PiiFinding:
    given = {"confidence": 0.9, "share": 0.5, "sampled": 100, "matched": 50, **fields}
    return PiiFinding(column, kind, **given)


def test_findings_add_up() -> None:
    old = [finding(detail="old"), finding("tel", "phone")]
    new = [finding(confidence=0.95, sampled=300, matched=300, share=1.0, detail="new")]
    assert merged(old, new) == [
        finding(confidence=0.95, share=0.875, sampled=400, matched=350, detail="new"),
        finding("tel", "phone"),
    ]
    assert merged([], new) == new
    assert not worth_keeping(old, merged(old, [finding(sampled=1, matched=1)]))
    assert worth_keeping(old, merged(old, new))
    assert worth_keeping(old, merged(old, [finding("x")]))


def test_policies() -> None:
    about = {"file": "f.csv", "columns": ["mail", "n"], "id_column": None, "new": True}
    assert protect("flag", [], [finding()], **about) == Protection("flag", [finding()])
    assert protect("mask", [], [finding()], **about).masked == {"mail"}
    assert protect("mask", [finding()], [], **about).masked == {"mail"}, "once told, always masked"
    assert protect("drop", [], [finding()], **about).left_out == {"mail"}
    late = protect("drop", [], [finding()], **{**about, "new": False})
    assert (late.left_out, late.emptied) == (frozenset(), {"mail"})
    assert protect("refuse", [], [], **about) == Protection("refuse", [])
    with pytest.raises(BadFile, match=r"f.csv holds personal data: column 'mail': email, 50% of the values"):
        protect("refuse", [], [finding()], **about)
    for policy in ("mask", "drop"):
        with pytest.raises(BadFile, match="the id column holds personal data") as caught:
            protect(policy, [], [finding()], **{**about, "id_column": "mail"})
        assert "id_column" in caught.value.refusal.hint
    with pytest.raises(BadFile, match="every column"):
        protect("drop", [], [finding(), finding("n", "phone")], **about)


def test_a_policy_stays_with_its_dataset() -> None:
    document = DatasetDocument(
        dataset="d", bucket="primary", path="p", id_column="_id", generated_id=True, columns=[], created=0.0,
        pii_policy="mask",
    )  # fmt: skip
    assert policy_for(None, None, "append", "drop") == "drop"
    assert policy_for(None, "refuse", "append", "drop") == "refuse"
    assert policy_for(document, None, "append", "drop") == "mask"
    assert policy_for(document, "mask", "upsert", "flag") == "mask"
    assert policy_for(document, "flag", "replace", "drop") == "flag"
    with pytest.raises(BadFile, match="policy 'mask', not 'flag'") as caught:
        policy_for(document, "flag", "append", "drop")
    assert caught.value.refusal.status == "conflict"


def test_a_document_of_before_reads_as_flag() -> None:
    old = (
        b'{"type":"dataset","dataset":"d","bucket":"primary","path":"p","id_column":"_id","generated_id":true,'
        b'"columns":[],"created":0}'
    )
    document = msgspec.json.decode(old, type=DatasetDocument)
    assert (document.pii_policy, document.pii, document.dropped) == ("flag", [], [])


def test_keyed_ids_tell_nothing_to_who_has_no_key() -> None:
    row = {"phone": pa.array(["+49301234567"])}
    plain, one, other = (content_ids(row, 1, key).to_pylist() for key in (b"", b"k" * 32, b"l" * 32))
    assert len({*plain, *one, *other}) == 3
    assert content_ids(row, 1, b"k" * 32).to_pylist() == one
