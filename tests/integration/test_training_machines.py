"""Two machines (network namespaces) that train together, one of which is lost and comes back."""

import json
from pathlib import Path

import pytest
from support.gated_training import DEADLINE, allow, below, command, gone, make_gated, newest, started, starts, until
from support.machines import two_machines
from support.training_samples import losses, without_mlflow

from pipelines.training import train

ELASTIC = {
    "nodes": 2, "rendezvous": "${FIRST}:29411", "min_ranks": 1, "max_ranks": 2, "heartbeat_s": 1, "last_call_s": 1,
    "rendezvous_timeout_s": 120,
}  # fmt: skip


@pytest.mark.long
def test_ranks_go_down_and_up_in_one_job_and_the_loss_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipelines.tracking

    monkeypatch.setattr(pipelines.tracking, "open_run", pipelines.tracking.open_run)
    without_mlflow()
    settings = {"steps": 80, "eval_every": 40, "checkpoint_every": 5, "log_every": 10}
    alone = make_gated(tmp_path / "alone", 10**6, train=settings)
    monkeypatch.chdir(alone.root)
    undisturbed = train(alone)
    ws = make_gated(tmp_path / "together", 15, train=settings, compute=ELASTIC)

    with two_machines() as (first, second):
        here, there = (machine.on(*command(ws)) for machine in (first, second))
        with started(*here, FIRST=first.address) as stays:
            with started(*there, FIRST=first.address) as leaves:
                until(lambda: newest(ws) == 15, stays, leaves)  # and both wait at the gate, in step 16
                children = below(leaves)
                for machine in (first, second):
                    assert machine.listening() == {machine.address}, "only where the other machine can reach it"
                assert starts(ws, rank=1) == 1
                leaves.kill()
                assert gone(children), "a killed launcher left processes behind"
            allow(ws, 30)  # the rank that is left meets nobody in its all-reduce
            until(lambda: newest(ws) == 45, stays)  # started again by itself from step 15, alone
            with started(*there, FIRST=first.address) as joins:
                until(lambda: starts(ws, rank=1) == 2, stays, joins)  # the first one saved, and made place for it
                allow(ws, 10**6)
                out, _ = stays.communicate(timeout=DEADLINE)
                assert stays.returncode == 0, out
                said, _ = joins.communicate(timeout=DEADLINE)
                assert joins.returncode == 0, said
    assert "going on from step 15 of 80" in out + said
    assert "going on from step 46 of 80" in out + said
    assert losses(ws) == pytest.approx(losses(alone), rel=1e-5)
    metrics = json.loads(ws.metrics("train").read_text())
    assert metrics["val_loss"] == pytest.approx(undisturbed["val_loss"], abs=1e-4)
