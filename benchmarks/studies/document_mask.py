"""What documents in windows of tokens cost: tables for docs/streaming.md.

python -m benchmarks.studies.document_mask cost      a training step with and without `stream.document_mask`
python -m benchmarks.studies.document_mask cuts      documents cut by windows and by packs, of the shards of this folder
"""

import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipelines.ingest.encoders.packing import best_fit
from pipelines.models import build_model, task_of
from pipelines.streaming.gather.document_ids import documents_of
from pipelines.workspace import Workspace
from storage.shards import Shard

SIZES = ((16, 256), (4, 1024), (2, 2048))  # samples of a batch, tokens of a window
ROUNDS = 7
SPEC = {"vocab_size": 257, "separator": 256}
MODEL = {"dim": 128, "layers": 3, "heads": 4}  # python_lm's
WINDOWS = (256, 1024, 4096, 16_384)
Ints = npt.NDArray[np.int64]


def cost(samples: int, seq_len: int) -> tuple[float, float, float]:
    """Milliseconds of a step (forward, loss, backward) of the reference transformer with `is_causal` attention, and
    with mask and positions of documents, in turns in one process and thread: medians, and that of the ratios."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    offsets = np.arange(0, samples * seq_len + 1 + seq_len, seq_len // 3)  # three to four documents a window
    tokens = rng.integers(0, 256, (samples, seq_len + 1)).astype(np.uint16)
    documents, positions = documents_of(offsets, np.arange(samples) * seq_len, seq_len + 1)
    batch: dict[str, Any] = {"tokens": tokens, "documents": documents, "positions": positions}
    model, cpu = build_model("transformer", MODEL, SPEC, seq_len), torch.device("cpu")
    took: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS + 1):
        for apart in (False, True):
            task = task_of(SPEC, apart).for_model(model)
            begun = time.perf_counter()
            inputs, targets = task.pair(batch, cpu)
            answers = model(inputs, **task.beside(batch, cpu))
            torch.autograd.backward(task.loss(answers, targets))
            took[apart].append(1e3 * (time.perf_counter() - begun))
    without, within = took[False][1:], took[True][1:]  # the first of each warms up
    return median(without), median(within), median(b / a for a, b in zip(without, within, strict=True))


def show_costs() -> None:
    print("| batch | window | causal, ms | apart, ms | ratio |\n| ---: | ---: | ---: | ---: | ---: |")
    for samples, seq_len in SIZES:
        before, after, ratio = cost(samples, seq_len)
        print(f"| {samples} | {seq_len:,} | {before:.0f} | {after:.0f} | {ratio:.2f} |", flush=True)


def cuts(starts: Ints, lengths: Ints, size: int) -> tuple[int, int]:
    """How many of the documents that fit into `size` tokens are cut, and how often all are cut beyond the need."""
    pieces = (starts + lengths - 1) // size - starts // size + 1
    needed = -(-lengths // size)
    return int(((lengths <= size) & (pieces > 1)).sum()), int((pieces - needed).sum())


def show_cuts() -> None:
    ws = Workspace.open(Path.cwd())
    zone = ws.zone("shards")
    offsets = [Shard.open(zone.read(path)).offsets for path in zone.manifest().select("train")["path"].to_pylist()]
    begun = np.concatenate([bounds[:-1] for bounds in offsets])
    lengths = np.concatenate([np.diff(bounds) for bounds in offsets])
    print(
        f"{len(lengths):,} documents, {len(offsets)} shards, {lengths.sum():,} tokens, median {np.median(lengths):,.0f}"
    )
    print(
        "| window | documents that fit | cut by windows | by packs | cuts too many: windows | packs | fill of packs |"
    )
    print("| ---: " * 7 + "|")
    for size in WINDOWS:
        cut, more = cuts(begun, lengths, size)
        fits, cut_packed, more_packed, filled = int((lengths <= size).sum()), 0, 0, 0
        for bounds in offsets:
            each = np.diff(bounds)
            packs = best_fit(each, size)
            found = cuts(packs.starts, each[packs.order], size)
            cut_packed, more_packed = cut_packed + found[0], more_packed + found[1]
            filled += packs.count * size
        fill = 1 - lengths.sum() / filled
        share = f"{cut:,} ({cut / max(1, fits):.0%})"
        print(f"| {size:,} | {fits:,} | {share} | {cut_packed} | {more:,} | {more_packed} | {fill:.1%} |")


if __name__ == "__main__":
    {"cost": show_costs, "cuts": show_cuts}[sys.argv[1]]()
