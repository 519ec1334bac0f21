"""What this machine reaches: each measurement is bounded in time and cleans up behind itself."""

import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

MIB = 1 << 20
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LARGEST = {"cpu": 2048, "cuda": 8192, "xpu": 8192, "mps": 4096}  # rows of the square matrices


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.6) -> float:
    """The best FLOP/s of products of square matrices, which grow until they fill the device or the time.

    A product of n × n matrices has 2·n³ operations. The threads are those that torch is set to.
    """
    best, n, until = 0.0, 256, time.perf_counter() + seconds
    largest = _LARGEST[device.type]
    while True:
        multiply = _product(n, device, dtype)
        took = _timed(multiply, device)
        best = max(best, 2 * n**3 / took)
        while n == largest and time.perf_counter() + took < until:
            best = max(best, 2 * n**3 / _once(multiply, device))
        if n == largest or time.perf_counter() + 10 * took > until:  # a double n takes 8 times as long
            return best
        n *= 2


def _product(n: int, device: torch.device, dtype: torch.dtype) -> Callable[[], Any]:
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = torch.empty(n, n, device=device, dtype=dtype)
    return lambda: torch.mm(a, b, out=out)


def memory_rate(device: torch.device, megabytes: int = 256, seconds: float = 0.5) -> float:
    """Bytes/s that copying a large tensor moves in the device's memory: each byte is read once and written once."""
    source = torch.ones(megabytes * MIB // 4, device=device)
    target = torch.empty_like(source)
    target.copy_(source)  # the pages are there
    best, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        best = max(best, 2 * megabytes * MIB / _once(lambda: target.copy_(source), device))
    return best


def disk_rates(folder: Path, megabytes: int = 256, seconds: float = 2.0) -> dict[str, float]:
    """Bytes/s of writing a file of at most `megabytes` to the disk of `folder` (synced), and of reading it again after
    the system was asked to forget it. Each takes about `seconds` at most; the file is gone at the end.

    Raises OSError where it cannot be written.
    """
    block = os.urandom(4 * MIB)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".shardline-doctor.") as file:
        began, written = time.perf_counter(), 0
        while written < megabytes * MIB and time.perf_counter() - began < seconds:
            file.write(block)
            written += len(block)
            file.flush()
            os.fsync(file.fileno())
        write = written / (time.perf_counter() - began)
        forgotten = _forget(file.fileno())
        buffer = bytearray(4 * MIB)
        file.seek(0)
        began, read = time.perf_counter(), 0
        while time.perf_counter() - began < seconds and (count := os.readv(file.fileno(), [buffer])):
            read += count
        return {"write": write, "read": read / (time.perf_counter() - began), "forgotten": float(forgotten)}


def loopback_rate(megabytes: int = 512, seconds: float = 0.5) -> float:
    """Bytes/s through a TCP connection of this machine with itself."""
    block = bytes(MIB)

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        until = time.perf_counter() + seconds
        with connection, suppress(OSError):
            for _ in range(megabytes):
                connection.sendall(block)
                if time.perf_counter() > until:
                    break

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        with socket.create_connection(listener.getsockname()) as client:
            buffer, received, began = memoryview(bytearray(MIB)), 0, time.perf_counter()
            while count := client.recv_into(buffer):
                received += count
            rate = received / (time.perf_counter() - began)
        thread.join()
    return rate


def file_system(folder: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The type of the file system that holds `folder`: ext4, xfs, nfs4, …; empty where it cannot be told."""
    place = str(folder.resolve())
    best = ("", "")
    with suppress(OSError):
        for line in mounts.read_text().splitlines():
            _, mount, kind, *_ = line.split(" ")
            mount = mount.replace("\\040", " ")
            inside = place == mount or place.startswith(mount.rstrip("/") + "/")
            if inside and len(mount) >= len(best[0]):
                best = (mount, kind)
    return best[1]


def _timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the second call: the first one warms up."""
    _once(work, device)
    return _once(work, device)


def _once(work: Callable[[], Any], device: torch.device) -> float:
    _finish(device)
    began = time.perf_counter()
    work()
    _finish(device)
    return time.perf_counter() - began


def _finish(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def _forget(descriptor: int) -> bool:
    """Ask the system to drop a file's pages from memory; False where it can't."""
    if not hasattr(os, "posix_fadvise"):
        return False
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return True
