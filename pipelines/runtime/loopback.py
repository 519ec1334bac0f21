"""This machine's addresses, and the one at which it reaches itself alone."""

import ipaddress
import socket

import psutil

from storage.errors import ShardlineError

LOOPBACK = "127.0.0.1"
PATIENCE = 5.0  # seconds for a connection of this machine with itself


def interfaces() -> dict[str, str]:
    """This machine's addresses, and the network interface of each."""
    return {at.address.split("%")[0]: name for name, found in psutil.net_if_addrs().items() for at in found}


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine for itself: an address, or the name localhost."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_loopback(why: str) -> None:
    """Raise ShardlineError where this machine can't connect to itself, which torch and Ray would try for minutes.
    `why`: what needs it, and how to do without."""
    try:
        with (
            socket.create_server((LOOPBACK, 0)) as listener,
            socket.create_connection(listener.getsockname(), timeout=PATIENCE),
        ):
            pass
    except OSError as error:
        raise ShardlineError(
            f"This machine does not reach itself at {LOOPBACK} ({error}): its loopback interface is down, or a filter "
            f"is in the way. Bring it up (on Linux: `ip link set lo up`). {why}"
        ) from error
