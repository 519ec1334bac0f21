"""Real JPEG and PNG files, whole and damaged, as pixels, and what becomes of the odd kinds."""

import io
import threading
import tracemalloc
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from storage.errors import DataError
from storage.images import decode_image, stored_image

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


def test_of_16_bits_the_upper_8_are_kept() -> None:
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    data = encoded(Image.fromarray(values), "PNG")
    np.testing.assert_array_equal(decoded(data, (32, 32, 1))[..., 0], values >> 8)


def test_an_orientation_is_not_applied() -> None:
    image = Image.fromarray(picture(30, 60))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    turned = decoded(encoded(image, "JPEG", exif=exif.tobytes()), (30, 60, 3))
    np.testing.assert_array_equal(turned, decoded(encoded(image, "JPEG"), (30, 60, 3)))


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
    with pytest.raises(DataError, match=r"not decodable: .*pixels.* exceeds limit"):
        decode_image(bytes(data), np.empty((8, 8, 1), np.uint8))
