"""Ranks as the workers of Ray Train's TorchTrainer, on a Ray cluster or on one of this machine.

Ray places the ranks and tells them where to meet; they connect by themselves, since Ray's own way listens on all
addresses of the machine. A rank does what it does under torchrun, and reports through the same files (`folder` has to
be the same on all machines of the cluster: a shared disk).
"""

import os
import threading
from pathlib import Path
from typing import Any

from pipelines.params import Compute
from pipelines.params.environment import expand
from pipelines.runtime.ray_cluster import ray_cluster
from pipelines.training.launchers.job import Job
from pipelines.training.launchers.logs import Follower, collect_output, last_lines
from pipelines.training.launchers.reports import Report, read_reports
from pipelines.training.launchers.watchdog.thread import watched
from pipelines.training.process.signals import StopRequest, stop_on_signals
from storage.errors import Interrupted, ParamsError, ShardlineError

POLL = 0.2  # seconds between looks at the signals of this process


class RayTrain:
    def launch(self, job: Job, folder: Path) -> None:
        compute = job.workspace.params.compute
        if compute.elastic:
            raise ParamsError("compute.launcher=ray with compute.min_ranks or max_ranks: elastic jobs run by torchrun.")
        job.save(folder)
        workers = job.ranks * compute.nodes
        stop = StopRequest()
        with (
            ray_cluster(expand("compute.ray", compute.ray), workers, "compute.launcher") as ray,
            stop_on_signals(stop),  # inside, since Ray has a SIGTERM handler of its own, which leaves at once
        ):
            failed = _fit(ray, job, workers, folder, stop)
        if error := _explain(folder, workers, failed):
            raise error


def _fit(ray: Any, job: Job, workers: int, folder: Path, stop: StopRequest) -> Exception | None:
    """Run the trainer to its end, in a thread, so that signals are noticed; returns what it raised."""
    wish = ray.remote(num_cpus=0, max_concurrency=workers + 2)(_Wish).remote()
    trainer = _trainer(job, workers, folder, wish)
    outcome: list[Exception] = []

    def run() -> None:
        try:
            trainer.fit()
        except Exception as error:  # a TrainingFailedError with those of the ranks; the reports say it better
            outcome.append(error)

    thread = threading.Thread(target=run, name="ray-train", daemon=True)
    thread.start()
    told, show = False, Follower(folder, rank=0)
    while thread.is_alive():
        thread.join(POLL)
        show()
        if stop and not told:
            wish.ask.remote(stop.signum)
            told = True
    show()
    return outcome[0] if outcome else None


def _trainer(job: Job, workers: int, folder: Path, wish: Any) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from pipelines.training.launchers.ray.backend import Unconnected

    params = job.workspace.params
    return TorchTrainer(
        _rank,
        train_loop_config={"folder": str(folder), "wish": wish},
        torch_config=Unconnected(),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=_on_gpu(params.train.device)),
        run_config=RunConfig(
            name="training", storage_path=str(folder / "ray"), failure_config=_failures(FailureConfig, params.compute)
        ),
    )


def _failures(config: Any, compute: Compute) -> Any:
    return config(max_failures=compute.restarts)


def _on_gpu(device: str) -> bool:
    if device != "auto":
        return device.startswith("cuda")
    import torch

    return torch.cuda.is_available()


class _Wish:
    """An actor that ranks on any machine ask whether the job is to stop."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._signum = 0

    def ask(self, signum: int) -> None:
        self._signum = signum
        self._asked.set()

    def wait(self) -> int:
        """The signal, once there is one."""
        self._asked.wait()
        return self._signum


def _rank(config: dict[str, Any]) -> None:
    """What each worker does, in a thread that Ray made. A rank that saved and left is no failure to Ray, or it would be
    started again; the launcher reads its report."""
    folder = Path(config["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    from pipelines.training.process.process_group import Ranks
    from pipelines.training.worker import train_rank

    ranks, ws = Ranks.from_environment(), Job.load(folder).workspace
    os.chdir(ws.root)
    stop = StopRequest()
    threading.Thread(target=_listen, args=(config["wish"], stop), name="wish", daemon=True).start()
    collect_output(folder, ranks.rank)
    try:
        with watched(folder, ranks, ws.params.compute.hang_timeout_s):
            train_rank(ws, ranks, stop)
    except Interrupted as error:
        Report.of(ranks.rank, error).save(folder)
    except BaseException as error:
        Report.of(ranks.rank, error).save(folder)
        raise


def _listen(wish: Any, stop: StopRequest) -> None:
    import ray

    try:
        stop.note(ray.get(wish.wait.remote()), None)
    except ray.exceptions.RayError:  # the job has ended
        return


def _explain(folder: Path, workers: int, failed: Exception | None) -> ShardlineError | None:
    reports = read_reports(folder)
    ours = [report for report in reports if report.ours]
    if ours and (failed or all(report.kind == Interrupted.__name__ for report in ours)):
        return min(ours, key=lambda report: report.kind == Interrupted.__name__).error()
    if failed is None:
        return None
    text = f"Ray Train: a rank of {workers} failed. The same command goes on from the last checkpoint."
    if reports:
        first = reports[0]
        text = f"Rank {first.rank} of {workers} failed (Ray Train). The same command goes on from the last checkpoint."
        lines = first.lines
    else:
        lines = str(failed).splitlines()[-20:] + last_lines(folder, 0)
    return ShardlineError(text + "\nIts last lines:\n  " + "\n  ".join(lines) + f"\nLogs: {folder}")
