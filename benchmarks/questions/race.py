"""A race: Shardline's stream, the peers and the limit over one work, warm and local."""

from collections.abc import Mapping, Sequence

from benchmarks.outcome import Outcome, of_readings
from benchmarks.rounds import PEERS, Entrant, compete
from benchmarks.setting import Setting
from benchmarks.works import load


def race(
    name: str,
    work: str,
    setting: Setting,
    *,
    limit: str,
    wanted: Mapping[str, float],
    limit_wanted: float,
    peers: Sequence[Entrant] = PEERS,
) -> Outcome:
    """`limit` is a contender of `contenders/limit.py`; `wanted` the ratios to reach over the peers."""
    load(work, setting.data, setting.tiny)  # made before anybody starts
    ours, floor = Entrant("Shardline", "ours"), Entrant("limit", "limit", limit)
    readings = compete(ours, peers if setting.peers else (), (floor,), work, setting)
    return of_readings(name, "samples/s", readings, wanted, limit_wanted)
