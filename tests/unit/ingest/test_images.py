"""Shards of image files hold what was put in, and give the pixels that shards of pixels hold."""

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, write_params
from PIL import Image

from pipelines.evaluation.data import check_fits, sample_batches
from pipelines.ingest import data_stage
from pipelines.ingest.stage import journal_of, run
from pipelines.models import ModelConfig
from pipelines.streaming import Batching, Stream
from pipelines.workspace import Workspace
from storage.errors import DataError
from storage.images import decode_image
from storage.lake import Zone
from storage.manifest import Manifest
from storage.shards import Blobs, Shard, encode_samples

KINDS = {"png": "PNG", "jpg": "JPEG", "bmp": "BMP"}


def write_images(folder: Path, sizes: list[tuple[int, int]], kinds: list[str]) -> None:
    random = np.random.default_rng(3)
    for index in range(24):
        height, width = sizes[index % len(sizes)]
        pixels = random.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        suffix = kinds[index % len(kinds)]
        file = folder / f"class{index % 2}" / f"{index:02d}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((width, height)).save(file, KINDS[suffix])


def shards(folder: Path, **settings: Any) -> tuple[Workspace, Manifest]:
    """The shards of the images in `folder`, as a recipe of its own makes them."""
    recipe = folder / "-".join(map(str, ["recipe", *settings.values()]))
    recipe.mkdir()
    own = {"target_mb": 1.0, "shuffle_objects": 64, "image_size": [16, 24], **settings}
    write_params(recipe, {**TINY, "ingest": {"sources": [f"{folder}/images/**/*"]}, "shard": own})
    ws = Workspace.open(recipe)
    for name in ("ingest", "curate", "shard"):
        run(data_stage(name, ws), journal_of(ws, name), ws.params.compute)
    return ws, ws.zone("shards").manifest()


def opened(made: tuple[Workspace, Manifest]) -> list[Shard]:
    ws, manifest = made
    return [Shard.open(ws.zone("shards").read(record["path"], record["digest"])) for record in manifest.records()]


def test_files_and_pixels_are_the_same_samples(tmp_path: Path) -> None:
    write_images(tmp_path / "images", [(16, 24), (40, 60), (9, 50)], ["png", "jpg", "bmp"])
    pixels, encoded = shards(tmp_path), shards(tmp_path, images="encoded")
    spec = encoded[1].header["spec"]
    assert spec["inputs"]["x"] == {"dtype": "uint8", "shape": [16, 24, 3], "codec": "image"}
    without = {**spec, "inputs": {"x": {"dtype": "uint8", "shape": [16, 24, 3]}}}
    assert without == pixels[1].header["spec"]  # the moments, too
    check_fits(ModelConfig({"name": "cnn"}, pixels[1].header["spec"], None, "classification", ""), encoded[1])
    for plain, files in zip(opened(pixels), opened(encoded), strict=True):
        assert files.ids.to_pylist() == plain.ids.to_pylist()
        assert files.column("label").tolist() == plain.column("label").tolist()
        values, offsets = files.blobs("x")
        for row, name in enumerate(files.ids.to_pylist()):
            stored = values[offsets[row] : offsets[row + 1]].tobytes()
            raw = next((tmp_path / "images").rglob(Path(name).name)).read_bytes()
            assert stored.startswith(b"\x89PNG") if name.endswith("bmp") else stored == raw
            out = np.empty((16, 24, 3), np.uint8)
            decode_image(stored, out)
            np.testing.assert_array_equal(out, plain.column("x")[row], name)
    for split in ("train", "val", "test"):
        both = (sample_batches(ws.zone("shards"), manifest, split, "label", 5) for ws, manifest in (pixels, encoded))
        for (inputs, targets), (same_inputs, same_targets) in zip(*both, strict=True):
            np.testing.assert_array_equal(inputs, same_inputs)
            np.testing.assert_array_equal(targets, same_targets)


def test_streams_of_files_and_of_pixels_give_the_same_batches(tmp_path: Path) -> None:
    write_images(tmp_path / "images", [(16, 24), (40, 60), (9, 50)], ["png", "jpg", "bmp"])
    streams = [
        Stream(
            ws.zone("shards"), manifest, split="train", batch_size=5, seed=3, epochs=2, batching=Batching(last="pad")
        )
        for ws, manifest in (shards(tmp_path), shards(tmp_path, images="encoded"))
    ]
    with streams[0] as pixels, streams[1] as files:
        count = 0
        for plain, decoded in zip(pixels, files, strict=True):
            assert list(decoded) == list(plain) == ["x", "label", "mask"]
            assert decoded.ids() == plain.ids()
            for name, values in plain.items():
                np.testing.assert_array_equal(decoded[name], values)
            count += 1
        assert count == 2 * len(pixels)
        assert files.meter.snapshot().decode > 0
        np.testing.assert_array_equal(files.batch(1)["x"], pixels.batch(1)["x"])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("shardline")]


def test_one_size_needs_no_setting_and_grey_is_grey(tmp_path: Path) -> None:
    write_images(tmp_path / "images", [(12, 10)], ["png"])
    ws, manifest = shards(tmp_path, images="encoded", image_mode="L", image_size=None)
    assert manifest.header["spec"]["inputs"]["x"]["shape"] == [12, 10, 1]
    inputs, _ = next(sample_batches(ws.zone("shards"), manifest, "train", "label", 99))
    assert inputs.shape[1:] == (12, 10, 1)
    np.testing.assert_allclose(inputs.reshape(-1).mean(), manifest.header["spec"]["mean"], rtol=1e-12)
    np.testing.assert_allclose(inputs.reshape(-1).std(), manifest.header["spec"]["std"], rtol=1e-12)


@pytest.mark.parametrize("images", ["pixels", "encoded"])
def test_sizes_that_vary_need_the_setting(tmp_path: Path, images: str) -> None:
    write_images(tmp_path / "images", [(12, 10), (13, 10)], ["png"])
    with pytest.raises(DataError, match=r"\.png: 1[23] x 10 pixels where the first image has 1[23] x 10. Set shard.im"):
        shards(tmp_path, images=images, image_size=None)


def test_shards_of_files_are_cut_by_the_files_bytes(tmp_path: Path) -> None:
    write_images(tmp_path / "images", [(40, 60)], ["png"])
    _, manifest = shards(tmp_path, images="encoded", target_mb=0.002)
    train = manifest.select("train")
    assert train.num_rows > 2
    assert max(train["bytes"].to_pylist()) < 8000


def test_moments_of_pixels_are_exact(tmp_path: Path) -> None:
    write_images(tmp_path / "images", [(20, 20)], ["jpg"])
    whole, cut = shards(tmp_path), shards(tmp_path, target_mb=0.003)
    assert len(opened(cut)) > len(opened(whole))
    spec = whole[1].header["spec"]
    train = np.concatenate(
        [inputs for inputs, _ in sample_batches(whole[0].zone("shards"), whole[1], "train", "label", 9)]
    )
    np.testing.assert_allclose(spec["mean"], train.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(spec["std"], train.std(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(cut[1].header["spec"]["std"], spec["std"], rtol=1e-14)


def test_a_file_that_decodes_no_more_is_named(tmp_path: Path) -> None:
    """Of a shard made in Python."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "JPEG")
    images = Blobs.of([file.getvalue(), file.getvalue()[:200]], "image", (8, 8, 3))
    zone = Zone(tmp_path)
    stored = zone.publish(encode_samples({"x": images, "label": np.zeros(2, np.int64)}, ["a.jpg", "b.jpg"]), ".arrow")
    record = {"path": stored.path, "digest": stored.digest, "bytes": stored.bytes, "rows": 2, "key": ""}
    manifest = Manifest.build("shards", [{**record, "split": "test", "tokens": 0, "stats": None}], kind="samples")
    with pytest.raises(DataError, match=rf"{stored.path}: b\.jpg: not decodable: .*Leave the image out"):
        list(sample_batches(zone, manifest, "test", "label", 2))
