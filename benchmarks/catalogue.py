"""The benchmarks by name, each with a sentence."""

from collections.abc import Callable
from importlib import import_module

from benchmarks.outcome import Outcome
from benchmarks.setting import Setting

SENTENCES = {
    "stream-tokens": "65,536 × 2,048 uint16 tokens from local shards against the peers and NumPy's take.",
    "stream-rows": "1,000,000 rows of 100 float32 and a label from local shards against the peers and NumPy's take.",
    "stream-blobs": "16,384 blobs of 8–32 KB and a label from local shards against the peers and a memcpy.",
    "stream-jpeg": "JPEG files of about 100 KB decoded to 224 × 224 against the peers, SPDL and the decoder alone.",
    "cold-s3": "The blobs from S3 with an empty node cache against plain ranged reads, MDS and litdata; first batches.",
    "far-s3": "The same as cold-s3, from a store that answers after 30 ms and gives each connection 60 MB/s.",
    "hot-redis": "The blobs from Redis with an empty node cache against plain pipelined reads.",
    "egress": "What 8 nodes with one Redis ask of S3 in 3 epochs, by the cache's size; beside it LRU.",
    "resume": "10^9 samples in 10^6 shards: the time to the next index at 0, 50 and 99 %, and the memory.",
    "checkpoint": "29.5 million parameters on CPU: the pause of a save, SIGTERM to saved, start to first step at 99 %.",
    "scale": "What 1 to 1,024 nodes read of 1 PB, an epoch after the other, simulated; how well it is shuffled.",
    "step": "A step of the training loop beside the same one by hand in PyTorch, Lightning's and accelerate's.",
}


def question(name: str) -> Callable[[Setting], Outcome]:
    """The function `ask` of the module of benchmark `name`."""
    room = "benchmarks.questions.streams" if name.startswith("stream-") else "benchmarks.questions"
    module = import_module(f"{room}.{name.replace('-', '_')}")
    ask: Callable[[Setting], Outcome] = module.ask
    return ask
