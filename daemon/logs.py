"""Logging: structlog to stderr, for people on a terminal and as JSON lines otherwise. The
standard library's loggers (aiohttp, nats) come out the same way.

Nothing secret is logged: values under names that look like a secret are masked here, and no
other module has to think of it.
"""

import logging
import re
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from daemon.config import LogConfig

SECRET_NAME = re.compile(r"password|passwd|secret|token|authorization|api_?key|credential", re.IGNORECASE)
SECRET_TEXT = re.compile(r"(?i)\b(bearer\s+)\S+|(//[^/\s:@]*:)[^@\s]+(?=@)")
MASK = "***"

TRACEBACKS = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))
PLAIN = structlog.dev.plain_traceback
"""Without the values of variables: they hold people's rows and queries, and a page a line."""


def setup(config: LogConfig, stream: TextIO | None = None) -> None:
    """Sets the process's logging up; calling it again replaces what was set."""
    stream = stream or sys.stderr
    console = config.format == "console" or (config.format == "auto" and stream.isatty())
    before: Sequence[Processor] = (
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
    )
    last: Sequence[Processor] = (
        (mask_secrets, structlog.dev.ConsoleRenderer(stream.isatty(), exception_formatter=PLAIN))
        if console
        else (TRACEBACKS, mask_secrets, structlog.processors.JSONRenderer())
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *before,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(handlers=[handler], level=config.level.upper(), force=True)
    for chatty in ("aiohttp.access", "nats"):
        logging.getLogger(chatty).setLevel("WARNING")


def mask_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Masks values by name, and credentials inside texts and URLs, at any depth."""
    return {key: MASK if SECRET_NAME.search(key) and _secret(value) else _masked(value) for key, value in event.items()}


def _secret(value: Any) -> bool:
    return isinstance(value, str | bytes) and bool(value)


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return SECRET_TEXT.sub(lambda found: f"{found[1] or found[2]}{MASK}", value)
    if isinstance(value, dict):
        return mask_secrets(None, "", value)
    if isinstance(value, list | tuple):
        return [_masked(item) for item in value]
    return value
