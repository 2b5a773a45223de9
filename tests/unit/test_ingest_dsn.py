"""DSNs are read strictly or refused without a word of them; servers are asked only where they may be."""

import pickle
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.ingest.core import BadFile
from actors.ingest.databases.dsn import Dsn, parse
from actors.ingest.databases.hosts import allowed_address
from schemas.secret import Secret, decode_hook, encode_hook

PUBLIC = "93.184.216.34"


def test_a_dsn_in_full() -> None:
    dsn = parse("postgres://us%40er:p%3Ass@db.example:6000/my%2Fdb?sslmode=require&connect_timeout=3")
    assert (dsn.kind, dsn.user, dsn.password, dsn.host, dsn.port) == ("postgresql", "us@er", "p:ss", "db.example", 6000)
    assert (dsn.database, dsn.options) == ("my/db", {"sslmode": "require", "connect_timeout": "3"})
    assert dsn.shown == "postgresql://db.example:6000/my%2Fdb"
    assert "p:ss" not in repr(dsn)


def test_what_may_be_left_out() -> None:
    assert parse("mysql://db/x") == Dsn("mysql", "", "", "db", 3306, "x")
    assert parse("postgresql://[2001:db8::1]/x").host == "2001:db8::1"
    assert parse("postgresql:///x?host=/run/postgresql").host == "/run/postgresql"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "postgresql://",
        "postgresql://u:canary@h",
        "postgresql://u:canary@h/",
        "postgresql://u:ca/nary@h/x",
        "postgresql://u:ca@nary@h/x",
        "postgresql://u:ca#nary@h/x",
        "postgresql://u:ca%zznary@h/x",
        "postgresql://u:canary@h:0/x",
        "postgresql://u:canary@h:70000/x",
        "postgresql://u:canary@h/x?password=canary",
        "postgresql://u:canary@h/x?options=-c%20canary",
        "postgresql://u:canary@h/x?sslmode=a&sslmode=b",
        "postgresql://u:canary@h/x?connect_timeout=canary",
        "postgresql://u:canary@h/x?host=canary",
        "postgresql://u:canary@h/x y",
        "mysql+pymysql://u:canary@h/x",
        "jdbc:mysql://h/x?user=u&password=canary",
        "host=h password=canary dbname=x",
        "POSTGRESQL://u:canary@h/x",
    ],
)
def test_what_is_not_read_with_certainty_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(BadFile) as raised:
        parse(text)
    assert "canary" not in f"{raised.value} {raised.value.refusal}"
    assert "nary" not in f"{raised.value} {raised.value.refusal}"


@given(st.text(min_size=1), st.text())
def test_any_user_and_password_survive_when_they_are_escaped(user: str, password: str) -> None:
    try:
        text = f"mysql://{quote(user, safe='')}:{quote(password, safe='')}@h/x"
    except UnicodeEncodeError:  # half of a surrogate pair
        return
    dsn = parse(text)
    assert (dsn.user, dsn.password) == (user, password)


@given(st.text(min_size=8))
def test_no_text_breaks_the_reader(text: str) -> None:
    said = ""
    try:
        parse(text)
    except BadFile as error:
        said = str(error)
    assert text not in said


def test_a_drivers_words_lose_the_password() -> None:
    dsn = parse("mysql://u:p%40ss@h/x")
    assert dsn.scrubbed("no: p@ss, p%40ss") == "no: ***, ***"


def address(host: str, *addresses: str, allowed: tuple[str, ...] = (), named: bool = False) -> str:
    return allowed_address(host, 5432, allowed, named=named, look_up=lambda *_: list(addresses))


def test_public_servers_are_asked_at_the_address_that_was_judged() -> None:
    assert address("db.example", PUBLIC, "8.8.8.8") == PUBLIC


@pytest.mark.parametrize(
    "found",
    [
        "169.254.169.254", "169.254.1.1", "100.100.100.200", "192.0.0.192", "fd00:ec2::254", "fe80::1", "fe80::1%eth0",
        "::ffff:169.254.169.254", "2002:a9fe:a9fe::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1",
    ],
)  # fmt: skip
def test_some_addresses_are_never_asked(found: str) -> None:
    for more in ({"named": True}, {"allowed": ("evil.example", found.partition("%")[0], "0.0.0.0/0", "::/0")}):
        with pytest.raises(BadFile, match="never asked") as raised:
            address("evil.example", PUBLIC, found, **more)  # type: ignore[arg-type]
        assert raised.value.refusal.status == "forbidden"


@pytest.mark.parametrize(
    "found", ["127.0.0.1", "10.1.2.3", "192.168.0.9", "172.16.0.1", "100.64.0.1", "::1", "fd12::1"]
)
def test_private_servers_are_asked_when_somebody_who_may_says_so(found: str) -> None:
    with pytest.raises(BadFile, match="private"):
        address("db.lan", found)
    with pytest.raises(BadFile, match="private"):  # one good address is no excuse for another
        address("db.lan", PUBLIC, found)
    assert address("db.lan", found, named=True) == found
    assert address("db.lan", found, allowed=("db.lan",)) == found
    assert address("db.lan", found, allowed=(found,)) == found
    network = "::/0" if ":" in found else "0.0.0.0/0"
    assert address("db.lan", found, allowed=("some.name", network)) == found


def test_sockets_are_asked_by_their_folder() -> None:
    with pytest.raises(BadFile, match="database_hosts"):
        address("/run/postgresql")
    assert address("/run/postgresql", allowed=("/run/postgresql",)) == "/run/postgresql"


class Holder(msgspec.Struct):
    dsn: Secret | None = None


def test_a_secret_is_told_to_nobody_but_the_bus() -> None:
    holder = msgspec.json.decode(b'{"dsn": "canary"}', type=Holder, dec_hook=decode_hook)
    assert holder.dsn is not None
    assert holder.dsn.reveal() == "canary"
    assert "canary" not in f"{holder} {holder!r} {holder.dsn} {holder.dsn!s:20}"
    assert msgspec.json.encode(holder, enc_hook=encode_hook) == b'{"dsn":"canary"}'
    assert msgspec.json.encode(holder, enc_hook=str) == b'{"dsn":"Secret(***)"}'
    with pytest.raises(TypeError):
        msgspec.json.encode(holder)
    with pytest.raises(TypeError):
        pickle.dumps(holder.dsn)
    bad: Any = {"dsn": 12345}
    with pytest.raises(msgspec.ValidationError) as raised:
        msgspec.convert(bad, Holder, dec_hook=decode_hook)
    assert "12345" not in str(raised.value)
