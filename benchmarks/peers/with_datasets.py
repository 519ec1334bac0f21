"""Hugging Face datasets, as its documentation says: an Arrow dataset on disk, mapped, in format "numpy" or "arrow"; a
DataLoader that shuffles it, which asks it for whole batches of rows (`__getitems__`).
JPEG files are decoded by its `Image` feature (Pillow), then converted and resized as its guide to images has it."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.contender import Batch, Epoch, serve
from benchmarks.parts.works import SHARD_BYTES, Work
from benchmarks.peers.collate import decoded_batch, has_our_decoder, image_batch

_AT_ONCE = 4096  # rows a step of the writer


def write(work: Work, folder: Path) -> None:
    arrays = work.arrays
    label = datasets.Value("int64")
    features = {
        "tokens": {"tokens": datasets.List(datasets.Value("uint16"), length=2048)},
        "rows": {"x": datasets.List(datasets.Value("float32"), length=100), "label": label},
    }.get(work.name, {"blob": datasets.Value("large_binary"), "label": label})

    def rows() -> Any:
        for index in range(work.samples):
            if "values" in arrays:
                yield {"blob": work.blob(index), "label": int(arrays["label"][index])}
            else:
                yield {name: values[index] for name, values in arrays.items()}

    made = datasets.Dataset.from_generator(
        rows, features=datasets.Features(features), cache_dir=str(folder / "cache"), writer_batch_size=_AT_ONCE
    )
    made.save_to_disk(str(folder / "data"), max_shard_size=SHARD_BYTES)
    shutil.rmtree(folder / "cache")


class Whole(Dataset[Any]):
    """Batches of rows at once: what `__getitem__` of a list of rows gives, made to a batch."""

    def __init__(self, rows: Any, work: Work) -> None:
        self.rows, self.work = rows, work

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> Any:
        found = self.rows[indices]
        if self.work.name == "jpegs":
            pairs = list(zip(found["blob"], found["label"], strict=True))
            if has_our_decoder(self.work):
                return decoded_batch([{"blob": blob, "label": label} for blob, label in pairs])
            return image_batch([{"image": image, "label": label} for image, label in pairs])
        if self.work.name == "blobs":
            return {"blob": found["blob"], "label": torch.tensor(found["label"])}
        return {name: torch.from_numpy(values) for name, values in found.items()}


def _same(batch: Any) -> Any:
    return batch


def stream(work: Work) -> Epoch:
    folder = work.made("datasets", lambda folder: write(work, folder))
    rows = datasets.load_from_disk(str(folder / "data"))
    if work.name == "jpegs" and not has_our_decoder(work):
        rows = rows.cast_column("blob", datasets.Image())
    whole = Whole(rows if "values" in work.arrays else rows.with_format("numpy"), work)

    def epoch(workers: int) -> Iterable[Batch]:
        return DataLoader(whole, batch_size=work.batch, shuffle=True, num_workers=workers, collate_fn=_same)

    return epoch


if __name__ == "__main__":
    serve({"stream": stream})
