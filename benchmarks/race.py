"""A race: Shardline's stream, the peers and the limit over one work, warm and local."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmarks.outcome import Outcome, of_readings
from benchmarks.parts.works import load
from benchmarks.results import kept
from benchmarks.rounds import PEERS, Entrant, compete
from benchmarks.setting import Setting

_SOON = 2.5  # seconds


def race(
    name: str,
    work: str,
    setting: Setting,
    *,
    limit: str,
    wanted: Mapping[str, float],
    limit_wanted: float,
    peers: Sequence[Entrant] = PEERS,
    beside: Mapping[str, Sequence[Entrant]] | None = None,
    limit_threads: int = 1,
) -> Outcome:
    """`limit` is a contender of `contenders/limit.py`, whose rate counts `limit_threads` times; `wanted` the ratios to
    reach over the peers, "the best peer" among them. `beside` has contenders that are measured too but are no peers, by
    the field of the JSON object that shows them."""
    load(work, setting.data, setting.tiny)  # made before anybody starts
    ours, floor = Entrant("Shardline", "ours"), Entrant("limit", "limit", limit, check=limit == "take")
    groups = beside if beside and setting.peers else {}
    others = [entrant for entrants in groups.values() for entrant in entrants]
    rivals = peers if setting.peers else ()
    if setting.quick:
        best = _best_workers(name)
        rivals, others = ([replace(e, workers=best.get(e.name, e.workers)) for e in some] for some in (rivals, others))
    readings = compete(ours, rivals, (floor,), work, setting, others)
    if limit_threads != 1:
        readings["limit"].rates = [rate * limit_threads for rate in readings["limit"].rates]
    names = {field: [entrant.name for entrant in entrants] for field, entrants in groups.items()}
    return of_readings(name, "samples/s", readings, wanted, limit_wanted, names)


def _best_workers(name: str) -> dict[str, tuple[int]]:
    """By peer, the workers that the kept result found best, so that a look needn't try; none where those take seconds
    to start."""
    result = kept().get(name, {})
    firsts = result.get("first_batch_seconds", {})
    return {peer: (best if firsts[peer] < _SOON else 0,) for peer, best in result.get("workers", {}).items()}
