"""The val split as an evaluation sees it: domain by domain where the shards have them, so that each has a loss."""

from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass, field
from itertools import islice

from pipelines.streaming import Batch
from pipelines.training.session import Session, samples_in

Domain = str | None  # None: the shards have none


def val_batches(s: Session) -> Generator[tuple[Domain, Batch]]:
    """(domain, batch) of the whole val split, or of `train.eval_batches`, which are shared out by the domains' samples:
    the first ones would all be of one domain."""
    most = s.params.train.eval_batches
    sizes = _sizes(s)
    for domain, samples in sizes.items():
        limit = None if most is None else -(-most * samples // sum(sizes.values()))
        with s.val_stream(domain) as batches:
            for batch in islice(batches, limit):
                yield domain, batch


def _sizes(s: Session) -> dict[Domain, int]:
    """Samples of each domain in the val split, without those that have none."""
    names: list[Domain] = [*s.manifest.domains] or [None]
    sizes = {name: samples_in(s.manifest, "val", s.config.window, name) for name in names}
    return {name: samples for name, samples in sizes.items() if samples}


@dataclass
class Sums:
    """Of losses, hits and targets, by domain."""

    loss: dict[Domain, float] = field(default_factory=lambda: defaultdict(float))
    hits: dict[Domain, float] = field(default_factory=lambda: defaultdict(float))
    count: dict[Domain, int] = field(default_factory=lambda: defaultdict(int))

    def summary(self, s: Session) -> dict[str, float]:
        """The task's measures over all ranks and domains, then of each domain: loss, loss/code, … Every rank must call
        it; each has seen its part of the same batches."""
        found = s.ranks.sum(
            *(self.loss[name] for name in self.count), *(self.hits[name] for name in self.count), device=s.device
        )
        losses, hits, total = found[: len(self.count)], found[len(self.count) :], sum(self.count.values())
        measured = s.task.summary(sum(losses) / total, sum(hits) / total)
        for (domain, count), loss, hit in zip(self.count.items(), losses, hits, strict=True):
            if domain is not None:
                own = s.task.summary(loss / count, hit / count)
                measured |= {f"{name}/{domain}": value for name, value in own.items()}
        return measured
