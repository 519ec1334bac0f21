"""Loads files with damage, in a process of its own: `python mutated_files.py KIND FOLDER SEED FIRST STOP`.

Before each load it writes its number to standard output, and after it one letter: `s`, refused by an error of ours or
the content is the same; `o`, other content was accepted; `f`, another error came out, whose text follows in the line.
A signal ends the process; who started it goes on behind the last number.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from storage.errors import ShardlineError
from storage.manifest import FILENAME, Manifest
from storage.shards import Blobs, Shard, encode_samples, encode_tokens

INTERESTING = [0, 1, 0x7F, 0x80, 0xFF]


@dataclass(frozen=True)
class Kind:
    """A file's bytes, where damage is done to it ([begin, end), all of it by default), how it is loaded (from a folder
    that is its own; what it returns is compared), and errors that are fine beside ours."""

    data: bytes
    load: Callable[[bytes, Path], Any]
    end: int | None = None
    refuses: tuple[type[Exception], ...] = ()


def mutated(data: bytes, end: int | None, seed: int, number: int) -> bytes:
    """Damage of one of some kinds, which depends on `seed` and `number` only."""
    random = np.random.default_rng([seed, number])
    found, end = bytearray(data), end or len(data)
    at = int(random.integers(end))
    match int(random.integers(7)):
        case 0:
            found[at] ^= 1 << int(random.integers(8))
        case 1:
            found[at] = INTERESTING[int(random.integers(len(INTERESTING)))]
        case 2:  # a number
            size = int(random.choice([2, 4, 8]))
            at -= at % size
            value = int(random.choice([0, 1, -1, 1 << 14, (1 << 8 * size - 1) - 1]))
            found[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
        case 3:
            del found[at : at + int(random.integers(1, 64))]
        case 4:
            found[at:at] = random.bytes(int(random.integers(1, 64)))
        case 5:  # a piece of it elsewhere
            begin = int(random.integers(end))
            found[at : at + 16] = data[begin : begin + 16]
        case 6:
            for place in random.integers(end, size=8):
                found[place] ^= 1 << int(random.integers(8))
    return bytes(found)


def _rows() -> list[dict[str, Any]]:
    drawn = np.random.default_rng(1).bytes(32 * 20).hex()
    digests = [drawn[64 * row : 64 * row + 64] for row in range(20)]
    about = {"bytes": 70_000, "rows": 9, "key": "k", "split": "train", "tokens": None, "stats": "{}"}
    return [about | {"path": f"objects/{digest}.arrow.zst", "digest": digest} for digest in digests]


def manifest() -> Kind:
    made = Manifest.build("shards", _rows(), kind="samples", spec={"classes": ["a", "b"]}, parents={"raw": "a" * 64})
    return Kind(bytes(made.encoded), _load_manifest)


def _load_manifest(data: bytes, folder: Path) -> Any:
    (folder / FILENAME).write_bytes(data)
    found = Manifest.load(folder)
    found.select("train")
    return found.header, found.records()


def old_manifest() -> Kind:
    """Without a seal: what its numbers are, nobody can know; but it must not lead out of its file."""
    import pyarrow as pa

    from storage.digest import canonical_json

    made = Manifest.build("shards", _rows(), kind="samples", spec={})
    table = made.table.replace_schema_metadata({b"shardline": canonical_json(made.header | {"format": 2})})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return Kind(sink.getvalue().to_pybytes(), _load_manifest)


def _shard(kind: str) -> bytes:
    ids = [f"name {row}" for row in range(30)]
    if kind == "tokens":
        return bytes(encode_tokens(np.arange(300, dtype=np.uint16), np.arange(0, 301, 10), ids))
    blobs = Blobs.of([bytes(row) for row in range(30)])
    return bytes(encode_samples({"x": np.arange(240.0).reshape(30, 4, 2), "b": blobs, "y": np.arange(30)}, ids))


def _all_of(shard: Shard) -> Any:
    """Every byte that anybody could ask for."""
    columns = {name: shard.column(name).tolist() for name, about in shard.columns.items() if not about.variable}
    blobs = {
        name: [bytes(values[begin:end]) for begin, end in pairwise(offsets)]
        for name, about in shard.columns.items()
        if about.variable
        for values, offsets in [shard.blobs(name)]
    }
    offsets = shard.offsets.tolist() if shard.kind == "tokens" else []
    return columns, blobs, offsets, shard.ids.to_pylist()


def samples() -> Kind:
    """Without a digest: what its values are, nobody can know; but it must not lead out of its file."""
    return Kind(_shard("samples"), lambda data, _: _all_of(Shard.open(data)))


def tokens() -> Kind:
    """The same."""
    return Kind(_shard("tokens"), lambda data, _: _all_of(Shard.open(data)))


def named_shard() -> Kind:
    """Through a zone that has it compressed, by its digest."""
    from storage.lake import Zone

    zone = Zone(Path("unused"), "memory://mutated")
    stored = zone.publish(_shard("samples"), ".arrow", "zstd")
    place = f"/mutated/{stored.path}"

    def load(data: bytes, _: Path) -> Any:
        import fsspec

        fsspec.filesystem("memory").pipe_file(place, data)
        return _all_of(Shard.open(zone.read(stored.path, stored.digest, plain_bytes=stored.plain_bytes)))

    return Kind(zone._read(stored.path)[:], load)  # type: ignore[index,arg-type]


def checkpoint() -> Kind:
    from pipelines.training.checkpoints.manifest import CheckpointManifest, Damaged, Tensors

    name = f"objects/{'a' * 64}.safetensors"
    files = {name: (100, "a" * 64)}
    tensors = {"w": Tensors("float32", [2, 3], [([0, 0], [2, 3], name)])}
    made = CheckpointManifest(7, 2, 0.5, files, tensors, {"state": {"epoch": 1, "name": "é"}})

    def load(data: bytes, _: Path) -> Any:
        found = CheckpointManifest.decode(data, "manifest.json")
        return json.loads(found.encode())

    return Kind(made.encode(), load, refuses=(Damaged,))


def safetensors() -> Kind:
    """A trained model's: whose its values are, nobody can know; but its header must not lead out of the file."""
    from pipelines.models.saved import ModelConfig, load_model, save_model, weights

    spec = {"inputs": {"x": {"dtype": "float32", "shape": [4]}}, "classes": ["a", "b"]}
    config = ModelConfig({"name": "mlp", "args": {"hidden": [3]}}, spec, None, "classification", "")
    folder = Path("model")
    save_model(folder, weights(config.build()), config)
    (folder / "model.safetensors.b3").unlink()  # it would tell all damage before anything is read
    data = (folder / "model.safetensors").read_bytes()

    def load(data: bytes, _: Path) -> Any:
        (folder / "model.safetensors").write_bytes(data)
        return {name: tensor.tolist() for name, tensor in load_model(folder)[0].state_dict().items()}

    return Kind(data, load, end=8 + int.from_bytes(data[:8], "little"))


KINDS = {
    make.__name__: make for make in (manifest, old_manifest, samples, tokens, named_shard, checkpoint, safetensors)
}


def main(name: str, folder: Path, seed: int, first: int, stop: int) -> None:
    kind = KINDS[name]()
    good = repr(kind.load(kind.data, folder))
    for number in range(first, stop):
        print(number, end=" ", flush=True)
        data = mutated(kind.data, kind.end, seed, number)
        try:
            print("s" if repr(kind.load(data, folder)) == good else "o", flush=True)
        except (ShardlineError, *kind.refuses):
            print("s", flush=True)
        except Exception as error:
            print("f", f"{type(error).__name__}: {error}"[:200].replace("\n", " "), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
