"""Whether two URLs are one server's."""

from urllib.parse import urlsplit

PORTS = {"http": 80, "https": 443}


def address(url: str) -> str:
    """A base URL in the one form that equal ones share: `http://LOCALHOST:8080/v1/` is `http://127.0.0.1:8080`."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port or PORTS.get(parts.scheme)
    except ValueError:
        return url
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname or ""
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{path}"
