"""Runs a user's own trainer as one rank: finds it, hands it the job, publishes what it leaves."""

import inspect
import json
import runpy
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.caching.tiers import open_cache
from pipelines.console.progress import say
from pipelines.models import save_model
from pipelines.models.importing import import_named, importable, refuse_data
from pipelines.params import suggestion
from pipelines.params.schema.flat import flat
from pipelines.runtime.own_code import code_behind, digests
from pipelines.training.checkpoints import checkpoint_key
from pipelines.training.curves import Curves
from pipelines.training.data.loader import Loader
from pipelines.training.parallelism import Group, Layout
from pipelines.training.parts import Goal
from pipelines.training.process.device import pick_device, repeatable
from pipelines.training.process.process_group import Ranks, joined
from pipelines.training.process.signals import StopRequest, stop_on_signals
from pipelines.training.session import aim, open_stream, samples_in
from pipelines.training.trainer.job import Loaders, Result, TrainerJob, set_current
from pipelines.workspace import Workspace
from storage.atomic import write_atomically
from storage.errors import DataError, ParamsError, ShardlineError

FOLDER = "entrypoint"  # in the workspace's state: a folder for each training


def run_entrypoint(ws: Workspace, ranks: Ranks, stop: StopRequest) -> None:
    """Run `train.entrypoint`; rank 0 publishes its model. Raises ShardlineError; Interrupted when it left after a
    signal; whatever the trainer raises. `stop` as in `train_rank`."""
    with stop_on_signals(stop), opened(ws, ranks, stop) as job, importable(Path.cwd()):
        set_current(job)
        try:
            _call(ws, job)
        finally:
            set_current(None)
        if interrupted(job):
            raise job.interrupted()
        if ranks.leads:
            publish(ws, job)
        if ranks.connected:
            ranks.wait()


def interrupted(job: TrainerJob) -> bool:
    """Whether the trainer left without a model because some rank was asked to stop: the same answer on every rank, or
    one would leave while another publishes. Rank 0 alone has a model."""
    saved, stopped = job.result.saved is not None, bool(job.stop) or job.result.stopped
    if job.ranks.connected:
        return not job.ranks.share(saved) and job.group.sum(stopped)[0] > 0
    return not saved and (stopped if job.leads else job.result.stopped)


def _call(ws: Workspace, job: TrainerJob) -> None:
    name = str(ws.params.train.entrypoint)
    if not name.endswith(".py"):
        function = find_function(name, job)
        function(job, **job.args)
        return
    script = find_script(ws.root, name)
    before = sys.argv
    sys.argv = [str(script)]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as error:
        if error.code not in (None, 0):
            raise ShardlineError(f"train.entrypoint={name!r} left with sys.exit({error.code!r}).") from error
    finally:
        sys.argv = before


def find_function(name: str, job: TrainerJob) -> Any:
    """The function that `name`, package.module:function, names. Raises ParamsError: not importable, or not to be called
    as function(job, **train.args)."""
    function = import_named(name, "train.entrypoint")
    if not callable(function):
        raise ParamsError(f"train.entrypoint={name!r}: {function!r} is no function.")
    signature = inspect.signature(function)
    try:
        signature.bind(job, **job.args)
    except TypeError as error:
        known = [p.name for p in list(signature.parameters.values())[1:]]
        unknown = next((arg for arg in job.args if arg not in known), None)
        hint = (
            f" train.args.{unknown}: it takes no such argument{suggestion(unknown, known)}" if unknown and known else ""
        )
        raise ParamsError(
            f"train.entrypoint={name!r} is called with job{''.join(f', {a}=…' for a in job.args)}, but takes "
            f"{signature}: {error}.{hint}"
        ) from error
    return function


def find_script(root: Path, name: str) -> Path:
    """A script by its path from the recipe's folder. Raises ParamsError."""
    script = root / name
    if not script.is_file():
        there = sorted(str(file.relative_to(root)) for file in root.glob("*.py"))
        hint = suggestion(name, there) if there else ". The recipe's folder holds no script."
        raise ParamsError(f"train.entrypoint={name!r}: {script} does not exist{hint}")
    refuse_data(script, f"train.entrypoint={name!r}", (root,))
    return script


@contextmanager
def opened(ws: Workspace, ranks: Ranks, stop: StopRequest) -> Iterator[TrainerJob]:
    """The job with all that belongs to it: connected ranks, streams, and rank 0's MLflow run."""
    params, zone = ws.params, ws.zone("shards")
    manifest = zone.manifest()
    task, config = aim(params, manifest)
    config = replace(config, code=code_behind(params.model.name, ws))
    if not samples_in(manifest, "train", config.sequence_len):
        raise DataError(f"The shards (version {manifest.digest[:12]}) hold no training sample: see curate.split.train.")
    device = pick_device(params.train.device, ranks.local_rank, ranks.local_world)
    home = ws.state / FOLDER / checkpoint_key(manifest.digest, params, digests(ws, "train"))[:16]
    checkpoints = home / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    layout = Layout.of(params, ranks.world, ranks.rank)
    with ExitStack() as stack:
        stack.enter_context(repeatable(params.train, device))
        stack.enter_context(joined(ranks, device))
        hosts = ranks.host_group(device) if task.counts_vary else None
        group = Group(ranks=ranks, layout=layout, device=device, hosts=hosts)
        tiers = stack.enter_context(open_cache(ws, zone))

        def loader(split: str) -> Loader:
            stream = open_stream(params, tiers, manifest, layout, split, device, train=split == "train")
            return Loader(stack.enter_context(stream), task, group)

        train = loader("train")
        val = loader("val") if samples_in(manifest, "val", config.sequence_len) else None
        steps = params.train.steps or train.stream.steps_until(float(params.train.epochs or 0))
        run = stack.enter_context(_run(ws, ranks, home))
        run.set_tags({"task": task.name, "device": str(device), "ranks": str(ranks.world)})
        run.log_dataset(manifest, zone, "train")
        yield TrainerJob(
            params,
            Goal(task=task, config=config, steps=steps),
            group,
            Loaders(train=train, val=val),
            run,
            checkpoints,
            stop,
            Result(curves=Curves(home / "curves.jsonl")),
        )


def _run(ws: Workspace, ranks: Ranks, home: Path) -> Any:
    """Rank 0's MLflow run, the one of the interrupted training where there is one; a silent one elsewhere."""
    from pipelines.tracking import Run, open_run

    if not ranks.leads:
        return Run(ws.params.recipe, ws.tracking_uri)
    file = home / "run.json"
    run = open_run(ws, run_id=json.loads(file.read_text())["run_id"] if file.is_file() else None, kind="training")
    write_atomically(file, json.dumps({"run_id": run.id}).encode())
    run.log_params(flat(ws.params.model_dump(exclude={"compute"})))
    return run


def publish(ws: Workspace, job: TrainerJob) -> None:
    """data/model, metrics/train.json and the curves; then what the trainer kept is not needed any more.

    Raises ShardlineError when it left no model.
    """
    name = ws.params.train.entrypoint
    if job.result.saved is None:
        raise ShardlineError(
            f"train.entrypoint={name!r} returned without a model: call job.save_model(model) before it ends. What it "
            f"keeps in {job.checkpoint_folder} is still there."
        )
    count = sum(parameter.numel() for parameter in job.goal.config.build().parameters())
    metrics = {"steps": job.steps, "parameters": count} | job.result.curves.last() | job.result.metrics
    metrics |= {"manifest": job.goal.config.manifest}
    text = _json(metrics)  # before anything is published
    save_model(ws.model, job.result.saved, job.goal.config)
    write_atomically(ws.model / "run.json", _json(job.run.reference()))
    write_atomically(ws.metrics("train"), text)
    for curve in ("train", "val"):
        write_atomically(ws.plots(f"{curve}.csv"), job.result.curves.csv(val=curve == "val"))
        job.run.log_artifact(ws.plots(f"{curve}.csv"), "plots")
    job.run.set_tags({f"final.{k}": f"{v:.6g}" for k, v in metrics.items() if isinstance(v, int | float)})
    shutil.rmtree(job.checkpoint_folder.parent, ignore_errors=True)
    figures = ", ".join(f"{k} {v:.4f}" for k, v in metrics.items() if k.endswith(("loss", "accuracy")))
    where = f"\n  run: {job.run.url}" if job.run.url else ""
    say(f"train: {ws.params.model.name} by {name}, {count:,} parameters: {figures}\n  model in {ws.model}{where}")


def _json(value: Any) -> bytes:
    try:
        return (json.dumps(value, indent=2) + "\n").encode()
    except TypeError as error:
        raise ShardlineError(
            f"job.report: not a JSON value: {error}. Give numbers, texts, lists or dictionaries."
        ) from error
