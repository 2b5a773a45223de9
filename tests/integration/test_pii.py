"""Personal data through ingest: what is told, what is stored, what is refused, and that a dataset's
policy holds for everything that comes later. Over real tables, buckets and registry."""

import csv
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.errors import Transient
from actors.ingest import loading
from actors.ingest.core import GENERATED_ID
from actors.ingest.ids import content_ids
from schemas.documents.dataset import DatasetDocument
from schemas.events.base import Message
from schemas.events.dataset import (
    DatasetAppended,
    DatasetInfo,
    GetDataset,
    IngestRejected,
    IngestReport,
    PiiFinding,
    PiiKind,
    UpsertRows,
)
from tests.integration.test_ingest import World, refusal, report

Row = dict[str, Any]


@pytest.fixture
async def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    await world.restart()
    return world


def people(count: int, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    return [
        {
            "email": f"user{seed}x{n}@example.com",
            "phone": f"+49 30 {rng.randrange(10**6, 10**7)}",
            "age": 20 + n % 50,
            "note": f"bought {n % 7} things",
        }
        for n in range(count)
    ]


def as_csv(rows: list[Row]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_parquet(rows: list[Row]) -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return bytes(out.getvalue().to_pybytes())


def as_arrow(rows: list[Row]) -> bytes:
    out = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    return bytes(out.getvalue().to_pybytes())


FORMATS: dict[str, Callable[[list[Row]], str | bytes]] = {
    "csv": as_csv,
    "jsonl": lambda rows: msgspec.json.Encoder().encode_lines(rows),
    "parquet": as_parquet,
    "arrow": as_arrow,
}


def kinds(findings: list[PiiFinding]) -> dict[str, PiiKind]:
    return {finding.column: finding.kind for finding in findings}


async def info(world: World, dataset: str = "d") -> DatasetInfo:
    (found,) = await world.ingest.on_get(GetDataset(dataset))
    assert isinstance(found, DatasetInfo)
    return found


async def rejects(world: World) -> list[Row]:
    table = await world.tables.read(loading.rejects_of("primary", "d"))
    rows: list[Row] = table.to_pylist()
    return rows


async def stored_text(world: World, said: list[Message]) -> str:
    """Everything that is readable afterwards: rows, refused rows, the document, what was said."""
    parts = [repr(await world.rows()), repr(await info(world)), repr(said)]
    if any("rejects" in name for name in world.everything()):
        parts.append(repr(await rejects(world)))
    document = await world.registry.load(DatasetDocument, "d")
    return "\n".join([*parts, repr(document)])


async def test_flag_tells_and_keeps(world: World) -> None:
    said = await world.file(world.write("a.csv", as_csv(people(200))))
    assert kinds(report(said).pii) == {"email": "email", "phone": "phone"}
    assert (report(said).pii_policy, report(said).rows) == ("flag", 200)
    shown = await info(world)
    assert (shown.pii, shown.pii_policy, shown.dropped) == (report(said).pii, "flag", [])
    (mail, phone) = shown.pii
    assert (mail.share, mail.sampled, mail.matched) == (1.0, 200, 200)
    assert phone.detail == "DE"
    assert (await world.rows())[0]["email"] == "user0x0@example.com"


@pytest.mark.parametrize("format", FORMATS)
async def test_mask_keeps_rows_and_none_of_their_personal_data(world: World, format: str) -> None:
    rows = people(300)
    path = world.write(f"a.{format}", FORMATS[format](rows))
    said = await world.file(path, pii="mask")
    assert report(said).rows == 300
    stored = await world.rows()
    assert {row["email"] for row in stored} == {"***@***.com"}
    assert [row["phone"] for row in stored] == ["***" + row["phone"][-2:] for row in rows]
    assert [row["age"] for row in stored] == [row["age"] for row in rows]
    everything = await stored_text(world, said)
    assert [row for row in rows if row["email"] in everything or row["phone"] in everything] == []
    # The ids are no hashes that anyone could make of a guess.
    names = [column.name for column in (await info(world)).columns if column.name != GENERATED_ID]
    columns = {name: pa.array([row[name] for row in rows]) for name in names}
    assert {row[GENERATED_ID] for row in stored}.isdisjoint(content_ids(columns, 300).to_pylist())
    # The same rows again are the same rows, in another format and process as well.
    await world.restart()
    again = world.write("b.csv", as_csv(rows))
    assert report(await world.file(again)).rows == 0


async def test_the_key_of_ids_is_kept_apart(world: World) -> None:
    await world.file(world.write("a.csv", as_csv(people(20))), pii="mask")
    key = world.folder / "ids.key"
    assert (key.stat().st_mode & 0o777, len(key.read_bytes())) == (0o600, 32)
    key.write_bytes(b"short")
    with pytest.raises(ValueError, match=r"ids\.key is no key of 32 bytes"):
        await world.file(world.write("b.csv", as_csv(people(20, 1))))


async def test_the_same_row_has_no_id_by_which_two_datasets_could_be_joined(world: World) -> None:
    path = world.write("a.csv", as_csv(people(20)))
    ids = {}
    for name, policy in (("d", "mask"), ("e", "mask"), ("f", "drop")):
        await world.file(path, name, pii=policy)
        ids[name] = {row[GENERATED_ID] for row in await world.rows(name)}
    assert len(ids["d"] | ids["e"] | ids["f"]) == 60


async def test_later_rows_are_masked_whatever_they_look_like(world: World) -> None:
    await world.file(world.write("a.csv", as_csv(people(50))), pii="mask")
    odd = {"email": "jane at home", "phone": "ring the bell", "age": 3, "note": "x"}
    said = list(await world.ingest.on_upsert(UpsertRows("d", [odd]), world.next()))
    assert report(said).rows == 1
    assert {n: v for n, v in (await world.rows())[-1].items() if n != GENERATED_ID} == {
        **odd, "email": "***", "phone": "***",
    }  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
async def test_drop_leaves_columns_out_for_good(world: World, format: str) -> None:
    rows = people(300)
    said = await world.file(world.write(f"a.{format}", FORMATS[format](rows)), pii="drop")
    assert report(said).rows == 300, "rows that differ in nothing that is left stay different rows"
    shown = await info(world)
    assert [column.name for column in shown.columns] == [GENERATED_ID, "age", "note"]
    assert (shown.dropped, kinds(shown.pii)) == (["email", "phone"], {"email": "email", "phone": "phone"})
    assert set((await world.rows())[0]) == {GENERATED_ID, "age", "note"}
    assert "@example.com" not in await stored_text(world, said)
    # Again the same file, then others, with those columns and without.
    assert report(await world.file(world.write(f"a2.{format}", FORMATS[format](rows)))).rows == 0
    assert report(await world.file(world.write(f"b.{format}", FORMATS[format](people(7, 1))))).rows == 7
    assert report(await world.file(world.write("c.jsonl", '{"age":1,"note":"n"}\n'))).rows == 1
    assert set((await world.rows())[-1]) == {GENERATED_ID, "age", "note"}


async def test_drop_with_an_id_of_their_own(world: World) -> None:
    rows = [{"k": n, **row} for n, row in enumerate(people(40))]
    await world.file(world.write("a.csv", as_csv(rows)), pii="drop", id_column="k")
    more = [{"k": n + 40, **row} for n, row in enumerate(people(10, 1))]
    said = await world.file(world.write("b.parquet", as_parquet(more)))
    assert (report(said).rows, report(said).total_rows) == (10, 50)
    assert set((await world.rows())[-1]) == {"k", "age", "note"}


async def test_a_column_that_turns_out_later_is_empty_from_then_on(world: World) -> None:
    await world.file(world.write("a.csv", "contact,n\nnone,1\nunknown,2\n"), pii="drop")
    said = await world.file(world.write("b.csv", "contact,n\n" + "".join(f"u{n}@example.com,{n}\n" for n in range(30))))
    assert report(said).rows == 30
    assert {row["contact"] for row in await world.rows()} == {"none", "unknown", None}
    assert (await info(world)).dropped == ["contact"]
    await world.file(world.write("c.csv", "contact,n\nsome text,99\n"))
    assert (await world.rows())[-1]["contact"] is None


async def test_refuse_lets_nothing_of_the_file_be_seen(world: World) -> None:
    said = await world.file(world.write("a.csv", as_csv(people(100))), pii="refuse")
    no = refusal(said)
    assert no.status == "invalid"
    assert "column 'email': email, 100% of the values" in no.reason
    assert "mask, drop or flag" in no.hint
    assert [type(message) for message in said if not isinstance(message, type(no))] == [IngestRejected]
    assert world.everything() == []
    # A dataset with the policy takes clean files and no others.
    assert report(await world.file(world.write("b.csv", "note,age\nfine,3\n"), pii="refuse")).rows == 1
    dirty = world.write("c.csv", "note,age\n" + "".join(f"u{n}@example.com,{n}\n" for n in range(9)))
    assert "'note': email" in refusal(await world.file(dirty)).reason
    assert len(await world.rows()) == 1


async def test_the_policy_is_the_datasets(world: World) -> None:
    await world.file(world.write("a.csv", as_csv(people(30))))
    path = world.write("b.csv", as_csv(people(30, 1)))
    no = refusal(await world.file(path, pii="mask"))
    assert (no.status, no.reason) == ("conflict", "dataset d has the PII policy 'flag', not 'mask'")
    said = await world.file(path, pii="mask", mode="replace")
    assert (report(said).rows, report(said).total_rows, report(said).pii_policy) == (30, 30, "mask")
    assert {row["email"] for row in await world.rows()} == {"***@***.com"}
    assert [finding.sampled for finding in report(said).pii] == [30, 30], "of the rows before nothing is left"


async def test_the_default_is_configured(tmp_path: Path) -> None:
    world = World(tmp_path, pii="mask")
    await world.restart()
    await world.file(world.write("a.csv", as_csv(people(30))))
    assert (await info(world)).pii_policy == "mask"
    await world.file(world.write("b.csv", as_csv(people(30))), "e", pii="flag")
    assert (await info(world, "e")).pii_policy == "flag"


@pytest.mark.parametrize("policy", ["mask", "drop"])
async def test_ids_cannot_be_taken_away(world: World, policy: str) -> None:
    path = world.write("a.csv", as_csv(people(30)))
    no = refusal(await world.file(path, pii=policy, id_column="email"))
    assert "the id column holds personal data (column 'email'" in no.reason
    assert "leave it out" in no.hint
    assert world.everything() == []
    assert report(await world.file(path, pii="flag", id_column="email")).rows == 30


async def test_it_is_found_wherever_it_lies(world: World) -> None:
    """The first nine tenths of a file hold none."""
    rows = [{"k": n, "contact": "n/a" if n < 27_000 else f"u{n}@example.com"} for n in range(30_000)]
    said = await world.file(world.write("a.csv", as_csv(rows)), id_column="k")
    (found,) = report(said).pii
    assert found.kind == "email"
    assert 0.07 < found.share < 0.13
    assert found.sampled == 4096


async def test_findings_add_up_over_appends(world: World) -> None:
    await world.file(
        world.write("a.csv", "k,contact\n" + "".join(f"a{n},u{n}@example.com\n" for n in range(100))), id_column="k"
    )
    text = "k,contact\n" + "".join(f"b{n},{f'v{n}@example.com' if n % 2 else 'none'}\n" for n in range(100))
    said = await world.file(world.write("b.csv", text))
    (found,) = report(said).pii
    assert (found.sampled, found.matched, found.share) == (200, 150, 0.75)
    said = await world.file(world.write("c.csv", "k,contact\nc1,nobody\n"))
    assert report(said).pii == [found]


async def test_a_second_delivery_does_not_count_twice(world: World) -> None:
    await world.file(world.write("a.csv", as_csv(people(50))))
    path = world.write(
        "b.csv", as_csv([{**row, "phone": "unknown"} if n % 2 else row for n, row in enumerate(people(60, 1))])
    )
    world.tables.fails = "table"
    with pytest.raises(Transient):
        await world.file(path, id="again")  # after the document, before the rows
    kept = (await info(world)).pii
    world.tables.fails = None
    said = await world.file(path, id="again")
    assert report(said).rows == 60
    assert report(said).pii == kept == (await info(world)).pii
    assert report(await world.file(path, id="again")).pii == kept
    assert [f.sampled for f in kept if f.column == "phone"] == [110]


BAD = """id,email,age,card
1,ann@example.com,30,4111111111111111
2,bob@example.com,old,5555555555554444
3,cyd@example.com
4,dan@example.com,31,378282246310005
5,"eve
@example.com",x,4111111111111111
4,fay@example.com,32,6011111111111117
6,"gus, x@example.com",33,oops@example.com
""" + "".join(f"{n},u{n}@example.com,40,4111111111111111\n" for n in range(10, 60))  # fmt: skip


@pytest.mark.parametrize("policy", ["flag", "mask", "drop"])
async def test_refused_rows_are_shown_without_it(world: World, policy: str) -> None:
    said = await world.file(world.write("a.csv", BAD), pii=policy, id_column="id")
    rejected = await rejects(world)
    assert [row["line"] for row in sorted(rejected, key=lambda row: row["line"])] == [3, 4, 6, 8, 9]
    shown = repr(rejected) + repr(report(said)) + repr([m for m in said if isinstance(m, IngestRejected)])
    for secret in ("bob", "cyd", "eve", "fay", "gus", "oops", "5555555555554444", "6011111111111117", "@example"):
        assert secret not in shown, secret
    by_line = {row["line"]: row for row in rejected}
    assert by_line[3]["content"] == "2,***@***.com,old,****4444"
    assert by_line[3]["reason"] == "expected an integer, found 'old'", "the age is no secret"
    assert by_line[4]["content"].startswith("(not shown")
    assert by_line[9]["reason"] == "expected an integer, found '***'"
    assert any(isinstance(message, DatasetAppended) for message in said)


async def test_ids_that_repeat_are_not_told(world: World) -> None:
    text = "email,n\n" + "".join(f"u{n % 30}@example.com,{n}\n" for n in range(32))
    said = await world.file(world.write("a.csv", text), id_column="email")
    assert [row.reason for row in report(said).rejects] == [
        "id '***' is already on line 2",
        "id '***' is already on line 3",
    ]
    assert "@example.com" not in repr(await rejects(world))


async def test_rows_without_personal_data_are_shown_as_they_are(world: World) -> None:
    await world.file(world.write("a.csv", "k,n\na,1\nb,2\nc,x\n"), id_column="k")
    assert [(row["reason"], row["content"]) for row in await rejects(world)] == [
        ("expected an integer, found 'x'", "c,x")
    ]


async def test_vectors_are_not_looked_at(world: World) -> None:
    lines = "".join(f'{{"k":{n},"iban_email":[{n}.5,4111111111111111.0]}}\n' for n in range(20))
    said = await world.file(world.write("a.jsonl", lines), id_column="k", pii="drop")
    assert (report(said).rows, report(said).pii) == (20, [])


async def test_an_old_report_is_told_again(world: World) -> None:
    path = world.write("a.csv", as_csv(people(20)))
    first = await world.file(path, id="one", pii="mask")
    second = await world.file(path, id="one", pii="mask")
    assert isinstance(second[-1], IngestReport)
    assert second == first
