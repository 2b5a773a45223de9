"""The words that everyone shares: what may be said can be heard."""

import msgspec
import pytest

from daemon import wiring  # importing every actor defines every message
from schemas.events.base import Message, concrete


@pytest.mark.parametrize("kind", concrete(), ids=lambda kind: kind.__name__)
def test_every_default_can_be_decoded(kind: type[Message]) -> None:
    """msgspec checks bounds when it decodes, not when it makes: a default outside of them is a
    message that is published and then buried by everyone who hears it."""
    assert wiring.ACTORS
    for field in msgspec.structs.fields(kind):
        if field.default is not msgspec.NODEFAULT:
            default = field.default
        elif field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        else:
            continue
        assert msgspec.json.decode(msgspec.json.encode(default), type=field.type) == default, field.name
