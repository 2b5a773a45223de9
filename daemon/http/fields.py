"""From parameters and bodies to their structs. What doesn't fit is refused with the path of the
field and, as the hint, what it may hold: read off the types, so that a bound is written once.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from daemon.http.errors import HttpError
from schemas.secret import decode_hook

_PATH = re.compile(r" - at `(\$.*)`$")
_UNKNOWN = re.compile(r"unknown field `([^`]*)`")


_SHAPE = re.compile(r"unknown field|missing required field|, got `")
"""msgspec's words for the wrong shape. The rest of its errors are values out of bounds."""

_PATTERN = re.compile(r"Expected `str` matching regex '.*'")
"""Its words for a name with characters that names don't have; the hint says which they have."""

_ONE_OF = "one of "

S = TypeVar("S", bound=msgspec.Struct)


def body_decoder(kind: type[S]) -> Callable[[bytes], S]:
    """Decodes a JSON body. Raises HttpError (malformed, invalid), msgspec.DecodeError."""
    decode = msgspec.json.Decoder(kind, dec_hook=decode_hook).decode

    def decoder(raw: bytes) -> S:
        try:
            return decode(raw)
        except msgspec.ValidationError as error:
            raise _refused(error, kind) from error

    return decoder


def converted(values: Mapping[str, str], kind: type[S]) -> S:
    """Path and query parameters, or form fields. Raises HttpError (malformed, invalid)."""
    try:
        return msgspec.convert(values, kind, strict=False, dec_hook=decode_hook)
    except msgspec.ValidationError as error:
        raise _refused(error, kind) from error


def _refused(error: msgspec.ValidationError, kind: type[msgspec.Struct]) -> HttpError:
    word = "malformed" if _SHAPE.search(str(error)) else "invalid"
    said = _PATTERN.sub("characters or a length that it can't have", str(error))
    return HttpError(word, said, hint_for(str(error), kind))


def hint_for(error: str, kind: type[msgspec.Struct]) -> str:
    """The hint for a msgspec.ValidationError's text: the bounds of the field that it names, or
    the nearest known field to an unknown one."""
    known = fields(kind)
    at = _PATH.search(error)
    if unknown := _UNKNOWN.search(error):
        there = _fields_at(inspect.type_info(kind), at[1] if at else "$")
        near = difflib.get_close_matches(unknown[1], there, n=1)
        return f"did you mean `{near[0]}`?" if near else f"fields: {', '.join(sorted(there))}"
    above, _, name = re.sub(r"\[[^\]]*\]$", "", at[1]).rpartition(".") if at else ("", "", "")
    if tags := [str(one.tag) for one in _structs_at(inspect.type_info(kind), above) if one.tag_field == name and name]:
        return f"{name}: one of {', '.join(tags)}"
    allowed = known.get(name, "")
    return f"{name}: {allowed}" if allowed and not allowed.startswith(f"{name}: ") else allowed


@cache
def fields(kind: type[msgspec.Struct]) -> dict[str, str]:
    """Every field of a struct and of the structs in it, and what it allows; "" for anything."""
    found: dict[str, str] = {}
    _collect(inspect.type_info(kind), found)
    return found


def _fields_at(info: Any, path: str) -> list[str]:
    """The fields of the struct that msgspec's path leads to: `$.adapters[0]`."""
    return [field.encode_name for one in _structs_at(info, path) for field in one.fields]


def _structs_at(info: Any, path: str) -> list[inspect.StructType]:
    """The struct that a path leads to, or those that it may be."""
    level = [info]
    for step in re.findall(r"[^.$\[\]]+|\[[^\]]*\]", path):
        here = [one for inner in level for one in _plain(inner)]
        if step.startswith("["):
            level = [one.item_type for one in here if isinstance(one, inspect.ListType)]
        else:
            structs = [one for one in here if isinstance(one, inspect.StructType)]
            level = [field.type for one in structs for field in one.fields if field.encode_name == step]
    return [one for inner in level for one in _plain(inner) if isinstance(one, inspect.StructType)]


def _plain(info: Any) -> list[Any]:
    """A type without what is said about it, a union as what it is of."""
    match info:
        case inspect.Metadata():
            return _plain(info.type)
        case inspect.UnionType():
            return [plain for one in info.types for plain in _plain(one)]
    return [info]


def _collect(info: Any, found: dict[str, str]) -> None:
    match info:
        case inspect.StructType():
            for field in info.fields:
                found[field.encode_name] = _allowed(field.type) or found.get(field.encode_name, "")
                _collect(field.type, found)
        case inspect.UnionType():
            for one in info.types:
                _collect(one, found)
        case inspect.ListType():
            _collect(info.item_type, found)
        case inspect.Metadata():
            _collect(info.type, found)


def _allowed(info: Any) -> str:
    match info:
        case inspect.Metadata():
            return str((info.extra_json_schema or {}).get("description", "")) or _allowed(info.type)
        case inspect.UnionType():
            words = [words for one in info.types if (words := _allowed(one))]
            if len(words) > 1 and all(each.startswith(_ONE_OF) for each in words):  # of a literal that has one more
                return _ONE_OF + ", ".join(each.removeprefix(_ONE_OF) for each in words)
            return words[0] if words else ""
        case inspect.ListType():
            return _allowed(info.item_type)
        case inspect.LiteralType():
            return _ONE_OF + ", ".join(str(value) for value in info.values)
        case inspect.IntType() | inspect.FloatType():
            low = f"from {info.ge}" if info.ge is not None else f"over {info.gt}" if info.gt is not None else ""
            high = f"to {info.le}" if info.le is not None else f"under {info.lt}" if info.lt is not None else ""
            return f"{low} {high}".strip()
    return ""
