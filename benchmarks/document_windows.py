"""What keeping documents apart costs: `python -m benchmarks.document_windows cost`, a table for docs/streaming.md.

A training step (forward, loss, backward) of the reference transformer with `is_causal` attention, and with the mask and
the positions of `stream.documents`, in turns in one process and thread; the median of each, and of the ratios.
"""

import sys
import time
from statistics import median
from typing import Any

import numpy as np
import torch

from pipelines.models import build_model, task_of
from pipelines.streaming.documents import documents_of

SIZES = ((16, 256), (4, 1024), (2, 2048))  # samples of a batch, tokens of a window
ROUNDS = 7
SPEC = {"vocab_size": 257, "separator": 256}
MODEL = {"dim": 128, "layers": 3, "heads": 4}  # python_lm's


def cost(samples: int, seq_len: int) -> tuple[float, float, float]:
    """Milliseconds of a step without and with documents kept apart, and the ratio."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    offsets = np.arange(0, samples * seq_len + 1 + seq_len, seq_len // 3)  # three to four documents a window
    tokens = rng.integers(0, 256, (samples, seq_len + 1)).astype(np.uint16)
    documents, positions = documents_of(offsets, np.arange(samples) * seq_len, seq_len + 1)
    batch: dict[str, Any] = {"tokens": tokens, "documents": documents, "positions": positions}
    model = build_model("transformer", MODEL, SPEC, seq_len)
    took: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS + 1):
        for apart in (False, True):
            task = task_of(SPEC, apart).for_model(model)
            begun = time.perf_counter()
            inputs, targets = task.pair(batch, torch.device("cpu"))
            answers = model(inputs, **task.beside(batch, torch.device("cpu")))
            torch.autograd.backward(task.loss(answers, targets))
            took[apart].append(1e3 * (time.perf_counter() - begun))
    without, within = took[False][1:], took[True][1:]  # the first of each warms up
    return median(without), median(within), median(b / a for a, b in zip(without, within, strict=True))


def main(what: str = "cost") -> None:
    print("| batch | window | causal, ms | apart, ms | ratio |\n| ---: | ---: | ---: | ---: | ---: |")
    for samples, seq_len in SIZES:
        before, after, ratio = cost(samples, seq_len)
        print(f"| {samples} | {seq_len:,} | {before:.0f} | {after:.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
