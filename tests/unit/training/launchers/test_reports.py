"""What the end of a job of several ranks means to a person."""

import json
import signal
from pathlib import Path

import pytest

from pipelines.params import Params
from pipelines.training.launchers.agent import FAILURE, HUNG
from pipelines.training.launchers.reports import Report
from pipelines.training.launchers.torchrun import explain
from storage.errors import DataError, DigestError, Hung, Interrupted, OutOfMemory, ParamsError, ShardlineError

BASE = {n: {} for n in ("lake", "curate", "shard", "stream", "model", "evaluate", "package")}
PARAMS = Params.model_validate(
    BASE
    | {"recipe": "test", "seed": 1, "ingest": {"sources": ["x"]}, "train": {"steps": 1}}
    | {"promote": {"gate": {"metric": "loss"}}}
)


def meaning(folder: Path, code: int, signum: int | None = None) -> ShardlineError | None:
    return explain(folder, code, signum, PARAMS)


def report(folder: Path, rank: int, error: BaseException) -> None:
    try:
        raise error
    except BaseException as raised:
        Report.of(rank, raised).save(folder)


def failure(folder: Path, rank: int, code: int) -> None:
    (folder / FAILURE).write_text(json.dumps({"rank": rank, "exit_code": code, "process": 4711}))


def test_success_is_no_error(tmp_path: Path) -> None:
    assert meaning(tmp_path, 0) is None


@pytest.mark.parametrize("error", [DataError("bad"), ParamsError("worse"), DigestError("shard", "a", "b")])
def test_our_errors_come_back_as_they_were(tmp_path: Path, error: ShardlineError) -> None:
    report(tmp_path, 0, RuntimeError("Connection closed by peer"))
    report(tmp_path, 1, error)
    failure(tmp_path, 0, 1)
    found = meaning(tmp_path, 1)
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert found.exit_code == error.exit_code


def test_ranks_that_saved_and_left_are_an_interruption_even_if_torchrun_calls_it_a_failure(tmp_path: Path) -> None:
    for rank in (0, 1):
        report(tmp_path, rank, Interrupted("saved", signal.SIGTERM))
    failure(tmp_path, 0, 143)
    found = meaning(tmp_path, 1)
    assert isinstance(found, Interrupted)
    assert found.exit_code == 143


def test_a_signal_before_the_ranks_were_ready_is_an_interruption(tmp_path: Path) -> None:
    found = meaning(tmp_path, -15, signal.SIGINT)
    assert isinstance(found, Interrupted)
    assert found.exit_code == 130


def test_a_killed_rank_is_named_with_its_signal_and_last_lines(tmp_path: Path) -> None:
    failure(tmp_path, 1, -9)
    (tmp_path / "rank-1.log").write_text("\n".join(f"line {i}" for i in range(50)))
    report(tmp_path, 0, RuntimeError("Connection closed by peer"))
    text = str(meaning(tmp_path, 1))
    assert "Rank 1 was killed by SIGKILL" in text
    assert "out of memory" in text
    assert "raise train.accumulate (now 1)" in text
    assert "line 49" in text
    assert "line 20" not in text
    assert "Connection closed" not in text


def test_a_dead_agent_is_said(tmp_path: Path) -> None:
    assert "agent ended with exit code -9" in str(meaning(tmp_path, -9))


def test_hung_ranks_that_were_ended_are_a_hang_and_not_a_sigkill(tmp_path: Path) -> None:
    failure(tmp_path, 1, -9)
    (tmp_path / HUNG).write_text(json.dumps({"message": "Training hung in step 4", "processes": [4711, 4712]}))
    found = meaning(tmp_path, 1)
    assert isinstance(found, Hung)
    assert found.exit_code == 75
    assert str(found).startswith("Training hung in step 4")


def test_a_hang_that_the_job_got_over_does_not_explain_a_later_failure(tmp_path: Path) -> None:
    failure(tmp_path, 1, 3)
    (tmp_path / HUNG).write_text(json.dumps({"message": "Training hung in step 4", "processes": [815]}))
    assert "Rank 1 failed with exit code 3" in str(meaning(tmp_path, 1))


def test_a_rank_that_the_kernel_killed_for_its_memory_is_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure(tmp_path, 0, -9)
    monkeypatch.setattr("pipelines.training.launchers.torchrun.kernel_kills", lambda: 8)
    assert isinstance(explain(tmp_path, 1, None, PARAMS, kills=7), OutOfMemory)
    assert not isinstance(explain(tmp_path, 1, None, PARAMS, kills=8), OutOfMemory)


def test_machines_that_do_not_meet_are_told_what_to_check(tmp_path: Path) -> None:
    (tmp_path / FAILURE).write_text(json.dumps({"rendezvous": "RendezvousTimeoutError: "}))
    text = str(meaning(tmp_path, 1))
    for said in ("did not meet", "compute.rendezvous", "compute.nodes=1", "same parameters"):
        assert said in text


def test_a_hang_is_told_by_the_exit_code_where_nothing_could_be_written(tmp_path: Path) -> None:
    found = meaning(tmp_path, 75)
    assert isinstance(found, Hung)
    assert "could not be written" in str(found)
