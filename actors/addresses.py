"""Which network addresses nobody may have the daemon speak to (OWASP, Server-Side Request Forgery
Prevention): a request that names a server is a way into the network that the daemon stands in.
Who may name private ones is each caller's own rule.
"""

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

METADATA = frozenset(map(ipaddress.ip_address, ("169.254.169.254", "100.100.100.200", "192.0.0.192", "fd00:ec2::254")))
"""Where clouds tell a machine its credentials."""
SHARED = ipaddress.ip_network("100.64.0.0/10")
"""RFC 6598, as good as private."""


def judged(text: str) -> Address:
    """The address that is really meant: without a zone, and not as IPv6 when it is an IPv4 one."""
    address = ipaddress.ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address


def is_forbidden(address: Address) -> bool:
    """Link-local, metadata, multicast, unspecified: never a server that somebody means."""
    return address in METADATA or address.is_link_local or address.is_multicast or address.is_unspecified


def is_private(address: Address) -> bool:
    """Loopback and the machine's own networks."""
    return not address.is_global or (address.version == 4 and address in SHARED)
