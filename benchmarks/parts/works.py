"""The works: the same bytes for every contender, made once from a fixed seed.

Arrays lie as .npy files in `<data>/<work>-<samples>/source`; each contender keeps its own format beside them, made once
by its own writer. This module needs NumPy only, since the peers' environment imports it too.
"""

import fcntl
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SHARD_BYTES = 64 << 20  # of every contender's files: the default of Shardline, litdata and MDS
SEED = 20_261_123


@dataclass(frozen=True)
class Work:
    """`samples` samples in batches of `batch`; `arrays` [samples, …] mapped from files by name.

    Blobs and images are `values` uint8 [bytes] with `offsets` int64 [samples + 1]. `folder` holds everything. `job` is
    what the contender was told besides.
    """

    name: str
    folder: Path
    samples: int
    batch: int
    arrays: dict[str, npt.NDArray[Any]]
    job: Mapping[str, Any] = field(default_factory=dict)

    def blob(self, index: int) -> bytes:
        start, stop = self.arrays["offsets"][index : index + 2]
        return self.arrays["values"][start:stop].tobytes()

    @property
    def bytes(self) -> int:
        """Of all samples."""
        return sum(values.nbytes for name, values in self.arrays.items() if name != "offsets")

    def made(self, name: str, make: Callable[[Path], None]) -> Path:
        """Folder `name` beside the source, filled by `make(folder)` when it isn't there; whole or absent."""
        return made(self.folder / name, make)


def made(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, filled by `make` in a temporary place when it isn't there. Two contenders may want the same one at
    once: the second waits for what the first makes."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".lock-{folder.name}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            making = folder.with_name(f".making-{folder.name}")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            make(making)
            making.rename(folder)
    return folder


def tokens(samples: int) -> dict[str, npt.NDArray[Any]]:
    """uint16 [samples, 2048]."""
    return {"tokens": np.random.default_rng(SEED).integers(0, 50_000, (samples, 2048), dtype=np.uint16)}


def rows(samples: int) -> dict[str, npt.NDArray[Any]]:
    """float32 [samples, 100] and an int64 label."""
    rng = np.random.default_rng(SEED)
    return {"x": rng.random((samples, 100), dtype=np.float32), "label": _labels(rng, samples)}


def pages(samples: int) -> dict[str, npt.NDArray[Any]]:
    """uint8 [samples, 4096]."""
    return {"page": np.random.default_rng(SEED).integers(0, 256, (samples, 4096), dtype=np.uint8)}


def blobs(samples: int) -> dict[str, npt.NDArray[Any]]:
    """8 to 32 KB of random bytes and an int64 label."""
    rng = np.random.default_rng(SEED)
    sizes = rng.integers(8 << 10, (32 << 10) + 1, samples)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    values = rng.integers(0, 256, int(offsets[-1]), dtype=np.uint8)
    return {"values": values, "offsets": offsets, "label": _labels(rng, samples)}


def jpegs(samples: int) -> dict[str, npt.NDArray[Any]]:
    """JPEG files of about 100 KB, 500 × 375 pixels as photographs on the web have, and an int64 label."""
    import simplejpeg

    rng = np.random.default_rng(SEED)
    noise = rng.normal(0, 18, (2 * 375, 2 * 500, 3)).astype(np.float32)
    files = [simplejpeg.encode_jpeg(_picture(rng, noise), quality=90, colorsubsampling="420") for _ in range(samples)]
    offsets = np.concatenate([[0], np.cumsum([len(file) for file in files])])
    values = np.frombuffer(b"".join(files), np.uint8)
    return {"values": values, "offsets": offsets, "label": _labels(rng, samples)}


def _picture(rng: np.random.Generator, noise: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """uint8 [375, 500, 3]: waves of random direction under a random part of `noise`."""
    y, x = np.mgrid[:375, :500].astype(np.float32)
    picture = noise[(top := rng.integers(375)) : top + 375, (left := rng.integers(500)) : left + 500] + np.float32(128)
    for a, b, phase in rng.uniform(-3, 3, (4, 3)).astype(np.float32):
        picture += 30 * np.sin((a * x + b * y) / 40 + phase)[..., None] * rng.random(3, dtype=np.float32)
    pixels: npt.NDArray[np.uint8] = np.clip(picture, 0, 255).astype(np.uint8)
    return pixels


def _labels(rng: np.random.Generator, samples: int) -> npt.NDArray[np.int64]:
    return rng.integers(0, 1000, samples, dtype=np.int64)


#: name → (make, samples, batch size); and the samples of `--tiny`.
WORKS: dict[str, tuple[Callable[[int], dict[str, npt.NDArray[Any]]], int, int]] = {
    "tokens": (tokens, 65_536, 64),
    "rows": (rows, 1_000_000, 1_024),
    "blobs": (blobs, 16_384, 64),
    "jpegs": (jpegs, 4_096, 64),
    "pages": (pages, 32_768, 64),
}
TINY = {"tokens": 512, "rows": 8_192, "blobs": 256, "jpegs": 72, "pages": 2_048}


def load(name: str, data: Path, tiny: bool = False, job: Mapping[str, Any] | None = None) -> Work:
    """Work `name` below folder `data`, made when it isn't there."""
    make, samples, batch = WORKS[name]
    samples = TINY[name] if tiny else samples
    folder = data / f"{name}-{samples}"

    def write(source: Path) -> None:
        for part, values in make(samples).items():
            np.save(source / f"{part}.npy", values)

    source = made(folder / "source", write)
    arrays = {file.stem: np.load(file, mmap_mode="r") for file in sorted(source.glob("*.npy"))}
    return Work(name, folder, samples, batch, arrays, job or {})
