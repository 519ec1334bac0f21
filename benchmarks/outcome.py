"""What a benchmark found: one JSON object, and the table that a person reads."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.parts.machine import machine, today, versions
from benchmarks.rounds import Readings
from benchmarks.setting import Setting


@dataclass(frozen=True)
class Bar:
    """Something that must be reached: `found` at least (or, with `most`, at most) `wanted`."""

    what: str
    wanted: float
    found: float
    most: bool = False

    @property
    def reached(self) -> bool:
        return self.found <= self.wanted if self.most else self.found >= self.wanted


@dataclass
class Outcome:
    """`ours`, `limit` and the peers' values in `unit`. `more` is what the question adds to the JSON object; `table`
    holds rows for a person, under `columns`."""

    name: str
    unit: str
    ours: float | None
    peers: dict[str, float]
    limit: float | None
    bars: list[Bar]
    columns: list[str]
    table: list[list[str]]
    more: dict[str, Any] = field(default_factory=dict)
    libraries: tuple[str, ...] = ()  # of this environment that matter; none: those of the streams and of the peers

    def to_json(self, setting: Setting) -> dict[str, Any]:
        """The object that `--json` prints. Ratios are null where there is nothing to compare with."""
        best = max(self.peers.values(), default=None)
        return {
            "name": self.name,
            "machine": machine(),
            "versions": versions(setting, self.libraries),
            "date": today(),
            "quick": setting.quick or setting.tiny,
            "unit": self.unit,
            "ours": self.ours,
            "peers": self.peers,
            "limit": self.limit,
            "ratio_to_best_peer": self.ours / best if self.ours is not None and best else None,
            "ratio_to_limit": self.ours / self.limit if self.ours is not None and self.limit else None,
            "bars": [{**asdict(bar), "reached": bar.reached} for bar in self.bars],
            "columns": self.columns,
            "table": self.table,
            **self.more,
        }

    def show(self) -> None:
        """Print the table, then the bars."""
        console = Console(width=None if sys.stdout.isatty() else 120)
        table = Table(title=self.name, title_justify="left")
        for place, column in enumerate(self.columns):
            table.add_column(column, justify="right" if place else "left")
        for row in self.table:
            table.add_row(*row)
        console.print(table)
        for bar in self.bars:
            sign, word = ("≤" if bar.most else "≥"), "[green]reached[/green]" if bar.reached else "[red]missed[/red]"
            console.print(f"  {bar.what}: {bar.found:.3g} (must be {sign} {bar.wanted:g}) {word}")


def of_readings(
    name: str,
    unit: str,
    readings: Mapping[str, Readings],
    wanted: Mapping[str, float],
    limit_wanted: float,
    beside: Mapping[str, Sequence[str]] | None = None,
) -> Outcome:
    """The outcome of a race: `wanted` has the ratio to reach over each peer that is asked for, by name; `beside` names
    contenders that are no peers, by the field that they go to."""
    ours, limit = readings["Shardline"].rate, readings["limit"].rate
    fields = {field: {who: readings[who].rate for who in names} for field, names in (beside or {}).items()}
    apart = {"Shardline", "limit"}.union(*fields.values())
    peers = {peer: found.rate for peer, found in readings.items() if peer not in apart}
    rivals = {**peers, "the best peer": max(peers.values())} if peers else {}
    bars = [Bar(f"× {peer}", ratio, ours / rivals[peer]) for peer, ratio in wanted.items() if peer in rivals]
    bars.append(Bar("× the limit", limit_wanted, ours / limit))
    table = [
        [
            who,
            f"{found.rate:,.0f}",
            f"{min(found.rates):,.0f} – {max(found.rates):,.0f}",
            " / ".join(f"{found.tried[workers]:,.0f}" for workers in sorted(found.tried))
            if len(found.tried) > 1
            else "",
            f"{ours / found.rate:.2f}" if who != "Shardline" else "",
        ]
        for who, found in readings.items()
    ]
    more: dict[str, Any] = {
        **fields,
        "spread": {who: [min(found.rates), max(found.rates)] for who, found in readings.items()},
        "rounds": {who: len(found.rates) for who, found in readings.items()},
        "workers": {who: found.workers for who, found in readings.items() if len(found.tried) > 1},
        "warm_up_by_workers": {who: found.tried for who, found in readings.items() if len(found.tried) > 1},
        "first_batch_seconds": {who: min(found.firsts) for who, found in readings.items()},
    }
    columns = ["", unit, "spread", "warm-up, 0 / 2 workers", "Shardline is ×"]
    return Outcome(name, unit, ours, peers, limit, bars, columns, table, more)
