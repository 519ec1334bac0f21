"""How many ranks run where, and where their machines meet: parameters, overridden by the environment.

The environment's names are torchrun's own, as Kubeflow's operator sets them: PET_NNODES (N or MIN:MAX),
PET_NPROC_PER_NODE, PET_RDZV_ENDPOINT, PET_RDZV_ID, PET_MAX_RESTARTS. So one params.yaml serves every cluster.
"""

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from pipelines.params import Params
from pipelines.params.environment import expand
from pipelines.runtime.loopback import interfaces
from storage.errors import ParamsError

PORT = 29400
#: What says that this process is a rank, and which.
GIVEN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def started_by_others(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment says which rank this is. Kubeflow's operator sets the names for machines too, beside
    PET_NNODES: there, LOCAL_RANK tells a rank from a machine on which torchrun is yet to start some."""
    rank = all(name in environment for name in GIVEN)
    return rank and ("LOCAL_RANK" in environment or "PET_NNODES" not in environment)


@dataclass(frozen=True)
class Meeting:
    """Where machines meet. `host` is None where torch may find out by itself who hosts it (loopback); `address` is this
    machine's on the way there."""

    endpoint: str
    host: bool | None
    address: str


@dataclass(frozen=True)
class Placement:
    """`per_node` ranks on each of `min_nodes` to `max_nodes` machines."""

    per_node: int
    min_nodes: int = 1
    max_nodes: int = 1
    restarts: int = 0
    meeting: Meeting | None = None

    @property
    def ranks(self) -> int:
        """At most so many."""
        return self.per_node * self.max_nodes


def place(params: Params, per_node: int, environment: Mapping[str, str] = os.environ) -> Placement:
    """The placement of a training with `per_node` ranks on this machine. Raises ParamsError for what can't be."""
    compute = params.compute
    per_node = _whole("PET_NPROC_PER_NODE", environment, per_node)
    low, high = _nodes(params, per_node, environment)
    restarts = _whole("PET_MAX_RESTARTS", environment, compute.restarts)
    if high == 1:
        return Placement(per_node, low, high, restarts)
    endpoint = environment.get("PET_RDZV_ENDPOINT") or expand("compute.rendezvous", compute.rendezvous, environment)
    if not endpoint:
        raise ParamsError(
            f"{high} machines need a place to meet: set compute.rendezvous (or PET_RDZV_ENDPOINT) to HOST:PORT, an "
            "address of one of them that the others reach."
        )
    return Placement(per_node, low, high, restarts, meet(endpoint))


def _nodes(params: Params, per_node: int, environment: Mapping[str, str]) -> tuple[int, int]:
    """The least and the most machines."""
    compute = params.compute
    if given := environment.get("PET_NNODES"):
        if not (found := re.fullmatch(r"(\d+)(?::(\d+))?", given)):
            raise ParamsError(f"PET_NNODES={given!r} in the environment: expected N or MIN:MAX.")
        return int(found[1]), int(found[2] or found[1])
    all_of_them = compute.nodes * per_node
    low, high = compute.min_ranks or all_of_them, compute.max_ranks or all_of_them
    least, most = ceil(low / per_node), high // per_node
    if not 1 <= least <= most:
        raise ParamsError(
            f"compute.min_ranks = {low} needs ⌈{low} / {per_node}⌉ = {least} machines of {per_node} ranks "
            f"(train.ranks), but compute.max_ranks = {high} allows ⌊{high} / {per_node}⌋ = {most}: "
            "change one of the three."
        )
    return least, most


def meet(endpoint: str) -> Meeting:
    """Resolve HOST[:PORT]. Raises ParamsError for a host that has no address."""
    host, port = split(endpoint)
    try:
        family, target = _resolve(host, port)
    except OSError as error:
        raise ParamsError(
            f"compute.rendezvous={endpoint!r}: {host} has no address ({error}). Write HOST:PORT, a name or an address "
            "that every machine of the job can reach."
        ) from error
    own = interfaces()
    with socket.socket(family, socket.SOCK_DGRAM) as probe:  # sends nothing; says which address leads there
        try:
            probe.connect((target, port))
            address = str(probe.getsockname()[0])
        except OSError as error:
            raise ParamsError(f"compute.rendezvous={endpoint!r}: no way to {target} ({error}).") from error
    loopback = ipaddress.ip_address(target).is_loopback
    joined = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Meeting(joined, None if loopback else target in own, address)


def split(endpoint: str) -> tuple[str, int]:
    """HOST, HOST:PORT, [IPV6]:PORT → (host, port). Raises ParamsError."""
    found = re.fullmatch(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[^:/\s]+))(?::(?P<port>\d{1,5}))?", endpoint.strip())
    if not found or int(found["port"] or PORT) > 65_535:
        raise ParamsError(f"compute.rendezvous={endpoint!r}: expected HOST:PORT, such as node0.example.org:{PORT}.")
    return found["six"] or found["name"], int(found["port"] or PORT)


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, str]:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return family, str(address[0])


def _whole(name: str, environment: Mapping[str, str], default: int) -> int:
    text = environment.get(name)
    if text is None:
        return default
    if not text.isdecimal():
        raise ParamsError(f"{name}={text!r} in the environment: expected a whole number.")
    return int(text)
