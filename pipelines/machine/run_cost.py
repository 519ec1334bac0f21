"""What a run took: seconds, money, energy; over all of its starts, however they ended.

    seconds     from the ranks' start to now, added up over the run's starts
    cost        seconds / 3600 × ranks × train.price_per_hour in its currency, each start at its ranks and price
    energy_kwh  by the counters of rank 0's machine (`energy`), times the machines; absent where there are none

Never in metrics/train.json: two equal trainings leave equal bytes there. They are metrics of the MLflow run and stand
in the closing line. What earlier starts took is kept in `.shardline/spent/<run id>.json`.
"""

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.console.formats import human_seconds
from pipelines.machine.energy import Counter, counters

SECONDS, COST, ENERGY = "seconds", "cost", "energy_kwh"
_SAVE_EVERY = 10.0  # seconds: what a kill loses at most
_JOULES_IN_KWH = 3.6e6


@dataclass
class RunCost:
    """`price` is of an hour of one rank's share of its machine, for `ranks` ranks; None: not known."""

    price: float | None
    ranks: int
    file: Path | None = None
    sources: list[Counter] = field(default_factory=list)
    machines: int = 1
    began: float = field(default_factory=time.monotonic)
    before: dict[str, float] = field(default_factory=dict)
    _saved: float = 0.0

    @classmethod
    def start(cls, folder: Path, run_id: str | None, price: float | None, ranks: int, devices: list[int]) -> "RunCost":
        """From now on. `devices` are the NVIDIA devices of this machine that train."""
        local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
        run_cost = cls(
            price, ranks, folder / f"{run_id}.json" if run_id else None, counters(devices), max(1, ranks // local)
        )
        if run_cost.file is not None:
            with suppress(OSError, ValueError):
                run_cost.before = json.loads(run_cost.file.read_text())
        return run_cost

    def so_far(self) -> dict[str, float]:
        """Metrics up to now."""
        now = time.monotonic() - self.began
        found = {SECONDS: self.before.get(SECONDS, 0.0) + now}
        if self.price is not None:
            found[COST] = self.before.get(COST, 0.0) + now / 3600 * self.ranks * self.price
        if self.sources:
            joules = sum(source.joules() for source in self.sources) * self.machines
            found[ENERGY] = self.before.get(ENERGY, 0.0) + joules / _JOULES_IN_KWH
        return found

    def note(self) -> dict[str, float]:
        """Now and then: metrics up to now, kept for a start after this one. Empty between those times."""
        if time.monotonic() - self._saved < _SAVE_EVERY:
            return {}
        return self.keep()

    def keep(self) -> dict[str, float]:
        """Metrics up to now, kept for a start after this one."""
        self._saved = time.monotonic()
        found = self.so_far()
        if self.file is not None:
            with suppress(OSError):  # a full disk is for the checkpoints to tell
                self.file.parent.mkdir(parents=True, exist_ok=True)
                temporary = self.file.with_suffix(f".{os.getpid()}.tmp")
                temporary.write_text(json.dumps(found))
                temporary.replace(self.file)  # whole or absent; losing it to a power cut costs nothing but a figure
        return found

    def close(self) -> dict[str, float]:
        """Metrics of the whole run, which is done."""
        found = self.so_far()
        if self.file is not None:
            self.file.unlink(missing_ok=True)
        return found


def sentence(spent: dict[str, float]) -> str:
    """For the closing line: "took 12.3 s, cost 0.02, 0.001 kWh"."""
    parts = [f"took {human_seconds(spent[SECONDS])}"]
    if COST in spent:
        parts.append(f"cost {spent[COST]:.4g}")
    if ENERGY in spent:
        parts.append(f"{spent[ENERGY]:.4g} kWh")
    return ", ".join(parts)
