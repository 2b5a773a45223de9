"""Tells systemd how the daemon is: sd_notify(3) without a library. Does nothing outside a unit
of Type=notify. Whoever calls `watchdog` must first see every actor's heartbeat fresh.
"""

import os
import socket


def notify(state: str) -> bool:
    """Sends one datagram (`READY=1`, `STATUS=…`); False when nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError:
            return False
    return True


def ready(status: str = "") -> bool:
    return notify(f"READY=1\nSTATUS={status}")


def stopping() -> bool:
    return notify("STOPPING=1")


def watchdog() -> bool:
    return notify("WATCHDOG=1")


def watchdog_interval_s() -> float | None:
    """Half the unit's WatchdogSec, or None when it has none or it means another process."""
    period = os.environ.get("WATCHDOG_USEC", "")
    owner = os.environ.get("WATCHDOG_PID", "")
    if not period.isdigit() or (owner and owner != str(os.getpid())):
        return None
    return int(period) / 2e6
