"""MDS (streaming-community), as its documentation says: shards of 64 MiB (the default), no compression,
`shuffle=True` with the default algorithm py1e, `batch_size` given to the dataset, a plain DataLoader."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from streaming import MDSWriter, StreamingDataset
from torch.utils.data import DataLoader

from benchmarks.contender import Batch, Epoch, serve
from benchmarks.contenders.collate import COLLATE
from benchmarks.works import SHARD_BYTES, Work

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
        return DataLoader(dataset, batch_size=work.batch, num_workers=workers, collate_fn=COLLATE[work.name])

    return epoch


if __name__ == "__main__":
    serve({"stream": stream})
