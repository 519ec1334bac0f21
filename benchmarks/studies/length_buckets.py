"""What sorting documents by length into batches saves, on the standard library of this Python.

python -m benchmarks.studies.length_buckets padding    shares of padding: whole files, and functions, as documents
python -m benchmarks.studies.length_buckets planning   what it costs to plan a batch, in µs a sample
python -m benchmarks.studies.length_buckets training   tokens that count, a second, of steps: three streams in turns
"""

import ast
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from pipelines.console.progress import say
from pipelines.ingest.encoders.encode import SEPARATOR, VOCABULARY, encode_documents
from pipelines.streaming import Batching, Ordering, Stream, Text
from storage.lake import Zone
from storage.manifest import Manifest
from storage.shards import SUFFIX

SPEC = {"vocab_size": VOCABULARY, "dtype": "uint16", "separator": SEPARATOR, "encoding": "bytes"}
LEFT_OUT = {"test", "tests", "site-packages", "dist-packages", "lib2to3", "idlelib"}
BATCH, SHARD_TOKENS = 16, 1 << 20
ROUNDS, STEPS = 6, 8  # of training: turns of each stream, and steps of a turn
GROWN = 60  # the step from which on blocks have their full size


def files() -> list[bytes]:
    root = Path(sysconfig.get_path("stdlib"))
    found = sorted(file for file in root.rglob("*.py") if not LEFT_OUT & set(file.relative_to(root).parts))
    return [file.read_bytes() for file in found]


def functions() -> list[bytes]:
    """Each function and method of the files, with its decorators, as a document."""
    documents = []
    for data in files():
        lines = data.splitlines(keepends=True)
        for node in ast.walk(ast.parse(data)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                documents.append(b"".join(lines[first - 1 : node.end_lineno]))
    return documents


def publish(folder: Path, documents: list[bytes]) -> tuple[Zone, Manifest]:
    """Token shards of the documents in a random order, all of split train."""
    zone, records, part, size = Zone(folder), [], [], 0
    shuffled = [documents[place] for place in np.random.default_rng(0).permutation(len(documents))]
    for number, document in enumerate(shuffled):
        part.append(document)
        size += len(document) + 1
        if size >= SHARD_TOKENS or number == len(shuffled) - 1:
            encoded = encode_documents([memoryview(text) for text in part], list(map(str, range(len(part)))))
            stored = zone.publish(encoded.data, SUFFIX)
            about = {"path": stored.path, "digest": stored.digest, "bytes": stored.bytes, "rows": len(part)}
            records.append({**about, "split": "train", "tokens": size, "stats": None, "key": stored.digest})
            part, size = [], 0
    return zone, zone.commit(Manifest.build("shards", records, kind="tokens", spec=SPEC))


def stream(data: tuple[Zone, Manifest], text: Text, batches: int, batch_size: int = BATCH, **more: Any) -> Stream:
    bucketed = Batching(bucket_batches=batches)
    return Stream(*data, split="train", batch_size=batch_size, seed=0, text=text, batching=bucketed, **more)


def whole(seq_len: int, pad_multiple: int = 16) -> Text:
    return Text(seq_len=seq_len, samples="documents", pad_multiple=pad_multiple)


def padding(folder: Path) -> None:
    for name, documents, lengths in (("files", files(), (4096, 16_384)), ("functions", functions(), (512, 2048))):
        data = publish(folder / name, documents)
        sizes = np.quantile([len(document) for document in documents], [0.1, 0.5, 0.9]).astype(int).tolist()
        say(f"{name}: {len(documents):,} documents, of bytes (10 %, half, 90 %): {sizes}")
        for seq_len in lengths:
            for multiple in (16, 64):
                shares = []
                for batches in (1, 8, 16, 64, 256):
                    with stream(data, whole(seq_len, multiple), batches, epochs=2) as got:
                        shapes = {batch["tokens"].shape[1] for batch in got}
                        found = got.meter.snapshot().of_documents()
                    shares.append(f"{batches}: {found['padding']:.3f} ({len(shapes)} shapes)")
                say(f"  seq_len {seq_len}, multiple {multiple}, cut {found['cut']:.2f}; padding {', '.join(shares)}")


def planning(folder: Path) -> None:
    data, batch, rounds = publish(folder, functions()), 256, 5
    for lanes in (1, 4):
        seconds: dict[int, list[float]] = {1: [], 64: []}
        for _ in range(rounds):
            for batches in seconds:
                with stream(data, whole(2048), batches, batch, order=Ordering(lanes=lanes)) as got:
                    steps = got.order.rows // batch  # full ones
                    got.order.block(0, 0, steps)  # opens the shards
                    began = perf_counter()
                    got.order.block(1, 0, steps)
                    seconds[batches].append((perf_counter() - began) / steps / batch * 1e6)
        plain, sorted_ = (median(seconds[batches]) for batches in (1, 64))
        say(f"{lanes} lanes: {plain:.3f} µs a sample as they come, {sorted_:.3f} in blocks of 64 batches")


def training(folder: Path) -> None:
    import torch

    from pipelines.models import task_of
    from pipelines.models.architectures.transformer import Transformer
    from pipelines.models.tasks import IGNORED

    data, seq_len = publish(folder, functions()), 1024
    task, device = task_of(SPEC, counts_vary=True), torch.device("cpu")
    streams = {
        "as they come": stream(data, whole(seq_len), 1),
        "blocks of 64": stream(data, whole(seq_len), 64),
        "windows (packed)": stream(data, Text(seq_len=seq_len), 1, BATCH // 4),
    }
    models = {}
    for name, each in streams.items():
        each.load_state_dict({**each.state_dict(), "step": GROWN})
        torch.manual_seed(0)
        model = Transformer(vocab_size=VOCABULARY, seq_len=seq_len, dim=128, layers=3, heads=4)
        models[name] = model, torch.optim.AdamW(model.parameters(), lr=1e-3)

    def turn(name: str) -> tuple[int, float]:
        model, optimizer = models[name]
        counted, seconds = 0, 0.0
        for batch in islice(streams[name], STEPS):
            began = perf_counter()
            inputs, targets = task.pair(batch, device)
            count = int((targets != IGNORED).sum())
            torch.autograd.backward(task.loss(model(inputs), targets) / count)
            optimizer.step()
            optimizer.zero_grad()
            seconds += perf_counter() - began
            counted += count
        return counted, seconds

    for name, turns in _in_turns(streams, turn).items():
        counted, seconds = sum(count for count, _ in turns[1:]), sum(spent for _, spent in turns[1:])
        shares = streams[name].meter.snapshot().of_documents() or {"padding": 0.0}
        say(f"{name}: {counted / seconds:,.0f} tokens/s, {counted:,} tokens, padding {shares['padding']:.3f}")
        streams[name].close()


def _in_turns(names: Any, turn: Any) -> dict[str, list[tuple[int, float]]]:
    """The first turn of each warms up."""
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in names}
    for _ in range(ROUNDS + 1):
        for name in found:
            found[name].append(turn(name))
    return found


def main(arguments: Iterator[str]) -> None:
    for name in arguments:
        with tempfile.TemporaryDirectory() as folder:
            {"padding": padding, "planning": planning, "training": training}[name](Path(folder))


if __name__ == "__main__":
    main(iter(sys.argv[1:] or ["padding", "planning", "training"]))
