"""A state folder that may not be written: a message with its name and the way out, never a traceback."""

from pathlib import Path

import pytest
from conftest import Run

pytestmark = pytest.mark.xdist_group("writers")

#: A mount of its own, read-only also for root.
READ_ONLY = 'mount --bind .shardline .shardline && mount -o remount,bind,ro .shardline && exec "$@"'


@pytest.mark.parametrize("command", ["repro", "train", "profile --steps 2", "compare schedules"])
def test_a_read_only_state_folder_is_named(run: Run, copied: Path, command: str) -> None:
    isolated = ("unshare", "--mount", "sh", "-c", READ_ONLY, "sh")
    done = run(*isolated, "shardline", *command.split(), cwd=copied, code=1)
    assert f"{copied}/.shardline/" in done.stderr
    assert "not writable (Read-only file system)" in done.stderr
    assert "`.shardline` as a link to another folder" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_state_folder_may_be_a_link(run: Run, copied: Path, tmp_path: Path) -> None:
    (copied / ".shardline").rename(tmp_path / "elsewhere")
    (copied / ".shardline").symlink_to(tmp_path / "elsewhere")
    assert "up to date" in run("shardline", "repro", cwd=copied).stdout
    assert not (tmp_path / "elsewhere" / ".shardline").exists()
