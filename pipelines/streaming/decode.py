"""Encoded images → pixels in a batch, in threads.

JPEG is decoded by libjpeg-turbo (simplejpeg), which lets go of the interpreter's lock. An image that is larger than
asked for is scaled down while it is decoded, in the DCT domain, to the smallest n/8 of its size that is not below what
is asked for in either direction; what then remains is done by Pillow's bilinear resize, whose filter widens with the
scale, so that nothing aliases. PNG, CMYK and whatever simplejpeg objects to is Pillow's. See docs/decisions/0011.

The result depends on the image and the shape alone, never on the number of threads.
"""

import io
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
_MODES = {1: "L", 3: "RGB"}  # Pillow's names by channels
_COLOURS = {1: "GRAY", 3: "RGB"}  # simplejpeg's
_SHARED = ("YCbCr", "Gray", "RGB")  # colour spaces that simplejpeg decodes as Pillow does


def decode_image(data: Buffer, out: Pixels) -> None:
    """Decode an image file into `out`, contiguous uint8 [height, width, 1 (grey) or 3 (RGB)], resized to that where it
    has another size.

    Transparency is left out, 16-bit values keep their upper 8 bits, of an animation the first picture is taken, and an
    orientation in EXIF isn't applied. Raises DataError, with Pillow's reason, for what cannot be decoded whole.
    """
    if bytes(memoryview(data)[: len(JPEG)]) == JPEG and _decode_jpeg(data, out):
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


class Decoder:
    """Decodes images to uint8 `shape` [height, width, channels] in up to `threads` threads, the caller's included; by
    default as many as this process may use cores.

    Threads are started when first needed and end with `close` or when this is forgotten. It can be pickled and survives
    a fork. One batch at a time.
    """

    def __init__(self, shape: tuple[int, ...], threads: int | None = None) -> None:
        if len(shape) != 3 or shape[2] not in _MODES:
            raise DataError(f"images of shape {list(shape)}: must be [height, width, 1] or [height, width, 3]")
        self.shape, self.threads = shape, threads or cores()
        self._pool: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def into(self, images: Sequence[Buffer], out: Pixels, name: Callable[[int], str]) -> None:
        """Decode `images` [n] into `out` uint8 [n, *shape]. Raises DataError that begins with `name(i)` for the first
        that cannot be decoded."""
        numbers = itertools.count()
        failed: dict[int, DataError] = {}
        end = len(images)

        def work() -> None:
            nonlocal end
            for number in numbers:  # shared: each number goes to one thread, lower ones first
                if number >= end:
                    return
                try:
                    decode_image(images[number], out[number])
                except DataError as error:
                    failed[number] = error
                    end = min(end, number)

        helpers = min(self.threads, len(images)) - 1
        others = [self._executor().submit(work) for _ in range(helpers)] if helpers > 0 else []
        work()
        for other in others:
            other.result()
        if failed:
            first = min(failed)
            raise DataError(
                f"{name(first)}: {failed[first]}. Leave the image out at the source, then run `dvc repro`."
            ) from failed[first]

    def _executor(self) -> ThreadPoolExecutor:
        if self._pool is None or self._process != os.getpid():  # after a fork, the threads are the parent's
            self._pool, self._process = ThreadPoolExecutor(self.threads - 1, "shardline-decode"), os.getpid()
        return self._pool

    def close(self) -> None:
        """End the threads. They are started again when needed."""
        if self._pool is not None and self._process == os.getpid():
            self._pool.shutdown()
        self._pool = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Decoder, (self.shape, self.threads)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
