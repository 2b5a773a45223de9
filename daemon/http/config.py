"""[http] of lakehouse.toml."""

from typing import Annotated

import msgspec
from msgspec import Meta


class HttpConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8700
    """Port to listen on; 0 takes a free one."""
    allowed_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    """Host headers that are answered (without port); anything else gets 403 before authentication."""
    max_upload_mb: Annotated[int, Meta(ge=1)] = 8192
    """Largest uploaded file."""
    max_body_mb: Annotated[int, Meta(ge=1)] = 32
    """Largest request body that isn't an upload."""
