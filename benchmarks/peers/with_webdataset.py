"""WebDataset, as its documentation says: tar shards written by ShardWriter, shards shuffled and samples through a
buffer of 1,000, batched inside the workers, and handed over whole by WebLoader with `batch_size=None`. JPEG
files are decoded by `decode("pil")`, after the shuffle."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds

from benchmarks.contender import Batch, Epoch, serve
from benchmarks.parts.works import SHARD_BYTES, Work
from benchmarks.peers.collate import collate, has_our_decoder, image_batch

BUFFER = 1000  # samples of the shuffle buffer, as in the documentation's examples


def write(work: Work, folder: Path) -> None:
    """Raw bytes under short names, which decode fastest: np.frombuffer and int.from_bytes."""
    arrays = work.arrays
    with wds.ShardWriter(f"{folder}/%05d.tar", maxsize=min(SHARD_BYTES, work.bytes // 4), verbose=0) as writer:
        for index in range(work.samples):
            sample: dict[str, Any] = {"__key__": f"{index:08d}"}
            if "values" in arrays:
                sample["bin"] = work.blob(index)
            else:
                sample["bin"] = arrays["tokens" if work.name == "tokens" else "x"][index].tobytes()
            if "label" in arrays:
                sample["y"] = int(arrays["label"][index]).to_bytes(8, "little")
            writer.write(sample)


def decode(work: Work) -> Any:
    """The function from a tar sample to the sample that the collate functions take."""
    if work.name == "tokens":
        return lambda sample: {"tokens": np.frombuffer(sample["bin"], np.uint16)}
    if work.name == "rows":
        return lambda sample: {
            "x": np.frombuffer(sample["bin"], np.float32),
            "label": int.from_bytes(sample["y"], "little"),
        }
    return lambda sample: {"blob": sample["bin"], "label": int.from_bytes(sample["y"], "little")}


def labelled(sample: dict[str, Any]) -> dict[str, Any]:
    """A decoded tar sample as the collate function takes it."""
    return {"image": sample["image"], "label": int.from_bytes(sample["y"], "little")}


def stream(work: Work) -> Epoch:
    folder = work.made("webdataset", lambda folder: write(work, folder))
    shards = sorted(map(str, folder.glob("*.tar")))
    samples = wds.WebDataset(shards, shardshuffle=len(shards), empty_check=False).shuffle(BUFFER)
    if work.name == "jpegs" and not has_our_decoder(work):
        images = samples.rename(image="bin", y="y").decode(wds.imagehandler("pil", extensions=["image"]))
        dataset = images.map(labelled).batched(work.batch, collation_fn=image_batch, partial=True)
    else:
        dataset = samples.map(decode(work)).batched(work.batch, collation_fn=collate(work), partial=True)

    def epoch(workers: int) -> Iterable[Batch]:
        loader: Iterable[Batch] = wds.WebLoader(dataset, batch_size=None, num_workers=workers)
        return loader

    return epoch


if __name__ == "__main__":
    serve({"stream": stream})
