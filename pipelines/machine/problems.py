"""Problems of a machine, in plain words with what to do, from its facts alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

NETWORK_FILE_SYSTEMS = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "lustre",
    "gpfs",
    "ceph",
    "fuse.sshfs",
    "fuse.s3fs",
    "9p",
    "beegfs",
)
MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")
_LITTLE_DISK, _LITTLE_MEMORY = 5.0, 1.0  # GiB
_SLOW_DISK, _SLOW_REDUCE = 100e6, 100e6  # bytes/s


@dataclass(frozen=True)
class Problem:
    """`what` is wrong, and what to `do`."""

    what: str
    do: str

    def __str__(self) -> str:
        return f"{self.what}: {self.do}"


def find_problems(facts: Mapping[str, Any]) -> list[Problem]:
    """What `doctor` found in its facts; a section that is missing is passed over."""
    return [
        *_processor(facts["processor"], facts.get("settings", {})),
        *_memory(facts["memory"]),
        *_accelerators(facts["accelerators"]),
        *(problem for disk in facts.get("disks", []) for problem in _disk(disk)),
        *_collectives(facts.get("rates", {})),
        *_reached(facts.get("reached", {})),
    ]


def _processor(facts: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Problem]:
    usable, quota, ranks = facts["usable"], facts["quota"], settings.get("ranks", 1)
    able = min(usable, quota or usable)
    if facts["logical"] and usable < facts["logical"]:
        yield Problem(
            f"this process may use {usable} of {facts['logical']} cores",
            "that is its CPU affinity (taskset, Slurm, a pod's cpuset); ask for more cores where the job is started",
        )
    if quota is not None and quota < usable:
        yield Problem(
            f"the container may use {quota:g} cores' time but sees {usable} cores",
            f"set train.threads to {max(1, int(quota // ranks))}, or raise the container's CPU limit: threads beyond "
            "it are stopped in the middle of a step",
        )
    threads = settings.get("threads")
    if threads is not None and threads * ranks > able:
        yield Problem(
            f"train.threads={threads} × train.ranks={ranks} are more threads than the {able:g} cores",
            f"lower train.threads to {max(1, int(able // ranks))}",
        )
    environment = settings.get("OMP_NUM_THREADS")
    if environment and int(environment) < able // ranks and threads is None:
        yield Problem(
            f"OMP_NUM_THREADS={environment} lies below the {able:g} cores",
            "that is for the libraries; training sets its own number (train.threads), so leave it unset",
        )
    if facts["load"] > 1.5 * facts["logical"]:
        yield Problem(
            f"the load is {facts['load']:g} on {facts['logical']} cores",
            "other programs compute here: what is measured now is too low",
        )


def _memory(facts: Mapping[str, Any]) -> Iterator[Problem]:
    if facts["available_gib"] < _LITTLE_MEMORY:
        yield Problem(
            f"{facts['available_gib']:g} GiB of memory are free",
            "end other programs, or lower compute.memory_mb and stream.batch_size",
        )
    if facts["swapped_gib"] > 0.1 * facts["total_gib"]:
        yield Problem(
            f"{facts['swapped_gib']:g} GiB are swapped out",
            "the machine is short of memory, and steps will stutter: end other programs",
        )


def _accelerators(devices: list[Mapping[str, Any]]) -> Iterator[Problem]:
    for device in devices:
        name = f"{device['kind']}:{device.get('index', 0)} ({device['name']})"
        if device.get("celsius", 0) >= 85:
            yield Problem(f"{name} has {device['celsius']} °C", "it will slow down: look after its cooling")
        if device["kind"] == "cuda" and "driver" not in device:
            yield Problem(f"{name}: NVIDIA's management library doesn't answer", "energy of runs stays unknown")


def _disk(facts: Mapping[str, Any]) -> Iterator[Problem]:
    what = f"{facts['what']} ({facts['path']})"
    if error := facts.get("error"):
        yield Problem(f"{what} cannot be written: {error}", f"mend its permissions, or change {facts['setting']}")
    if facts["free_gib"] < _LITTLE_DISK:
        yield Problem(f"{what} has {facts['free_gib']:g} GiB free", f"free some, or change {facts['setting']}")
    if facts["cache"] and facts["file_system"] in NETWORK_FILE_SYSTEMS:
        yield Problem(
            f"{what} lies on a network file system ({facts['file_system']})",
            "a cache saves nothing there: set cache.node.folder to a disk of this machine",
        )
    if facts["cache"] and facts["file_system"] in MEMORY_FILE_SYSTEMS:
        yield Problem(
            f"{what} lies in memory ({facts['file_system']})",
            "cached shards take memory from the training: set cache.node.folder to a disk",
        )
    for way in ("read", "write"):
        if way in facts and facts[way] < _SLOW_DISK:
            yield Problem(
                f"{what}: {way}s {facts[way] / 1e6:.0f} MB/s", "a slow or busy disk: place it on a faster one"
            )


def _collectives(rates: Mapping[str, Any]) -> Iterator[Problem]:
    for backend in ("gloo", "nccl"):
        found = rates.get(backend)
        if found and "error" in found:
            yield Problem(
                f"{backend}: {found['ranks']} ranks of this machine cannot add up numbers ({found['error']})",
                "training with train.ranks > 1 won't work; look at the loopback interface, its firewall, and what "
                "GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME name instead of it",
            )
        elif found and found["bytes_per_second"] < _SLOW_REDUCE:
            yield Problem(
                f"{backend}: an all-reduce moves {found['bytes_per_second'] / 1e6:.0f} MB/s on this machine",
                "several ranks will wait for each other's gradients: prefer fewer ranks with more threads",
            )


def _reached(places: Mapping[str, Mapping[str, Any]]) -> Iterator[Problem]:
    for name, place in places.items():
        if place.get("error"):
            yield Problem(f"{name} ({place['url']}) cannot be reached: {place['error']}", place["do"])
