"""Ollama's Modelfile, quoted so that no text can become an instruction (parser/parser.go of Ollama).

A value ends at the first line break at which what was read is either unquoted or closed; one in triple quotes may span
lines and knows no escapes. So a text with three quotes in it can't be written, and a name that has a line of its own
can't have a line break.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence

PARAMETER = re.compile(r"[a-z][a-z0-9_]{0,31}")
QUOTES = '"""'


class Unquotable(ValueError):
    """A text that a Modelfile can't hold; the export is refused with this sentence."""


def modelfile(
    from_: str, adapter: str, *, template: str = "", system: str = "", parameters: Mapping[str, Sequence[str]] = {}
) -> str:
    """One ADAPTER: of several, Ollama takes the last without a word."""
    lines = [f"FROM {_line('FROM', from_)}", f"ADAPTER {_line('ADAPTER', adapter)}"]
    if template:
        lines.append(f"TEMPLATE {_text('TEMPLATE', template)}")
    for name, values in parameters.items():
        if not PARAMETER.fullmatch(name):
            raise Unquotable(f"{name!r} is no parameter's name: a-z, 0-9 and _, such as temperature")
        lines += [f"PARAMETER {name} {_text(f'PARAMETER {name}', value)}" for value in values]
    if system:
        lines.append(f"SYSTEM {_text('SYSTEM', system)}")
    return "\n".join(lines) + "\n"


def _line(what: str, value: str) -> str:
    if not value.strip() or '"' in value or _strange(value, ""):
        raise Unquotable(f"{what} {value!r} can't be written: it needs a name or path of one line, without quotes")
    return f'"{value}"'


def _text(what: str, value: str) -> str:
    if QUOTES in value:
        raise Unquotable(f"{what}: a Modelfile can't hold a text with {QUOTES} in it: it has no escape for it")
    value = value.replace("\r\n", "\n")
    if strange := _strange(value, "\n\t"):
        raise Unquotable(f"{what}: a Modelfile can't hold the character {strange!r}")
    return f"{QUOTES}{value}{QUOTES}"


def _strange(value: str, but: str) -> str:
    """The first control character or lone surrogate; empty for none."""
    return next((c for c in value if c not in but and unicodedata.category(c) in ("Cc", "Cs")), "")
