"""Facts of a machine, from the files that Linux keeps them in, and the problems that follow from them."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest

from pipelines.machine.hardware import cpu_quota, describe, machine_key, memory_limit
from pipelines.machine.problems import find_problems
from pipelines.machine.rates import file_system
from pipelines.runtime.cores import cores

GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_limits_of_a_container_version_2(tmp_path: Path) -> None:
    """The tightest of the groups around the process counts."""
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pods/one\n",
            "sys/fs/cgroup/pods/one/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pods/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/pods/one/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/pods/memory.max": "max\n",
        },
    )
    assert cpu_quota(root) == 1.5
    assert memory_limit(root) == 8 * GIB


def test_limits_of_a_container_version_1(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n7:memory:/docker/x\n",
            "sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": f"{2 * GIB}\n",
        },
    )
    assert cpu_quota(root) == 0.5
    assert memory_limit(root) == 2 * GIB


def test_no_limits(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    assert memory_limit(tmp_path) is None


def test_this_machine() -> None:
    facts = describe()
    assert facts["processor"]["usable"] == cores() <= (os.cpu_count() or 1)
    assert facts["processor"]["model"]
    assert 0 < facts["memory"]["available_gib"] <= facts["memory"]["total_gib"]
    assert facts["versions"]["torch"].startswith("2.")
    other = copy.deepcopy(facts)
    other["processor"]["load"] += 1
    assert machine_key(facts) == machine_key(other)
    other["processor"]["model"] = "another"
    assert machine_key(facts) != machine_key(other)


def test_the_file_system_of_a_folder(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nserver:/x {tmp_path}/with\\040space nfs4 rw 0 0\n")
    (tmp_path / "with space" / "cache").mkdir(parents=True)
    assert file_system(tmp_path / "with space" / "cache", mounts) == "nfs4"
    assert file_system(tmp_path, mounts) == "ext4"
    assert file_system(tmp_path, tmp_path / "missing") == ""


def sound() -> dict[str, Any]:
    """Facts of a machine without a problem."""
    return {
        "processor": {"usable": 8, "logical": 8, "quota": None, "load": 1.0},
        "memory": {"available_gib": 20.0, "total_gib": 32.0, "swapped_gib": 0.0},
        "accelerators": [{"kind": "cuda", "index": 0, "name": "GPU", "driver": "1", "celsius": 40}],
        "settings": {"threads": None, "ranks": 2},
        "disks": [
            {
                "what": "the cache", "path": "/c", "setting": "cache.node.folder", "cache": True, "free_gib": 90.0,
                "file_system": "xfs", "read": 1e9, "write": 5e8,
            }
        ],
        "rates": {"gloo": {"ranks": 2, "bytes_per_second": 1e9}},
        "reached": {"hot cache": {"url": "redis://h", "do": "start it", "seconds": 0.001}},
    }  # fmt: skip


def test_a_sound_machine_has_no_problems() -> None:
    assert find_problems(sound()) == []


@pytest.mark.parametrize(
    ("section", "values", "what", "do"),
    [
        ("processor", {"usable": 2}, "may use 2 of 8 cores", "affinity"),
        ("processor", {"quota": 2.0}, "2 cores' time but sees 8", "train.threads to 1"),
        ("processor", {"load": 20.0}, "load is 20", "too low"),
        ("settings", {"threads": 8}, "train.threads=8 × train.ranks=2", "train.threads to 4"),
        ("settings", {"OMP_NUM_THREADS": "1"}, "OMP_NUM_THREADS=1", "unset"),
        ("memory", {"available_gib": 0.5}, "0.5 GiB", "stream.batch_size"),
        ("memory", {"swapped_gib": 10.0}, "swapped", "end other programs"),
        ("disks", {"file_system": "nfs4"}, "network file system (nfs4)", "cache.node.folder"),
        ("disks", {"file_system": "tmpfs"}, "in memory", "cache.node.folder"),
        ("disks", {"free_gib": 1.0}, "1 GiB free", "cache.node.folder"),
        ("disks", {"error": "Permission denied"}, "cannot be written", "permissions"),
        ("disks", {"read": 5e6}, "reads 5 MB/s", "faster"),
        ("rates", {"gloo": {"ranks": 2, "error": "timeout"}}, "cannot add up", "GLOO_SOCKET_IFNAME"),
        ("rates", {"gloo": {"ranks": 2, "bytes_per_second": 1e7}}, "10 MB/s", "fewer ranks"),
        ("accelerators", {"celsius": 90}, "90 °C", "cooling"),
        ("reached", {"hot cache": {"url": "redis://h", "do": "start it", "error": "refused"}}, "refused", "start it"),
    ],
)
def test_each_problem_is_found_and_says_what_to_do(section: str, values: dict[str, Any], what: str, do: str) -> None:
    facts = sound()
    changed = facts[section][0] if isinstance(facts[section], list) else facts[section]
    changed |= values
    (problem,) = find_problems(facts)
    assert what in problem.what
    assert do in problem.do
