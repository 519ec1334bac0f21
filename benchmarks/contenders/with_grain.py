"""Grain over ArrayRecord files, the loader of JAX's users, as its documentation says: `group_size:1` for random access,
a global shuffle, batches by `batch_fn`, read by its threads (`ReadOptions`, the defaults), or by worker processes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags
from array_record.python.array_record_module import ArrayRecordWriter

from benchmarks.contender import Batch, Epoch, serve
from benchmarks.contenders.collate import COLLATE
from benchmarks.works import SHARD_BYTES, Work


def write(work: Work, folder: Path) -> None:
    """Records are raw bytes, after 8 bytes of label where there is one."""
    arrays, count = work.arrays, max(1, SHARD_BYTES * work.samples // work.bytes)
    count = min(count, -(-work.samples // 4))
    for start in range(0, work.samples, count):
        writer = ArrayRecordWriter(str(folder / f"{start:09d}.array_record"), "group_size:1")
        for index in range(start, min(start + count, work.samples)):
            if "values" in arrays:
                data = work.blob(index)
            else:
                data = arrays["tokens" if work.name == "tokens" else "x"][index].tobytes()
            writer.write((arrays["label"][index].tobytes() if "label" in arrays else b"") + data)
        writer.close()


def decode(work: Work) -> Any:
    """The function from a record to the sample that the collate functions take."""
    if work.name == "tokens":
        return lambda record: {"tokens": np.frombuffer(record, np.uint16)}
    if work.name == "rows":
        return lambda record: {
            "x": np.frombuffer(record, np.float32, offset=8),
            "label": int.from_bytes(record[:8], "little"),
        }
    return lambda record: {"blob": record[8:], "label": int.from_bytes(record[:8], "little")}


def _arrays(batch: dict[str, Any]) -> Batch:
    """NumPy arrays, which its processes hand over by shared memory, in place of tensors."""
    return {name: values if isinstance(values, list) else values.numpy() for name, values in batch.items()}


def stream(work: Work) -> Epoch:
    folder = work.made("array_record", lambda folder: write(work, folder))
    source = grain.sources.ArrayRecordDataSource(sorted(map(str, folder.glob("*.array_record"))))
    dataset = grain.MapDataset.source(source).shuffle(seed=1).map(decode(work))
    batches = dataset.batch(work.batch, batch_fn=lambda samples: _arrays(COLLATE[work.name](samples)))

    def epoch(workers: int) -> Iterable[Batch]:
        iterable = batches.to_iter_dataset()
        if workers:
            iterable = iterable.mp_prefetch(grain.multiprocessing.MultiprocessingOptions(num_workers=workers))
        found: Iterable[Batch] = iterable
        return found

    return epoch


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()  # its worker processes ask for them
    serve({"stream": stream})
