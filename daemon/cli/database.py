"""`lakehouse ingest --from DSN`: a table or query of a database. The DSN is a secret: it is sent to
the daemon and shown nowhere."""

import sys
from pathlib import Path
from typing import Any

from daemon.cli.client import Client
from daemon.cli.errors import WRONG_USE, CliError

ROADS = {"postgresql": "/ingest/db", "postgres": "/ingest/db", "mysql": "/ingest/mysql", "mariadb": "/ingest/mysql"}


def read_database(client: Client, fields: dict[str, str], dsn: str | None, source: str | None) -> Any:
    """The daemon's report. Raises CliError."""
    from daemon.cli.progress import Steps

    if dsn is None:
        fields = {**fields, "source": source or ""}
        road = "/ingest/source"
    elif source is not None:
        raise CliError("--from and --source are both given.", "name one of them", WRONG_USE)
    else:
        text = _dsn(dsn)
        found = ROADS.get(text.partition("://")[0])
        if found is None:
            raise CliError(
                "The DSN's scheme is none of " + ", ".join(ROADS) + ".",
                "scheme://user:password@host/database",
                WRONG_USE,
            )
        road, fields = found, {**fields, "dsn": text}
    steps = Steps()
    what = fields.get("dataset", source or "")
    steps.listen(client, what)
    with steps.step(fields.get("table", what)):
        return client.post(road, fields, timeout_s=None)


def _dsn(given: str) -> str:
    if given == "-":
        return sys.stdin.readline().strip()
    if given.startswith("@"):
        try:
            return Path(given[1:]).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise CliError(
                f"{given[1:]} can't be read.", "--from @FILE takes a file with the DSN", WRONG_USE
            ) from error
    return given
