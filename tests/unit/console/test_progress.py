"""Bars are for people at a terminal, and for nobody else."""

import os
import pty
import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY
from support.training_samples import make_points

from pipelines.console.formats import human_bytes

STEPS = """
from pipelines.console.progress import stepping
with stepping("package", 2) as begin:
    begin("save the model")
    begin("model card")
"""


def on_terminal(*command: str, cwd: Path, env: dict[str, str] | None = None) -> tuple[str, str]:
    """What a command that succeeds writes on stdout, a pipe, and on stderr, a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=theirs, text=True) as run:
        os.close(theirs)
        seen = b""
        while part := _read(ours):
            seen += part
        out = run.communicate()[0]
    os.close(ours)
    assert run.returncode == 0, seen.decode()
    return out, seen.decode()


def test_a_terminal_sees_each_step_by_name() -> None:
    _, text = on_terminal(sys.executable, "-c", STEPS, cwd=REPOSITORY)
    assert "package" in text
    assert "model card" in text
    assert "1/2" in text


def test_a_terminal_sees_the_cache_fill(tmp_path: Path, environment: dict[str, str]) -> None:
    """To its end, with the bytes that are there by then; the sentence that remains is for stdout."""
    shards = make_points(tmp_path, cache={"node": {"enabled": True}}).zone("shards").manifest().select("train")
    assert len(shards) == 3
    env = environment | {"TERM": "xterm", "COLUMNS": "120"}
    out, text = on_terminal("shardline", "cache", "warm", "--tier", "node", cwd=tmp_path, env=env)
    last = text[text.rindex("warm") :]  # as it was drawn at last
    assert "3/3" in last
    assert "shards" in last
    assert human_bytes(sum(shards["bytes"].to_pylist())) in last
    assert out.startswith("3 shards, ")
    assert "warm" not in out


def test_a_pipe_sees_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], cwd=REPOSITORY, capture_output=True, check=True)
    assert done.stdout + done.stderr == b""


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # the other side has closed it
        return b""
