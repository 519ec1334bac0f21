"""Encoded images → pixels in a batch, in threads. How an image is decoded says `storage.images`.

The result depends on the images and the shape alone, never on the number of threads.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from typing_extensions import Buffer

from pipelines.runtime.cores import cores
from storage.errors import DataError
from storage.images import CHANNELS, Pixels, decode_image


class Decoder:
    """Decodes images to uint8 `shape` [height, width, channels] in up to `threads` threads, the caller's included; by
    default as many as this process may use cores.

    Threads are started when first needed and end with `close` or when this is forgotten. It can be pickled and survives
    a fork. One batch at a time.
    """

    def __init__(self, shape: tuple[int, ...], threads: int | None = None) -> None:
        if len(shape) != 3 or shape[2] not in CHANNELS:
            raise DataError(f"images of shape {list(shape)}: must be [height, width, 1] or [height, width, 3]")
        self.shape, self.threads = shape, threads or cores()
        self._pool: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def into(self, images: Sequence[Buffer], out: Pixels, name: Callable[[int], str]) -> None:
        """Decode `images` [n] into `out` uint8 [n, *shape]. Raises DataError that begins with `name(i)` for the first
        that cannot be decoded."""
        numbers = itertools.count()
        failed: dict[int, DataError] = {}
        end = len(images)

        def work() -> None:
            nonlocal end
            for number in numbers:  # shared: each number goes to one thread, lower ones first
                if number >= end:
                    return
                try:
                    decode_image(images[number], out[number])
                except DataError as error:
                    failed[number] = error
                    end = min(end, number)

        helpers = min(self.threads, len(images)) - 1
        others = [self._executor().submit(work) for _ in range(helpers)] if helpers > 0 else []
        work()
        for other in others:
            other.result()
        if failed:
            first = min(failed)
            raise DataError(
                f"{name(first)}: {failed[first]}. Leave the image out at the source, then run `dvc repro`."
            ) from failed[first]

    def _executor(self) -> ThreadPoolExecutor:
        if self._pool is None or self._process != os.getpid():  # after a fork, the threads are the parent's
            self._pool, self._process = ThreadPoolExecutor(self.threads - 1, "shardline-decode"), os.getpid()
        return self._pool

    def close(self) -> None:
        """End the threads. They are started again when needed."""
        if self._pool is not None and self._process == os.getpid():
            self._pool.shutdown()
        self._pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Decoder, (self.shape, self.threads)
