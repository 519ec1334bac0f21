"""Bars are for people at a terminal, and for nobody else."""

import os
import pty
import subprocess
import sys

from conftest import REPOSITORY

STEPS = """
from pipelines.progress import stepping
with stepping("package", 2) as begin:
    begin("save the model")
    begin("model card")
"""


def test_a_terminal_sees_each_step_by_name() -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", STEPS], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=theirs) as run:
        os.close(theirs)
        seen = b""
        while part := _read(ours):
            seen += part
    os.close(ours)
    assert run.returncode == 0
    text = seen.decode()
    assert "package" in text
    assert "model card" in text
    assert "1/2" in text


def test_a_pipe_sees_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], cwd=REPOSITORY, capture_output=True, check=True)
    assert done.stdout + done.stderr == b""


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # the other side has closed it
        return b""
