"""Two machines on this one: Linux network namespaces, joined by a pair of virtual cables. Needs root and iproute2."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """A network of its own. `on` makes a command run there."""

    name: str
    address: str

    def on(self, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *command]

    def listening(self) -> set[str]:
        """The addresses at which its processes wait for connections."""
        told = subprocess.run(self.on("ss", "-ltnH"), check=True, text=True, capture_output=True).stdout
        return {line.split()[3].rpartition(":")[0] for line in told.splitlines()}


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """They reach each other, and nothing else."""
    pid = os.getpid()
    machines = Machine(f"shardline{pid}a", "10.77.0.1"), Machine(f"shardline{pid}b", "10.77.0.2")
    first, second = machines
    ends = f"sl{pid % 10**6}a", f"sl{pid % 10**6}b"
    try:
        for machine in machines:
            _ip("netns", "add", machine.name)
        _ip("link", "add", ends[0], "netns", first.name, "type", "veth", "peer", "name", ends[1], "netns", second.name)
        for machine, end in zip(machines, ends, strict=True):
            _ip("-n", machine.name, "address", "add", f"{machine.address}/24", "dev", end)
            _ip("-n", machine.name, "link", "set", end, "up")
            _ip("-n", machine.name, "link", "set", "lo", "up")
        yield machines
    finally:
        for machine in machines:
            subprocess.run(["ip", "netns", "delete", machine.name], check=False, capture_output=True)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], text=True, capture_output=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr} (root and Debian's iproute2 are needed)"
