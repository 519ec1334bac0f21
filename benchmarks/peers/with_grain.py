"""Grain over ArrayRecord files, the loader of JAX's users, as its documentation says: `group_size:1` for random access,
a global shuffle, batches by `batch_fn`, read by its threads (`ReadOptions`, the defaults), or by worker processes.

JPEG files are decoded by OpenCV, as the data sources of its tutorials recommend, and resized as its tutorial on the
DataLoader does: `cv2.resize(…, interpolation=cv2.INTER_LINEAR)`, which reads four pixels for one however much an image
shrinks, so that fine patterns alias. Everybody else's resizing averages over what it leaves out."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags
from array_record.python.array_record_module import ArrayRecordWriter

from benchmarks.contender import Batch, Epoch, serve
from benchmarks.parts.works import SHARD_BYTES, Work
from benchmarks.peers.collate import IMAGE, collate, has_our_decoder


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
    if work.name == "jpegs" and not has_our_decoder(work):
        return image
    return lambda record: {"blob": record[8:], "label": int.from_bytes(record[:8], "little")}


def image(record: bytes) -> dict[str, Any]:
    """A record's image, decoded and resized by OpenCV."""
    import cv2

    pixels: Any = cv2.imdecode(np.frombuffer(record, np.uint8, offset=8), cv2.IMREAD_COLOR_RGB)
    small = cv2.resize(pixels, dsize=IMAGE[1::-1], interpolation=cv2.INTER_LINEAR)
    return {"image": small, "label": int.from_bytes(record[:8], "little")}


def image_batch(samples: Sequence[dict[str, Any]]) -> Batch:
    """Images uint8 [n, 224, 224, 3] and labels int64 [n]."""
    labels = np.array([sample["label"] for sample in samples])
    return {"image": np.stack([sample["image"] for sample in samples]), "label": labels}


def _arrays(batch: dict[str, Any]) -> Batch:
    """NumPy arrays, which its processes hand over by shared memory, in place of tensors."""
    return {name: values if isinstance(values, list) else values.numpy() for name, values in batch.items()}


def stream(work: Work) -> Epoch:
    folder = work.made("array_record", lambda folder: write(work, folder))
    source = grain.sources.ArrayRecordDataSource(sorted(map(str, folder.glob("*.array_record"))))
    dataset = grain.MapDataset.source(source).shuffle(seed=1).map(decode(work))
    documented = work.name == "jpegs" and not has_our_decoder(work)
    batch_fn = image_batch if documented else lambda samples: _arrays(collate(work)(samples))
    batches = dataset.batch(work.batch, batch_fn=batch_fn)

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
