"""A proxy, in a process of its own, that makes a server near by as slow as one far away.

Linux only: the kernel paces the connections and moves the bytes.
"""

import fcntl
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

_ASKS = re.compile(rb"(GET|HEAD) ")  # what is sent isn't held back
_CHUNK = 1 << 20
_PACE = 47  # SO_MAX_PACING_RATE


@contextmanager
def slowed(endpoint: str, rate: float, delay: float) -> Iterator[str]:
    """The URL of a proxy in front of the HTTP server at `endpoint`: each answer comes `delay` seconds late, and each
    connection gives `rate` bytes a second at most."""
    command = [sys.executable, "-m", "benchmarks.parts.pace", endpoint, str(rate), str(delay)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        try:
            url = process.stdout.readline().strip()
            assert url, f"the proxy in front of {endpoint} has ended"
            yield url
        finally:
            process.stdin.close()  # it ends


def serve(endpoint: str, rate: float, delay: float) -> None:
    """Serve until stdin ends."""
    place = urlsplit(endpoint)
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)

    def accept() -> None:
        while True:
            client, _ = listener.accept()
            client.setsockopt(socket.SOL_SOCKET, _PACE, int(rate))
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                server = socket.create_connection((str(place.hostname), place.port or 80))
            except OSError:
                client.close()
                continue
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_asks, args=(client, server, delay), daemon=True).start()
            threading.Thread(target=_answers, args=(client, server), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


def _asks(client: socket.socket, server: socket.socket, delay: float) -> None:
    with suppress(OSError):
        while data := client.recv(_CHUNK):
            if _ASKS.match(data):
                time.sleep(delay)
            server.sendall(data)
        server.shutdown(socket.SHUT_WR)


def _answers(client: socket.socket, server: socket.socket) -> None:
    out, into = os.pipe()
    with suppress(OSError):  # who isn't root may have but some large pipes
        fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, _CHUNK)
    with client, server, suppress(OSError):
        while count := os.splice(server.fileno(), into, _CHUNK):
            while count:
                count -= os.splice(out, client.fileno(), count)
        client.shutdown(socket.SHUT_RDWR)
    os.close(out)
    os.close(into)


if __name__ == "__main__":
    serve(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
