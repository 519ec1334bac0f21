"""Files with any damage end no process, raise our errors only, and are never taken for what they aren't.

A bounded search: thousands of files with damage that is drawn, always the same, loaded in processes of their own.
"""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.long

LOADER = str(REPOSITORY / "tests" / "support" / "mutated_files.py")
SEED = int(os.environ.get("MUTATIONS_SEED", "0"))
COUNT = int(os.environ.get("MUTATIONS", "4000"))
#: What nobody knows the digest of may be read with other values, if no more.
UNSEALED = ("old_manifest", "samples", "tokens", "safetensors")


def load_all(kind: str, folder: Path) -> tuple[Counter[str], list[str]]:
    """How COUNT loads ended (s: as they should, o: other content, f: another's error, signal), and what went wrong."""
    counts, wrong, first = Counter[str](), list[str](), 0
    while first < COUNT:
        command = [sys.executable, LOADER, kind, str(folder), str(SEED), str(first), str(COUNT)]
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
        lines = [line.split(" ", 2) for line in done.stdout.splitlines()]
        assert lines, done.stderr
        counts.update(line[1] for line in lines if line[1])
        unknown = kind in UNSEALED
        wrong += [" ".join(line) for line in lines if line[1] == "f" or (line[1] == "o" and not unknown)]
        first = int(lines[-1][0]) + 1
        if done.returncode < 0:
            counts["signal"] += 1
            wrong.append(f"{first - 1}: signal {-done.returncode}")
        else:
            assert done.returncode == 0, done.stderr
    return counts, wrong


@pytest.mark.parametrize(
    "kind", ["manifest", "old_manifest", "samples", "tokens", "named_shard", "checkpoint", "safetensors"]
)
def test_damage_is_told_whatever_it_is(kind: str, tmp_path: Path) -> None:
    counts, wrong = load_all(kind, tmp_path)
    print(
        f"{kind}: {COUNT} loads with damage, seed {SEED}: {counts['signal']} signals, {counts['f']} errors of others, "
        f"{counts['o']} with other content"
    )
    assert not wrong, "\n".join(wrong[:10])
    assert counts.total() >= COUNT
