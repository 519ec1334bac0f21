"""Images are decoded side by side, and the first that can't be is named."""

import io
import pickle
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.servers import wait_for

from pipelines.streaming.gather import decode
from pipelines.streaming.gather.decode import Decoder
from storage.errors import DataError
from storage.images import decode_image


def encoded(height: int, width: int, kind: str, seed: int) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((width, height)).save(file, kind)
    return file.getvalue()


def noisy(size: int) -> bytes:
    """A JPEG that takes long to decode."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def decoded(data: bytes) -> np.ndarray[Any, Any]:
    out = np.empty((48, 48, 3), np.uint8)
    decode_image(data, out)
    return out


MIXED = [encoded(40 + 9 * i, 60 - i, "JPEG" if i % 3 else "PNG", i) for i in range(20)]


def test_the_number_of_threads_changes_nothing() -> None:
    outs = []
    for threads in (1, 2, 5, 30):
        out = np.zeros((20, 48, 48, 3), np.uint8)
        decoder = Decoder((48, 48, 3), threads)
        decoder.into(MIXED, out, str)
        decoder.into(MIXED, out, str)
        decoder.close()
        outs.append(out)
    for out in outs[1:]:
        np.testing.assert_array_equal(out, outs[0])
    for image, row in zip(MIXED, outs[0], strict=True):
        np.testing.assert_array_equal(decoded(image), row)


def test_threads_decode_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three images meet in the decoder, which none would leave alone."""
    meeting = threading.Barrier(3, timeout=60)
    monkeypatch.setattr(decode, "decode_image", lambda data, out: meeting.wait())
    decoder = Decoder((8, 8, 1), 3)
    decoder.into([b""] * 6, np.zeros((6, 8, 8, 1), np.uint8), str)
    decoder.close()


def held_up(work: Callable[[], object]) -> float:
    """The longest stretch of `work` in which another thread of Python could not go on, as a share of its time."""
    ticks: list[float] = []
    done, interval = threading.Event(), sys.getswitchinterval()

    def tick() -> None:
        while not done.wait(0.0005):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    sys.setswitchinterval(60)  # so that it goes on only where `work` lets go of the interpreter's lock by itself
    try:
        thread.start()
        wait_for(lambda: len(ticks) > 0, "the other thread", every=0.001)
        begun = time.perf_counter()
        work()
        ended = time.perf_counter()
    finally:
        sys.setswitchinterval(interval)
        done.set()
        thread.join()
    moments = [begun, *(moment for moment in ticks if begun < moment < ended), ended]
    return float(np.diff(moments).max()) / (ended - begun)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_is_decoded_without_the_interpreters_lock(kind: str) -> None:
    """A busy machine may hold the other thread up, but not each time; work that keeps the lock does."""
    image = noisy(1800) if kind == "JPEG" else encoded(1800, 1800, "PNG", 1)  # each takes tens of milliseconds
    out = np.empty((1800, 1800, 3), np.uint8)
    decode_image(image, out)  # imports what it needs
    assert held_up(lambda: sum(range(2_000_000))) == 1
    assert any(held_up(lambda: decode_image(image, out)) < 0.5 for _ in range(20))


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_first_damaged_image_is_named(threads: int) -> None:
    images = [*MIXED]
    images[7] = images[7][:50]
    images[13] = b"text"
    decoder = Decoder((48, 48, 3), threads)
    for _ in range(10):
        with pytest.raises(DataError, match=r"^sample 7: not decodable: .*Leave the image out at the source"):
            decoder.into(images, np.zeros((20, 48, 48, 3), np.uint8), lambda i: f"sample {i}")
    decoder.close()


def test_of_two_that_fail_at_once_the_first_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = threading.Barrier(2, timeout=60)

    def fail(data: bytes, out: Any) -> None:
        meeting.wait()
        raise DataError("damaged")

    monkeypatch.setattr(decode, "decode_image", fail)
    for _ in range(20):
        with Decoder((8, 8, 1), 2) as decoder, pytest.raises(DataError, match=r"^0: damaged"):
            decoder.into([b""] * 2, np.zeros((2, 8, 8, 1), np.uint8), str)


def test_no_thread_outlives_it_and_it_can_be_pickled() -> None:
    def helpers() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("shardline-decode")]

    decoder = Decoder((48, 48, 3), 3)
    out = np.zeros((20, 48, 48, 3), np.uint8)
    decoder.into(MIXED, out, str)
    assert helpers()
    decoder.close()
    assert not helpers()
    copy = pickle.loads(pickle.dumps(decoder))
    again = np.zeros_like(out)
    copy.into(MIXED, again, str)
    np.testing.assert_array_equal(again, out)
    threads = helpers()
    del copy
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_shapes_that_are_no_images_are_refused() -> None:
    for shape in ((8, 8), (8, 8, 4), ()):
        with pytest.raises(DataError, match=r"must be \[height, width, 1\] or \[height, width, 3\]"):
            Decoder(shape)


def test_no_images_are_no_work() -> None:
    Decoder((8, 8, 1), 2).into([], np.zeros((0, 8, 8, 1), np.uint8), str)
