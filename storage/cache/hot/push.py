"""Giving to Redis what arrives from the lake: part by part, in the background, while its lease is kept alive."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from redis.exceptions import OutOfMemoryError

from storage.cache.hot.index import Index
from storage.cache.hot.link import Link, Unavailable

PART = 1 << 20  # bytes
BATCH = 8  # parts of one exchange
MIN_RATE = 20e6  # bytes/s; a Redis that is slower is taken for gone
_FULL = 30_000  # ms for which nobody offers anything to a Redis that refused
_SHARDS = 8  # under way at once: those that follow wait, so that memory stays bounded


def part_key(prefix: str, digest: str, part: int) -> str:
    return f"{prefix}:part:{digest}:{part}"


def part_keys(prefix: str, digest: str, size: int) -> list[str]:
    return [part_key(prefix, digest, part) for part in range(-(-size // PART))]


@dataclass(eq=False)
class Share:
    """A shard that is being fetched under lease `token`; its bytes arrive in `view`."""

    digest: str
    view: memoryview
    token: str
    pusher: "Pusher"
    waiting: deque[int] = field(default_factory=deque)
    ended: bool | None = None  # True: all is there; False: the fetch failed
    broken: bool = False  # Redis refused or is gone
    renewed: float = field(default_factory=time.monotonic)

    def wait_for_turn(self, timeout: float) -> None:
        """Wait while too many are under way."""
        self.pusher.wait_for_turn(self, timeout)

    def arrived(self, start: int, stop: int) -> None:
        """Bytes [start, stop) are in `view`: whole parts, or up to its end."""
        self.pusher.add(self, range(start // PART, -(-stop // PART)))

    def end(self, complete: bool) -> None:
        """Nothing more arrives; not `complete`: forget the shard, its bytes are no good."""
        self.pusher.end(self, complete)


class Pusher:
    """One thread that pushes the parts of all shards under way and renews their leases. It ends when it has nothing to
    do, and is started again."""

    def __init__(self, link: Link, index: Index) -> None:
        self.link, self.index = link, index
        self._changed = threading.Condition()
        self._shares: list[Share] = []
        self._thread: threading.Thread | None = None

    def begin(self, digest: str, view: memoryview, token: str) -> Share:
        """A shard whose lease was just taken; it is renewed until the share is ended."""
        share = Share(digest, view, token, self)
        with self._changed:
            self._shares.append(share)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shardline-push", daemon=True)
                self._thread.start()
        return share

    def wait_for_turn(self, share: Share, timeout: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: share in self._shares[:_SHARDS], timeout)

    def add(self, share: Share, parts: range) -> None:
        with self._changed:
            share.waiting.extend(parts)
            self._changed.notify_all()

    def end(self, share: Share, complete: bool) -> None:
        with self._changed:
            share.ended = complete
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until nothing is under way; False when that took too long."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._shares, seconds)

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        interval = self.index.lease / 3000  # seconds
        while True:
            with self._changed:
                if not self._changed.wait_for(self._has_work, interval) and not self._shares:
                    self._thread = None
                    return
                shares = list(self._shares)
            self._renew_all(interval)
            for share in shares:
                self._advance(share)
                self._renew_all(interval)  # a slow Redis takes a while for each batch

    def _has_work(self) -> bool:
        return any(share.waiting or share.ended is not None for share in self._shares)

    def _advance(self, share: Share) -> None:
        """Push one batch of `share`, or end it."""
        with self._changed:
            batch = [share.waiting.popleft() for _ in range(min(BATCH, len(share.waiting)))]
            ended = share.ended if not share.waiting else (share.ended if share.ended is False else None)
        if batch and ended is not False and not share.broken:
            self._attempt(share, lambda: self._push(share, batch))
        if ended is not None:
            if not share.broken:
                self._attempt(share, lambda: self._finish(share, keep=ended))
            with self._changed:
                self._shares.remove(share)
                self._changed.notify_all()

    def _attempt(self, share: Share, work: Callable[[], None]) -> None:
        try:
            work()
        except Unavailable:  # its lease expires, and somebody else fills in what is missing
            share.broken = True

    def _renew_all(self, interval: float) -> None:
        """Renew the leases that are `interval` seconds old, those of waiting shards too."""
        with self._changed:
            due = [s for s in self._shares if not s.broken and time.monotonic() - s.renewed > interval]
        for share in due:
            share.renewed = time.monotonic()
            self._attempt(share, partial(self._renew, share))

    def _renew(self, share: Share) -> None:
        with self.link.use() as client:
            kept = self.index.renew(client, share.digest, share.token)
        if not kept:  # another fetches it now, or it was dropped: this one's parts are of no use
            self._finish(share, keep=False)
            share.broken = True

    def _push(self, share: Share, batch: list[int]) -> None:
        with self.link.use(extra=len(batch) * PART / MIN_RATE) as client:
            pipe = client.pipeline(transaction=False)
            for part in batch:
                data = share.view[part * PART : (part + 1) * PART]
                pipe.set(part_key(self.index.prefix, share.digest, part), data, px=self.index.keep)
            refused = [reply for reply in pipe.execute(raise_on_error=False) if isinstance(reply, Exception)]
            if any(not isinstance(reply, OutOfMemoryError) for reply in refused):
                raise next(reply for reply in refused if not isinstance(reply, OutOfMemoryError))
        if refused:  # a full Redis is a normal state
            self._finish(share, keep=False, full=_FULL)
            share.broken = True

    def _finish(self, share: Share, *, keep: bool, full: int = 0) -> None:
        with self.link.use() as client:
            if not self.index.end(client, share.digest, share.token, keep=keep, full=full):
                delete_parts(client, self.index.prefix, {share.digest: len(share.view)})


def delete_parts(client: object, prefix: str, sizes: dict[str, int]) -> None:
    """Delete the parts of shards (digest → bytes)."""
    keys = [key for digest, size in sizes.items() for key in part_keys(prefix, digest, size)]
    for first in range(0, len(keys), 1024):
        pipe = client.pipeline(transaction=False)  # type: ignore[attr-defined]
        for key in keys[first : first + 1024]:
            pipe.unlink(key)
        pipe.execute()
