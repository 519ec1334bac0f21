"""How the agents of a job meet: on one machine in memory, on several at the store of the machine that hosts it.

torch keeps the state of a meeting pickled in its store, so whoever reaches the store can run code in the agents
(docs/launching.md, "Who can reach what").
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.params.environment import expand
from pipelines.runtime.listeners import store_on
from pipelines.runtime.loopback import LOOPBACK
from pipelines.training.launchers.job import Job
from pipelines.training.launchers.placement import Meeting, Placement, split

IN_MEMORY = "memory"


@contextmanager
def hosted(meeting: Meeting | None) -> Iterator[None]:
    """Inside, this process can meet by the `arguments`; the store for several machines, which torch would open to all
    networks, listens on the address of the host alone."""
    if meeting is None:
        from torch.distributed.elastic.rendezvous import rendezvous_handler_registry

        rendezvous_handler_registry.register(IN_MEMORY, _in_memory)
        yield
    elif meeting.host is False:
        yield
    else:  # of two on this machine, the second finds the port in use, and joins the first
        with store_on(meeting.address, split(meeting.endpoint)[1]):
            yield


def _in_memory(parameters: Any) -> Any:
    """A meeting of this agent with itself: it has no listener, no file, and nothing that others could write."""
    import torch.distributed
    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

    class InMemory(C10dRendezvousBackend):
        name = IN_MEMORY  # as torch calls it, or it refuses the handler

    distributed: Any = torch.distributed  # which doesn't list its stores
    store = distributed.HashStore()
    return create_handler(store, InMemory(store, parameters.run_id), parameters)


def arguments(folder: str, job: Job, placement: Placement) -> list[str]:
    """torchrun's command line, but for what a rank runs."""
    common = ["--nproc-per-node", str(placement.per_node), "--max-restarts", str(placement.restarts)]
    common += ["--log-dir", f"{folder}/agent"]
    meeting, compute = placement.meeting, job.workspace.params.compute
    if meeting is None:
        return [
            *common, "--nnodes", "1", "--rdzv-backend", IN_MEMORY, "--rdzv-id", job.id, "--local-addr", LOOPBACK,
        ]  # fmt: skip
    id = os.environ.get("PET_RDZV_ID") or expand("compute.rendezvous_id", compute.rendezvous_id) or job.id
    settings = {
        "join_timeout": compute.rendezvous_timeout_s,
        "read_timeout": compute.rendezvous_timeout_s,
        "last_call_timeout": compute.last_call_s,
        "keep_alive_interval": compute.heartbeat_s,
        "keep_alive_max_attempt": 3,
    }
    if meeting.host is not None:
        settings["is_host"] = int(meeting.host)
    return [
        *common, "--nnodes", f"{placement.min_nodes}:{placement.max_nodes}", "--rdzv-backend", "c10d",
        "--rdzv-endpoint", meeting.endpoint, "--rdzv-id", id, "--local-addr", meeting.address,
        "--rdzv-conf", ",".join(f"{name}={value}" for name, value in settings.items()),
    ]  # fmt: skip
