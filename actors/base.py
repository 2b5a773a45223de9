"""What an actor is: a class whose handlers' signatures say what it hears and what it says.

    class Promotion(Actor):
        @handles
        async def on_promote(self, command: Promote, origin: Origin) -> Sequence[ConfigPromoted | Refusal]: ...

Routes are read from the type hints once, at start. Handlers return messages; the runtime
publishes them, then acks. Nothing here knows a bus.
"""

import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar, Literal, Never, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from schemas.events.base import Command, Message, Query
from schemas.names import MessageId, Timestamp

Role = Literal["control", "work", "serve"]
ROLES: tuple[Role, ...] = ("control", "work", "serve")

Handler = Callable[..., Awaitable[Sequence[Message]]]
F = TypeVar("F", bound=Handler)


class Origin(msgspec.Struct, frozen=True):
    """Where the message in hand came from. A handler that wants it takes it as second parameter."""

    id: MessageId  # of the message; the same at every delivery
    cause: MessageId  # id of the message that caused it; its own id at the head of a chain
    time: Timestamp  # when it was published
    delivery: int = 1  # 1 at first delivery
    asked: bool = False  # someone waits for the reply


class Route(msgspec.Struct, frozen=True):
    """One handler: what it takes, what it gives."""

    actor: str
    method: str
    takes: type[Message]
    gives: tuple[type[Message], ...]
    wants_origin: bool
    concurrency: int = 1

    @property
    def durable(self) -> str:
        """Name of its durable consumer: `{actor}__{tag with _}`."""
        tag = self.takes.__struct_config__.tag
        return f"{self.actor}__{str(tag).replace('.', '_')}"


class Period(msgspec.Struct, frozen=True):
    """A method that runs every so often; the attribute of the actor that says how often."""

    actor: str
    method: str
    seconds: str
    gives: tuple[type[Message], ...]


def handles(method: F) -> F:
    """Marks a handler: `async def on_x(self, message: X[, origin: Origin]) -> Sequence[Y | Z]`."""
    method.__lakehouse__ = "handles"  # type: ignore[attr-defined]
    return method


def every(seconds: str) -> Callable[[F], F]:
    """Marks a periodic method, `async def on_wake(self) -> Sequence[Y]`; `seconds` names the
    actor's attribute that holds the period. It first runs one period after start."""

    def mark(method: F) -> F:
        method.__lakehouse__ = "every"  # type: ignore[attr-defined]
        method.__seconds__ = seconds  # type: ignore[attr-defined]
        return method

    return mark


def concurrent(at_most: int) -> Callable[[F], F]:
    """Lets a handler run for several messages at once. Without it, one at a time and in order."""

    def mark(method: F) -> F:
        method.__concurrency__ = at_most  # type: ignore[attr-defined]
        return method

    return mark


class Actor:
    """Base of every actor. A subclass lists the ports that it needs in its constructor."""

    role: ClassVar[Role] = "control"
    fanout: ClassVar[bool] = False
    """Every process hears every event (searchers do). Otherwise the processes of a role share
    the events between them."""

    async def start(self) -> Sequence[Message]:
        """Runs before the first message: bring memory in line with what is stored."""
        return ()

    async def stop(self) -> None:
        """Runs after the last message."""

    @classmethod
    def name(cls) -> str:
        """Its name on the bus: the class name in snake case."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    @classmethod
    def routes(cls) -> list[Route]:
        """Its handlers, by name. Raises TypeError for a signature that says too little."""
        found = []
        for name, method in _marked(cls, "handles"):
            hints, parameters = _signature(cls, name, method)
            takes = hints.get(parameters[0]) if parameters else None
            if not (isinstance(takes, type) and issubclass(takes, Message)):
                raise TypeError(f"{cls.__name__}.{name} must take one message type")
            wants_origin = len(parameters) > 1
            if wants_origin and hints.get(parameters[1]) is not Origin:
                raise TypeError(f"{cls.__name__}.{name}: the second parameter must be an Origin")
            found.append(
                Route(
                    cls.name(),
                    name,
                    takes,
                    _gives(cls, name, hints),
                    wants_origin,
                    getattr(method, "__concurrency__", 1),
                )
            )
        return found

    @classmethod
    def periods(cls) -> list[Period]:
        """Its periodic methods, by name."""
        return [
            Period(cls.name(), name, method.__seconds__, _gives(cls, name, _signature(cls, name, method)[0]))
            for name, method in _marked(cls, "every")
        ]


def owners(actors: Sequence[type[Actor]]) -> dict[type[Message], Route]:
    """The one route that owns each command. Raises TypeError when two actors claim one."""
    owned: dict[type[Message], Route] = {}
    for route in (route for actor in actors for route in actor.routes()):
        if not issubclass(route.takes, Command):
            continue
        if route.takes in owned:
            raise TypeError(
                f"{route.takes.__name__} is owned by {owned[route.takes].actor} and by {route.actor}: "
                "a command has exactly one owner"
            )
        owned[route.takes] = route
    return owned


def _marked(cls: type[Actor], mark: str) -> list[tuple[str, Any]]:
    return [
        (name, method)
        for name, method in inspect.getmembers(cls, inspect.isfunction)
        if getattr(method, "__lakehouse__", None) == mark
    ]


def _signature(cls: type[Actor], name: str, method: Any) -> tuple[dict[str, Any], list[str]]:
    if not inspect.iscoroutinefunction(method):
        raise TypeError(f"{cls.__name__}.{name} must be async")
    return get_type_hints(method), list(inspect.signature(method).parameters)[1:]


def _gives(cls: type[Actor], name: str, hints: dict[str, Any]) -> tuple[type[Message], ...]:
    returned = hints.get("return")
    if get_origin(returned) is not Sequence:
        raise TypeError(f"{cls.__name__}.{name} must return Sequence[messages]")
    (item,) = get_args(returned)
    if item is Never:  # it hears and says nothing
        return ()
    types = get_args(item) or (item,)
    if not all(isinstance(t, type) and issubclass(t, Message) and not issubclass(t, Query) for t in types):
        raise TypeError(f"{cls.__name__}.{name} returns something that is no message: {returned}")
    return tuple(types)
