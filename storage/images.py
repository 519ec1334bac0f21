"""Image files ↔ pixels: one way for shards, streams, evaluation and prediction, so that all see the same values.

JPEG is decoded by libjpeg-turbo (simplejpeg), without the interpreter's lock. An image that is larger than asked for is
scaled down while it is decoded, in the DCT domain, to the smallest of 1/8, 1/4 and 1/2 that is not below what is asked
for in either direction: those are the scales that have vector instructions. What then remains is done by OpenCV: a
smoothing of three pixels, whose weights follow from the scale so that nothing aliases, and bilinear interpolation. PNG,
CMYK and whatever simplejpeg objects to is decoded by Pillow. See docs/decisions/0013.

Images are turned as their EXIF orientation says, and only those are decoded whose values have a known range and whose
formats need no other program. See docs/decisions/0044.
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
MAX_PIXELS = 64_000_000  # of an image from outside, unless curate.max_pixels says otherwise
_MODES = {1: "L", 3: "RGB"}  # Pillow's names of them
_COLOURS = {1: "GRAY", 3: "RGB"}  # simplejpeg's
_FAR = 3.0  # times that an image may shrink by OpenCV
_EVEN = 0.333  # the weights of three pixels when all are the same, but for what a Gaussian cannot be
_NONE = 1 / 512  # a weight that changes no pixel
#: What Pillow may take a file for. Not EPS, for which it would start Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
#: Pillow's modes with values in 0 … 255, beside its I;16. Of F and I nothing says what is black and what is white.
_BYTES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
_ORIENTATION = 0x0112  # in EXIF: 1 … 8
_SIDEWAYS = (5, 6, 7, 8)  # those in which stored rows are shown as columns
_FIRST = {bytes([0xFF, marker]) for marker in (*range(0xE0, 0xF0), 0xFE)}  # JPEG's application segments, and comments
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


def decode_image(data: Buffer, out: Pixels, max_pixels: int | None = None) -> None:
    """Decode an image file into `out`, contiguous uint8 [height, width, 1 (grey) or 3 (RGB)], resized to that where it
    has another size.

    It is turned as its EXIF orientation says. Transparency is left out, 16-bit values keep their upper 8 bits, of an
    animation the first picture is taken. Raises DataError, with the reason, for what cannot be decoded whole, for
    32-bit and float values, and for more than `max_pixels` pixels, before they are decoded.
    """
    data = memoryview(data).cast("B")  # simplejpeg takes no buffer of signed bytes, as Arrow's are
    if data[: len(JPEG)] == JPEG:
        turn = _jpeg_orientation(data)
        height, width, channels = out.shape
        stored = out if turn == 1 else np.empty((width, height, channels) if turn in _SIDEWAYS else out.shape, np.uint8)
        if _decode_jpeg(data, stored, max_pixels):
            if turn != 1:
                out[...] = _turned(stored, turn)
            return
    _resize(_decode_whole(data, _MODES[out.shape[2]], max_pixels), out)


def image_size(data: Buffer, max_pixels: int | None = None) -> tuple[int, int]:
    """(height, width) of an image file, as `decode_image` shows it. Decodes it whole, and raises DataError as that
    does."""
    image, turn = _load(data, max_pixels)
    return image.size if turn in _SIDEWAYS else (image.height, image.width)


def _decode_jpeg(data: Buffer, out: Pixels, max_pixels: int | None) -> bool:
    """Decode by simplejpeg, as it is stored; whether it could."""
    import simplejpeg

    height, width, channels = out.shape
    colours = _COLOURS[channels]
    try:
        whole_height, whole_width, space, _ = simplejpeg.decode_jpeg_header(data)
        _refuse_large(whole_width, whole_height, max_pixels)
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


def _decode_whole(data: Buffer, mode: str, max_pixels: int | None) -> Pixels:
    """A whole image by Pillow, turned as EXIF says: [height, width] in mode L, [height, width, 3] in mode RGB."""
    from PIL import Image

    image, turn = _load(data, max_pixels)
    if _is_deep(image):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return np.ascontiguousarray(_turned(pixels, turn))


def _load(data: Buffer, max_pixels: int | None) -> tuple["Image.Image", int]:
    """An image as it is stored, decoded whole by Pillow, and its EXIF orientation."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)  # reads the header alone
        _refuse_large(*image.size, max_pixels)
        if not _is_deep(image) and image.mode not in _BYTES:
            raise DataError(
                f"not decodable: its values are of Pillow's mode {image.mode}, and nothing says which of them is "
                "white. Bring it to 8 or 16 bits"
            )
        image.load()
        view = memoryview(data).cast("B")
        jpeg = view[: len(JPEG)] == JPEG
        return image, _jpeg_orientation(view) if jpeg else image.getexif().get(_ORIENTATION, 1)
    except DataError:
        raise
    except UnidentifiedImageError as error:  # whose text has an address in memory, so that no two would be equal
        raise DataError(f"not decodable: none of {', '.join(_FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"too large: {error} (curate.max_pixels)") from error
    except Exception as error:  # Pillow's decoders raise many kinds
        raise DataError(f"not decodable: {error}") from error


def _is_deep(image: "Image.Image") -> bool:
    """Whether its values are of 16 bits: 0 … 65,535."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")


def _refuse_large(width: int, height: int, max_pixels: int | None) -> None:
    if max_pixels is not None and width * height > max_pixels:
        raise DataError(
            f"too large: {width} x {height} = {width * height:,} pixels, of which {max_pixels:,} are allowed: a small "
            "file may hold more than memory does. Bring it to a smaller size, or raise curate.max_pixels"
        )


def _jpeg_orientation(data: memoryview) -> int:
    """The orientation in a JPEG file's EXIF segment, which is among the first; 1 where there is none."""
    at = 2
    while (head := data[at : at + 10].tobytes())[:2] in _FIRST:
        end = at + 2 + int.from_bytes(head[2:4], "big")
        if head[1] == 0xE1 and head[4:] == b"Exif\0\0":
            return _exif_orientation(data[at + 10 : end].tobytes())
        at = end
    return 1


def _exif_orientation(segment: bytes) -> int:
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(segment)
        turn = exif.get(_ORIENTATION, 1)
    except Exception:  # a damaged segment says nothing; Pillow raises many kinds
        return 1
    return turn if isinstance(turn, int) else 1


def _turned(pixels: Pixels, turn: int) -> Pixels:
    """A view of `pixels` [height, width, …] as EXIF orientation `turn` shows them; of any other number as they are."""
    if turn in _SIDEWAYS:
        pixels = pixels.swapaxes(0, 1)
    down = -1 if turn in (3, 4, 7, 8) else 1
    across = -1 if turn in (2, 3, 6, 7) else 1
    return pixels[::down, ::across]


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
    from PIL import Image

    if memoryview(data)[: len(PNG)].tobytes().startswith((JPEG, PNG)):
        return data
    file = io.BytesIO()
    Image.fromarray(_decode_whole(data, mode, None)).save(file, "PNG")
    return file.getbuffer()
