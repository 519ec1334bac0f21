"""A TCP proxy in front of a real server, which does harm on request: it stands for a bad network or a sick server."""

import re
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

_REQUEST = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) \S+ HTTP/1\.1\r\n")
_BUFFER = 64 << 10
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close becomes a reset

Answer = Callable[[bytes], bytes | None]


class FaultyProxy:
    """Passes bytes between clients of `address` and the server at `target` (host, port), save for the faults set.

    Faults hold until `heal()`. `requests` are the heads of the HTTP requests that came, `connections` how many were
    made, `passed` how many bytes of the server's were handed on. A context manager.
    """

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.requests: list[bytes] = []
        self.connections = self.passed = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._forgotten: set[socket.socket] = set()
        self._flow, self._closed = threading.Event(), threading.Event()
        self.heal()
        self._listener: socket.socket | None = None
        self.port = 0
        self.up()

    @classmethod
    def before(cls, endpoint: str) -> Self:
        """In front of the server at the URL `endpoint`."""
        host, port = endpoint.split("://", 1)[-1].rstrip("/").split(":")
        return cls(host, int(port))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    # -- faults --------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """End every fault but `down`."""
        self._cut_after, self._cuts, self._flip, self._rate = 0, 0, False, 0.0
        self._answer: Answer | None = None
        self._flow.set()

    def down(self) -> None:
        """Refuse connections, and reset those that are open."""
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            self._listener.close()
            self._listener = None
        with self._lock:
            for connection in self._open:
                _reset(connection)

    def up(self) -> None:
        """Accept connections, on the same port as before."""
        self._listener = listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stall(self) -> None:
        """Pass no more bytes; connections stay open."""
        self._flow.clear()

    def forget(self) -> None:
        """Refuse connections, and pass nothing more over those that are open, which nobody resets: as a machine that
        is gone, or a balancer that has lost its state. `up` lets new ones in."""
        with self._lock:
            self._forgotten |= self._open
            self._open.clear()
        self.down()

    def cut(self, after: int, times: int) -> None:
        """`times` times, reset a connection once it has passed on `after` bytes of the server's."""
        self._cut_after, self._cuts = after, times

    def flip(self) -> None:
        """Flip a bit of the next large piece that the server sends."""
        self._flip = True

    def slow(self, rate: float) -> None:
        """Pass on `rate` bytes a second of the server's, a connection."""
        self._rate = rate

    def answer(self, answer: Answer) -> None:
        """Answer HTTP requests in the server's place: `answer(head)` gives the response, or None to pass it on."""
        self._answer = answer

    # -- at work -------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._flow.set()
        self.down()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self.connections += 1
        try:
            server = socket.create_connection(self.target, timeout=5)
        except OSError:
            _reset(client)
            client.close()
            return
        server.settimeout(None)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open |= {client, server}
        back = threading.Thread(target=self._answers, args=(server, client), daemon=True)
        back.start()
        with suppress(OSError):
            self._asks(client, server)
        back.join()
        with self._lock:
            self._open -= {client, server}
        client.close()
        server.close()

    def _asks(self, client: socket.socket, server: socket.socket) -> None:
        """Client → server."""
        while data := client.recv(_BUFFER):
            self._flow.wait()
            self._lose(client)
            if _REQUEST.match(data):
                while b"\r\n\r\n" not in data:
                    data += client.recv(_BUFFER)
                head = data.split(b"\r\n\r\n", 1)[0]
                self.requests.append(head)
                answer = self._answer(head) if self._answer is not None else None
                if answer is not None:
                    client.sendall(answer)
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(_BUFFER):  # of a body; a close with unread bytes would be a reset
                        pass
                    break
            server.sendall(data)
        _end(server)

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        """Server → client."""
        sent = 0
        with suppress(OSError):
            while data := server.recv(_BUFFER):
                self._flow.wait()
                self._lose(client)
                if self._flip and len(data) > 1024:
                    self._flip = False
                    data = data[:-1] + bytes([data[-1] ^ 1])
                if self._rate:
                    self._closed.wait(len(data) / self._rate)
                if self._cuts and sent + len(data) > self._cut_after:
                    with self._lock:
                        cut, self._cuts = self._cuts > 0, max(0, self._cuts - 1)
                    if cut:
                        client.sendall(data[: max(0, self._cut_after - sent)])
                        _reset(client)
                        break
                client.sendall(data)
                sent += len(data)
                self.passed += len(data)
        _end(client)
        _end(server)

    def _lose(self, client: socket.socket) -> None:
        """Keep what came over a connection that was forgotten."""
        if client in self._forgotten:
            self._closed.wait()


def _reset(connection: socket.socket) -> None:
    """End a connection as a network that breaks does, and wake who reads from it."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.shutdown(socket.SHUT_RDWR)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def s3_error(status: int, code: str) -> bytes:
    """An S3 server's HTTP response with an error code, as its documentation shows it."""
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{code}</Message></Error>'
    return (
        f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
        f"Connection: close\r\n\r\n{body}"
    ).encode()
