"""Whole epochs from the start, timed from asking for them: what a cold start costs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.rounds import Entrant, say, started
from benchmarks.setting import Setting


@dataclass
class Epochs:
    """Seconds of one entrant's epochs, and to their first batches."""

    workers: int = 0
    all_seconds: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return median(self.all_seconds)

    @property
    def first(self) -> float:
        return median(self.firsts)


def epochs(entrants: Sequence[Entrant], work: str, setting: Setting) -> dict[str, Epochs]:
    """By name: a warm-up epoch with each of the entrant's `workers`, then rounds in turns with the best of them."""
    found = {entrant.name: Epochs() for entrant in entrants}
    with started(entrants, work, setting) as processes:
        for entrant in entrants:
            say(f"{entrant.name}: warm-up")
            seconds = {
                workers: processes[entrant.name].ask(run="once", workers=workers)["seconds"]
                for workers in entrant.workers
            }
            found[entrant.name].workers = min(seconds, key=seconds.__getitem__)
        for turn in range(setting.rounds):
            say(f"{work}: round {turn + 1} of {setting.rounds}")
            for entrant in entrants:
                epochs = found[entrant.name]
                answer = processes[entrant.name].ask(run="once", workers=epochs.workers)
                epochs.all_seconds.append(answer["seconds"])
                epochs.firsts.append(answer["first"])
    return found
