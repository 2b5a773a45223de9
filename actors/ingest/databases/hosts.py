"""Which database servers may be asked. Link-local and metadata addresses never are. Loopback and
private ones only when the configuration names them ([ingest] database_hosts, or a source of
lakehouse.toml). A name is looked up once, every address that it has is judged, and the connection
goes to the one that was judged.
"""

import ipaddress
import socket
from collections.abc import Callable, Sequence

from actors.addresses import Address, is_forbidden, is_private, judged
from actors.ingest.core import BadFile


def look_up(host: str, port: int) -> list[str]:
    """Every address of a host. Raises BadFile."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise BadFile(f"host {host} can't be found", "is its name right?", "unavailable") from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def allowed_address(
    host: str, port: int, allowed: Sequence[str], *, named: bool, look_up: Callable[[str, int], list[str]] = look_up
) -> str:
    """The address to connect to. allowed: names, addresses and networks of [ingest] database_hosts.
    named: the server is that of a source in lakehouse.toml. Raises BadFile."""
    if host.startswith("/"):  # a Unix socket
        if named or host in allowed:
            return host
        raise BadFile(f"the socket {host} isn't among ingest.database_hosts", "add its folder there", "forbidden")
    addresses = look_up(host, port)
    for text in addresses:
        address = judged(text)
        if is_forbidden(address):
            raise BadFile(
                f"host {host} has the address {address}, which is never asked",
                "link-local, metadata, multicast and unspecified addresses are refused whatever is configured",
                "forbidden",
            )
        if is_private(address) and not named and host not in allowed and not _within(address, allowed):
            raise BadFile(
                f"host {host} has the private address {address}",
                f'allow it: [ingest] database_hosts = ["{host}"]; or name the server as a source in lakehouse.toml',
                "forbidden",
            )
    return addresses[0]


def _within(address: Address, allowed: Sequence[str]) -> bool:
    for entry in allowed:
        try:
            if address in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:  # a name
            continue
    return False
