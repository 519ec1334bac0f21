"""A proxy that counts: every byte that a server sends through it, as its clients' network would see it."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

_CHUNK = 1 << 18


@dataclass
class Counter:
    """`received` are bytes from the server; `url` is where clients connect."""

    url: str = ""
    received: int = 0


@contextmanager
def counting(endpoint: str) -> Iterator[Counter]:
    """A proxy on a free port of this machine in front of the HTTP server at `endpoint`, in a thread."""
    proxy = _Proxy(endpoint)
    thread = threading.Thread(target=lambda: asyncio.run(proxy.serve()), name="proxy", daemon=True)
    thread.start()
    proxy.ready.wait()
    try:
        yield proxy.counter
    finally:
        proxy.stop()
        thread.join()


class _Proxy:
    def __init__(self, endpoint: str) -> None:
        self.server = urlsplit(endpoint)
        self.counter, self.ready = Counter(), threading.Event()

    async def serve(self) -> None:
        self.loop, self.stopped = asyncio.get_running_loop(), asyncio.Event()
        listening = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.counter.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        self.ready.set()
        await self.stopped.wait()
        listening.close()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.stopped.set)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.CancelledError):  # cancelled when the proxy stops
            from_server, to_server = await asyncio.open_connection(self.server.hostname, self.server.port)
            await asyncio.gather(_pump(reader, to_server, None), _pump(from_server, writer, self.counter))
        writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counter: Counter | None) -> None:
    """Pass on what comes until it ends."""
    try:
        while data := await reader.read(_CHUNK):
            if counter is not None:
                counter.received += len(data)
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
