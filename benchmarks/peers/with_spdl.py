"""SPDL, as its documentation says: a Pipeline whose stage decodes whole batches in threads, with its own decoder
(FFmpeg's libraries) or with simplejpeg. It has no storage format, so that it reads the source files' bytes, mapped, in
a full random order; `workers` are its threads."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import spdl.io
from spdl.pipeline import PipelineBuilder

from benchmarks.contender import Batch, Epoch, serve
from benchmarks.parts.works import Work
from benchmarks.peers.collate import IMAGE, decoded_batch


def own(work: Work) -> Epoch:
    """Decoded by SPDL."""

    def decode(rows: Any) -> Batch:
        buffer = spdl.io.load_image_batch([work.blob(row) for row in rows], width=IMAGE[1], height=IMAGE[0])
        return {"image": spdl.io.to_numpy(buffer), "label": work.arrays["label"][rows]}

    return _epochs(work, decode)


def simplejpeg(work: Work) -> Epoch:
    """Decoded as everybody else here does."""

    def decode(rows: Any) -> Batch:
        return decoded_batch([{"blob": work.blob(row), "label": int(work.arrays["label"][row])} for row in rows])

    return _epochs(work, decode)


def _epochs(work: Work, decode: Any) -> Epoch:
    rng = np.random.default_rng(0)

    def epoch(threads: int) -> Iterator[Batch]:
        rows = rng.permutation(work.samples)
        batches = [rows[start : start + work.batch] for start in range(0, work.samples, work.batch)]
        builder = PipelineBuilder().add_source(batches).pipe(decode, concurrency=threads).add_sink(threads)
        with (pipeline := builder.build(num_threads=threads)).auto_stop():
            yield from pipeline

    return epoch


if __name__ == "__main__":
    serve({"own": own, "simplejpeg": simplejpeg})
