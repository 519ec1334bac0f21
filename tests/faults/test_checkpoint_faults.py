"""A training whose checkpoints lie on a full disk: a real file system in a mount namespace of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from support import training_samples
from support.training_samples import SIGNALLING, make_points

#: `SIGNALLING`, which frees the disk in its 14th step where it is told to.
FREEING = SIGNALLING.replace(
    "        return self.layers(x)",
    '        if self.training and self.calls == 14 and "FREE" in os.environ:\n'
    '            os.unlink(os.environ["FREE"])\n'
    "        return self.layers(x)",
)
FULL = """
mount -t tmpfs -o size=1m tmpfs disk
dd if=/dev/zero of=disk/filler bs=1k count=$(( $(df --output=avail -k disk | tail -1) )) status=none
SIGNAL=SIGTERM SIGNAL_AT=5 "$@" && exit 9
echo "exit code $?" >&2
FREE=disk/filler "$@"
find disk -name manifest.json -o -name "*.tmp"
"""


@pytest.mark.long
def test_training_goes_on_without_checkpoints_until_there_is_room(tmp_path: Path) -> None:
    """Waited for after SIGTERM, a save that fails is an error; in the background it is told, and the next succeeds."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "freeing.py").write_text(FREEING)
    rules = {"url": "disk", "keep_every": 15}
    ws = make_points(tmp_path, model={"name": "freeing:Model"}, train={"steps": 18, "checkpoints": rules})
    env = os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}"}
    command = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-euc", FULL, "bash"]
    training = [sys.executable, training_samples.__file__, str(tmp_path)]
    done = subprocess.run([*command, *training], cwd=tmp_path, env=env, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    stopped, _ = done.stderr.split("exit code 1\n")
    assert "The checkpoint of step 5 was not written (there is none yet)" in stopped
    assert "no space left on the device" in stopped
    assert "Traceback" not in done.stderr
    for step in (3, 6, 9):  # that of step 12 may find room
        assert f"The checkpoint of step {step} was not written" in done.stdout
    assert "Training goes on, and the next checkpoint tries again." in done.stdout
    [kept] = [line for line in done.stdout.splitlines() if line.startswith("disk/")]
    assert kept.endswith("/step-00000015/manifest.json")
    assert (ws.model / "model.safetensors").is_file()
