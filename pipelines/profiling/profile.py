"""`shardline profile`: a capture of the real training, its bottleneck with figures, a picture and a trace in MLflow."""

import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from pipelines.console.progress import progress, say
from pipelines.profiling.bottleneck import PARTS, Bottleneck, Figures, judge
from pipelines.profiling.capture import FOUND, TRACE, Capture, Found, watch
from pipelines.profiling.picture import draw
from pipelines.profiling.trace import Traced, read_trace
from pipelines.runtime.cores import cores
from pipelines.runtime.parent_death import AGENT_PID
from pipelines.workspace import Workspace
from storage.errors import ParamsError, ShardlineError

FOLDER = "profile"  # of the workspace's state, and of the run's artifacts
TOP = 12  # operators that are shown


def profile(ws: Workspace, *, steps: int | None = None, warm_up: int = 10, seconds: float = 5.0) -> Bottleneck:
    """Profile the training of `ws` and say what bounds it; everything goes into `.shardline/profile` and an MLflow run
    tagged kind=profile. No out, checkpoint or DVC state is touched. Raises ShardlineError."""
    manifest = ws.zone("shards").manifest()  # a clear error before anything is started
    if ws.params.train.entrypoint is not None:
        raise ParamsError(
            f"train.entrypoint={ws.params.train.entrypoint!r}: profile watches Shardline's own loop, and a trainer of "
            "one's own has none of it. Use torch.profiler inside it, or set train.entrypoint to null."
        )
    _quiet_kineto()
    with tempfile.TemporaryDirectory(prefix="shardline-profile-") as folder:
        capture = Capture(ws.root, ws.project, ws.params, Path(folder), warm_up, steps, seconds)
        with progress("profile", None):
            _run(capture)
        found = Found.model_validate_json((Path(folder) / FOUND).read_text())
        traced = read_trace(Path(folder) / TRACE)
        bottleneck = judge(figures(ws, found, traced))
        kept = _keep(ws, Path(folder), bottleneck, found, traced)
    say("\n".join([f"profile: {ws.params.recipe}, {_about(found)}", *bottleneck.lines()]))
    url = _record(ws, kept, bottleneck, found, manifest)
    say(f"  picture and trace: {kept}" + (f"\n  run: {url}" if url else ""))
    return bottleneck


def figures(ws: Workspace, found: Found, traced: Traced) -> Figures:
    """The clock's window and the trace, joined. How long a step is and waits is the clock's, without the time in which
    other programs had the cores; how long it computes is the trace's, whose operators take about as long as without a
    profiler. Overhead is what remains."""
    times = zip(found.steps.seconds, found.steps.waits, found.steps.stolen, strict=True)
    own = [max(waited, seconds - stolen) for seconds, waited, stolen in times]
    step = median(own)
    shares = {"data": sum(found.steps.waits) / sum(found.steps.seconds)}
    slower = max(1.0, step / median(traced.seconds))  # a profiler makes no step faster: the machine was slower before
    for part in ("network", "memory", "compute"):
        shares[part] = slower * median(one[part] for one in traced.parts) / step
    rest, room = sum(shares[part] for part in ("network", "memory", "compute")), 1 - shares["data"]
    if rest > room:
        shares |= {part: shares[part] * room / rest for part in ("network", "memory", "compute")}
    shares["overhead"] = max(0.0, 1 - sum(shares.values()))
    zone, train = ws.zone("shards"), ws.params.train
    node = ws.params.cache.node.enabled
    return Figures(
        step_seconds=step,
        shares={part: shares[part] for part in PARTS},
        stream=found.stream,
        stolen=sum(found.steps.stolen) / sum(found.steps.seconds),
        optimizer=traced.optimizer,
        flops=found.flops,
        precision=found.setup.precision,
        peaks=found.peaks,
        device=found.setup.device,
        threads=found.setup.threads,
        cores=cores(),
        ranks=train.ranks,
        batch=ws.params.stream.batch_size,
        compression=train.communication.compression,
        compiled=train.parallel.compile,
        remote=zone.root is None,
        node_cache=node if node is not None else zone.root is None,
    )


def _run(capture: Capture) -> None:
    """One rank in this process, several in processes of their own."""
    ranks = capture.params.train.ranks
    if ranks == 1:
        watch(capture)
        return
    capture.save()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = os.environ | {
        "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), AGENT_PID: str(os.getpid()),
    }  # fmt: skip
    command = [sys.executable, "-m", "pipelines.profiling.capture", str(capture.folder)]
    with ExitStack() as stack:
        processes = []
        for rank in range(ranks):
            log = stack.enter_context((capture.folder / f"rank-{rank}.log").open("w"))
            environment = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = psutil.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            processes.append(process)
            stack.callback(_end, process)
        alive: list[Any] = processes
        while alive and not any(process.returncode for process in processes):  # one that fails leaves others hanging
            _, alive = psutil.wait_procs(alive, timeout=0.5)
        codes = {rank: process.returncode for rank, process in enumerate(processes) if process.returncode}
    for rank, code in codes.items():
        last = "\n  ".join((capture.folder / f"rank-{rank}.log").read_text(errors="replace").splitlines()[-12:])
        raise ShardlineError(f"profile: rank {rank} of {ranks} ended with exit code {code}:\n  {last}")


def _end(process: psutil.Popen) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()
    process.wait()


def _keep(ws: Workspace, folder: Path, bottleneck: Bottleneck, found: Found, traced: Traced) -> Path:
    """The bottleneck, the picture and the trace, in `.shardline/profile` instead of the last ones."""

    kept = ws.state / FOLDER
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    (kept / "profile.json").write_text(json.dumps(_facts(bottleneck, found, traced), indent=2) + "\n")
    (kept / "bottleneck.txt").write_text("\n".join(bottleneck.lines()) + "\n")
    with (folder / TRACE).open("rb") as plain, gzip.open(kept / f"{TRACE}.gz", "wb") as packed:
        shutil.copyfileobj(plain, packed)
    draw(kept / "profile.png", f"{ws.params.recipe}: {_about(found)}", bottleneck, found, traced)
    return kept


def _facts(bottleneck: Bottleneck, found: Found, traced: Traced) -> dict[str, Any]:
    operators = [
        {"name": one.name, "part": one.part, "ms_a_step": one.seconds * 1000, "calls_a_step": one.calls}
        for one in traced.operators[: 4 * TOP]
    ]
    return bottleneck.to_json() | {
        "steps": len(found.steps.seconds), "parameters": found.setup.parameters,
        "first_batch_seconds": found.first_batch, "memory_bytes": found.resident,
        "tensor_bytes_peak": max((bytes for _, bytes in traced.memory), default=0.0),
        "step_ms": [1000 * seconds for seconds in found.steps.seconds], "operators": operators,
    }  # fmt: skip


def _record(ws: Workspace, kept: Path, bottleneck: Bottleneck, found: Found, manifest: Any) -> str | None:
    """A run of its own, which is no model's. Returns how to open it."""
    from pipelines.tracking import open_run

    figures = bottleneck.figures
    with open_run(ws, name="profile", kind="profile") as run:
        run.set_tags({"bound": bottleneck.bound, "device": found.setup.device, "precision": found.setup.precision})
        run.log_dataset(manifest, ws.zone("shards"), "train")
        values = {f"profile/{part}_share": share for part, share in figures.shares.items()}
        run.set_tags({"profile.flops": f"{figures.flops:.6g}"})
        values["profile/step_seconds"] = figures.step_seconds
        if figures.utilisation is not None:
            values["profile/model_flops_utilisation"] = figures.utilisation
        run.log_metrics(values)
        run.log_artifact(kept, FOLDER)
        return run.url


def _about(found: Found) -> str:
    setup = found.setup
    threads = f", {setup.threads} threads" if setup.device == "cpu" else ""
    return f"{setup.parameters:,} parameters, {setup.device}{threads}, {len(found.steps.seconds)} steps by the clock"


def _quiet_kineto() -> None:
    """The profiler's library tells of its start and end on stderr, unless this is set before torch is loaded."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
