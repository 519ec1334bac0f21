"""A job's folder: kept for a while, with the outcome in it."""

import io
import json
import os
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines.params import Params
from pipelines.training.launchers.logs import KEPT, OUTCOME, _Tee, job_folder
from pipelines.training.launchers.watchdog.stacks import read_place
from pipelines.training.launchers.watchdog.watchdog import living
from pipelines.training.process.heartbeat import _RECORD, RESTING, beat, heartbeat, rest, signs
from pipelines.training.process.out_of_memory import out_of_memory
from storage.errors import Hung, Interrupted, OutOfMemory


@pytest.mark.parametrize(
    ("error", "outcome", "code"),
    [
        (None, "done", 0),
        (Interrupted("saved", 15), "preempted", 143),
        (Hung("stuck"), "hung", 75),
        (OutOfMemory("much"), "out_of_memory", 12),
        (RuntimeError("oops"), "failed", 1),
    ],
)
def test_the_outcome_is_told_by_a_word_and_a_code(
    tmp_path: Path, error: Exception | None, outcome: str, code: int
) -> None:
    with suppress(type(error) if error else ()), job_folder(tmp_path) as folder:
        if error:
            raise error
    found = json.loads((folder / OUTCOME).read_text())
    assert (found["outcome"], found["exit_code"]) == (outcome, code)
    assert (tmp_path / "logs" / "latest").resolve() == folder.resolve()


def test_the_last_folders_of_this_machine_stay_and_those_of_others_and_of_running_jobs(tmp_path: Path) -> None:
    logs, host = tmp_path / "logs", socket.gethostname()
    running = logs / f"20200101-000000-{host}-{os.getpid()}"
    other = logs / "20200101-000000-other.host-1"
    alike = [logs / f"20200101-000000-{name}-999999999" for name in (f"{host}-1", f"a-{host}")]
    for folder in (running, other, *alike):
        folder.mkdir(parents=True)
    dead = logs / f"20200102-000000-{host}-999999999"
    dead.mkdir()
    for _ in range(KEPT + 3):
        with job_folder(tmp_path) as newest:
            pass
    left = [path for path in logs.iterdir() if path.name != "latest"]
    assert {running, other, newest, *alike} <= set(left)
    assert dead not in left
    assert len(left) == 2 + len(alike) + KEPT + 1  # the newest is made after the cut


def test_signs_of_life(tmp_path: Path) -> None:
    beat(3)  # nobody listens
    with heartbeat(tmp_path, rank=5, world=8, local_rank=1):
        assert [(sign.rank, sign.world, sign.pid, sign.step) for sign in signs(tmp_path)] == [
            (5, 8, os.getpid(), RESTING)
        ]
        beat(7)
        first = signs(tmp_path)[0]
        beat(7)
        again = signs(tmp_path)[0]
        assert first.step == again.step == 7
        assert again.at > first.at
        rest()
        assert signs(tmp_path)[0].step == RESTING
    assert signs(tmp_path)[0].step == RESTING


def test_a_process_that_has_a_dead_ranks_number_is_not_the_agents_to_kill(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        for local_rank, pid in enumerate((os.getppid(), child.pid)):
            (tmp_path / f"heartbeat-{local_rank}").write_bytes(_RECORD.pack(local_rank, 2, pid, 3, 0.0))
        assert [sign.rank for sign in living(tmp_path, None)] == [1]
        child.kill()
        child.wait()
        assert living(tmp_path, None) == []


DUMP = """
Thread 0x1 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 300 in wait

Current thread 0x2 (most recent call first):
  File "/venv/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", line 2800 in all_reduce
  File "/here/pipelines/training/process/process_group.py", line 45 in sum
  File "/here/pipelines/training/loop.py", line 66 in fit
  File "<frozen runpy>", line 88 in _run_code
  File "<frozen runpy>", line 198 in _run_module_as_main
"""


def test_a_dump_tells_where_a_rank_is_and_whether_it_waits() -> None:
    waiting = read_place(DUMP)
    assert waiting is not None
    assert (waiting.frame, waiting.waits) == ("sum (process_group.py:45)", True)
    busy = read_place(
        DUMP.replace("torch/distributed", "torch/nn").replace(
            "/here/pipelines/training/process/process_group.py", "/my/model.py"
        )
    )
    assert busy is not None
    assert (busy.frame, busy.waits) == ("sum (model.py:45)", False)
    assert read_place("Thread 0x1 (most recent call first):\n  File") is None


def test_what_is_out_of_memory_and_what_is_not() -> None:
    params = Params.model_construct(train=None)
    assert out_of_memory(RuntimeError("shapes do not match"), params) is None
    assert out_of_memory(ValueError("out of memory"), params) is None


def test_a_full_disk_takes_the_log_and_not_the_training() -> None:
    """Rank 0 says so, on its terminal."""
    terminal = io.StringIO()
    with suppress(OSError), Path("/dev/full").open("w", buffering=1) as log:
        tee = _Tee(terminal, log)
        for step in (3, 6):
            print(f"The checkpoint of step {step} was not written.", file=tee)
    assert terminal.getvalue().count("was not written") == 2
