"""What a training of several ranks on one machine opens to others: nothing."""

import socket
import sys
import time
from pathlib import Path

import pytest
from support import training_samples
from support.gated_training import DEADLINE, allow, below, command, listening, make_gated, newest, started, until
from support.training_samples import make_points

from pipelines.runtime.listeners import store_on

SETTINGS = {"steps": 6, "eval_every": 6, "checkpoint_every": 2, "log_every": 2, "ranks": 2}


@pytest.mark.long
def test_torchrun_and_its_ranks_listen_on_the_loopback_address_only(tmp_path: Path) -> None:
    ws = make_gated(tmp_path, 4, train=SETTINGS)
    with started(*command(ws)) as job:
        until(lambda: newest(ws) == 4, job)  # all connections are made, and both ranks wait at the gate
        agent, *ranks = below(job)
        assert "launchers.agent" in " ".join(agent.cmdline())
        assert listening([agent]) == set(), "whoever writes to torch's meeting runs code in the agent"
        assert len(ranks) == 2
        assert listening(ranks) == {"127.0.0.1"}
        allow(ws, 10**6)
        said, _ = job.communicate(timeout=DEADLINE)
        assert job.returncode == 0, said


@pytest.mark.long
def test_ranks_of_plain_torchrun_on_one_machine_listen_on_the_loopback_address_only(tmp_path: Path) -> None:
    """Also where they are told the host's name, and rank 0 opens the store."""
    ws = make_gated(tmp_path, 4, train=SETTINGS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    torchrun += ["--local-addr", socket.gethostname()]
    alone = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with started(*torchrun, training_samples.__file__, str(ws.root), **alone) as job:
        until(lambda: newest(ws) == 4, job)
        assert listening(below(job)) == {"127.0.0.1"}
        allow(ws, 10**6)
        said, _ = job.communicate(timeout=DEADLINE)
        assert job.returncode == 0, said


def test_without_a_loopback_interface_several_ranks_say_so_at_once(tmp_path: Path) -> None:
    ws = make_points(tmp_path, train=SETTINGS)
    began = time.monotonic()
    with started(
        "unshare", "--user", "--map-root-user", "--net", sys.executable, training_samples.__file__, str(ws.root)
    ) as job:
        said, _ = job.communicate(timeout=DEADLINE)
    assert job.returncode == 1
    assert "This machine does not reach itself at 127.0.0.1" in said
    assert "ip link set lo up" in said
    assert "Traceback" not in said
    assert time.monotonic() - began < 60, "torch would try for two minutes"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_store_listens_on_its_host_alone_and_torchs_own_joins_it(host: str) -> None:
    import torch.distributed as dist

    port = free_port()
    with store_on(host, port):
        same = dist.TCPStore(host, port, is_master=True, multi_tenant=True)  # as torch's rank 0 does
        same.set("key", "value")
        assert dist.TCPStore("127.0.0.1", port).get("key") == b"value"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=5)
        del same
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-name", ""])
def test_a_host_that_is_not_this_machine_is_left_to_torch(host: str) -> None:
    port = free_port()
    with store_on(host, port), pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
