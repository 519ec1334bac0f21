"""litdata, as its README says: `optimize` with 64 MB chunks (the default) and mapped local chunks (the default), tokens
by `TokensLoader`, `StreamingDataLoader`, `shuffle=True` (chunks, blocks of 256 samples inside each, and the samples of
a block: the defaults).

JPEG files are stored as they are and decoded as the README's `transform`s do, by `Image.open(…).convert("RGB")`. (Its
own `Jpeg` gives them to torchvision, which doesn't import beside the CPU build of PyTorch here; it would decode them
whole as well.)"""

import os
import shutil
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

import litdata
import torch
from litdata.streaming import downloader

from benchmarks.contender import Batch, Epoch, serve
from benchmarks.parts.works import SHARD_BYTES, Work
from benchmarks.peers.collate import collate
from benchmarks.peers.upload import upload

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


def write(work: Work, folder: Path) -> None:
    """The work as litdata's chunks in `folder/data`."""
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


def made(work: Work) -> Path:
    return work.made("litdata", lambda folder: write(work, folder)) / "data"


def loader(work: Work, dataset: Any, workers: int) -> Iterable[Batch]:
    batches = litdata.StreamingDataLoader(
        dataset,
        batch_size=work.batch,
        num_workers=workers,
        drop_last=False,
        collate_fn=collate(work) if "values" in work.arrays else None,
    )
    return ({"tokens": batch} for batch in batches) if work.name == "tokens" else batches


def tuned(work: Work) -> dict[str, Any]:
    """Samples one by one: "auto" decodes aligned windows of them, of which a shuffled order then takes one (measured
    on rows: 9,000 samples/s; windows of 256, as many as are shuffled together, 64,000; one by one 85,000)."""
    return {"item_loader": litdata.TokensLoader(block_size=2048)} if work.name == "tokens" else {"batch_decode": 0}


def stream(work: Work) -> Epoch:
    """Warm and local."""
    dataset = litdata.StreamingDataset(str(made(work)), shuffle=True, drop_last=False, **tuned(work))
    return lambda workers: loader(work, dataset, workers)


def cold(work: Work) -> Epoch:
    """From S3, the cache folder empty; chunks are fetched ahead asynchronously, as by default with a remote folder. The
    client that does so refuses servers without TLS, which no setting of litdata's changes: so it is told here."""
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
    remote = f"{work.job['lake']}-litdata"
    upload(made(work), remote)
    place, numbers = work.folder / "cold-litdata", count()

    def epoch(workers: int) -> Iterable[Batch]:
        shutil.rmtree(place, ignore_errors=True)
        dataset = litdata.StreamingDataset(
            remote,
            cache_dir=str(place / f"{os.getpid()}-{next(numbers)}"),
            shuffle=True,
            drop_last=False,
            max_pre_download=8,
            **tuned(work),
            storage_options={"endpoint_url": os.environ["AWS_ENDPOINT_URL"]},
        )
        return loader(work, dataset, workers)

    return epoch


if __name__ == "__main__":
    serve({"stream": stream, "cold": cold})
