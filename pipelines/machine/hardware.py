"""What this machine is: processor, memory, limits of its container, accelerators, versions. Nothing is measured here.

All facts are JSON values, since they end in a file of each run (doctor.json).
"""

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from pipelines.runtime.cores import cores
from storage.digest import digest_json

GIB = 1 << 30
LIBRARIES = ("shardline", "torch", "numpy", "pyarrow", "mlflow", "obstore", "redis")
_ACCELERATORS = ("cuda", "xpu", "mps")


def describe(*, root: Path = Path("/")) -> dict[str, Any]:
    """The machine as this process may use it: a few milliseconds beside importing torch. `root` is for tests."""
    return {
        "processor": processor(root),
        "memory": memory(root),
        "accelerators": accelerators(),
        "system": {
            "host": platform.node(),
            "os": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
            "virtual": "hypervisor" in _flags(root),
        },
        "versions": versions(),
    }


def machine_key(facts: dict[str, Any]) -> str:
    """The same for machines on which measured rates hold: same host, processor, cores, accelerators and torch."""
    identity = {
        "host": facts["system"]["host"],
        "processor": {name: facts["processor"][name] for name in ("model", "usable", "quota")},
        "accelerators": [one["name"] for one in facts["accelerators"]],
        "torch": facts["versions"].get("torch"),
    }
    return digest_json(identity)[:16]


def processor(root: Path = Path("/")) -> dict[str, Any]:
    """Model; cores that are there (`logical`), that this process is bound to (`usable`), and the container's share of
    their time in cores (`quota`, None without a limit)."""
    model = _line(root / "proc/cpuinfo", "model name") or platform.processor() or platform.machine()
    flags = _flags(root)
    return {
        "model": model,
        "physical": psutil.cpu_count(logical=False),
        "logical": psutil.cpu_count(),
        "usable": cores(),
        "quota": cpu_quota(root),
        "features": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
        "load": round(os.getloadavg()[0], 2),
    }


def memory(root: Path = Path("/")) -> dict[str, Any]:
    """GiB: in the machine, free for use now, the container's limit (None without one), swapped out, in /dev/shm."""
    now, swap = psutil.virtual_memory(), psutil.swap_memory()
    limit = memory_limit(root)
    return {
        "total_gib": _gib(now.total),
        "available_gib": _gib(now.available),
        "limit_gib": None if limit is None or limit >= now.total else _gib(limit),
        "swapped_gib": _gib(swap.used),
    }


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The smallest limit of CPU time of this process's cgroups, in cores."""
    found = []
    for folder in _cgroups(root, "cpu"):
        if text := _read(folder / "cpu.max"):  # version 2: "200000 100000" or "max 100000"
            limit, _, period = text.partition(" ")
            if limit != "max":
                found.append(float(limit) / float(period or 100_000))
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")  # version 1
        if quota and period and int(quota) > 0:
            found.append(int(quota) / int(period))
    return min(found, default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """The smallest limit of memory of this process's cgroups, in bytes."""
    texts = [
        _read(folder / name) for folder in _cgroups(root, "memory") for name in ("memory.max", "memory.limit_in_bytes")
    ]
    return min((int(text) for text in texts if text and text.isdigit()), default=None)


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup and of those around it, of both versions."""
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        base = mount / controller if names else mount
        folder = base / path.lstrip("/")
        while True:
            yield folder
            if folder in (base, base.parent):
                break
            folder = folder.parent


def accelerators() -> list[dict[str, Any]]:
    """Every device that torch can compute on besides the CPU."""
    import torch

    found: list[dict[str, Any]] = []
    for kind in _ACCELERATORS:
        if kind == "mps":
            if torch.backends.mps.is_available():
                found.append({"kind": "mps", "name": platform.processor() or "Apple GPU", "memory_gib": None})
            continue
        module = getattr(torch, kind)
        for index in range(module.device_count() if module.is_available() else 0):
            about = module.get_device_properties(index)
            one = {"kind": kind, "index": index, "name": about.name, "memory_gib": _gib(about.total_memory)}
            if kind == "cuda":
                one |= {"capability": f"{about.major}.{about.minor}", "cuda": torch.version.cuda, **_nvml(index)}
            found.append(one)
    return found


def _nvml(index: int) -> dict[str, Any]:
    """What NVIDIA's library says of a device: driver, watts now and at most, degrees. Empty where it is not there."""
    with suppress(Exception):  # without driver it raises errors of its own
        import pynvml  # type: ignore[import-untyped]

        pynvml.nvmlInit()
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            return {
                "driver": _text(pynvml.nvmlSystemGetDriverVersion()),
                "watts": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
                "watts_limit": pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
                "celsius": pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
            }
        finally:
            pynvml.nvmlShutdown()
    return {}


def versions() -> dict[str, str]:
    """Of the libraries that speed depends on."""
    found = {}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _flags(root: Path) -> list[str]:
    return _line(root / "proc/cpuinfo", "flags").split()


def _line(file: Path, name: str) -> str:
    """The value of the first line `name : value`."""
    return next((line.split(":", 1)[1].strip() for line in _read(file).splitlines() if line.startswith(name)), "")


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _gib(nbytes: int) -> float:
    return round(nbytes / GIB, 2)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
