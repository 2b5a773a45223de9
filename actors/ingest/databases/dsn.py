"""A DSN, read strictly: `scheme://user:password@host:port/database?option=value`. What isn't read
with certainty is refused and never echoed, since any part of it may be the password; what is shown
of one that was read is scheme, host, port and database alone.
"""

import re
from typing import Literal, NoReturn
from urllib.parse import quote, unquote

import msgspec

from actors.ingest.core import BadFile

Kind = Literal["postgresql", "mysql"]

SCHEMES: dict[str, Kind] = {
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "mysql": "mysql",
    "mariadb": "mysql",
}
PORTS: dict[Kind, int] = {"postgresql": 5432, "mysql": 3306}
OPTIONS: dict[Kind, tuple[str, ...]] = {
    "postgresql": ("sslmode", "sslrootcert", "sslcert", "sslkey", "connect_timeout", "host"),
    "mysql": ("ssl", "ssl_ca", "ssl_cert", "ssl_key", "connect_timeout"),
}
"""Passed on to the driver; others are refused."""

_FORM = re.compile(
    r"(?P<scheme>[a-z]+)://"
    r"(?:(?P<user>[^:@/?#\s]*)(?::(?P<password>[^:@/?#\s]*))?@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]*)(?::(?P<port>[0-9]{1,5}))?"
    r"/(?P<database>[^/?#@:\s]+)"
    r"(?:\?(?P<options>[^#@\s]*))?"
)
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
HINT = (
    "write postgresql://user:password@host:5432/database or mysql://user:password@host:3306/database, "
    "with : / ? # @ % in user and password percent-encoded"
)


class Dsn(msgspec.Struct, frozen=True):
    """A server, a database in it, and who asks."""

    kind: Kind
    user: str
    password: str
    host: str  # a name, an IP address, or the folder of a Unix socket
    port: int
    database: str
    options: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Dsn({self.shown})"

    @property
    def shown(self) -> str:
        """What anybody may see of it."""
        host = f"[{self.host}]" if ":" in self.host else "" if self.host.startswith("/") else self.host
        return f"{self.kind}://{host}:{self.port}/{quote(self.database, safe='')}"

    def scrubbed(self, text: str) -> str:
        """A driver's words without the password."""
        for secret in {self.password, quote(self.password, safe=""), quote(self.password)}:
            if secret:
                text = text.replace(secret, "***")
        return text


def parse(text: str, expected: Kind | None = None) -> Dsn:
    """The DSN. Raises BadFile, which tells nothing of the text."""
    found = _FORM.fullmatch(text)
    if found is None or _ESCAPE.search(text):
        _refuse("the DSN can't be read with certainty")
    kind = SCHEMES.get(found["scheme"])
    if kind is None:
        _refuse("the DSN's scheme is none of " + ", ".join(SCHEMES))
    if expected is not None and kind != expected:
        road = "/ingest/db" if kind == "postgresql" else "/ingest/mysql"
        raise BadFile(f"the DSN is of a {kind} server", f"POST {road} reads those")
    options: dict[str, str] = {}
    for pair in filter(None, (found["options"] or "").split("&")):
        name, separator, value = pair.partition("=")
        if name not in OPTIONS[kind]:
            _refuse(f"the DSN has an option that isn't among {', '.join(OPTIONS[kind])}")
        if not separator or name in options:
            _refuse(f"the DSN's option {name} has no value, or several")
        options[name] = unquote(value)
    host = found["host"].strip("[]") or options.pop("host", "")
    if not host or "host" in options:
        _refuse("the DSN names no host, or two")
    if not options.get("connect_timeout", "10").isdigit():
        _refuse("the DSN's connect_timeout is no number of seconds")
    port = int(found["port"] or PORTS[kind])
    if not 0 < port < 65536:
        _refuse("the DSN's port is none")
    return Dsn(kind, unquote(found["user"] or ""), unquote(found["password"] or ""), host, port,
               unquote(found["database"]), options)  # fmt: skip


def _refuse(reason: str) -> NoReturn:
    raise BadFile(reason, HINT)
