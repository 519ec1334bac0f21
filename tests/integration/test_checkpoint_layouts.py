"""A checkpoint saved in any parallel layout is loaded in any other: weights, optimiser state, logits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from support import checkpoint_ranks


@pytest.mark.long
def test_every_layout_loads_what_any_layout_saved(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}"}
    command = [sys.executable, checkpoint_ranks.__file__, str(tmp_path)]
    done = subprocess.run(command, env=env, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    for there in checkpoint_ranks.LAYOUTS:
        found = json.loads((tmp_path / f"found-{there}.json").read_text())
        for here in checkpoint_ranks.LAYOUTS:
            assert found[here]["values"] == {"layout": here}, (here, there)
            assert found[here]["differ"] == [], (here, there)
            assert found[here]["logits_off"] < 1e-5, (here, there)
    manifest = json.loads((tmp_path / "fsdp 2" / "step-00000002" / "manifest.json").read_text())
    assert manifest["ranks"] == 2
    sizes = [size for size, _ in manifest["files"].values()]
    assert len(sizes) == 2, "each rank writes its part"
    assert max(sizes) < 1.3 * min(sizes)
