"""What the end of a job of several ranks means to a person."""

import json
import signal
from pathlib import Path

import pytest

from pipelines.training.launchers.agent import FAILURE
from pipelines.training.launchers.reports import Report
from pipelines.training.launchers.torchrun import explain
from storage.errors import DataError, DigestError, Interrupted, ParamsError, ShardlineError


def report(folder: Path, rank: int, error: BaseException) -> None:
    try:
        raise error
    except BaseException as raised:
        Report.of(rank, raised).save(folder)


def failure(folder: Path, rank: int, code: int) -> None:
    (folder / FAILURE).write_text(json.dumps({"rank": rank, "exit_code": code}))


def test_success_is_no_error(tmp_path: Path) -> None:
    assert explain(tmp_path, 0, 2, None) is None


@pytest.mark.parametrize("error", [DataError("bad"), ParamsError("worse"), DigestError("shard", "a", "b")])
def test_our_errors_come_back_as_they_were(tmp_path: Path, error: ShardlineError) -> None:
    report(tmp_path, 0, RuntimeError("Connection closed by peer"))
    report(tmp_path, 1, error)
    failure(tmp_path, 0, 1)
    found = explain(tmp_path, 1, 2, None)
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert found.exit_code == error.exit_code


def test_ranks_that_saved_and_left_are_an_interruption_even_if_torchrun_calls_it_a_failure(tmp_path: Path) -> None:
    for rank in (0, 1):
        report(tmp_path, rank, Interrupted("saved", signal.SIGTERM))
    failure(tmp_path, 0, 143)
    found = explain(tmp_path, 1, 2, None)
    assert isinstance(found, Interrupted)
    assert found.exit_code == 143


def test_a_signal_before_the_ranks_were_ready_is_an_interruption(tmp_path: Path) -> None:
    found = explain(tmp_path, -15, 2, signal.SIGINT)
    assert isinstance(found, Interrupted)
    assert found.exit_code == 130


def test_a_killed_rank_is_named_with_its_signal_and_last_lines(tmp_path: Path) -> None:
    failure(tmp_path, 1, -9)
    (tmp_path / "logs/run/attempt_0/1").mkdir(parents=True)
    (tmp_path / "logs/run/attempt_0/1/stderr.log").write_text("\n".join(f"line {i}" for i in range(50)))
    report(tmp_path, 0, RuntimeError("Connection closed by peer"))
    text = str(explain(tmp_path, 1, 2, None))
    assert "Rank 1 of 2 was killed by SIGKILL" in text
    assert "out of memory" in text
    assert "line 49" in text
    assert "line 20" not in text
    assert "Connection closed" not in text


def test_a_dead_agent_is_said(tmp_path: Path) -> None:
    assert "agent ended with exit code -9" in str(explain(tmp_path, -9, 2, None))
