"""Values of Redis straight into memory.

redis-py makes a bytes object of every value, which costs three copies on the way; for parts of 1 MiB they take longer
than Redis does. So the replies to GETs are read from the connection's socket into their place (RESP bulk strings,
https://redis.io/docs/latest/develop/reference/protocol-spec/). Connections, their set-up and pools stay redis-py's.
What is far longer than its place isn't received: its connection is closed, and what else was asked of it is taken for
missing. (GETRANGE would send no more than fits, and cost a third of the speed: Valkey copies its replies.)
"""

import socket
import ssl
from collections.abc import Sequence
from typing import Any

from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import ResponseError

from storage.cache.hot.address import Client

_HEAD = 64  # bytes asked for where a reply begins
_LINE = 4096  # bytes of an error's text
_LONGER = 64 << 10  # bytes that are received in vain, so that a connection goes on


def get_into(client: Client, keys: Sequence[str], places: Sequence[memoryview]) -> list[bool]:
    """Get all `keys` at once; the value of keys[i] into places[i]. Returns which were there, as strings, of that size.

    It waits for as long as the connections live: cut them to end it (see `Link.use`). Raises redis-py's errors and
    OSError; then the places hold anything.
    """
    found = [False] * len(keys)
    pools: dict[int, tuple[Any, list[int]]] = {}
    for index, key in enumerate(keys):
        pool = _pool(client, key)
        pools.setdefault(id(pool), (pool, []))[1].append(index)
    under_way = []
    try:
        for pool, indices in pools.values():
            connection = pool.get_connection()
            under_way.append((pool, connection, indices))
            connection.send_packed_command(connection.pack_commands([("GET", keys[index]) for index in indices]))
        for _, connection, indices in under_way:
            sock = connection._sock
            limit = sock.gettimeout()
            sock.settimeout(None)  # the kernel waits for a value as a whole; the caller's watch is the limit
            replies = _Replies(sock)
            try:
                for index in indices:
                    found[index] = replies.into(places[index])
                sock.settimeout(limit)
            except _TooLong:
                connection.disconnect()
    except BaseException:
        for _, connection, _ in under_way:
            connection.disconnect()  # what is left of its replies belongs to nobody
        raise
    finally:
        for pool, connection, _ in under_way:
            pool.release(connection)
    return found


def _pool(client: Client, key: str) -> Any:
    """The connections to the server, or to the cluster's node, that holds `key`."""
    if hasattr(client, "get_node_from_key"):
        client = client.get_redis_connection(client.get_node_from_key(key))
    return client.connection_pool


class _TooLong(Exception):
    """A value that is far longer than its place."""


class _Replies:
    """The replies on a socket, one after the other."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._flags = 0 if isinstance(sock, ssl.SSLSocket) else socket.MSG_WAITALL
        self._head = bytearray()  # received, and not yet used: the begin of a reply at most

    def into(self, place: memoryview) -> bool:
        """Read a value into `place`; False when there is none, or it has another size or type."""
        while (end := self._head.find(b"\r\n")) < 0:
            if len(self._head) > _LINE:
                raise ResponseError("an answer without an end")
            self._head += self._received(self._sock.recv(_HEAD))
        line = bytes(self._head[:end])
        del self._head[: end + 2]
        if line in (b"$-1", b"_"):  # nothing, in RESP 2 and 3
            return False
        if line.startswith(b"-WRONGTYPE"):  # another program's: the shard is fetched, and put in its place
            return False
        if not line.startswith(b"$") or not line[1:].isdigit():
            raise ResponseError(line[1:].decode(errors="replace"))
        if (size := int(line[1:])) > len(place) + _LONGER:
            raise _TooLong
        fits = size == len(place)
        self._fill(place if fits else memoryview(bytearray(size)))
        self._fill(memoryview(bytearray(2)))
        return fits

    def _fill(self, place: memoryview) -> None:
        done = min(len(self._head), len(place))
        place[:done] = self._head[:done]
        del self._head[:done]
        while done < len(place):
            done += self._received(self._sock.recv_into(place[done:], len(place) - done, self._flags))

    def _received(self, what: Any) -> Any:
        if not what:
            raise Disconnected("Connection closed by server.")
        return what
