"""Real JPEG and PNG files, whole and damaged, as pixels, and what becomes of the odd kinds."""

import io
import os
import threading
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from storage.errors import DataError
from storage.images import decode_image, image_size, stored_image

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> Pixels:
    """Smooth colours, as photographs mostly are, so that JPEG loses little of them."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, channels), dtype=np.uint8)
    bands = [Image.fromarray(small[..., band]).resize((width, height)) for band in range(channels)]
    return np.stack([np.asarray(band) for band in bands], axis=2)


def encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def decoded(data: Any, shape: tuple[int, int, int]) -> Pixels:
    out = np.full(shape, 99, np.uint8)
    decode_image(data, out)
    return out


def worst(a: Any, b: Any) -> int:
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


def test_png_is_exact() -> None:
    colour = picture(30, 40)
    data = encoded(Image.fromarray(colour), "PNG")
    np.testing.assert_array_equal(decoded(data, (30, 40, 3)), colour)
    grey = colour[..., 0]
    data = encoded(Image.fromarray(grey), "PNG")
    np.testing.assert_array_equal(decoded(data, (30, 40, 1))[..., 0], grey)
    np.testing.assert_array_equal(decoded(data, (30, 40, 3)), np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"subsampling": 0, "quality": 97}, {"optimize": True}])
def test_jpeg_of_the_asked_size_is_what_pillow_decodes(settings: dict[str, Any]) -> None:
    data = encoded(Image.fromarray(picture(50, 70)), "JPEG", **settings)
    np.testing.assert_array_equal(decoded(data, (50, 70, 3)), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_any_buffer_is_decoded_alike(kind: str) -> None:
    data = encoded(Image.fromarray(picture(70, 90)), kind)
    expected = decoded(data, (32, 32, 3))
    for buffer in (memoryview(data), bytearray(data), np.frombuffer(data, np.uint8), pa.py_buffer(data)):
        np.testing.assert_array_equal(decoded(buffer, (32, 32, 3)), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(224, 224), (448, 448), (500, 375), (640, 480), (90, 300), (2000, 1500), (224, 500)])
def test_a_resized_image_is_near_the_best_that_pillow_makes(kind: str, size: tuple[int, int]) -> None:
    data = encoded(Image.fromarray(picture(*size)), kind, quality=95)
    best = Image.open(io.BytesIO(data)).resize((224, 224), Image.Resampling.BILINEAR)
    assert worst(decoded(data, (224, 224, 3)), best) <= 6


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(500, 375), (450, 300), (260, 600), (240, 230), (600, 240), (640, 427)])
def test_a_photograph_shrinks_as_pillow_shrinks_it(kind: str, size: tuple[int, int]) -> None:
    """Peak signal-to-noise ratio against Pillow's antialiased resize of the whole image; without the smoothing it is 22
    to 31 dB where an image shrinks twice in a direction."""
    photograph = Image.fromarray(load_sample_image("china.jpg")).resize(size, Image.Resampling.LANCZOS)
    data = encoded(photograph, kind, quality=90)
    best = np.asarray(Image.open(io.BytesIO(data)).resize((224, 224), Image.Resampling.BILINEAR)).astype(int)
    error = decoded(data, (224, 224, 3)) - best
    assert 20 * np.log10(255 / np.sqrt((error**2).mean())) > 36


def test_nothing_aliases_when_an_image_shrinks() -> None:
    """Stripes of one pixel become grey, however the scaling is shared out."""
    stripes = np.zeros((640, 480, 3), np.uint8)
    stripes[::2] = 255
    for kind in ("JPEG", "PNG"):
        data = encoded(Image.fromarray(stripes), kind, quality=95)
        small = decoded(data, (224, 224, 3))[4:-4].astype(int)
        assert abs(small - 127).max() <= 40


def test_grey_from_colour_and_colour_from_grey() -> None:
    colour = Image.fromarray(picture(40, 40))
    data = encoded(colour, "JPEG", quality=95)
    assert worst(decoded(data, (40, 40, 1))[..., 0], colour.convert("L")) <= 4
    grey = encoded(colour.convert("L"), "JPEG", quality=95)
    out = decoded(grey, (40, 40, 3))
    assert (out[..., :1] == out).all()
    assert worst(out[..., 0], colour.convert("L")) <= 4


def test_cmyk_keeps_its_colours() -> None:
    colour = Image.fromarray(picture(40, 40))
    data = encoded(colour.convert("CMYK"), "JPEG", quality=95)
    np.testing.assert_array_equal(decoded(data, (40, 40, 3)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert worst(decoded(data, (40, 40, 3)), colour) <= 12


def test_transparency_is_left_out() -> None:
    colour = picture(20, 20)
    alpha = np.dstack([colour, np.arange(400, dtype=np.uint16).reshape(20, 20).astype(np.uint8)])
    np.testing.assert_array_equal(decoded(encoded(Image.fromarray(alpha), "PNG"), (20, 20, 3)), colour)


def test_a_palette_is_looked_up() -> None:
    image = Image.fromarray(picture(20, 20)).quantize(16)
    np.testing.assert_array_equal(decoded(encoded(image, "PNG"), (20, 20, 3)), np.asarray(image.convert("RGB")))


def oriented(pixels: Pixels, kind: str, turn: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turn
    return encoded(Image.fromarray(pixels), kind, exif=exif.tobytes(), quality=95, lossless=True)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_an_image_is_turned_as_its_orientation_says(kind: str, turn: int) -> None:
    """Whole, and resized; and stored in a shard it is turned once."""
    data = oriented(picture(30, 60), kind, turn)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    height, width = image_size(data)
    assert (width, height) == upright.size
    exact = 4 if kind == "JPEG" else 0
    assert worst(decoded(data, (height, width, 3)), upright) <= exact
    assert worst(decoded(stored_image(data, "RGB"), (height, width, 3)), upright) <= exact
    assert worst(decoded(data, (height, width, 1))[..., 0], upright.convert("L")) <= 4
    small = upright.resize((width // 2, height // 2), Image.Resampling.BILINEAR)
    assert worst(decoded(data, (height // 2, width // 2, 3)), small) <= 12


def test_a_cmyk_image_is_turned_too() -> None:
    """It is Pillow that decodes it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(picture(30, 60)).convert("CMYK"), "JPEG", exif=exif.tobytes())
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decoded(data, (60, 30, 3)), np.asarray(upright))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0" + b"x" * 99]
)
def test_a_damaged_orientation_turns_nothing(exif: bytes) -> None:
    image = Image.fromarray(picture(30, 60))
    plain = decoded(encoded(image, "JPEG"), (30, 60, 3))
    np.testing.assert_array_equal(decoded(encoded(image, "JPEG", exif=exif), (30, 60, 3)), plain)


@pytest.mark.parametrize("values", [np.linspace(0, 1, 64), np.arange(64) * 1000])
def test_values_without_a_known_range_are_refused(values: Any) -> None:
    """Pillow would cut them off at 0 and 255: black, or white."""
    kind = np.float32 if values.dtype.kind == "f" else np.int32
    data = encoded(Image.fromarray(values.astype(kind).reshape(8, 8)), "TIFF")
    for refuse in (lambda: decoded(data, (8, 8, 1)), lambda: image_size(data), lambda: stored_image(data, "L")):
        with pytest.raises(DataError, match=r"Pillow's mode [FI], .*8 or 16 bits"):
            refuse()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_of_16_bits_the_upper_8_are_kept(kind: str) -> None:
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    data = encoded(Image.fromarray(values), kind)
    np.testing.assert_array_equal(decoded(data, (32, 32, 1))[..., 0], values >> 8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_small_file_with_too_many_pixels_is_refused_before_it_is_decoded(kind: str) -> None:
    data = encoded(Image.new("RGB", (3000, 2000)), kind, **({"compression": "tiff_lzw"} if kind == "TIFF" else {}))
    out = np.empty((16, 16, 3), np.uint8)
    message = r"too large: 3000 x 2000 = 6,000,000 pixels, of which 5,999,999 are allowed.*curate\.max_pixels"
    decode_image(data, out, 6_000_000)
    before = Image.core.get_stats()["new_count"]
    for refuse in (lambda: decode_image(data, out, 5_999_999), lambda: image_size(data, 5_999_999)):
        with pytest.raises(DataError, match=message):
            refuse()
    assert Image.core.get_stats()["new_count"] == before  # not even memory for them


def test_more_pixels_than_pillow_decodes_are_refused_whatever_the_setting() -> None:
    header = bytearray(WHOLE["PNG"])
    header[16:24] = (20_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    with pytest.raises(DataError, match=r"too large: .*400000000 pixels.*curate\.max_pixels"):
        image_size(bytes(header), 10**10)


def test_no_other_program_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would hand an EPS file, by whatever name, to Ghostscript."""
    ran = tmp_path / "ran"
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {ran}\nexit 1\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    eps = encoded(Image.new("RGB", (20, 20)), "EPS")
    for refuse in (lambda: decoded(eps, (20, 20, 3)), lambda: image_size(eps), lambda: stored_image(eps, "RGB")):
        with pytest.raises(DataError, match="not decodable: none of JPEG, PNG"):
            refuse()
    assert not ran.exists()


WHOLE = {kind: encoded(Image.fromarray(picture(64, 64)), kind) for kind in ("JPEG", "PNG")}


@pytest.mark.parametrize("channels", [1, 3])
def test_the_next_image_is_decoded_in_the_memory_of_the_one_before(channels: int) -> None:
    data = encoded(Image.fromarray(picture(375, 500)), "JPEG")
    out = np.empty((224, 224, channels), np.uint8)
    decode_image(data, out)
    tracemalloc.start()
    try:
        decode_image(data, out)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 375 * 500 * channels // 4


def test_what_was_decoded_before_leaves_no_trace() -> None:
    files = [
        encoded(Image.fromarray(picture(*size, seed=size[0])), "JPEG") for size in ((600, 500), (90, 300), (240, 230))
    ]
    shapes = [(224, 224, 3), (224, 224, 1), (60, 100, 3)]
    kinds = [(data, shape) for data in files for shape in shapes]
    alone: list[Pixels] = []
    for kind in kinds:
        thread = threading.Thread(target=lambda kind=kind: alone.append(decoded(*kind)))  # threads share no memory
        thread.start()
        thread.join()
    for index in np.random.default_rng(0).permutation(4 * len(kinds)) % len(kinds):
        np.testing.assert_array_equal(decoded(*kinds[index]), alone[index])


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("damage", ["cut in half", "only a header", "empty", "zeros after the magic"])
def test_a_damaged_image_is_no_image(kind: str, damage: str) -> None:
    data = WHOLE[kind]
    broken = {
        "cut in half": data[: len(data) // 2],
        "only a header": data[:24],
        "empty": b"",
        "zeros after the magic": data[:8] + bytes(len(data) - 8),
    }[damage]
    with pytest.raises(DataError, match="not decodable"):
        decoded(broken, (64, 64, 3))


def test_no_damage_gives_another_kind_of_error() -> None:
    random = np.random.default_rng(0)
    for data in WHOLE.values():
        for _ in range(200):
            broken = bytearray(data)
            broken[random.integers(len(data))] ^= 1 << random.integers(8)
            try:
                assert decoded(bytes(broken), (32, 48, 3)).shape == (32, 48, 3)
            except DataError as error:
                message = str(error)
                assert message.startswith("not decodable: ")


def test_jpeg_and_png_are_stored_as_they_are() -> None:
    for data in WHOLE.values():
        assert stored_image(data, "RGB") is data


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_other_kinds_are_stored_as_png_of_the_same_pixels(kind: str) -> None:
    data = encoded(Image.fromarray(picture(20, 30)), kind)
    for mode, channels in (("L", 1), ("RGB", 3)):
        stored = bytes(stored_image(data, mode))
        assert stored.startswith(b"\x89PNG")
        np.testing.assert_array_equal(decoded(stored, (20, 30, channels)), decoded(data, (20, 30, channels)))
    with pytest.raises(DataError, match="not decodable"):
        stored_image(data[:20], "RGB")


def test_an_image_that_claims_to_be_enormous_is_refused() -> None:
    """A few hundred bytes may say that they are 65,000 pixels wide and high, for which memory would be needed."""
    file = io.BytesIO()
    Image.new("L", (16, 16)).save(file, "JPEG")
    data = bytearray(file.getvalue())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = (65_000).to_bytes(2, "big") * 2
    with pytest.raises(DataError, match=r"too large: .*pixels.* exceeds limit"):
        decode_image(bytes(data), np.empty((8, 8, 1), np.uint8))
