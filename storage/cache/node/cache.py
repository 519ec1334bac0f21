"""The node cache: shards as files in one folder of this machine, shared by its processes.

    FOLDER/shardline/CACHEDIR.TAG             says that this folder is a cache's (see node_place.py)
    FOLDER/shardline/objects/<digest>.arrow   a shard, plain
    FOLDER/shardline/objects/<digest>.tmp     one that is being fetched, by who holds its flock, which dies with it
    FOLDER/shardline/index.json               bytes in `objects` (temporary ones too), the ring, counters; has a flock

Files appear by rename and are never written again, so that readers need no lock, and one that maps a file keeps it
when its name is dropped. Nothing is synced to disk: a reader checks each file once, and a torn one is fetched again.
Only files of the names above are deleted, in a folder with the tag above.
"""

import errno
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.cache.counters import Tally
from storage.cache.locks import Locked, is_at, pauses, try_lock, unlock
from storage.cache.node.files import TEMPORARY, Files
from storage.cache.node.index import Index, IndexLock
from storage.cache.policy import DAY, Decision, decide, ring_of
from storage.cache.write import write

_RECOUNT = 600.0  # seconds after which a process that begins counts the folder again
_TOUCH = 1 / 16  # of `idle`: how stale a file's time of last use may be
_log = logging.getLogger(__name__)


@dataclass
class Claim:
    """The right to fill a shard, which is counted in. End it by `commit` or `abandon`."""

    cache: "NodeCache"
    digest: str
    size: int
    descriptor: int
    inode: int

    def commit(self, view: memoryview, *, direct: bool = False) -> Path | None:
        """Write the shard (with `direct` past the page cache) and give the file its name. None where that can't be (its
        folder was deleted, say)."""
        path = self.cache.path(self.digest)
        try:
            write(self.descriptor, view, direct=direct)
            temporary = self.cache.temporary(self.digest)
            if not is_at(self.descriptor, temporary):  # the folder was deleted; what is there now is another's
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(temporary))
            os.rename(temporary, path)
        except OSError as error:
            self.cache.complain(error)
            self.abandon()
            return None
        except BaseException:
            self.abandon()
            raise
        unlock(self.descriptor)
        return path

    def abandon(self) -> None:
        """Give the space back."""
        self.cache.give_back(self.digest, self.size, self.descriptor)


class NodeCache:
    """At most `budget_bytes` of shards below `folder`, `ring_bytes` of them in the ring (see policy.py).

    `timeout` is how many seconds to wait for another process' fetch, or for the index. An operating system's error
    (full disk, folder deleted or not writable) is told once as a warning; then there is no claim and the caller does
    without.
    Threads may share it; it can be pickled and survives a fork.
    """

    def __init__(
        self,
        folder: Path,
        budget_bytes: int,
        ring_bytes: int | None = None,
        *,
        idle: float = DAY,
        timeout: float = 60.0,
    ) -> None:
        self.folder, self.budget, self.idle, self.timeout = Path(folder), budget_bytes, idle, timeout
        self.ring_limit = ring_of(budget_bytes) if ring_bytes is None else min(ring_bytes, budget_bytes)
        self.files = Files(self.folder)
        self._lock = IndexLock(self.files.place / "index.json", timeout)
        self.tally = Tally()
        self._complained: set[int | None] = set()
        self._counted = self._within = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (self.folder, self.budget, self.ring_limit, self.idle, self.timeout)

    def path(self, digest: str) -> Path:
        return self.files.path(digest)

    def temporary(self, digest: str) -> Path:
        return self.files.temporary(digest)

    # -- reading and filling ---------------------------------------------------------------------------------------

    def find(self, digest: str, size: int) -> Path | None:
        """The file of a shard of `size` bytes, or None. One of another size was cut off: it is dropped."""
        path = self.path(digest)
        try:
            found = path.stat()
            if found.st_size != size:
                with self._index() as index:
                    self._unlink(digest, index, size)
                return None
            if time.time() - found.st_mtime > self.idle * _TOUCH:
                with suppress(OSError):  # not our file, say
                    os.utime(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.complain(error)
            return None
        return path

    def claim(self, digest: str, size: int) -> Path | Claim | None:
        """The file of a shard, if need be after waiting for the process that fetches it, or else the right to fill it.

        None where the cache has no place for it or cannot be used, or where the wait took `timeout`.
        """
        end, waits, waited = time.monotonic() + self.timeout, pauses(0.002, 0.05), False
        try:
            self._keep_within()
            while (path := self.find(digest, size)) is None:
                if self._lock.rests:
                    self.tally.add(failures=1)
                    return None
                descriptor = self._lock_temporary(digest)
                if descriptor is not None:
                    return self._fill(digest, size, descriptor)
                if time.monotonic() > end:
                    _log.warning(
                        "node cache %s: another process has been fetching %s for %g s; fetching it without the cache",
                        self.folder, digest, self.timeout,
                    )  # fmt: skip
                    return None
                if not waited:
                    waited = True
                    self.tally.add(waits=1)
                time.sleep(next(waits))
        except OSError as error:
            self.complain(error)
            return None
        return path

    def _keep_within(self) -> None:
        """Once a process: the budget may have been lowered since the cache was filled."""
        if not self._within:
            self._within = True
            try:
                if self.files.objects.is_dir():
                    with self._index() as index:
                        self._drop_excess(index)
            except OSError as error:
                self.complain(error)

    def _drop_excess(self, index: Index) -> None:
        """Drop what is beyond the budget: of the ring the oldest, then of the pinned shards the longest unread. One
        without a budget is only looked at."""
        if not self.budget or index.bytes <= self.budget:
            return
        pinned = [(stat.st_mtime, key, stat.st_size) for key, stat in self.files.held() if key not in index.ring]
        self._drop_down(list(index.ring.items()), self.ring_limit, index)
        self._drop_down([(key, size) for _, key, size in sorted(pinned)], self.budget - self.ring_limit, index)
        index.oldest = 0.0

    def _drop_down(self, shards: list[tuple[str, int]], limit: int, index: Index) -> None:
        """Drop the first of `shards` (digest, bytes) until the others have `limit` bytes."""
        held = sum(size for _, size in shards)
        for digest, _ in shards:
            if held <= limit:
                return
            held -= self._unlink(digest, index)

    def _lock_temporary(self, digest: str) -> int | None:
        """A descriptor of the temporary file with its lock, or None while another holds it."""
        self.files.make()
        path = self.temporary(digest)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if try_lock(descriptor) and is_at(descriptor, path):  # not one that was renamed or removed meanwhile
            return descriptor
        os.close(descriptor)
        return None

    def _fill(self, digest: str, size: int, descriptor: int) -> Path | Claim | None:
        if (path := self.find(digest, size)) is not None:  # another was faster: this file was made too late
            self.give_back(digest, 0, descriptor)
            return path
        try:
            has_place = self._reserve(digest, size, descriptor)
        except OSError as error:
            self.complain(error)
            has_place = False
        if not has_place:
            self.give_back(digest, 0, descriptor)
            return None
        return Claim(self, digest, size, descriptor, os.fstat(descriptor).st_ino)

    def _reserve(self, digest: str, size: int, descriptor: int) -> bool:
        """Count a shard in, where the policy gives it a place; drop what it replaces."""
        with self._index() as index:
            stale = os.fstat(descriptor).st_size  # a dead process left it
            index.bytes -= stale
            index.ring.pop(digest, None)
            self._drop_excess(index)  # of several processes' budgets, the smallest is kept
            decision = self._decide(size, index)
            if decision.place == "none" and self._free_dead(index):
                decision = self._decide(size, index)
            for dropped in decision.drop:
                self._unlink(dropped, index)
            os.ftruncate(descriptor, 0)
            if decision.place == "none":
                return False
            os.ftruncate(descriptor, size)
            index.bytes += size
            if decision.place == "ring":
                index.ring[digest] = size
            return True

    def _decide(self, size: int, index: Index) -> Decision:
        held = {key: nbytes for key, nbytes in index.ring.items() if self.path(key).exists()}
        arriving = sum(index.ring.values()) - sum(held.values())
        pinned = index.bytes - sum(index.ring.values())  # more than its part where the index was lost, and its ring
        return decide(
            size,
            pinned=pinned,
            pinned_limit=self.budget - self.ring_limit,
            idle=self._idle(index),
            ring=list(held.items()),
            ring_limit=min(self.ring_limit, self.budget - pinned) - arriving,
        )

    def _free_dead(self, index: Index) -> bool:
        """Give back the ring's places of fetches whose process has died. Returns whether there were any."""
        dead = [key for key in index.ring if self.temporary(key).exists() and self._swept(self.temporary(key))]
        for key in dead:
            index.bytes -= index.ring.pop(key)
        return bool(dead)

    def give_back(self, digest: str, size: int, descriptor: int) -> None:
        """Remove a temporary file and uncount its `size` bytes, then let its lock go. Where the index can't be had, the
        file stays, counted, for whoever comes next."""
        try:
            with suppress(OSError), self._index() as index:
                if is_at(descriptor, self.temporary(digest)):
                    self.temporary(digest).unlink(missing_ok=True)
                    if size:  # else what the ring has of that name is another's
                        index.bytes -= size
                        index.ring.pop(digest, None)
                elif size:  # it went with its folder, and perhaps with the index that had counted it
                    self._recount(index)
        finally:
            unlock(descriptor)

    def complain(self, error: OSError) -> None:
        """Tell of an error, once of each kind; of a locked index its lock tells."""
        self.tally.add(failures=1)
        if error.errno not in self._complained and not isinstance(error, Locked):
            self._complained.add(error.errno)
            reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"{error}"
            _log.warning(
                "node cache %s: %s. Shards that it cannot take are kept in memory; free some space or set "
                "cache.node.folder or cache.node.budget_mb.",
                self.folder, reason,
            )  # fmt: skip

    # -- keeping house ---------------------------------------------------------------------------------------------

    def drop(self, digests: Iterable[str]) -> int:
        """Remove shards; readers that have mapped them keep them. Returns how many bytes."""
        with self._index() as index:
            return sum(self._unlink(digest, index) for digest in digests)

    def digests(self) -> dict[str, int]:
        """Digest → bytes of every shard that is there. Raises OSError."""
        return {digest: stat.st_size for digest, stat in self.files.held()}

    def holds(self, sizes: Mapping[str, int]) -> set[str]:
        """Those shards (digest → bytes) that are there. Raises OSError."""
        return {digest for digest, _ in self.digests().items() & sizes.items()}

    def in_use(self) -> dict[str, int]:
        """Digest → bytes of the pinned shards that don't give place, since somebody reads them. Raises OSError."""
        since = time.time() - self.idle
        with self._index() as index:
            held = self.files.held()
            return {key: stat.st_size for key, stat in held if key not in index.ring and stat.st_mtime > since}

    def report(self) -> None:
        """Add this process' counters to those that all processes share."""
        amounts = self.tally.unreported()
        if amounts and os.path.isdir(self.files.objects):
            with suppress(OSError), self._index() as index:
                for name, amount in amounts.items():
                    index.counters[name] = index.counters.get(name, 0) + amount

    def usage(self) -> dict[str, Any]:
        """Bytes and shards held, the budget, and the counters of all processes so far. Raises OSError."""
        sizes = self.digests()
        counters: dict[str, int] = {}
        if self.files.objects.is_dir():
            with suppress(OSError), self._index() as index:
                counters = dict(index.counters)
        return {"bytes": sum(sizes.values()), "items": len(sizes), "budget": self.budget, "counters": counters}

    def _idle(self, index: Index) -> Iterator[tuple[str, int]]:
        """(digest, bytes) of the pinned shards that nobody has read for `idle` seconds, the longest unread first."""
        now = time.time()
        if now < index.oldest + self.idle:
            return
        found = []
        oldest = now
        for digest, stat in self.files.held():
            if digest not in index.ring:
                oldest = min(oldest, stat.st_mtime)
                if stat.st_mtime <= now - self.idle:
                    found.append((stat.st_mtime, digest, stat.st_size))
        index.oldest = oldest if not found else 0.0
        for _, digest, size in sorted(found):
            yield digest, size

    def _unlink(self, digest: str, index: Index, counted: int | None = None) -> int:
        """Remove a file and uncount it, by the size that it was `counted` with if it has another now. One that is being
        fetched stays."""
        path = self.path(digest)
        try:
            size = path.stat().st_size if counted is None else counted
            path.unlink()
        except FileNotFoundError:
            if self.temporary(digest).exists():
                return 0
            size = 0
        index.bytes -= index.ring.pop(digest, size)
        return size

    @contextmanager
    def _index(self) -> Iterator[Index]:
        """The index under its lock; written back when the block succeeds. Raises OSError."""
        self.files.make()
        descriptor = os.open(self._lock.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._lock.take(descriptor)
            index = Index.load(descriptor)
            if index is None or (not self._counted and time.time() - index.counted > _RECOUNT):
                index = self._recount(index or Index())
            self._counted = True
            yield index
            index.save(descriptor)
        finally:
            unlock(descriptor)

    def _recount(self, index: Index) -> Index:
        """Count what is there, and remove the temporary files of dead processes."""
        index.bytes, index.counted = 0, time.time()
        there = set()
        for digest, suffix, entry in self.files.listed():
            if suffix == TEMPORARY and self._swept(Path(entry.path)):
                continue
            with suppress(FileNotFoundError):
                index.bytes += entry.stat().st_size
                there.add(digest)
        index.ring = {digest: size for digest, size in index.ring.items() if digest in there}
        return index

    def _swept(self, path: Path) -> bool:
        """Whether the temporary file `path` was a dead process' and is gone now."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            if not try_lock(descriptor):
                return False
            if is_at(descriptor, path):
                path.unlink()
            return True
        finally:
            os.close(descriptor)


def _remake(folder: Path, budget: int, ring: int, idle: float, timeout: float) -> NodeCache:
    return NodeCache(folder, budget, ring, idle=idle, timeout=timeout)
