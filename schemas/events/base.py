"""The kinds of message. What kind a message is decides where it travels:

Event    a fact, past tense; any number may hear it        stream LAKEHOUSE_EVT
Command  an order, imperative; exactly one actor owns it   stream LAKEHOUSE_CMD
Query    a question, a command that changes nothing         asked only, no stream
Reply    an answer to whoever asked; never stored          the asker only
Signal   a fleeting hint (progress); may be lost           core NATS, no stream

A concrete message has a `tag`; its subject is derived from kind and tag and appears nowhere
else: `lakehouse.evt.dataset.appended`. A class without a tag is abstract.
"""

import sys
from typing import ForwardRef, Generic, Literal, TypeVar, dataclass_transform, get_args, get_origin

import msgspec

R_co = TypeVar("R_co", covariant=True)

PREFIX = "lakehouse"


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Message(msgspec.Struct, frozen=True):
    """Anything that travels on the bus. JSON on the wire; unknown fields are tolerated."""


class Event(Message):
    """A fact: something happened and is durable."""


class Command(Message):
    """An order to the one actor that owns it."""


class Request(Command, Generic[R_co]):
    """A command that can be asked: `await bus.ask(request)` gives its R.

    Published instead of asked, it is handled like any command and its replies go nowhere.
    """


class Query(Request[R_co]):
    """A question: asked only, changes nothing, has no place on a stream."""


class Reply(Message):
    """An answer. Given to the asker, never published."""


class Signal(Message):
    """A hint that nobody's correctness depends on."""


RefusalStatus = Literal[
    "malformed", "forbidden", "not_found", "conflict", "too_large", "invalid", "busy", "unavailable"
]


class Refusal(Reply, tag="refusal"):
    """The domain says no. `bus.ask` raises it as `Refused`; when the command came from the
    stream, where nobody waits, the runtime publishes it as `CommandRefused`."""

    status: RefusalStatus
    reason: str  # what was wrong, with the names and numbers
    hint: str = ""  # how to mend it
    retry_after_s: float | None = None


class CommandRefused(Event, tag="command.refused"):
    """A command from the stream was refused by its owner. The command is done with."""

    command: str  # its tag
    status: RefusalStatus
    reason: str
    hint: str = ""
    about: str = ""  # the index, dataset, profile or model that it named


class DeadLettered(Event, tag="message.deadlettered"):
    """A message could not be handled and lies in LAKEHOUSE_DEAD until retried or dropped."""

    message: str  # its tag
    durable: str
    reason: str
    deliveries: int


class Progress(Signal, tag="job.progress"):
    """How far a long job is. `job` is the id that the asker knows (ingest, trial, build)."""

    job: str
    about: str  # the dataset or index
    phase: str  # "read", "embed", "build", "sweep" …
    done: int
    total: int | None = None
    unit: str = "rows"


class Listening(Signal, tag="bus.listening"):
    """A listener's own mark: once it hears this, it hears everything that is said later."""

    listener: str


KIND_TOKEN: dict[type[Message], str] = {Event: "evt", Query: "ask", Command: "cmd", Reply: "reply", Signal: "sig"}


def tag_of(message: type[Message]) -> str:
    """The tag, such as `dataset.appended`. Raises TypeError for an abstract class."""
    tag = message.__struct_config__.tag
    if not isinstance(tag, str):
        raise TypeError(f"{message.__name__} has no tag: only concrete messages travel")
    return tag


def kind_of(message: type[Message]) -> type[Message]:
    """Event, Query, Command, Reply or Signal."""
    return next(kind for kind in KIND_TOKEN if issubclass(message, kind))


def subject_of(message: type[Message]) -> str:
    """The subject it is published on: `lakehouse.<kind>.<tag>`."""
    return f"{PREFIX}.{KIND_TOKEN[kind_of(message)]}.{tag_of(message)}"


def ask_subject_of(message: type[Message]) -> str:
    """The subject it is asked on, outside every stream: `lakehouse.ask.<tag>`."""
    return f"{PREFIX}.ask.{tag_of(message)}"


def concrete(root: type[Message] = Message) -> list[type[Message]]:
    """Every message type with a tag that is defined so far, by tag."""
    found: dict[str, type[Message]] = {}
    pending = [root]
    while pending:
        for cls in pending.pop().__subclasses__():
            pending.append(cls)
            if isinstance(cls.__struct_config__.tag, str):
                found[cls.__struct_config__.tag] = cls
    return [found[tag] for tag in sorted(found)]


def replies_of(request: type[Message]) -> tuple[type[Message], ...]:
    """The message types that answer a request: the R of `Request[R]`, a union unfolded."""
    for base in getattr(request, "__orig_bases__", ()):
        if get_origin(base) in (Request, Query):
            (reply,) = get_args(base)
            if isinstance(reply, ForwardRef):
                reply = eval(reply.__forward_arg__, vars(sys.modules[request.__module__]))
            return get_args(reply) or (reply,)
    return ()
