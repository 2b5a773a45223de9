"""What the log looks like to a machine, and that no secret reaches it."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog

from daemon.config import LogConfig
from daemon.logs import setup


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    setup(LogConfig(level="info"), stream)
    yield stream
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_lines_off_a_terminal(lines: io.StringIO) -> None:
    structlog.get_logger("actors.x").info("swapped", index="docs", generation=3)
    logging.getLogger("aiohttp.server").warning("odd request %s", "GET")
    structlog.get_logger().debug("below the level")
    ours, theirs = (json.loads(line) for line in lines.getvalue().splitlines())
    assert (ours["event"], ours["index"], ours["generation"], ours["level"]) == ("swapped", "docs", 3, "info")
    assert (theirs["event"], theirs["logger"]) == ("odd request GET", "aiohttp.server")


def test_a_traceback_is_in_the_line(lines: io.StringIO) -> None:
    try:
        raise ValueError("bad row")
    except ValueError:
        structlog.get_logger().exception("failed")
    record = json.loads(lines.getvalue())
    assert "bad row" in json.dumps(record["exception"])


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_holds_no_values(lines: io.StringIO, form: Literal["json", "console"]) -> None:
    setup(LogConfig(format=form), lines)

    def failing(row: str) -> None:
        raise ValueError(f"a row of {len(row)} characters")

    try:
        failing("diary of somebody"[:5])
    except ValueError:
        structlog.get_logger().exception("failed")
    assert "failing" in lines.getvalue()
    assert "'diary'" not in lines.getvalue()


def test_secrets_are_masked_by_name_and_inside_texts(lines: io.StringIO) -> None:
    structlog.get_logger().info(
        "connecting to nats://lakehouse:hunter2@127.0.0.1:4222",
        admin_token="hunter2",
        headers={"Authorization": "Bearer hunter2"},
        note=["Bearer hunter2"],
        tokens=12,
    )
    assert "hunter2" not in lines.getvalue()
    assert json.loads(lines.getvalue())["tokens"] == 12
