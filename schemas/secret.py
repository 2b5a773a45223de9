"""A text that must not be seen: a DSN with its password. It decodes from a JSON string, and prints,
logs and compares as nothing; whoever needs it calls `reveal`.

msgspec knows no such type: decoders take `decode_hook`, encoders for the bus `encode_hook`.
"""

from typing import Any


class Secret:
    """Never printed, never hashed, never pickled."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        raise TypeError("a Secret isn't pickled")


def decode_hook(kind: type, value: Any) -> Any:
    """For msgspec's `dec_hook`. Raises ValueError, NotImplementedError."""
    if kind is not Secret:
        raise NotImplementedError(f"{kind.__name__} can't be decoded")
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str):
        raise ValueError("Expected `str`")  # never the value itself
    return Secret(value)


def encode_hook(value: Any) -> Any:
    """For msgspec's `enc_hook` on the bus between processes only: there it has to be told."""
    if isinstance(value, Secret):
        return value.reveal()
    raise NotImplementedError(f"{type(value).__name__} can't be encoded")


def schema_hook(kind: type) -> dict[str, Any]:
    """For msgspec's JSON schemas."""
    if kind is Secret:
        return {"type": "string", "format": "password", "writeOnly": True}
    raise NotImplementedError(kind.__name__)
