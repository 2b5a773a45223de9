"""Content ids are kept for ever: what is quick must give the bytes that the slow way gives."""

import datetime
from decimal import Decimal

import msgspec
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from actors.ingest.ids import _json_texts

DAYS = st.dates()
MOMENTS = st.datetimes()


def by_msgspec(values: pa.Array) -> list[bytes | None]:
    return [None if value is None else msgspec.json.encode(value) for value in values.to_pylist()]


@given(st.lists(st.none() | DAYS))
def test_dates(values: list[datetime.date | None]) -> None:
    array = pa.array(values, pa.date32())
    assert _json_texts(array).to_pylist() == by_msgspec(array)


@given(
    st.lists(st.none() | MOMENTS | MOMENTS.map(lambda at: at.replace(microsecond=0))), st.sampled_from([None, "UTC"])
)
def test_moments(values: list[datetime.datetime | None], zone: str | None) -> None:
    array = pa.array(values, pa.timestamp("us")).cast(pa.timestamp("us", zone))
    assert _json_texts(array).to_pylist() == by_msgspec(array)


@given(st.integers(0, 30), st.lists(st.none() | st.integers(-(10**30), 10**30)))
def test_decimals(scale: int, digits: list[int | None]) -> None:
    values = [
        None if number is None else Decimal((number < 0, tuple(map(int, str(abs(number)))), -scale))
        for number in digits
    ]
    array = pa.array(values, pa.decimal128(38, scale))
    assert _json_texts(array).to_pylist() == by_msgspec(array)
