"""The benchmarks by name, each with a sentence."""

from collections.abc import Callable
from importlib import import_module

from benchmarks.outcome import Outcome
from benchmarks.setting import Setting

SENTENCES = {
    "stream-tokens": "65,536 × 2,048 uint16 tokens from local shards against the peers and NumPy's take.",
    "stream-rows": "1,000,000 rows of 100 float32 and a label from local shards against the peers and NumPy's take.",
    "stream-blobs": "16,384 blobs of 8–32 KB and a label from local shards against the peers and a memcpy.",
}


def question(name: str) -> Callable[[Setting], Outcome]:
    """The function `ask` of the module of benchmark `name`."""
    module = import_module(f"benchmarks.questions.{name.replace('-', '_')}")
    ask: Callable[[Setting], Outcome] = module.ask
    return ask
