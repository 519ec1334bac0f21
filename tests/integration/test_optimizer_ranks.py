"""Optimisers and steps that are not finite, on two real ranks."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support import optimizer_ranks

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.long
def test_two_ranks_decide_alike_and_go_where_one_goes(tmp_path: Path) -> None:
    ports = []  # of the groups, one after the other
    for _ in range(3):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(str(free.getsockname()[1]))
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    common = {"PYTHONPATH": paths, "MASTER_ADDR": "127.0.0.1", "PORTS": " ".join(ports), "WORLD_SIZE": "2"}
    command = [sys.executable, optimizer_ranks.__file__, str(tmp_path)]
    processes = []
    for rank in range(2):
        env = os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(
            subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    try:
        said = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)

    metrics = json.loads((tmp_path / "0" / "metrics" / "train.json").read_text())
    assert (metrics["steps"], metrics["skipped_steps"]) == (6, 2)
    assert said[0].count("Skipped (") == 2
    assert "Skipped (" not in said[1]
    stopped = [re.search(r"Step 2: loss nan.*samples (.*?) and 8 more", text) for text in said]
    assert stopped[0] is not None
    assert stopped[1] is not None
    assert stopped[0][1] == stopped[1][1], "both name the samples of the global batch"
