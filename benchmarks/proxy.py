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
    counter, loop, server = Counter(), asyncio.new_event_loop(), urlsplit(endpoint)
    assert server.hostname
    assert server.port
    host, port = server.hostname, server.port

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.CancelledError):
            from_server, to_server = await asyncio.open_connection(host, port)
            await asyncio.gather(_pump(reader, to_server, None), _pump(from_server, writer, counter))

    async def listen() -> None:
        listening = await asyncio.start_server(connected, "127.0.0.1", 0)
        counter.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"

    loop.run_until_complete(listen())
    thread = threading.Thread(target=loop.run_forever, name="proxy", daemon=True)
    thread.start()
    try:
        yield counter
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counter: Counter | None) -> None:
    """Pass on what comes until it ends."""
    with suppress(ConnectionError):
        while data := await reader.read(_CHUNK):
            if counter is not None:
                counter.received += len(data)
            writer.write(data)
            await writer.drain()
    writer.close()
