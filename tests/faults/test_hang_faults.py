"""Ranks that hang while the disk is full: they are ended, although nothing can be written about it."""

import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY

#: On a file system of its own, in a mount namespace. First a rank that an agent watches, which lives on when it is
#: asked where it is; then this process, as a rank that watches itself.
SCRIPT = """
import subprocess, sys, time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

sys.modules["torch"] = None  # its flight recorder would take seconds
from pipelines.training.process import heartbeat
from pipelines.training.launchers.agent import end_hung
from pipelines.training.launchers.watchdog import watchdog
from pipelines.training.launchers.watchdog.thread import watched

agents, own = Path("disk/agents"), Path("disk/own")
agents.mkdir()
own.mkdir()
watchdog.ANSWER = 0.1
rank = subprocess.Popen(["bash", "-c", 'trap "" USR1 USR2; echo; exec sleep 60'], stdout=subprocess.PIPE)
rank.stdout.readline()
record = heartbeat._RECORD.pack(0, 1, rank.pid, 3, time.monotonic())
(agents / "heartbeat-0").write_bytes(record)
with watched(own, SimpleNamespace(rank=0, world=1), 0.3):
    sys.stderr = Path("disk/said").open("w")
    try:
        with Path("disk/filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError as error:
        print(error.strerror, flush=True)
    ended = set()
    with watchdog.Watchdog(agents, 0.2, partial(end_hung, agents, ended)):
        print(rank.wait(20), ended == {rank.pid}, sorted(path.name for path in agents.iterdir()), flush=True)
    heartbeat.beat(7)
    time.sleep(20)
"""


def test_hung_ranks_are_ended_on_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    shell = 'mount -t tmpfs -o size=64k tmpfs disk && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "bash", "-euc", shell, sys.executable, SCRIPT],
        cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"}, text=True, capture_output=True,
        timeout=60,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["No space left on device", "-9 True ['heartbeat-0']"], done.stderr
    assert done.returncode == 75, done.stderr
