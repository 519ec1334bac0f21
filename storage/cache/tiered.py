"""Shards through the tiers: node cache (disk) → hot cache (Redis) → lake.

    with Tiered(zone, node, hot) as cache:
        source = cache.fetch(obj)           # the shard's file on this machine, or its bytes
        shard = Shard.open(source, zone.describe(obj.path))

What `fetch` gives is plain and was checked against its digest in this process. A tier that fails is passed over, so
that only the lake's own errors reach the caller.
"""

import atexit
import logging
import os
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from typing_extensions import Buffer

from storage.cache.arrival import Verifier, shared_memory
from storage.cache.counters import Counters, Tally
from storage.cache.hot.cache import HotCache, OnRange
from storage.cache.node.cache import Claim, NodeCache
from storage.cache.node.place import check_apart
from storage.digest import digest_bytes, digest_file
from storage.errors import Cancelled, DigestError, LakeError
from storage.lake import StoredObject, Zone
from storage.mapped import map_file, read_in
from storage.objects.compression import decompress_into, is_compressed

_BEHIND = 4  # shards that are written to the node cache while they are in use already
_log = logging.getLogger(__name__)


class Tiered:
    """The shards of `zone` through those tiers that are given, which are then its own; without any, straight from the
    lake.

    Raises ParamsError where the node cache's folder is a place of the zone's.

    Threads may share it: different shards are fetched side by side, one shard once. It can be pickled and survives a
    fork. `counters` are of this process; `close` adds them to those that each tier keeps for all.
    """

    def __init__(self, zone: Zone, node: NodeCache | None = None, hot: HotCache | None = None) -> None:
        self.zone, self.node, self.hot = zone, node, hot
        if node is not None:
            check_apart(node.folder, [zone.folder] if zone.root is None else [zone.folder, zone.root])
        self._reset()
        close = weakref.WeakMethod(self.close)
        atexit.register(lambda: (method := close()) and method())

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._under_way: dict[str, Future[Path | Buffer]] = {}
        self._intact: set[int] = set()  # hashes of (digest, inode) of the files that this process has checked
        self._lake = Tally()
        self._memory = shared_memory()
        self._writer: ThreadPoolExecutor | None = None
        self._room = threading.Semaphore(_BEHIND)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tiered, (self.zone, self.node, self.hot)

    # -- fetching --------------------------------------------------------------------------------------------------

    def fetch(self, obj: StoredObject) -> Path | Buffer:
        """The shard `obj`, plain and intact: its file on this machine, or its bytes where no tier keeps a file.

        A file of the node cache may lose its name when its place is needed: open it at once, or call `open`.
        Raises DigestError (with both digests) when the lake itself holds other bytes, and LakeError.
        """
        return self._once(obj, behind=False)

    def _once(self, obj: StoredObject, behind: bool) -> Path | Buffer:
        """Fetch a shard that no other thread is fetching, or take what that one gets."""
        if self._process != os.getpid():  # forked: locks, counters and what was under way are the parent's
            self._reset()
            if self.node is not None:
                self.node.tally = Tally()
        with self._lock:
            future = self._under_way.get(obj.digest)
            mine = future is None
            if future is None:
                future = self._under_way[obj.digest] = Future()
        if not mine:
            try:
                return future.result()
            except Cancelled:  # nobody waited for it there
                return self._once(obj, behind)
        try:
            result = self._fetch(obj, behind)
        except BaseException as error:
            self._ended(obj).set_exception(error)
            raise
        self._ended(obj).set_result(result)
        return result

    def _ended(self, obj: StoredObject) -> Future[Path | Buffer]:
        """What others wait for; whoever comes from now on fetches the shard anew."""
        with self._lock:
            return self._under_way.pop(obj.digest)

    def open(self, obj: StoredObject) -> tuple[pa.Buffer, bool]:
        """The shard `obj` as a buffer, and whether that is memory of this process rather than a mapped file.

        A shard that is new to the node cache is written there afterwards, in a thread.
        """
        for _ in range(3):
            source = self._once(obj, behind=True)
            if not isinstance(source, Path):
                return pa.py_buffer(source), True
            try:
                mapped = map_file(source)
                read_in(mapped)  # a file that was written past the page cache isn't in it
                return mapped, False
            except FileNotFoundError:  # its place in the ring was needed between the two lines above
                continue
        return pa.py_buffer(self._in_memory(obj)), True

    def _fetch(self, obj: StoredObject, behind: bool) -> Path | Buffer:
        size = obj.plain_bytes
        if self.node is None and self.hot is None and not is_compressed(obj.path):
            file = self.zone.local_path(obj.path)
            if file is not None:
                return self._local(file, obj)
        node = self.node
        if node is None:
            return self._in_memory(obj)
        claim = node.claim(obj.digest, size)
        if isinstance(claim, Path) and not self._is_intact(claim, obj.digest):
            _log.warning("node cache: %s is damaged; it is fetched again", claim)
            try:
                node.drop([obj.digest])
            except OSError as error:
                node.complain(error)
                return self._in_memory(obj)
            claim = node.claim(obj.digest, size)
        if isinstance(claim, Path) and self._is_intact(claim, obj.digest):
            node.tally.add(hits=1, bytes=size)
            return claim
        node.tally.add(misses=1)
        return self._into(claim, obj, behind) if isinstance(claim, Claim) else self._in_memory(obj)

    def _local(self, file: Path, obj: StoredObject) -> Path:
        """An object of a lake on this machine, checked once."""
        try:
            if not self._is_intact(file, obj.digest):
                raise DigestError(str(file), obj.digest, digest_file(file))
        except OSError:
            self.zone.read(obj.path)  # raises what says best why it can't be read
        return file

    def _is_intact(self, file: Path, digest: str) -> bool:
        """Whether the file has its digest; read once a process."""
        try:
            key = hash((digest, file.stat().st_ino))
            if key not in self._intact:
                if digest_file(file) != digest:
                    return False
                self._intact.add(key)
        except OSError:
            return False
        return True

    def _into(self, claim: Claim, obj: StoredObject, behind: bool) -> Path | Buffer:
        """Fill a file of the node cache; the shard's bytes where that can't be, or is done `behind` the caller."""
        try:
            view = self._take(obj, obj.plain_bytes)
            was_hot = self._fill(obj, view)
        except BaseException:
            claim.abandon()
            raise
        if behind and self._write_behind(claim, view):
            return view.toreadonly()
        if behind and was_hot:  # Redis has it, and is faster than this disk: another epoch may find the disk idle
            claim.abandon()
            return view.toreadonly()
        return self._commit(claim, view) or view.toreadonly()

    def _write_behind(self, claim: Claim, view: memoryview) -> bool:
        """Whether a thread will write the shard: not where it has enough to write already."""
        if not self._room.acquire(blocking=False):
            return False
        try:
            with self._lock:
                self._writer = self._writer or ThreadPoolExecutor(1, thread_name_prefix="shardline-node-cache")
                written = self._writer.submit(self._commit, claim, view, direct=True)
        except RuntimeError:  # no thread can be started any more: the interpreter ends, say
            self._room.release()
            return False
        written.add_done_callback(lambda _: self._room.release())
        return True

    def _commit(self, claim: Claim, view: memoryview, *, direct: bool = False) -> Path | None:
        file = claim.commit(view, direct=direct)
        if file is not None:
            self._intact.add(hash((claim.digest, claim.inode)))
        return file

    def _in_memory(self, obj: StoredObject) -> Buffer:
        view = self._take(obj, obj.plain_bytes)
        self._fill(obj, view)
        return view.toreadonly()

    def _take(self, obj: StoredObject, nbytes: int) -> memoryview:
        """Memory for the shard. A manifest may claim any size."""
        try:
            return self._memory.take(nbytes)
        except (OSError, OverflowError, ValueError) as error:
            raise LakeError(
                f"{self.zone.describe(obj.path)}: the manifest says that it has {nbytes:,} bytes, for which this "
                "machine has no memory. Lower shard.target_mb, or restore the manifest with `dvc checkout`."
            ) from error

    def _fill(self, obj: StoredObject, view: memoryview) -> bool:
        """Put the shard's plain bytes into `view` and check them; returns whether they came from the hot cache rather
        than the lake."""
        if self.hot is not None:
            return self.hot.fill(obj.digest, view, lambda on_range: self._from_lake(obj, view, on_range))
        self._from_lake(obj, view, None)
        return False

    def _from_lake(self, obj: StoredObject, view: memoryview, on_range: OnRange | None) -> None:
        """Read the object, twice if its bytes aren't those of its digest; `on_range(start, stop)` as parts of `view`
        are there. Raises DigestError, LakeError."""
        found = ""
        for _ in range(2):
            found = self._read_packed(obj, view) if is_compressed(obj.path) else self._read_plain(obj, view, on_range)
            self._lake.add(hits=1, bytes=obj.bytes)
            if found == obj.digest:
                if on_range is not None and is_compressed(obj.path):
                    on_range(0, len(view))
                return
        raise DigestError(self.zone.describe(obj.path), obj.digest, found)

    def _read_plain(self, obj: StoredObject, view: memoryview, on_range: OnRange | None) -> str:
        """Read the object into `view`; returns the digest of what came, hashed as it came."""
        verifier = Verifier(view)

        def arrived(start: int, stop: int) -> None:
            verifier.arrived(start, stop)
            if on_range is not None:
                on_range(start, stop)

        self.zone.reader.read_into(obj.path, 0, view, arrived)
        return verifier.digest()

    def _read_packed(self, obj: StoredObject, view: memoryview) -> str:
        """Read a compressed object and unpack it into `view`; returns the digest of what came out."""
        packed = self._take(obj, obj.bytes)
        self.zone.reader.read_into(obj.path, 0, packed)
        try:
            decompress_into(packed, view)
        except ValueError as error:
            return f"none: {error}"
        return digest_bytes(view)

    # -- accounts --------------------------------------------------------------------------------------------------

    def counters(self) -> dict[str, Counters]:
        """Of each tier (node, hot, lake), in this process."""
        node = self.node.tally.counters() if self.node is not None else Counters()
        hot = self.hot.tally.counters() if self.hot is not None else Counters()
        return {"node": node, "hot": hot, "lake": self._lake.counters()}

    def close(self) -> None:
        """Finish what is under way in the background and report the counters. It can be used again."""
        if self._process != os.getpid():
            return
        with self._lock:
            writer, self._writer = self._writer, None
        if writer is not None:
            writer.shutdown()
        if self.node is not None:
            self.node.report()
        if self.hot is not None:
            self.hot.close()
        self._memory.rest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def objects_of(table: pa.Table) -> list[StoredObject]:
    """The objects that the rows of a shards manifest name."""
    columns = [table[name].to_pylist() for name in ("path", "digest", "bytes", "plain_bytes")]
    return [StoredObject(*values) for values in zip(*columns, strict=True)]
