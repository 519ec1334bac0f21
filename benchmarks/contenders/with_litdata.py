"""litdata, as its README says: `optimize` with 64 MB chunks (the default) and mapped local chunks (the default), tokens
by `TokensLoader`, `StreamingDataLoader`, `shuffle=True` (chunks, and items inside each chunk)."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import litdata
import torch

from benchmarks.contender import Batch, Epoch, serve
from benchmarks.contenders.collate import blob_batch, decoded_batch
from benchmarks.works import SHARD_BYTES, Work

os.environ["LITDATA_DISABLE_VERSION_CHECK"] = "1"


class Samples:
    """Sample `index` of the work as litdata stores it. A class, since `optimize` hands it to worker processes."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def __call__(self, index: int) -> Any:
        arrays = self.work.arrays
        if self.work.name == "tokens":
            return torch.from_numpy(arrays["tokens"][index].copy())
        if self.work.name == "rows":
            return {"x": torch.from_numpy(arrays["x"][index].copy()), "label": int(arrays["label"][index])}
        return {"blob": self.work.blob(index), "label": int(arrays["label"][index])}


def stream(work: Work) -> Epoch:
    def write(folder: Path) -> None:
        tokens: dict[str, Any] = {"item_loader": litdata.TokensLoader()} if work.name == "tokens" else {}
        litdata.optimize(
            Samples(work),
            list(range(work.samples)),
            output_dir=str(folder / "data"),
            chunk_bytes=min(SHARD_BYTES, work.bytes // 4),
            num_workers=1,
            keep_data_ordered=False,
            verbose=False,
            **tokens,
        )

    folder = work.made("litdata", write) / "data"
    loader: dict[str, Any] = {"item_loader": litdata.TokensLoader(block_size=2048)} if work.name == "tokens" else {}
    dataset = litdata.StreamingDataset(str(folder), shuffle=True, drop_last=False, **loader)
    collate = {"blobs": blob_batch, "jpegs": decoded_batch}.get(work.name)

    def epoch(workers: int) -> Iterable[Batch]:
        batches = litdata.StreamingDataLoader(
            dataset, batch_size=work.batch, num_workers=workers, drop_last=False, collate_fn=collate
        )
        return ({"tokens": batch} for batch in batches) if work.name == "tokens" else batches

    return epoch


if __name__ == "__main__":
    serve({"stream": stream})
