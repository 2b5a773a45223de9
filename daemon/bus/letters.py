"""Dead letters: messages that could not be handled, kept with what is needed to try again."""

import json
import re
from typing import Protocol

import msgspec

from actors.base import Origin
from daemon.bus import wire
from schemas.events.base import PREFIX, subject_of
from schemas.events.dataset import IngestDatabase
from schemas.names import MessageId, Timestamp

SUBJECT = "Lakehouse-Subject"
DURABLE = "Lakehouse-Durable"
REASON = "Lakehouse-Reason"
DELIVERIES = "Lakehouse-Deliveries"
MESSAGE = "Lakehouse-Message"
CUT = "Lakehouse-Cut"


class DeadLetter(msgspec.Struct, frozen=True):
    """A message in LAKEHOUSE_DEAD."""

    seq: int  # its place in the stream, by which it is named
    subject: str  # where it was published
    durable: str  # whose consumer gave up on it
    reason: str
    deliveries: int
    id: MessageId
    cause: MessageId
    time: Timestamp  # when it was published first
    body: str  # JSON as it came; bytes that are no UTF-8 are shown as \\x..
    cut: bool = False  # the body was too large to keep whole: it can't be retried


class DeadLetters(Protocol):
    """What `lakehouse dead list|show|retry|drop` needs. Raises KeyError for an unknown seq,
    Unavailable when the bus is down."""

    async def dead_list(self) -> list[DeadLetter]:
        """Oldest first."""
        ...

    async def dead_show(self, seq: int) -> DeadLetter: ...

    async def dead_retry(self, seq: int) -> MessageId:
        """Publish it again where it was, with a new id and the old cause; the letter goes. Of
        those that hear an event, only the one that failed handles it. Raises ValueError for a
        letter whose body was cut."""
        ...

    async def dead_drop(self, seq: int) -> None: ...


_SECRETS = re.compile(rb'("(?:dsn|password)"\s*:\s*")(?:[^"\\]|\\.)*', re.IGNORECASE)
_CREDENTIALS = re.compile(rb"(://)[^\s\"]*@")


def without_secrets(body: bytes) -> bytes:
    """A body without what a DSN tells: letters are kept for weeks and shown to whoever asks."""
    return _CREDENTIALS.sub(rb"\1***@", _SECRETS.sub(rb"\1***", body))


def write(
    subject: str, body: bytes, origin: Origin, durable: str, reason: str, max_payload: int
) -> tuple[str, bytes, dict[str, str]]:
    """Subject, body and headers under which a message is buried. A body over the limit, which
    only a foreign publisher can have sent, is cut; a DSN that was published is taken out."""
    headers = wire.headers_of(origin) | {
        wire.ID: f"dead.{durable}.{origin.id}",
        MESSAGE: origin.id,
        SUBJECT: subject,
        DURABLE: durable,
        REASON: json.dumps(reason[:1000]),  # ASCII, one line: fit for a header
        DELIVERIES: str(origin.delivery),
    }
    if subject == subject_of(IngestDatabase):
        body = without_secrets(body)
    if len(body) > max_payload:
        headers[CUT] = "1"
    return f"{PREFIX}.dead.{durable}", body[:max_payload], headers


def read(seq: int, body: bytes, headers: wire.Headers) -> DeadLetter:
    """The letter in a stored message."""
    origin = wire.origin_of(headers, str(seq), 0.0)
    return DeadLetter(
        seq=seq,
        subject=headers[SUBJECT],
        durable=headers[DURABLE],
        reason=json.loads(headers[REASON]),
        deliveries=int(headers[DELIVERIES]),
        id=headers[MESSAGE],
        cause=origin.cause,
        time=origin.time,
        body=body.decode(errors="backslashreplace"),
        cut=CUT in headers,
    )
