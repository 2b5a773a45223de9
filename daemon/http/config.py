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
    allowed_origins: tuple[str, ...] = ()
    """Origin headers that are answered, such as `https://console.example`; any other gets 403."""
    max_upload_mb: Annotated[int, Meta(ge=1)] = 8192
    """Largest uploaded file."""
    max_body_mb: Annotated[int, Meta(ge=1)] = 32
    """Largest request body that isn't an upload."""
    min_free_mb: Annotated[int, Meta(ge=0)] = 512
    """Uploads are refused when they would leave less than this free on the disk."""
    read_timeout_s: Annotated[float, Meta(gt=0)] = 30.0
    """A client that sends nothing for so long in the middle of a request, or no request, is cut off."""
    ask_timeout_s: Annotated[float, Meta(gt=0)] = 60.0
    """How long a request waits for the actor that answers it."""
    long_timeout_s: Annotated[float, Meta(gt=0)] = 7200.0
    """The same for ingests, new indexes, eval sets, decoded checkpoints, generated texts, swaps and preloads; how long
    a streamed job (a campaign, a codec's, a gate's) may be silent."""
    shutdown_s: Annotated[float, Meta(gt=0)] = 10.0
    """At stop, requests in flight get so many seconds to finish."""
