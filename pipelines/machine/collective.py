"""An all-reduce between processes of this machine: whether it works, and how fast.

python -m pipelines.machine.collective RANK WORLD STORE BACKEND      is one of those processes
"""

import json
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipelines.runtime.listeners import use_interface
from pipelines.runtime.loopback import LOOPBACK

MIB = 1 << 20
SIZES = (1 << 10, 16 * MIB)  # bytes: of a message that only its latency costs, and of a bucket of gradients
PATIENCE = 30.0  # seconds


def all_reduce(backend: str, world: int) -> dict[str, Any]:
    """`latency_us` of a small all-reduce and `bytes_per_second` of a large one between `world` ranks of this machine;
    `error` in a line instead where it doesn't work. The ranks are processes that end with this call."""
    with tempfile.TemporaryDirectory(prefix="shardline-doctor-") as folder:
        command = [sys.executable, "-m", "pipelines.machine.collective"]
        ranks = [
            subprocess.Popen(
                [*command, str(rank), str(world), f"{folder}/store", backend],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(world)
        ]
        try:
            until = time.monotonic() + PATIENCE
            answers = [rank.communicate(timeout=max(0.1, until - time.monotonic())) for rank in ranks]
        except subprocess.TimeoutExpired:
            return {"ranks": world, "error": f"no end after {PATIENCE:.0f} s"}
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    for rank, (_, err) in zip(ranks, answers, strict=True):
        if rank.returncode:
            return {"ranks": world, "error": (err.strip().splitlines() or [f"exit code {rank.returncode}"])[-1]}
    return {"ranks": world, **json.loads(answers[0][0].splitlines()[-1])}


def main(rank: int, world: int, store: str, backend: str) -> None:
    """Be one rank: reduce, check the sum, and as rank 0 print the figures."""
    import torch
    import torch.distributed as dist

    use_interface(LOOPBACK)
    store_of: Any = dist  # which doesn't list FileStore among its names
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend,
        store=store_of.FileStore(store, world),
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=PATIENCE),
    )
    seconds = [_reduce(torch.ones(size // 4, device=device), world) for size in SIZES]
    if rank == 0:
        print(json.dumps({"latency_us": seconds[0] * 1e6, "bytes_per_second": SIZES[1] / seconds[1]}))
    dist.destroy_process_group()


def _reduce(values: Any, world: int, rounds: int = 10) -> float:
    """The least seconds of an all-reduce of `values`, ones. Raises RuntimeError for a wrong sum."""
    import torch
    import torch.distributed as dist

    best = float("inf")
    for _ in range(rounds):
        values.fill_(1.0)
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(values)
        if values.device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    if not bool((values == world).all()):
        raise RuntimeError(f"an all-reduce of ones over {world} ranks gave {values[0].item()}")
    return best


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), str(Path(sys.argv[3])), sys.argv[4])
