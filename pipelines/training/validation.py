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
    sizes = _sizes(s)
    for domain in sizes:
        with s.val_stream(domain) as batches:
            for batch in islice(batches, _limit(s, domain, sizes)):
                yield domain, batch


def _limit(s: Session, domain: Domain, sizes: dict[Domain, int]) -> int | None:
    """Batches of a domain that are read: its share of `train.eval_batches`, one at least."""
    most = s.params.train.eval_batches
    return None if most is None else -(-most * sizes[domain] // sum(sizes.values()))


def _unread(s: Session) -> dict[Domain, float]:
    """How many samples a domain has for each that is read. Of small domains one batch is read, which is more than their
    share: they must not weigh more in the mean over all for that."""
    sizes = _sizes(s)
    if len(sizes) == 1:
        return dict.fromkeys(sizes, 1.0)
    read = {domain: (_limit(s, domain, sizes) or size) * s.params.stream.batch_size for domain, size in sizes.items()}
    return {domain: max(1.0, size / read[domain]) for domain, size in sizes.items()}


def _sizes(s: Session) -> dict[Domain, int]:
    """Samples of each domain in the val split, without those that have none."""
    names: list[Domain] = [*s.data.manifest.domains] or [None]
    sizes = {name: samples_in(s.data.manifest, "val", s.goal.config.sequence_len, name) for name in names}
    return {name: samples for name, samples in sizes.items() if samples}


@dataclass
class Sums:
    """Of losses, hits and targets, by domain."""

    loss: dict[Domain, float] = field(default_factory=lambda: defaultdict(float))
    hits: dict[Domain, float] = field(default_factory=lambda: defaultdict(float))
    count: dict[Domain, int] = field(default_factory=lambda: defaultdict(int))

    def summary(self, s: Session) -> dict[str, float]:
        """The task's measures over all ranks and domains, where each domain counts by its size, then of each domain:
        loss, loss/code, … Every rank must call it; each has seen its part of the same batches."""
        found = s.group.ranks.sum(
            *(self.loss[name] for name in self.count),
            *(self.hits[name] for name in self.count),
            device=s.group.device,
        )
        losses, hits, times = found[: len(self.count)], found[len(self.count) :], _unread(s)
        total, loss, hit = (
            sum(times[name] * value for name, value in zip(self.count, values, strict=True))
            for values in (self.count.values(), losses, hits)
        )
        measured = s.goal.task.summary(loss / total, hit / total)
        for (domain, count), loss, hit in zip(self.count.items(), losses, hits, strict=True):
            if domain is not None:
                own = s.goal.task.summary(loss / count, hit / count)
                measured |= {f"{name}/{domain}": value for name, value in own.items()}
        return measured
