"""Whole epochs from the start, timed from asking for them: what a cold start costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.rounds import Entrant, say, started
from benchmarks.setting import Setting

ROUNDS = 9  # an epoch takes a part of a second, and a busy machine's readings are apart
_QUICK = 5


@dataclass
class Epochs:
    """Seconds of one entrant's epochs to their last and first batches, and to their ends, when all is closed."""

    workers: int = 0
    broken: dict[int, str] = field(default_factory=dict)  # by workers: what a peer stumbled over
    all_seconds: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    def add(self, answer: Mapping[str, float]) -> None:
        """One more epoch, as its contender measured it."""
        self.all_seconds.append(answer["seconds"])
        self.firsts.append(answer["first"])
        self.ends.append(answer["ended"])

    @property
    def seconds(self) -> float:
        return median(self.all_seconds)

    @property
    def first(self) -> float:
        return median(self.firsts)

    @property
    def ended(self) -> float:
        return median(self.ends)


def epochs(entrants: Sequence[Entrant], work: str, setting: Setting) -> dict[str, Epochs]:
    """By name: a warm-up epoch with each of the entrant's `workers`, then rounds in turns with the best of them.

    A fresh entrant (a peer) that breaks with some workers is measured anew with others, or left out. With
    `--quick` it has no warm-up and one round, else fewer than the others, since each of its epochs takes a process.
    """
    found = {entrant.name: Epochs() for entrant in entrants}
    with started([entrant for entrant in entrants if not entrant.fresh], work, setting) as processes:

        def run(entrant: Entrant, workers: int) -> dict[str, float] | None:
            if not entrant.fresh:
                return processes[entrant.name].ask(run="once", workers=workers)
            try:
                with started([entrant], work, setting) as alone:
                    return alone[entrant.name].ask(run="once", workers=workers)
            except RuntimeError as error:
                say(f"{entrant.name} with {workers} workers: {error}")
                found[entrant.name].broken[workers] = str(error).splitlines()[-1]
                return None

        for entrant in entrants:
            if entrant.fresh and setting.quick:
                continue
            say(f"{entrant.name}: warm-up")
            tried = {workers: run(entrant, workers) for workers in entrant.workers}
            seconds = {workers: answer["seconds"] for workers, answer in tried.items() if answer}
            found[entrant.name].workers = min(seconds, key=seconds.__getitem__, default=-1)
        rounds = setting.rounds if setting.tiny else _QUICK if setting.quick else ROUNDS
        for turn in range(rounds):
            say(f"{work}: round {turn + 1} of {rounds}")
            for entrant in entrants:
                epochs = found[entrant.name]
                enough = entrant.fresh and len(epochs.all_seconds) >= (1 if setting.quick else setting.rounds)
                if epochs.workers < 0 or enough:
                    continue
                answer = run(entrant, epochs.workers)
                if answer:
                    epochs.add(answer)
                else:
                    sound = [workers for workers in entrant.workers if workers not in epochs.broken]
                    found[entrant.name] = Epochs(min(sound, default=-1), epochs.broken)
    return {name: epochs for name, epochs in found.items() if epochs.all_seconds}
