"""The limits: the least that any loader has to do, by one thread, on what lies in memory already."""

from collections.abc import Iterator

import numpy as np

from benchmarks.contender import Batch, Epoch, serve
from benchmarks.parts.works import Work
from storage.images import decode_image


def take(work: Work) -> Epoch:
    """`np.take` of each batch's rows, in a random order, into a reused buffer (mode "clip", the fastest)."""
    arrays = {name: np.array(values) for name, values in work.arrays.items()}
    buffers = {name: np.empty((work.batch, *values.shape[1:]), values.dtype) for name, values in arrays.items()}
    rng = np.random.default_rng(0)

    def epoch(_: int) -> Iterator[Batch]:
        order = rng.permutation(work.samples)
        for start in range(0, work.samples, work.batch):
            rows = order[start : start + work.batch]
            yield {
                name: np.take(values, rows, axis=0, out=buffers[name][: len(rows)], mode="clip")
                for name, values in arrays.items()
            }

    return epoch


def copy(work: Work) -> Epoch:
    """One memcpy a batch, of the bytes of as many blobs that lie one after the other, into a reused buffer."""
    values, labels = np.array(work.arrays["values"]), np.array(work.arrays["label"])
    offsets = work.arrays["offsets"]
    starts = range(0, work.samples, work.batch)
    buffer = np.empty(max(int(offsets[min(s + work.batch, work.samples)] - offsets[s]) for s in starts), np.uint8)

    def epoch(_: int) -> Iterator[Batch]:
        for first in starts:
            last = min(first + work.batch, work.samples)
            start, stop = int(offsets[first]), int(offsets[last])
            np.copyto(buffer[: stop - start], values[start:stop])
            yield {"values": buffer[: stop - start], "label": labels[first:last]}

    return epoch


def decode(work: Work) -> Epoch:
    """The decoder alone, by one thread, from memory into a reused buffer."""
    files = [work.blob(index) for index in range(min(work.samples, 512))]
    images = np.empty((work.batch, 224, 224, 3), np.uint8)

    def epoch(_: int) -> Iterator[Batch]:
        for first in range(0, len(files), work.batch):
            some = files[first : first + work.batch]
            for place, file in enumerate(some):
                decode_image(file, images[place])
            yield {"image": images[: len(some)]}

    return epoch


if __name__ == "__main__":
    serve({"take": take, "copy": copy, "decode": decode})
