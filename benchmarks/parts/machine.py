"""On what, with what and when a benchmark ran."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.setting import Setting

OURS = ("numpy", "pyarrow", "obstore", "s3fs", "redis", "simplejpeg", "opencv-python-headless")
PEERS = (
    "litdata", "streaming-community", "webdataset", "datasets", "grain", "array-record", "spdl-io", "spdl-core",
    "torch", "numpy", "simplejpeg", "pillow", "opencv-python-headless",
)  # fmt: skip
_ASK = "import json, sys, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GiB, kernel, and the load when it began."""
    model = next((line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if "model name" in line), "")
    total = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "processor": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(total / 2**20, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load": round(os.getloadavg()[0], 2),
    }


def versions(setting: Setting, libraries: tuple[str, ...] = ()) -> dict[str, str]:
    """Of Python, Shardline (version and commit) and the libraries: those of the streams and, from their environment, of
    the peers; or `libraries` of this environment instead."""
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    own = f"{metadata.version('shardline')} ({commit.stdout.strip() or 'no commit'})"
    found = {
        "python": platform.python_version(),
        "shardline": own,
        **{name: metadata.version(name) for name in libraries or OURS},
    }
    if setting.peers and not libraries:
        asked = subprocess.run([setting.peers_python, "-c", _ASK, *PEERS], capture_output=True, text=True, check=True)
        found |= {name: version for name, version in json.loads(asked.stdout).items() if name not in OURS}
    return found


def today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.is_file() else []
