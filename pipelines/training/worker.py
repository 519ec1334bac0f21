"""What one rank does: put the training together, run the loop, write the outs."""

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from pipelines.console.progress import progress, say
from pipelines.models import save_model
from pipelines.params.schema.flat import flat
from pipelines.runtime import gc_tuning
from pipelines.training.loop import fit
from pipelines.training.process.heartbeat import rest
from pipelines.training.process.out_of_memory import memory_explained
from pipelines.training.process.process_group import Ranks
from pipelines.training.process.signals import StopRequest, stop_on_signals
from pipelines.training.reporting import Reporter
from pipelines.training.session import Session, open_session
from pipelines.training.state import Point
from pipelines.training.trainer.entrypoint import run_entrypoint
from pipelines.workspace import Workspace
from storage.atomic import write_atomically
from storage.errors import DataError

TRAIN_COLUMNS = ["step", "train_loss", "lr", "gradient_norm"]


def train_rank(ws: Workspace, ranks: Ranks, stop: StopRequest | None = None) -> None:
    """Train as `ranks` says; rank 0 writes the outs. Raises ShardlineError; Interrupted once the state is saved.
    `stop`: set from elsewhere where this is not the main thread, which alone gets signals."""
    stop = StopRequest() if stop is None else stop
    if ws.params.train.entrypoint is not None:
        gc_tuning.work()
        with memory_explained(ws.params):
            run_entrypoint(ws, ranks, stop)
        return
    with (
        memory_explained(ws.params),
        stop_on_signals(stop),
        open_session(ws, ranks) as session,
        reporting(ws, session) as report,
    ):
        gc_tuning.work()
        fit(session, report, stop)
        rest()
        final = session.final_weights()
        if ranks.leads:
            write_outs(ws, session, final, report)
        ranks.wait()


@contextmanager
def reporting(ws: Workspace, s: Session) -> Iterator[Reporter]:
    """Rank 0's MLflow run (the one of the checkpoint goes on) and progress bar; silence on the other ranks."""
    unit = "tokens" if s.goal.task.name == "language" else "samples"
    if not s.group.ranks.leads:
        yield Reporter(None, lambda *_, **__: None, unit, s.goal.steps)
        return
    from pipelines.tracking import open_run
    from pipelines.tracking.machine import attend

    with (
        open_run(ws, run_id=s.state.run_id, kind="training") as run,
        progress("train", s.goal.steps, "steps") as advance,
    ):
        s.state.run_id = run.id or s.state.run_id
        run.log_params(flat(ws.params.model_dump(exclude={"compute"})))
        run.set_tags({
            "task": s.goal.task.name, "device": str(s.group.device), "ranks": str(s.group.ranks.world),
            "precision": str(s.learner.precision.dtype).removeprefix("torch."),
            "parameters": str(s.learner.parameters),
        })  # fmt: skip
        run.log_dataset(s.data.manifest, s.data.zone, "train")
        run_cost = attend(ws, run, s.group.device, s.group.ranks.world)
        if s.state.step:
            say(f"going on from step {s.state.step} of {s.goal.steps}")
        advance(s.state.step)
        report = Reporter(run, advance, unit, s.goal.steps, reported=s.state.validated, run_cost=run_cost)
        report.planned = partial(planned, s)
        yield report


def planned(s: Session, step: int) -> dict[str, float]:
    """Of the batch at `step`, counted from 0: the share of each domain of a mixture, and the size where it grows."""
    shares = s.data.stream.mixed.shares(step) if s.data.stream.mixed is not None else {}
    size = {} if s.params.stream.batch_ramp is None else {"batch_size": float(s.data.stream.batch_size(step))}
    return {f"mixture/{name}": share for name, share in shares.items()} | size


def write_outs(ws: Workspace, s: Session, weights: dict[str, Tensor], report: Reporter) -> None:
    """data/model, metrics/train.json and the curves; then the checkpoints are not needed any more."""
    assert report.run is not None
    final = final_metrics(s)
    save_model(ws.model, weights, s.goal.config)
    write_atomically(ws.model / "run.json", _json(report.run.reference()))
    write_atomically(ws.metrics("train"), _json(final))
    write_atomically(ws.plots("train.csv"), _csv(TRAIN_COLUMNS, s.state.train_curve))
    none = ["step", *(f"val_{name}" for name in s.goal.task.summary(0.0, 0.0))]
    val_columns = list(s.state.val_curve[-1]) if s.state.val_curve else none
    write_atomically(ws.plots("val.csv"), _csv(val_columns, s.state.val_curve))
    report.run.set_tags({f"final.{k}": f"{v:.6g}" for k, v in final.items() if isinstance(v, int | float)})
    spent = report.spent(s.state.step)
    for name in ("train.csv", "val.csv"):
        report.run.log_artifact(ws.plots(name), "plots")
    s.checkpoints.saver.clear()
    say(_summary(ws, final, spent + _of_documents(s), report.run.url))


def final_metrics(s: Session) -> dict[str, Any]:
    """What metrics/train.json holds: no timings, so that equal trainings give equal bytes."""
    state = s.state
    if state.skipped == state.step:
        raise DataError(
            f"Not one of the {state.step} steps had a finite loss and gradient, so nothing was learnt: lower train.lr "
            f"(now {s.params.train.lr:g}), or look at the samples by `shardline replay --step 1`."
        )
    metrics: dict[str, Any] = {
        "steps": state.step,
        "epochs": round(state.samples / s.data.stream.rows, 6),
        "parameters": s.learner.parameters,
        "train_loss": state.train_loss,
    }
    if s.data.stream.mixed is not None:
        metrics |= {f"epochs/{name}": round(times, 6) for name, times in s.data.stream.mixed.passes(state.step).items()}
    if state.skipped or state.backoffs:  # of train.nonfinite
        metrics |= {"skipped_steps": state.skipped, "backoffs": state.backoffs}
    kept = state.best_step if s.checkpoints.best else state.validated
    metrics |= next((point for point in state.val_curve if point["step"] == kept), {}) | {"step": kept or state.step}
    return metrics | {"stopped_early": state.step < s.goal.steps, "manifest": s.data.manifest.digest}


def _summary(ws: Workspace, metrics: dict[str, Any], spent: str, url: str | None) -> str:
    values = [f"{name} {metrics[name]:.4f}" for name in ("train_loss", "val_loss", "val_accuracy") if name in metrics]
    early = ", stopped early" if metrics["stopped_early"] else ""
    best = f", weights of step {metrics['step']}" if metrics["step"] != metrics["steps"] else ""
    return (
        f"train: {ws.params.model.name}, {metrics['parameters']:,} parameters, {metrics['steps']} steps, "
        f"{metrics['epochs']:.2f} epochs{early}{best}: {', '.join(values)}\n"
        f"  data version {metrics['manifest'][:12]}, model in {ws.model}{spent}"
    ) + (f"\n  run: {url}" if url else "")


def _of_documents(s: Session) -> str:
    """What was padding, and what was cut off, since this process began; for whole documents as samples."""
    shares = s.data.stream.meter.snapshot().of_documents()
    return f"; {shares['cut']:.1%} of the tokens cut off, {shares['padding']:.1%} padding" if shares else ""


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _csv(columns: list[str], points: list[Point]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(points)
    return text.getvalue().encode()
