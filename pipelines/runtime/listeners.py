"""Where torch listens: on the address at which processes meet, instead of on all addresses of the machine.

torch's TCP store listens on every network interface, whatever host it is given, and takes keys from whoever reaches it.
So a socket is bound here first and handed to it. Stores that torch opens later at that port in this process share the
server that is there, and start none.
"""

import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.runtime.loopback import LOOPBACK, interfaces, is_loopback


@contextmanager
def store_on(host: str, port: int) -> Iterator[None]:
    """Inside, this process has a store server at `port` which listens on the address `host` only. Nothing happens where
    `host` is a name (which machines may resolve differently), not this machine's, or in use: torch then does what it
    does."""
    listener = _listener(host, port)
    if listener is None:
        yield
        return
    import torch.distributed

    distributed: Any = torch.distributed  # which doesn't list its stores
    server = distributed.TCPStore(
        host, port, is_master=True, multi_tenant=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    try:
        yield
    finally:
        del server


def _listener(host: str, port: int) -> socket.socket | None:
    host = LOOPBACK if host == "localhost" else host
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=socket.SOMAXCONN)
    except (ValueError, OSError):
        return None


def use_interface(address: str) -> None:
    """Let gloo listen on the network interface that has `address`, unless it is told otherwise: it would take that of
    the host's name. On the loopback interface, where all ranks are on this machine, NCCL does so too; on others it
    knows more."""
    name = interfaces().get(LOOPBACK if is_loopback(address) else address)
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        if is_loopback(address):
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
