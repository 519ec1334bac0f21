"""MDS (streaming-community), as its documentation says: shards of 64 MiB (the default), no compression,
`shuffle=True` with the default algorithm py1e, `batch_size` given to the dataset, a plain DataLoader.

JPEG files are stored and decoded as its `jpeg` columns do it: the file's bytes, and Pillow's `Image.open`."""

import os
import shutil
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

from streaming import MDSWriter, StreamingDataset
from torch.utils.data import DataLoader

from benchmarks.contender import Batch, Epoch, serve
from benchmarks.parts.works import SHARD_BYTES, Work
from benchmarks.peers.collate import collate
from benchmarks.peers.upload import upload

COLUMNS = {
    "tokens": {"tokens": "ndarray:uint16:2048"},
    "rows": {"x": "ndarray:float32:100", "label": "int64"},
    "blobs": {"blob": "bytes", "label": "int64"},
    "jpegs": {"blob": "bytes", "label": "int64"},
}


def write(work: Work, out: str) -> None:
    """The work as MDS shards in `out`."""
    arrays = work.arrays
    with MDSWriter(out=out, columns=COLUMNS[work.name], size_limit=min(SHARD_BYTES, work.bytes // 4)) as writer:
        for index in range(work.samples):
            if "values" in arrays:
                sample: dict[str, Any] = {"blob": work.blob(index)}
            else:
                sample = {name: values[index] for name, values in arrays.items() if name != "label"}
            if "label" in arrays:
                sample["label"] = int(arrays["label"][index])
            writer.write(sample)


def stream(work: Work) -> Epoch:
    def fill(folder: Path) -> None:
        write(work, str(folder / "data"))

    folder = work.made("mds", fill) / "data"
    dataset = StreamingDataset(local=str(folder), batch_size=work.batch, shuffle=True)

    def epoch(workers: int) -> Iterable[Batch]:
        return DataLoader(dataset, batch_size=work.batch, num_workers=workers, collate_fn=collate(work))

    return epoch


def cold(work: Work) -> Epoch:
    """From S3, the local folder empty. As the documentation's page on performance says, more is downloaded ahead than
    by default: everything (1.6 to 2.0 s an epoch here, against 2.3 to 2.4 with the default of 8 batches)."""

    def fill(folder: Path) -> None:
        write(work, str(folder / "data"))

    os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
    remote = f"{work.job['lake']}-mds"
    upload(work.made("mds", fill) / "data", remote)
    place, numbers = work.folder / "cold-mds", count()

    def epoch(workers: int) -> Iterable[Batch]:
        shutil.rmtree(place, ignore_errors=True)
        dataset = StreamingDataset(
            remote=remote,
            local=str(place / f"{os.getpid()}-{next(numbers)}"),
            batch_size=work.batch,
            shuffle=True,
            predownload=work.samples,
        )
        return DataLoader(dataset, batch_size=work.batch, num_workers=workers, collate_fn=collate(work))

    return epoch


if __name__ == "__main__":
    serve({"stream": stream, "cold": cold})
