"""From a loaded manifest of 10^6 shards with 10^9 samples to the next index: at 0, 50 and 99 % of an epoch.

Every reading is a process of its own that resumes once, as a job does. Seconds run from the loaded manifest to the
shards and rows of the next batch; memory is the process's peak, with Python, libraries and the manifest. That is the
order's part, which the bars are about. A whole stream also loads Arrow's functions, chooses the split's shards,
and makes sure that its state is of this data. Beside it what the peers do at the same point, by the
functions that their datasets call.
"""

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.outcome import Bar, Outcome
from benchmarks.rounds import Entrant, started
from benchmarks.setting import Setting
from storage.manifest import CORE_COLUMNS, FORMATS, ZONE_COLUMNS, Manifest

SHARDS = 1_000_000
ROWS = 1000  # samples of a shard
SHARES = (0.0, 0.5, 0.99)
MB = 1e6
STREAM = "Shardline, a whole stream"


def ask(setting: Setting) -> Outcome:
    shards = SHARDS // (1000 if setting.tiny else 1)
    job: dict[str, Any] = {"manifest": str(_manifest(setting.data, shards))}
    rounds = 1 if setting.tiny else 3 if setting.quick else 7
    readings = {
        name: _read(Entrant(name, "planning", contender, job=job), setting, rounds)
        for name, contender in (("Shardline", "order"), (STREAM, "stream"))
    }
    samples = shards * ROWS
    if setting.peers:
        less = 10 if setting.quick else 1
        for name, contender, part in (("MDS", "mds", 100 * less), ("litdata", "litdata", less), ("Grain", "grain", 1)):
            job = {"samples": samples // part, "shards": shards // part}
            entrant = Entrant(name, "with_planning", contender, job=job, check=False)
            readings[name if part == 1 else f"{name}, 1/{part} of it"] = _read(
                entrant, setting, 1 if setting.quick else 3
            )
    return _outcome(readings, samples, shards)


def _manifest(data: Path, shards: int) -> Path:
    """The folder of a manifest of so many shards, which don't exist; made once."""
    folder = data / f"shards-{shards}"
    if not (folder / "manifest.arrow").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        names = np.random.default_rng(1).bytes(32 * shards).hex()
        digests = [names[64 * shard : 64 * shard + 64] for shard in range(shards)]
        bytes_each = pa.array(np.full(shards, 64 << 20))
        columns = {
            "path": pa.array([f"objects/{digest}.arrow" for digest in digests]),
            "digest": pa.array(digests),
            "bytes": bytes_each,
            "rows": pa.array(np.full(shards, ROWS)),
            "key": pa.array(digests),
            "plain_bytes": bytes_each,
            "split": pa.array(["train"] * shards),
            "tokens": pa.array(np.zeros(shards, np.int64)),
            "stats": pa.nulls(shards, pa.string()),
        }
        schema = pa.schema({**CORE_COLUMNS, **ZONE_COLUMNS["shards"]})
        spec: dict[str, Any] = {"inputs": {"x": {"dtype": "float32", "shape": [100]}}}
        header = {"format": FORMATS["shards"], "zone": "shards", "kind": "samples", "spec": spec}
        Manifest(header, pa.table(columns, schema=schema)).save(folder)
    return folder


def _read(entrant: Entrant, setting: Setting, rounds: int) -> dict[float, list[dict[str, float]]]:
    """What each of several processes says, by share of the epoch."""
    found: dict[float, list[dict[str, float]]] = {share: [] for share in SHARES}
    for _ in range(rounds):
        for share in SHARES:
            with started([entrant], "resume", setting) as processes:
                found[share].append(processes[entrant.name].ask(share=share))
    return found


def _outcome(readings: dict[str, dict[float, list[dict[str, float]]]], samples: int, shards: int) -> Outcome:
    seconds = {
        name: {f"{share:g}": median(reading["seconds"] for reading in found[share]) for share in SHARES}
        for name, found in readings.items()
    }
    peak = {
        name: max(reading["peak"] for each in found.values() for reading in each) / MB
        for name, found in readings.items()
    }
    ours = ("Shardline", STREAM)
    worst = {name: max(by_share.values()) for name, by_share in seconds.items()}
    table = [
        [name, *(f"{value * 1000:,.2f}" for value in by_share.values()), f"{peak[name]:,.0f}"]
        for name, by_share in seconds.items()
    ]
    bars = [
        Bar("ms to the next index", 50, worst["Shardline"] * 1000, most=True),
        Bar("MB at the peak", 300, peak["Shardline"], most=True),
    ]
    more: dict[str, Any] = {
        "seconds": seconds["Shardline"],
        "peak_mb": peak["Shardline"],
        "peers_seconds": {name: by_share for name, by_share in seconds.items() if name not in ours},
        "stream_seconds": seconds[STREAM],
        "stream_peak_mb": peak[STREAM],
        "peers_peak_mb": {name: value for name, value in peak.items() if name not in ours},
        "manifest_seconds": median(reading["loaded"] for each in readings["Shardline"].values() for reading in each),
        "samples": samples,
        "shards": shards,
    }
    peers = {name: 1 / value for name, value in worst.items() if name not in ours}
    columns = ["", *(f"ms at {share:.0%}" for share in SHARES), "peak MB"]
    return Outcome("resume", "resumes/s", 1 / worst["Shardline"], peers, None, bars, columns, table, more)
