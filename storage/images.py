"""Image files ↔ pixels: one way for shards, streams, evaluation and prediction, so that all see the same values.

JPEG is decoded by libjpeg-turbo (simplejpeg), without the interpreter's lock. An image that is larger than asked for is
scaled down while it is decoded, in the DCT domain, to the smallest n/8 of its size that is not below what is asked for
in either direction; what then remains is done by Pillow's bilinear resize, whose filter widens with the scale, so that
nothing aliases. PNG, CMYK and whatever simplejpeg objects to is Pillow's. See docs/decisions/0011.
"""

import io
from typing import TYPE_CHECKING

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
_SHARED = ("YCbCr", "Gray", "RGB")  # colour spaces that simplejpeg decodes as Pillow does


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
    _fit(image, out)


def _decode_jpeg(data: Buffer, out: Pixels) -> bool:
    """Decode by simplejpeg; whether it could."""
    import simplejpeg

    height, width, channels = out.shape
    least = {"min_height": height, "min_width": width}
    try:
        found_height, found_width, space, _ = simplejpeg.decode_jpeg_header(data, **least)
        if space not in _SHARED:
            return False
        if (found_height, found_width) == (height, width):
            simplejpeg.decode_jpeg(data, colorspace=_COLOURS[channels], buffer=out, **least)
            return True
        pixels = simplejpeg.decode_jpeg(data, colorspace=_COLOURS[channels], **least)
    except ValueError:
        return False  # Pillow decides, as it did when the image was curated
    from PIL import Image

    _fit(Image.fromarray(pixels.squeeze(axis=2) if channels == 1 else pixels), out)
    return True


def open_image(data: Buffer, mode: str) -> "Image.Image":
    """A whole image by Pillow, in `mode` L or RGB. Raises whatever Pillow raises."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        if image.mode.startswith("I;16"):
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert(mode)
        return image.convert(mode)


def _fit(image: "Image.Image", out: Pixels) -> None:
    """Write `image` to `out`, resized to its size."""
    from PIL import Image

    height, width, _ = out.shape
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    out[...] = np.asarray(image).reshape(out.shape)


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
