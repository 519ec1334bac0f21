"""Memory for batches: used again when nobody refers to it, and never before."""

import gc
import pickle
import threading
import weakref

import numpy as np
import pytest
import torch

from pipelines.streaming.gather.buffers import ALIGNMENT, Buffers, _size_class, allocate, buffers_from


def address(array: np.ndarray) -> int:  # type: ignore[type-arg]
    return int(array.ctypes.data)


def test_memory_is_used_again_once_nothing_refers_to_it() -> None:
    buffers = Buffers()
    first = buffers.empty((100, 3), np.float32)
    place = address(first)
    assert buffers.lent_bytes >= first.nbytes
    del first
    assert buffers.lent_bytes == 0
    assert buffers.idle_bytes
    assert address(buffers.empty((150, 2), np.float32)) == place


@pytest.mark.parametrize(
    "hold",
    [
        lambda array: array[3:],
        lambda array: array.T,
        lambda array: array.view(np.uint8)[..., ::2],
        lambda array: memoryview(array),
        lambda array: torch.from_numpy(array)[1:],
        lambda array: torch.from_dlpack(array),
        lambda array: np.from_dlpack(array),
        lambda array: iter(array),
        lambda array: np.lib.stride_tricks.sliding_window_view(array, 2, axis=0),
    ],
)
def test_whatever_holds_an_array_holds_its_memory(hold: object) -> None:
    buffers = Buffers()
    array = buffers.empty((8, 8), np.uint16)
    place = address(array)
    holder = hold(array)  # type: ignore[operator]
    del array
    gc.collect()
    assert buffers.lent_bytes
    assert address(buffers.empty((8, 8), np.uint16)) != place
    del holder
    gc.collect()
    assert not buffers.lent_bytes


def test_an_array_that_is_kept_outlives_the_buffers_that_lent_it() -> None:
    made: list[weakref.ref[np.ndarray]] = []  # type: ignore[type-arg]

    def noted(nbytes: int) -> np.ndarray:  # type: ignore[type-arg]
        memory = allocate(nbytes)
        made.append(weakref.ref(memory))
        return memory

    buffers = Buffers(noted)
    array = buffers.empty((3, 5), np.int64)[1:]
    del buffers
    gc.collect()
    assert made[0]() is not None
    del array
    gc.collect()
    assert made[0]() is None


def test_arrays_are_aligned_writeable_and_of_the_shape_asked_for() -> None:
    buffers = Buffers()
    for shape, dtype in [
        ((7,), "uint8"),
        ((3, 5, 2), "float64"),
        ((0, 4), "int32"),
        ((), "int64"),
        ((1 << 20,), "uint16"),
    ]:
        for _ in range(2):
            array = buffers.empty(shape, dtype)
            assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
            assert address(array) % ALIGNMENT == 0
            array[...] = 7
            assert (array == 7).all()


def test_sizes_waste_at_most_a_quarter_beyond_a_page() -> None:
    for nbytes in [1, 4095, 4097, 100_000, 1 << 20, (1 << 20) + 1, 300 << 20]:
        size = _size_class(nbytes)
        assert nbytes <= size <= max(nbytes + 4096, 1.25 * nbytes)
        assert _size_class(size) == size


def test_idle_memory_is_bounded_and_cleared() -> None:
    buffers = Buffers(idle_limit=3 << 20)
    held = [buffers.empty((1 << 20,), np.uint8) for _ in range(8)]
    assert buffers.lent_bytes >= 8 << 20
    held.clear()
    assert (1 << 20) < buffers.idle_bytes <= 3 << 20
    buffers.clear()
    assert buffers.idle_bytes == 0


def test_memory_comes_from_the_callback_and_goes_with_the_pickle() -> None:
    made: list[int] = []

    def from_torch(nbytes: int) -> np.ndarray:  # type: ignore[type-arg]
        made.append(nbytes)
        return torch.empty(nbytes, dtype=torch.uint8).numpy()

    buffers = Buffers(from_torch)
    for _ in range(3):
        array = buffers.empty((1000,), np.uint8)
        array[:] = 1
        del array
    assert len(made) == 1
    again = pickle.loads(pickle.dumps(Buffers(allocate, 77)))
    assert (again.allocate, again.idle_limit) == (allocate, 77)


def test_threads_never_share_memory() -> None:
    buffers, wrong = Buffers(), []

    def work(number: int) -> None:
        for turn in range(300):
            array = buffers.empty((500,), np.int64)
            array[:] = number * 1000 + turn
            kept = array[100:]
            del array
            if (kept != number * 1000 + turn).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert buffers.lent_bytes == 0


def test_the_streams_of_a_process_share_ordinary_memory() -> None:
    first, second = buffers_from(), pickle.loads(pickle.dumps(buffers_from()))
    place = address(first.empty((1 << 20,), np.uint8))
    first.clear()
    assert address(second.empty((1 << 20,), np.uint8)) == place
    assert buffers_from(lambda nbytes: np.empty(nbytes, np.uint8)) is not first
