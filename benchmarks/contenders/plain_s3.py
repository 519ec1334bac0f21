"""The limit of a cold read: all objects by plain ranged reads side by side, by obstore and by s3fs, without a look at
what comes. The job's `objects` are [path, bytes] below `url`."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.contender import Batch, Epoch, serve
from benchmarks.parts.works import Work

RANGES = (4 << 20, 8 << 20, 16 << 20)  # bytes of one read; the best one counts
AT_ONCE = 16


def ranges(work: Work, step: int) -> list[tuple[str, int, int]]:
    """(path, start, stop) of all reads of `step` bytes."""
    return [
        (path, start, min(start + step, size)) for path, size in work.job["objects"] for start in range(0, size, step)
    ]


def by_obstore(work: Work) -> Epoch:
    """Threads that ask for one range after the other; obstore works outside the GIL."""
    import obstore
    from obstore.store import S3Store

    bucket, _, prefix = work.job["url"].removeprefix("s3://").partition("/")
    store = S3Store(bucket, prefix=prefix, endpoint=os.environ["AWS_ENDPOINT_URL"], client_options={"allow_http": True})

    def epoch(step: int) -> Iterator[Batch]:
        def read(part: tuple[str, int, int]) -> Any:
            path, start, stop = part
            return memoryview(obstore.get_range(store, path, start=start, end=stop))

        with ThreadPoolExecutor(AT_ONCE) as pool:
            for data in pool.map(read, ranges(work, step)):
                yield {"values": [data]}

    return epoch


def by_s3fs(work: Work) -> Epoch:
    """`cat_ranges`, which reads side by side in its event loop."""
    import s3fs

    fs = s3fs.S3FileSystem(skip_instance_cache=True)

    def epoch(step: int) -> Iterator[Batch]:
        parts = ranges(work, step)
        for some in (parts[start : start + AT_ONCE] for start in range(0, len(parts), AT_ONCE)):
            paths, starts, stops = zip(*some, strict=True)
            for data in fs.cat_ranges([f"{work.job['url']}/{path}" for path in paths], list(starts), list(stops)):
                yield {"values": [data]}

    return epoch


if __name__ == "__main__":
    serve({"obstore": by_obstore, "s3fs": by_s3fs})
