"""How a message lies on the wire: JSON body, subject from its type, the rest in headers.

Headers are `Nats-Msg-Id`, `Lakehouse-Cause` and `Lakehouse-Time`; each may be missing, so that
`nats pub lakehouse.cmd.autotune.enqueue '{"index":"docs"}'` works. No transport lives here.
"""

import contextlib
import hashlib
import math
from collections.abc import Mapping
from typing import Any, TypeVar, Union

import msgspec

from actors.base import Origin
from actors.errors import Poison
from schemas.config import tagged
from schemas.events.base import Message, Reply, concrete, kind_of, subject_of
from schemas.names import MessageId, Timestamp
from schemas.secret import decode_hook, encode_hook

M = TypeVar("M", bound=Message)
Headers = Mapping[str, str]

ID = "Nats-Msg-Id"
CAUSE = "Lakehouse-Cause"
TIME = "Lakehouse-Time"
ONLY_FOR = "Lakehouse-Only-For"
"""The durable that a retried event is meant for: who handled it the first time passes over it."""

MAX_ID = 128
"""Characters of a MessageId."""
HEADROOM = 4096
"""Bytes of the server's max_payload that headers may need: a message with headers over it
closes the nats-py client for good."""

_encoder = msgspec.json.Encoder(enc_hook=encode_hook)
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}
_by_subject: dict[str, type[Message]] = {}


def encode(message: Message) -> bytes:
    """The JSON body, with the tag as `type`."""
    return _encoder.encode(message)


def decode(kind: type[M], body: bytes) -> M:
    """The message in a body; unknown fields are tolerated. Raises Poison with what is wrong."""
    return decode_any((kind,), body)  # type: ignore[return-value]


def decode_any(kinds: tuple[type[Message], ...], body: bytes) -> Message:
    """As `decode`, for a body that is one of several types; its `type` field says which."""
    decoder = _decoders.get(kinds)
    if decoder is None:
        decoder = _decoders[kinds] = msgspec.json.Decoder(Union[kinds], dec_hook=decode_hook)  # noqa: UP007
    try:
        return decoder.decode(body)  # type: ignore[no-any-return]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # an older version's
            return decoder.decode(_encoder.encode(tagged(msgspec.json.decode(body))))  # type: ignore[no-any-return]
        raise Poison(f"not a {' or '.join(str(kind.__struct_config__.tag) for kind in kinds)}: {error}") from error
    except RecursionError as error:
        raise Poison("the body is nested too deeply") from error


def type_of(subject: str) -> type[Message] | None:
    """The message type that travels on a subject, or None."""
    if subject not in _by_subject:
        _by_subject.update((subject_of(kind), kind) for kind in concrete() if kind_of(kind) is not Reply)
    return _by_subject.get(subject)


def headers_of(origin: Origin) -> dict[str, str]:
    return {ID: origin.id, CAUSE: origin.cause, TIME: repr(origin.time)}


def origin_of(headers: Headers | None, id: MessageId, time: Timestamp, delivery: int = 1) -> Origin:
    """Read the headers; `id` and `time` stand in where they are missing or unreadable. Anyone may
    publish with any headers, but what is read here ends up in messages, which are checked."""
    headers = headers or {}
    id = _message_id(headers.get(ID)) or id
    with contextlib.suppress(ValueError):
        given = float(headers.get(TIME, time))
        time = given if 0 <= given < math.inf else time
    return Origin(id=id, cause=_message_id(headers.get(CAUSE)) or id, time=time, delivery=delivery)


def _message_id(given: str | None) -> MessageId | None:
    """A foreign id as one that a message may carry: one that is too long is hashed."""
    return derived_id(given) if given is not None and len(given) > MAX_ID else given


def derived_id(cause: MessageId, *parts: object) -> MessageId:
    """The id of a message that a handler returned: the same at every delivery of its cause."""
    text = "\n".join([cause, *map(str, parts)])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject matches a pattern with `*` (one token) and a final `>` (one or more)."""
    wanted, given = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted = wanted[:-1]
        if len(given) <= len(wanted):
            return False
        given = given[: len(wanted)]
    return len(wanted) == len(given) and all(w in ("*", g) for w, g in zip(wanted, given, strict=True))
