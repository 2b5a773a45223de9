"""Which database servers may be asked: a daemon that connects wherever a request says is a way
into the network that it stands in (OWASP, Server-Side Request Forgery Prevention).

Link-local and metadata addresses are never asked. Loopback and private ones only when the
configuration names them ([ingest] database_hosts, or a source of lakehouse.toml). A name is looked
up once, every address that it has is judged, and the connection goes to the one that was judged.
"""

import ipaddress
import socket
from collections.abc import Callable, Sequence

from actors.ingest.core import BadFile

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

METADATA = frozenset(map(ipaddress.ip_address, ("169.254.169.254", "100.100.100.200", "192.0.0.192", "fd00:ec2::254")))
"""Where clouds tell a machine its credentials."""
SHARED = ipaddress.ip_network("100.64.0.0/10")
"""RFC 6598, as good as private."""


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
        address = ipaddress.ip_address(text.partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
        if address in METADATA or address.is_link_local or address.is_multicast or address.is_unspecified:
            raise BadFile(
                f"host {host} has the address {address}, which is never asked",
                "link-local, metadata, multicast and unspecified addresses are refused whatever is configured",
                "forbidden",
            )
        private = not address.is_global or (address.version == 4 and address in SHARED)
        if private and not named and host not in allowed and not _within(address, allowed):
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
