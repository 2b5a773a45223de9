"""Tables and queries of real PostgreSQL and MariaDB servers as datasets: values as they are there,
one snapshot a run, cursors that neither lose nor double rows, passwords that are seen nowhere."""

import asyncio
import datetime
import decimal
import re
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.base import Origin
from actors.ingest.actor import Ingest
from actors.ingest.config import IngestConfig, SourceConfig
from actors.ingest.databases.dsn import parse
from actors.ingest.databases.opening import open_database
from actors.ingest.databases.request import DatabaseRequest
from actors.ports import TableRef
from actors.sql.config import SqlConfig
from daemon.bus import letters
from daemon.bus.heads import MemoryHeads
from daemon.bus.memory import MemoryBus
from daemon.clock import SystemClock
from daemon.sql.catalogue import Catalogue
from daemon.sql.engine import DuckEngine
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.registry import DocumentRegistry
from daemon.storage.tables import DeltaTables
from schemas.events.base import Message, Refusal, subject_of
from schemas.events.dataset import DatasetAppended, IngestDatabase, IngestReport
from schemas.secret import Secret
from tests.databases import PASSWORD, QUOTED_PASSWORD, Database, certificate, mariadb, postgres

pytestmark = [pytest.mark.needs("postgres"), pytest.mark.needs("mariadbd")]

LOCAL = ["127.0.0.1"]


@pytest.fixture(scope="module")
def pg() -> Iterator[Database]:
    with postgres() as database:
        yield database


@pytest.fixture(scope="module")
def maria() -> Iterator[Database]:
    with mariadb() as database:
        yield database


class World:
    def __init__(self, folder: Path, sources: list[SourceConfig], hosts: list[str]) -> None:
        self.buckets = ObjectBuckets({"primary": (folder / "primary").as_uri()}, folder / "cache")
        self.tables = DeltaTables(self.buckets, folder / "cache")
        registry = self.registry = DocumentRegistry(self.buckets, MemoryHeads())
        config = IngestConfig(database_hosts=hosts)
        clock = SystemClock()
        self.ingest = Ingest(
            self.tables, registry, self.buckets, MemoryBus(), clock, config, folder / "uploads", sources
        )
        self.count = 0

    async def say(self, command: IngestDatabase, id: str = "", *, asked: bool = True) -> list[Message]:
        self.count += 1
        id = id or f"m{self.count}"
        return list(await self.ingest.on_database(command, Origin(id, id, 0.0, asked=asked)))

    async def load(self, database: Database, **more: Any) -> IngestReport:
        said = await self.say(IngestDatabase(dsn=Secret(database.dsn), dataset="t", **more))
        assert isinstance(said[-1], IngestReport), said[-1].reason
        return said[-1]

    async def refused(self, **command: Any) -> Refusal:
        said = await self.say(IngestDatabase(**{"dataset": "t", **command}))
        assert isinstance(said[-1], Refusal), said
        return said[-1]

    async def rows(self, dataset: str = "t") -> pa.Table:
        table = await self.tables.read(TableRef("primary", f"datasets/{dataset}/table"))
        return table.drop_columns(["_row"])


async def make_world(folder: Path, sources: list[SourceConfig] | None = None, hosts: list[str] = LOCAL) -> World:
    made = World(folder, sources or [], hosts)
    await made.ingest.start()
    return made


@pytest.fixture
async def world(tmp_path: Path) -> World:
    return await make_world(tmp_path)


def only(table: pa.Table) -> dict[str, Any]:
    (row,) = table.to_pylist()
    return row


async def test_every_postgresql_type_arrives_as_it_is(world: World, pg: Database) -> None:
    pg.run("""
        DROP TABLE IF EXISTS kinds; DROP TYPE IF EXISTS mood; CREATE TYPE mood AS ENUM ('sad', 'glad');
        CREATE TABLE kinds (id int, s smallint, b bigint, n numeric(10,2), free numeric, f real, d double precision,
          ok bool, day date, at timestamp, z timestamptz, j json, jb jsonb, u uuid, t text, v varchar(5), c char(3),
          raw bytea, m mood, e float8[], ints int[], names text[], i interval, clock time, ip inet, "Odd ""name" int);
        INSERT INTO kinds VALUES (2147483647, -32768, 9223372036854775807, 12345678.90, 0.000000123456789, 1.5, 0.1,
          true, '2024-02-29', '1999-12-31 23:59:59.123456', '2024-06-01 12:00:00.5+02', '{"a": [1]}', '{"b": 2}',
          '6f1c2d3e-0000-4000-8000-000000000001', E'zeile\\nzwei', 'abc', 'x', '\\x00ff', 'glad', '{0.5,1.5}', '{1,2}',
          '{p,q}', '1 day 2 hours', '12:34:56.5', '10.0.0.1', 7)""")
    report = await world.load(pg, table="kinds", id_column="id")
    assert (report.rows, report.warnings) == (1, [])
    row = only(await world.rows())
    utc = datetime.UTC
    assert row == {
        "id": 2147483647, "s": -32768, "b": 9223372036854775807, "n": decimal.Decimal("12345678.90"),
        "free": decimal.Decimal("0.000000123456789"), "f": 1.5, "d": 0.1, "ok": True,
        "day": datetime.date(2024, 2, 29), "at": datetime.datetime(1999, 12, 31, 23, 59, 59, 123456),
        "z": datetime.datetime(2024, 6, 1, 10, 0, 0, 500000, utc), "j": '{"a": [1]}', "jb": '{"b": 2}',
        "u": "6f1c2d3e-0000-4000-8000-000000000001", "t": "zeile\nzwei", "v": "abc", "c": "x  ", "raw": b"\x00\xff",
        "m": "glad", "e": [0.5, 1.5], "ints": [1, 2], "names": ["p", "q"], "i": "1 day 02:00:00",
        "clock": "12:34:56.5", "ip": "10.0.0.1/32", 'Odd "name': 7,
    }  # fmt: skip
    schema = (await world.rows()).schema
    assert schema.field("id").type == pa.int32()
    assert schema.field("b").type == pa.int64()
    assert schema.field("n").type == pa.decimal128(10, 2)
    assert schema.field("z").type == pa.timestamp("us", "UTC")


async def test_every_mariadb_type_arrives_as_it_is(world: World, maria: Database) -> None:
    maria.run("""
        DROP TABLE IF EXISTS kinds;
        CREATE TABLE kinds (id int, flag tinyint(1), tiny tinyint, u int unsigned, big bigint, ub bigint unsigned,
          n decimal(12,3), f float, d double, day date, at datetime(6), z timestamp(3) NULL, j json, t varchar(40),
          raw blob, vb varbinary(4), m enum('sad','glad'), o set('a','b'), bits bit(10), one bit(1), y year, c time,
          `odd ``name%s` int, empty varchar(3), nothing varchar(3));
        SET time_zone = '+02:00';
        INSERT INTO kinds VALUES (-5, 1, -128, 4294967295, -9223372036854775808, 18446744073709551615, -1.500, 0.1, 0.1,
          '2024-02-29', '1999-12-31 23:59:59.123456', '2024-06-01 12:00:00.5', '{"a": [1]}', 'say "hi",\\n NULL',
          x'00ff0a22', x'', 'glad', 'a,b', b'1000000001', b'1', 2024, '-12:34:56', 7, '', NULL)""")
    report = await world.load(maria, table="kinds", id_column="id")
    assert (report.rows, report.warnings) == (1, [])
    row = only(await world.rows())
    assert row.pop("f") == pytest.approx(0.1)
    assert row == {
        "id": -5, "flag": True, "tiny": -128, "u": 4294967295, "big": -9223372036854775808,
        "ub": decimal.Decimal("18446744073709551615"), "n": decimal.Decimal("-1.500"), "d": 0.1,
        "day": datetime.date(2024, 2, 29), "at": datetime.datetime(1999, 12, 31, 23, 59, 59, 123456),
        "z": datetime.datetime(2024, 6, 1, 10, 0, 0, 500000, datetime.UTC), "j": '{"a": [1]}',
        "t": 'say "hi",\n NULL', "raw": b'\x00\xff\n"', "vb": b"", "m": "glad", "o": "a,b", "bits": 513, "one": True,
        "y": 2024, "c": "-12:34:56", "odd `name%s": 7, "empty": "", "nothing": None,
    }  # fmt: skip
    assert (await world.rows()).schema.field("u").type == pa.int64()


async def test_unsigned_ids_are_integers(world: World, maria: Database) -> None:
    maria.run("DROP TABLE IF EXISTS ids; CREATE TABLE ids (id bigint unsigned, n int); INSERT INTO ids VALUES (7, 1)")
    await world.load(maria, table="ids", id_column="id", cursor="id")
    assert (await world.rows()).schema.field("id").type == pa.int64()


async def test_zero_dates_become_null_and_are_counted(world: World, maria: Database) -> None:
    maria.run("""
        DROP TABLE IF EXISTS zeros; CREATE TABLE zeros (id int, day date, at datetime);
        INSERT INTO zeros VALUES (1, '0000-00-00', '0000-00-00 00:00:00'), (2, '2020-00-00', '2020-01-02 03:04:05'),
          (3, NULL, NULL), (4, '2020-01-02', '2020-05-00 00:00:00')""")
    report = await world.load(maria, table="zeros", id_column="id")
    assert report.warnings == [
        "column 'day': 2 zero dates became NULL", "column 'at': 2 zero dates became NULL"
    ]  # fmt: skip
    assert [row["day"] for row in (await world.rows()).to_pylist()] == [None, None, None, datetime.date(2020, 1, 2)]


async def test_numbers_that_no_decimal_holds_become_floats_and_are_told(world: World, pg: Database) -> None:
    pg.run("DROP TABLE IF EXISTS wide; CREATE TABLE wide (id int, n numeric, m numeric(50, 2));"
           "INSERT INTO wide VALUES (1, 'NaN', 1), (2, 1e30, 12345678901234567890123456789012345678901.5)")  # fmt: skip
    report = await world.load(pg, table="wide", id_column="id")
    assert len(report.warnings) == 2
    assert [row["m"] for row in (await world.rows()).to_pylist()] == [1.0, 1.2345678901234568e40]


async def test_vectors_are_vectors(world: World, pg: Database, maria: Database) -> None:
    pg.run("DROP TABLE IF EXISTS e; CREATE TABLE e (id int, v real[]); INSERT INTO e VALUES (1, '{1,0}'), (2, '{0,1}')")
    await world.load(pg, table="e", id_column="id")
    assert [row["v"] for row in (await world.rows()).to_pylist()] == [[1.0, 0.0], [0.0, 1.0]]
    maria.run("DROP TABLE IF EXISTS e; CREATE TABLE e (id int, v json); INSERT INTO e VALUES (1, '[1, 0.5]')")
    said = await world.say(
        IngestDatabase(dsn=Secret(maria.dsn), dataset="m", table="e", id_column="id", vector_column="v")
    )
    assert isinstance(said[-1], IngestReport)
    assert [row["v"] for row in (await world.rows("m")).to_pylist()] == [[1.0, 0.5]]


@pytest.mark.parametrize("kind", ["pg", "maria"])
async def test_a_cursor_takes_what_came_since_and_no_row_twice(
    world: World, request: pytest.FixtureRequest, kind: str
) -> None:
    database: Database = request.getfixturevalue(kind)
    database.run("DROP TABLE IF EXISTS log; CREATE TABLE log (seq bigint, what varchar(20));"
                 "INSERT INTO log VALUES (1, 'a'), (2, 'b'), (NULL, 'lost')")  # fmt: skip
    pull: dict[str, Any] = {"table": "log", "cursor": "seq"}
    first = await world.load(database, **pull)
    assert (first.rows, first.warnings) == (2, ["1 rows have no seq: a cursor passes them by"])
    assert (await world.load(database, **pull)).rows == 0
    database.run("INSERT INTO log VALUES (10, 'c'), (3, 'b%s')")
    command = IngestDatabase(dsn=Secret(database.dsn), dataset="t", **pull)
    said = await world.say(command, "once")
    again = await world.say(command, "once")  # the same message, delivered again
    assert said[0] == again[0]
    assert isinstance(said[0], DatasetAppended)
    assert (await world.load(database, **pull)).rows == 0
    assert sorted((await world.rows())["seq"].to_pylist()) == [1, 2, 3, 10]


async def test_no_news_is_no_event(world: World, pg: Database) -> None:
    pg.run("DROP TABLE IF EXISTS s; CREATE TABLE s (id int); INSERT INTO s VALUES (1)")
    await world.load(pg, table="s", id_column="id", cursor="id")
    said = await world.say(IngestDatabase(dsn=Secret(pg.dsn), dataset="t", table="s", id_column="id", cursor="id"))
    assert [type(each) for each in said] == [IngestReport]


async def test_upsert_and_replace(world: World, pg: Database) -> None:
    pg.run("DROP TABLE IF EXISTS u; CREATE TABLE u (id int, v text); INSERT INTO u VALUES (1, 'a'), (2, 'b')")
    await world.load(pg, table="u", id_column="id")
    pg.run("UPDATE u SET v = 'B' WHERE id = 2; INSERT INTO u VALUES (3, 'c')")
    await world.load(pg, table="u", mode="upsert")
    assert {r["id"]: r["v"] for r in (await world.rows()).to_pylist()} == {1: "a", 2: "B", 3: "c"}
    pg.run("DELETE FROM u WHERE id < 3")
    await world.load(pg, query="SELECT * FROM u WHERE v LIKE '%c%';", mode="replace")
    assert (await world.rows())["id"].to_pylist() == [3]


async def test_a_query_may_change_nothing(world: World, pg: Database, maria: Database) -> None:
    pg.run("DROP TABLE IF EXISTS w; CREATE TABLE w (id int); INSERT INTO w VALUES (1)")
    for query in (
        "WITH gone AS (DELETE FROM w RETURNING id) SELECT * FROM gone",
        "SELECT 1; DROP TABLE w",
        "SELECT 1) q; DELETE FROM w; SELECT * FROM (SELECT 1",
        "SELECT set_config('transaction_read_only', 'off', true), nextval('nothing')",
    ):
        refusal = await world.refused(dsn=Secret(pg.dsn), query=query)
        assert refusal.status == "invalid", query
    assert pg.run("SELECT count(*) FROM w") == "1\n"
    maria.run("DROP TABLE IF EXISTS w; CREATE TABLE w (id int); INSERT INTO w VALUES (1)")
    for query in ("SELECT 1) q; DELETE FROM w; SELECT * FROM (SELECT 1", "DELETE FROM w RETURNING id"):
        await world.refused(dsn=Secret(maria.dsn), query=query)
    assert maria.run("SELECT count(*) FROM w") == "1\n"


async def test_what_is_wrong_is_said(world: World, pg: Database, maria: Database) -> None:
    for database in (pg, maria):
        database.run("DROP TABLE IF EXISTS right_one; CREATE TABLE right_one (id int)")
        missing = await world.refused(dsn=Secret(database.dsn), table="wrong one")
        assert (missing.status, "right_one" in missing.hint) == ("not_found", True)
        bad = Database(database.scheme, database.port, "nobody", database.name, database.folder)
        said = await world.refused(dsn=Secret(bad.dsn), table="right_one")
        assert said.status == "unavailable"
        assert PASSWORD not in said.reason
        cursor = await world.refused(dsn=Secret(database.dsn), table="right_one", cursor="nope")
        assert "nope" in cursor.reason
        neither = await world.refused(dsn=Secret(database.dsn))
        assert "table or a query" in neither.reason
        empty = await world.refused(dsn=Secret(database.dsn), table="right_one")
        assert "no rows" in empty.reason
    assert "server" in (await world.refused(dsn=Secret(pg.dsn), table="x", server="mysql")).reason


async def test_a_published_dsn_is_refused(world: World, pg: Database) -> None:
    command = IngestDatabase(dsn=Secret(pg.dsn), table="x", dataset="t")
    (refusal,) = await world.say(command, asked=False)
    assert isinstance(refusal, Refusal)
    assert refusal.status == "forbidden"


def test_a_dead_letter_tells_no_password() -> None:
    for form in forms("Canary7PassWord"):
        for body in (msgspec.json.encode({"dsn": form, "dataset": 5}), b'{"dsn":"' + form.encode() + b'", broken'):
            _, kept, _ = letters.write(
                subject_of(IngestDatabase), body, Origin("m", "m", 0.0), "ingest__ingest_database", "unreadable", 9999
            )
            assert b"Canary7PassWord" not in kept, form


async def test_private_hosts_are_asked_when_the_configuration_names_them(tmp_path: Path, pg: Database) -> None:
    pg.run("DROP TABLE IF EXISTS p; CREATE TABLE p (id int); INSERT INTO p VALUES (1)")
    source = SourceConfig(name="shop", dsn=Secret(pg.dsn), table="p", dataset="shop", id_column="id", every="1s")
    world = await make_world(tmp_path, [source], hosts=[])
    refusal = await world.refused(dsn=Secret(pg.dsn), table="p")
    assert (refusal.status, "database_hosts" in refusal.hint) == ("forbidden", True)
    assert await world.ingest.on_wake() == [IngestDatabase(source="shop")]
    assert await world.ingest.on_wake() == []  # not due yet
    said = await world.say(IngestDatabase(source="shop"), asked=False)
    assert isinstance(said[-1], IngestReport)
    assert said[-1].dataset == "shop"
    assert PASSWORD.encode() not in msgspec.json.encode(said)


async def test_a_sources_bucket_is_that_of_a_new_dataset(tmp_path: Path, pg: Database) -> None:
    pg.run("DROP TABLE IF EXISTS p; CREATE TABLE p (id int); INSERT INTO p VALUES (1)")
    source = SourceConfig(name="shop", dsn=Secret(pg.dsn), table="p", dataset="t", id_column="id", bucket="second")
    world = await make_world(tmp_path, [source])
    await world.load(pg, table="p", id_column="id")  # it lives in primary
    pg.run("INSERT INTO p VALUES (2)")
    said = await world.say(IngestDatabase(source="shop", mode="upsert"))
    assert isinstance(said[-1], IngestReport), said[-1]
    assert said[-1].total_rows == 2


@pytest.mark.parametrize(
    ("kind", "plain", "checked"),
    [
        ("pg", "sslmode=require", "sslmode=verify-full&sslrootcert={ca}"),
        ("maria", "ssl=true", "ssl=verify&ssl_ca={ca}"),
    ],
)
async def test_tls_as_the_dsn_says(world: World, tmp_path: Path, kind: str, plain: str, checked: str) -> None:
    with certificate() as (ca, cert, key):
        if kind == "pg":
            server = postgres("ssl=on", f"ssl_cert_file={cert}", f"ssl_key_file={key}")
        else:
            server = mariadb(f"ssl-cert={cert}", f"ssl-key={key}", "require-secure-transport=ON")
        with server as database:
            database.run("CREATE TABLE s (id int); INSERT INTO s VALUES (1);")
            for options in (plain, checked.format(ca=quote(str(ca), safe=""))):
                dsn = Secret(f"{database.dsn}?{options}")
                said = await world.say(IngestDatabase(dsn=dsn, dataset="t", table="s", id_column="id", mode="upsert"))
                assert isinstance(said[-1], IngestReport), said[-1]
            wrong = tmp_path / "wrong.pem"
            with certificate() as (other, _, _):
                wrong.write_bytes(other.read_bytes())
            refusal = await world.refused(
                dsn=Secret(f"{database.dsn}?{checked.format(ca=quote(str(wrong), safe=''))}"), table="s"
            )
            assert refusal.status == "unavailable", refusal
            assert re.search("certificate|SSL|TLS", refusal.reason), refusal


@pytest.mark.parametrize("options", ["", "?ssl=true"])
def test_a_slow_consumer_does_not_find_the_table_in_memory(options: str) -> None:
    with certificate() as (_, cert, key), mariadb(f"ssl-cert={cert}", f"ssl-key={key}") as database:
        database.run("CREATE TABLE long_rows (t varchar(500))")
        database.run("INSERT INTO long_rows SELECT repeat('x', 150) FROM seq_1_to_1500000")
        with ProcessPoolExecutor(1, get_context("spawn")) as process:  # whose memory nobody has used before
            rows, grown = process.submit(read_slowly, database.dsn + options).result()
    assert rows == 1_500_000
    assert grown < 60 << 20


def read_slowly(dsn: str) -> tuple[int, int]:
    """Rows of `long_rows`, and bytes by which this process has grown meanwhile."""
    reader = open_database(DatabaseRequest(dsn=parse(dsn), address="127.0.0.1", table="long_rows"))
    columns = reader.survey(None, None).columns
    before, most, rows = memory(), 0, 0
    for chunk in reader.chunks(columns):
        time.sleep(0.05)  # the server has sent all of it in a second
        most, rows = max(most, memory()), rows + len(chunk.lines)
    return rows, most - before


def memory() -> int:
    """Bytes of this process that are no file's."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+)", status)
    assert found is not None
    return int(found[1]) << 10


async def test_a_run_sees_one_snapshot_and_stops_when_its_server_dies(world: World, pg: Database) -> None:
    pg.run("DROP TABLE IF EXISTS big; CREATE TABLE big AS SELECT i AS id, repeat('x', 200) AS t "
           "FROM generate_series(1, 300000) i")  # fmt: skip

    async def kill() -> None:
        for _ in range(100):
            await asyncio.sleep(0.02)
            found = await asyncio.to_thread(
                pg.run, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE application_name = 'lakehouse' AND query ILIKE 'COPY%'"
            )  # fmt: skip
            if "t" in found:
                return

    killing = asyncio.create_task(kill())
    said = await world.say(IngestDatabase(dsn=Secret(pg.dsn), dataset="t", table="big", id_column="id"))
    await killing
    if isinstance(said[-1], Refusal):
        assert said[-1].status == "unavailable"
        with pytest.raises(FileNotFoundError):
            await world.rows()
    report = await world.load(pg, table="big", id_column="id", mode="replace")
    assert report.total_rows == 300_000


@pytest.mark.parametrize("kind", ["pg", "maria"])
async def test_aggregates_in_sql_are_the_sources(world: World, request: pytest.FixtureRequest, kind: str) -> None:
    database: Database = request.getfixturevalue(kind)
    database.run("DROP TABLE IF EXISTS sales; CREATE TABLE sales (id int, shop int, price decimal(10,2), sold date)")
    rows = ",".join(
        f"({i}, {i * 7919 % 13}, {f'{i * 31 % 9999 / 100:.2f}' if i % 11 else 'NULL'}, "
        f"'2024-{i % 12 + 1:02}-{i % 28 + 1:02}')"
        for i in range(5_000)
    )
    database.run(f"INSERT INTO sales VALUES {rows}")
    await world.load(database, table="sales", id_column="id")
    engine = DuckEngine(Catalogue(world.tables, world.registry), SqlConfig())
    query = "SELECT shop, count(*), count(price), sum(price), min(price), max(sold) FROM {} GROUP BY shop ORDER BY shop"
    answer = await engine.rows(query.format("t"), 100, {})
    ours = "".join("\t".join(map(str, row)) + "\n" for row in answer.rows)
    assert ours == database.run(query.format("sales") + ";")


NUMBERS = st.one_of(st.none(), st.integers(-(2**31), 2**31 - 1))
TEXTS = st.one_of(st.none(), st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=20))
FLOATS = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False))
DECIMALS = st.one_of(
    st.none(),
    st.decimals(-(10**8), 10**8, places=3, allow_nan=False).map(lambda d: d.quantize(decimal.Decimal("0.001"))),
)
MOMENTS = st.one_of(st.none(), st.datetimes(datetime.datetime(1000, 1, 1), datetime.datetime(9999, 12, 31)))
BYTES = st.one_of(st.none(), st.binary(max_size=12))
ROWS = st.lists(st.tuples(NUMBERS, TEXTS, FLOATS, DECIMALS, MOMENTS, BYTES), min_size=1, max_size=20)
NAMES = ("n", "t", "f", "d", "m", "b")


@pytest.mark.parametrize("kind", ["pg", "maria"])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_random_rows_arrive_as_they_are(
    rows: list[tuple[Any, ...]], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    database: Database = request.getfixturevalue(kind)
    types = {
        "pg": "n int, t text, f double precision, d numeric(12,3), m timestamp(6), b bytea",
        "maria": "n int, t text, f double, d decimal(12,3), m datetime(6), b blob",
    }[kind]
    values = ",".join(f"({i}, {', '.join(literal(value, kind) for value in row)})" for i, row in enumerate(rows))
    database.run(f"DROP TABLE IF EXISTS random_rows; CREATE TABLE random_rows (id int, {types});"
                 f"INSERT INTO random_rows VALUES {values};")  # fmt: skip

    async def arrive() -> tuple[list[dict[str, Any]], IngestReport]:
        world = await make_world(tmp_path_factory.mktemp("world"))
        report = await world.load(database, table="random_rows", id_column="id")
        return (await world.rows()).to_pylist(), report

    found, report = asyncio.run(arrive())
    assert report.rejected == 0
    assert [tuple(row[name] for name in NAMES) for row in found] == rows
    total = sum((row[3] for row in rows if row[3] is not None), decimal.Decimal(0))
    assert decimal.Decimal(database.run("SELECT coalesce(sum(d), 0) FROM random_rows").strip()) == total


def literal(value: Any, kind: str) -> str:
    match value:
        case None:
            return "NULL"
        case bytes():
            return f"'\\x{value.hex()}'" if kind == "pg" else f"x'{value.hex()}'"
        case str():
            return (
                f"convert_from('\\x{value.encode().hex()}', 'UTF8')"
                if kind == "pg"
                else (f"CONVERT(x'{value.encode().hex()}' USING utf8mb4)")
            )
        case datetime.datetime():
            return f"'{value.isoformat(sep=' ', timespec='microseconds')}'"
        case float():
            return f"'{value!r}'::float8" if kind == "pg" else repr(value) if value else "0"
    return str(value)


def forms(secret: str) -> list[str]:
    """A password in thirty DSNs, most of them of no form that is read."""
    hosts = [
        f"{scheme}://{user}:{secret}@{host}"
        for scheme in ("postgresql", "postgres", "mysql", "mariadb", "postgresql+psycopg2", "mysql+pymysql")
        for user in ("u", "a/b")
        for host in ("127.0.0.1:1/db", "127.0.0.1:1")
    ]
    return [
        *hosts, f"host=127.0.0.1 port=1 password={secret} dbname=x", f"postgresql://127.0.0.1:1/db?password={secret}",
        f"jdbc:postgresql://127.0.0.1:1/db?user=u&password={secret}", f"mysql://u:a/{secret}@127.0.0.1:1/db",
        f"Server=127.0.0.1;Port=1;Uid=u;Pwd={secret};", f"{secret}", f"postgresql://u:{secret}@127.0.0.1:99999/db",
        f"postgresql://u:{secret}@[::1]:1/db#x",
    ]  # fmt: skip


def holding(folder: Path, secret: bytes) -> list[Path]:
    """Files below a folder that a secret is in."""
    return [path for path in folder.rglob("*") if path.is_file() and secret in path.read_bytes()]


async def test_a_password_is_seen_nowhere(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str], pg: Database
) -> None:
    canary = "Canary7PassWord"
    assert len(forms(canary)) >= 30
    for form in forms(canary):
        command = IngestDatabase(dsn=Secret(form), dataset="t", table="x")
        said = await world.say(command)
        assert isinstance(said[-1], Refusal), form
        assert canary not in f"{said!r} {command!r} {msgspec.json.encode(said)!r}", form
    pg.run("DROP TABLE IF EXISTS k; CREATE TABLE k (id int); INSERT INTO k VALUES (1)")
    await world.load(pg, table="k", id_column="id")
    out = "".join(capfd.readouterr())
    for secret in (canary, PASSWORD, QUOTED_PASSWORD):
        assert secret not in out
        assert not holding(tmp_path, secret.encode())


@pytest.mark.parametrize("kind", ["pg", "maria"])
async def test_personal_data_of_a_source_comes_under_its_policy(
    tmp_path: Path, pg: Database, maria: Database, kind: str
) -> None:
    database = pg if kind == "pg" else maria
    values = ",".join(
        f"({n}, 'u{n}@example.com', {4915112345000 + n}, '19{n + 10}-02-03', {n}.5)" for n in range(1, 60)
    )
    database.run(
        "DROP TABLE IF EXISTS people; "
        "CREATE TABLE people (id int, mail varchar(40), phone bigint, birthday date, paid numeric(10,2)); "
        f"INSERT INTO people VALUES {values}"
    )
    source = SourceConfig(
        name="shop", dsn=Secret(database.dsn), table="people", dataset="t", id_column="id", cursor="id", pii="mask"
    )
    world = await make_world(tmp_path, [source])
    said = await world.say(IngestDatabase(source="shop"))
    assert isinstance(said[-1], IngestReport), said[-1]
    assert {f.column: f.kind for f in said[-1].pii} == {
        "birthday": "date_of_birth", "mail": "email", "phone": "phone",
    }  # fmt: skip
    database.run("INSERT INTO people VALUES (99, 'none', 1, '1950-05-05', 1)")
    said = await world.say(IngestDatabase(source="shop"))
    assert isinstance(said[-1], IngestReport), said[-1]
    assert (said[-1].rows, said[-1].pii_policy) == (1, "mask")
    nothing_new = (await world.say(IngestDatabase(source="shop")))[-1]
    assert isinstance(nothing_new, IngestReport)
    assert (nothing_new.rows, nothing_new.pii_policy, nothing_new.pii) == (0, "mask", said[-1].pii)
    rows = (await world.rows()).to_pylist()
    assert len(rows) == 60
    assert {(row["mail"], row["phone"], row["birthday"].day) for row in rows} == {
        ("***@***.com", None, 1), ("***", None, 1),
    }  # fmt: skip
    assert rows[0] == {
        "id": 1, "mail": "***@***.com", "phone": None, "birthday": datetime.date(1911, 1, 1),
        "paid": decimal.Decimal("1.50"),
    }  # fmt: skip
    assert (await world.refused(source="shop", pii="flag")).status == "conflict"
