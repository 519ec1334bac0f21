"""Energy that the machine's processors used, by counters that are there: RAPL (Intel and AMD on Linux), NVML (NVIDIA).

Both count the whole package or device, whoever used it, and neither counts memory outside it, disks, fans or losses of
the power supply: a wall meter shows more.
"""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

POWERCAP = Path("/sys/class/powercap")


class Counter(Protocol):
    """Counts joules from when it was made."""

    name: str

    def joules(self) -> float: ...


class Rapl:
    """The packages' counters of microjoules, which start again at 0 from time to time: within minutes at full power, so
    `joules` must be called more often than that (the training's reports do). They are root's on most systems."""

    name = "rapl"

    def __init__(self, root: Path = POWERCAP) -> None:
        """Raises OSError when there are none, or none that may be read."""
        self._files = sorted(root.glob("*rapl:[0-9]*/energy_uj"))
        self._files = [file for file in self._files if file.parent.name.count(":") == 1]  # packages, not their parts
        if not self._files:
            raise FileNotFoundError(f"{root}: no counters of energy")
        self._ranges = [int((file.parent / "max_energy_range_uj").read_text()) for file in self._files]
        self._last = [int(file.read_text()) for file in self._files]
        self._total = 0

    def joules(self) -> float:
        for index, file in enumerate(self._files):
            now = int(file.read_text())
            self._total += (now - self._last[index]) % (self._ranges[index] + 1)
            self._last[index] = now
        return self._total / 1e6


class Nvml:
    """NVIDIA devices `indices`: their counters of millijoules, or where a device has none (before Volta) its watts at
    each call, times the seconds since the last. Raises what NVML raises where it is missing."""

    name = "nvml"

    def __init__(self, indices: list[int]) -> None:
        import pynvml  # type: ignore[import-untyped]

        self._nvml: Any = pynvml
        pynvml.nvmlInit()
        self._handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in indices]
        self._counted = True
        self._joules, self._at = 0.0, time.monotonic()
        try:
            self._first = self._counters()
        except pynvml.NVMLError:
            self._counted = False

    def joules(self) -> float:
        if self._counted:
            return (self._counters() - self._first) / 1000
        now = time.monotonic()
        watts = sum(self._nvml.nvmlDeviceGetPowerUsage(handle) for handle in self._handles) / 1000
        self._joules, self._at = self._joules + watts * (now - self._at), now
        return self._joules

    def _counters(self) -> float:
        return float(sum(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in self._handles))


def nvml_indices(first: int, count: int, environment: Mapping[str, str] = os.environ) -> list[int]:
    """NVML's numbers of the CUDA devices from `first` on: it doesn't heed CUDA_VISIBLE_DEVICES, which may leave some
    out. None of them where that names devices in another way, or this rank's alone: the energy of others is worse than
    none, and so is that of a part."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    names = list(map(str, range(first + count))) if visible is None else visible.split(",")
    chosen = [name.strip() for name in names[first : first + count]]
    return [int(name) for name in chosen] if len(chosen) == count and all(name.isdecimal() for name in chosen) else []


def counters(cuda_devices: list[int]) -> list[Counter]:
    """Those that this machine has, for the packages and for the NVIDIA devices in use."""
    found: list[Counter] = []
    with suppress(OSError, ValueError):
        found.append(Rapl())
    if cuda_devices:
        with suppress(Exception):  # NVML has errors of its own, and may be missing
            found.append(Nvml(cuda_devices))
    return found
