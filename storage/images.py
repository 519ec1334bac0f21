"""Image files ↔ pixels: one way for shards, streams, evaluation and prediction, so that all see the same values.

JPEG is decoded by libjpeg-turbo (simplejpeg), without the interpreter's lock. An image that is larger than asked for is
scaled down while it is decoded, in the DCT domain, to the smallest of 1/8, 1/4 and 1/2 that is not below what is asked
for in either direction: those are the scales that have vector instructions. What then remains is done by OpenCV: a
smoothing of three pixels, whose weights follow from the scale so that nothing aliases, and bilinear interpolation. PNG,
CMYK and whatever simplejpeg objects to is decoded by Pillow. See docs/decisions/0013.
"""

import io
import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from storage.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

Pixels = npt.NDArray[np.uint8]

JPEG = b"\xff\xd8\xff"  # how such files begin
PNG = b"\x89PNG\r\n\x1a\n"
CHANNELS = (1, 3)  # grey, RGB
_MODES = {1: "L", 3: "RGB"}  # Pillow's names of them
_COLOURS = {1: "GRAY", 3: "RGB"}  # simplejpeg's
_FAR = 3.0  # times that an image may shrink by OpenCV
_EVEN = 0.333  # the weights of three pixels when all are the same, but for what a Gaussian cannot be
_NONE = 1 / 512  # a weight that changes no pixel
_SHARED = ("YCbCr", "Gray", "RGB")  # colour spaces that simplejpeg decodes as Pillow does
_KEPT = 16 << 20  # bytes of an image up to which the memory that it is decoded in is kept for the next one


class _Scratch(threading.local):
    """Memory for an image on its way, two pieces of up to _KEPT bytes a thread: what the allocator gives back to the
    kernel after each image comes again as cleared pages, and to clear them takes a third of the time to decode."""

    def __init__(self) -> None:
        self.pieces = [np.empty(0, np.uint8), np.empty(0, np.uint8)]

    def empty(self, piece: int, shape: tuple[int, ...]) -> Pixels:
        """An array of `shape` with any content, in memory that the next call for the same piece returns as well."""
        size = math.prod(shape)
        if size > _KEPT:
            return np.empty(shape, np.uint8)
        if size > len(self.pieces[piece]):
            self.pieces[piece] = np.empty(size, np.uint8)
        return self.pieces[piece][:size].reshape(shape)


_scratch = _Scratch()


def decode_image(data: Buffer, out: Pixels) -> None:
    """Decode an image file into `out`, contiguous uint8 [height, width, 1 (grey) or 3 (RGB)], resized to that where it
    has another size.

    Transparency is left out, 16-bit values keep their upper 8 bits, of an animation the first picture is taken, and an
    orientation in EXIF isn't applied. Raises DataError, with Pillow's reason, for what cannot be decoded whole.
    """
    data = memoryview(data).cast("B")  # simplejpeg takes no buffer of signed bytes, as Arrow's are
    if data[: len(JPEG)] == JPEG and _decode_jpeg(data, out):
        return
    try:
        image = open_image(data, _MODES[out.shape[2]])
    except Exception as error:  # Pillow's decoders raise many kinds
        raise DataError(f"not decodable: {error}") from error
    _resize(np.asarray(image), out)


def _decode_jpeg(data: Buffer, out: Pixels) -> bool:
    """Decode by simplejpeg; whether it could."""
    import simplejpeg

    height, width, channels = out.shape
    colours = _COLOURS[channels]
    try:
        whole_height, whole_width, space, _ = simplejpeg.decode_jpeg_header(data)
        if space not in _SHARED:
            return False
        size = _scaled(whole_height, whole_width, height, width)
        least = {"min_height": size[0], "min_width": size[1]}
        fits = size == (height, width)
        pixels = out if fits else _scratch.empty(0, (*size, channels))
        simplejpeg.decode_jpeg(data, colorspace=colours, buffer=pixels, **least)
    except ValueError:
        return False  # Pillow decides, as it did when the image was curated
    if not fits:
        _resize(pixels, out)
    return True


def _scaled(height: int, width: int, least_height: int, least_width: int) -> tuple[int, int]:
    """What an image's height and width are when it is scaled down while it is decoded, no further than asked for."""
    for divisor in (8, 4, 2):
        scaled = -(-height // divisor), -(-width // divisor)
        if scaled[0] >= least_height and scaled[1] >= least_width:
            return scaled
    return height, width


def open_image(data: Buffer, mode: str) -> "Image.Image":
    """A whole image by Pillow, in `mode` L or RGB. Raises whatever Pillow raises."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        if image.mode.startswith("I;16"):
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert(mode)
        return image.convert(mode)


def _resize(pixels: Pixels, out: Pixels) -> None:
    """Write `pixels` [h, w, channels] (or [h, w] grey) to `out` [height, width, channels], resized to that.

    Where an image shrinks, each new pixel is an average of what it stands for. By `r` times in one direction: the
    triangle of width 2r that does that has the variance r²/6, bilinear interpolation has 1/6 of its own, and weights
    (a, 1 - 2a, a) before it have 2a. Near enough up to three times; beyond that, Pillow's triangle itself.
    """
    height, width, _ = out.shape
    if pixels.shape[:2] == (height, width):
        out[...] = pixels.reshape(out.shape)
        return
    down, across = pixels.shape[0] / height, pixels.shape[1] / width
    if max(down, across) > _FAR:
        from PIL import Image

        image = Image.fromarray(pixels.reshape(pixels.shape[:2]) if out.shape[2] == 1 else pixels)
        out[...] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).reshape(out.shape)
        return
    import cv2

    vertical, horizontal = _smoothing(down), _smoothing(across)
    if vertical or horizontal:
        taps = (3 if horizontal else 1, 3 if vertical else 1)
        # a Gaussian of three pixels may have any such weights
        into = _scratch.empty(1, pixels.shape)
        smooth: Any = cv2.GaussianBlur(pixels, taps, dst=into, sigmaX=horizontal or 1.0, sigmaY=vertical or 1.0)
    else:
        smooth = pixels
    small = cv2.resize(smooth, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)
    if small is not out:
        out[...] = small.reshape(out.shape)


def _smoothing(ratio: float) -> float:
    """The standard deviation of a Gaussian whose three weights smooth for an image that shrinks `ratio` times; 0: none
    is needed."""
    weight = min((ratio * ratio - 1) / 12, _EVEN)
    if weight < _NONE:
        return 0.0
    return math.sqrt(-0.5 / math.log(weight / (1 - 2 * weight)))


def stored_image(data: Buffer, mode: str) -> Buffer:
    """An image file as shards keep it: JPEG and PNG as they are, others as a PNG of the same pixels in `mode` L or RGB.
    Raises DataError for what cannot be decoded."""
    if memoryview(data)[: len(PNG)].tobytes().startswith((JPEG, PNG)):
        return data
    try:
        image = open_image(data, mode)
    except Exception as error:  # as above
        raise DataError(f"not decodable: {error}") from error
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getbuffer()
