"""What a checkpoint costs a training of 29.5 million parameters on one CPU rank, its state 354 MB.

The pause is the time for which the loop stands still: the call, and what the optimiser's next step waits for the copy
of the state. It is measured against the same save waited for, in turns in one process, on a local disk, synced. Beside
it torch's own `async_save` and `save` of the same state. Then the seconds from SIGTERM to a complete checkpoint, with
the step that it interrupts; and those from starting a process to the end of its first step, resuming at 99 %.
"""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter, time
from typing import Any

from benchmarks.outcome import Bar, Outcome
from benchmarks.parts.trainings import make
from benchmarks.rounds import say
from benchmarks.setting import ROOT, Setting


def ask(setting: Setting) -> Outcome:
    root = setting.data / f"checkpoint{'-tiny' if setting.tiny else ''}"
    shutil.rmtree(root, ignore_errors=True)
    make(root, tiny=setting.tiny)
    rounds = 1 if setting.tiny or setting.quick else 5
    say("checkpoint: SIGTERM")
    terms = [_sigterm(root) for _ in range(1 if setting.tiny or setting.quick else 3)]
    say("checkpoint: saving beside training")
    _forget(root)
    pause: dict[str, Any] = json.loads(_worker("pause", root, str(rounds))[-1])
    say("checkpoint: resuming at 99 %")
    resumes = [_resume(root) for _ in range(1 if setting.tiny or setting.quick else 3)]
    shutil.rmtree(root)
    return _outcome(pause, terms, resumes)


def _command(mode: str, root: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.parts.trainings", mode, str(root), *more]


def _worker(mode: str, root: Path, *more: str) -> list[str]:
    done = subprocess.run(_command(mode, root, *more), cwd=ROOT, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout.splitlines()


def _forget(root: Path) -> None:
    shutil.rmtree(root / ".shardline" / "checkpoints", ignore_errors=True)


def _sigterm(root: Path) -> dict[str, float]:
    """Seconds from SIGTERM in the third step to the complete checkpoint, and to the end of the process."""
    _forget(root)
    with subprocess.Popen(_command("run", root), cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "step 2":
                break
        began = perf_counter()
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        code = process.wait()
        ended = perf_counter() - began
    [manifest] = (root / ".shardline" / "checkpoints").glob("*/step-*/manifest.json")
    assert code == 128 + signal.SIGTERM
    # Both clocks are of this machine: the manifest's time is that of its completion.
    complete = ended - (time() - manifest.stat().st_mtime)
    return {"complete": complete, "ended": ended}


def _resume(root: Path) -> dict[str, float]:
    """Seconds from the start of a process until the checkpoint is restored, and to the end of its first step."""
    began, found = perf_counter(), {}
    with subprocess.Popen(_command("run", root), cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            name = line.split()[0]
            found[name] = perf_counter() - began
            if name == "restored":
                assert line.split()[1] != "0", "nothing was resumed"
            if name == "step":
                break
        process.kill()
    return found


def _outcome(pause: dict[str, Any], terms: list[dict[str, float]], resumes: list[dict[str, float]]) -> Outcome:
    seconds = pause["seconds"]
    share = seconds["background"] / seconds["waited"]
    sigterm = median(reading["complete"] for reading in terms)
    first = median(reading["step"] for reading in resumes)
    table = [
        ["Shardline", f"{seconds['background'] * 1e3:,.1f}", f"{seconds['waited'] * 1e3:,.0f}", f"{share:.1%}"],
        [
            "torch's async_save and save",
            f"{seconds['torch background'] * 1e3:,.1f}",
            f"{seconds['torch waited'] * 1e3:,.0f}",
            f"{seconds['torch background'] / seconds['torch waited']:.1%}",
        ],
    ]
    more: dict[str, Any] = {
        "pause_share": share,
        "pause_seconds": seconds["background"],
        "synchronous_seconds": seconds["waited"],
        "background_seconds": seconds["write"],
        "step_seconds": seconds["steps"],
        "slower_seconds": seconds["slower"],
        "sigterm_seconds": sigterm,
        "sigterm_exit_seconds": median(reading["ended"] for reading in terms),
        "resume_seconds": first,
        "restored_seconds": median(reading["restored"] for reading in resumes),
        "state_bytes": pause["bytes"],
        "parameters": pause["parameters"],
        "readings": {"pause": pause["all"], "sigterm": terms, "resume": resumes},
    }
    peers = {"torch's async_save": seconds["torch waited"] / seconds["torch background"]}
    bars = [Bar("the pause, × a synchronous save", 0.05, share, most=True)]
    columns = ["", "ms of pause", "ms waited for", "share"]
    return Outcome("checkpoint", "times shorter than waiting", 1 / share, peers, None, bars, columns, table, more)
