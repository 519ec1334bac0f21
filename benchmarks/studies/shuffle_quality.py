"""How well an order shuffles, each figure 1.0 for a full shuffle: statistics of two epochs of the samples themselves.

The samples are taken as stored one after the other, so that what lay together shows when it stays together. `shard`
has in truth mixed them before, so this is the worst case.
"""

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from pipelines.streaming import Order, Ordering

Ints = npt.NDArray[np.int64]
CLASSES = 16


@dataclass(frozen=True)
class Quality:
    """Each is 1.0 for a full shuffle, but for the correlation, which is 0.

    `displacement`: how far a sample moves from one epoch to the next, over N/3, which a full shuffle's move by.
    `mates`: how many of the pairs that share a batch share one in the next epoch too, over what chance makes.
    `imbalance`: chi-square of the classes of a batch over its degrees of freedom, for data stored class by class.
    `correlation`: of the mean class of a batch with that of the next batch.
    """

    displacement: float
    mates: float
    imbalance: float
    correlation: float

    def cells(self) -> list[str]:
        return [f"{value:.2f}" for value in asdict(self).values()]


COLUMNS = ["displacement", "batch mates kept", "class imbalance", "batch correlation"]


def quality(order: Order) -> Quality:
    """Of full batches of epochs 0 and 1."""
    return of_epochs(_places(order, 0), _places(order, 1), order.batch_size)


def full_shuffle(rows: int, batch: int) -> Quality:
    """The same of two full shuffles, which shows what chance does to the figures."""
    random = np.random.default_rng(1)
    return of_epochs(random.permutation(rows), random.permutation(rows), batch)


def of_epochs(before: Ints, after: Ints, batch: int) -> Quality:
    """`before` and `after` hold the places at which the samples of two epochs are stored, int64 [rows]."""
    rows = len(before)
    first, second = np.argsort(before), np.argsort(after)
    moved = np.abs(first - second).mean() / (rows / 3)
    _, together = np.unique(first // batch * (rows // batch + 1) + second // batch, return_counts=True)
    kept = (together * (together - 1) // 2).sum() / (rows * (batch - 1) / 2) * ((rows - 1) / (batch - 1))
    steps = rows // batch
    classes = (before[: steps * batch] * CLASSES // rows).reshape(steps, batch)
    counts = np.stack([(classes == label).sum(axis=1) for label in range(CLASSES)], axis=1)
    wanted = batch / CLASSES
    means = classes.mean(axis=1)
    return Quality(
        float(moved),
        float(kept),
        float(((counts - wanted) ** 2 / wanted).sum(axis=1).mean() / (CLASSES - 1)),
        float(np.corrcoef(means[:-1], means[1:])[0, 1]),
    )


def _places(order: Order, epoch: int) -> Ints:
    starts = np.cumsum(order.shard_rows) - order.shard_rows
    shard, row = order.block(epoch, 0, order.steps)
    places: Ints = starts[shard] + row
    return places


def main() -> None:
    """A table over windows and lanes, as docs/order.md has it: `python -m benchmarks.studies.shuffle_quality`."""
    shards, rows, batch = 256, 4096, 256
    print(f"| window | lanes | {' | '.join(COLUMNS)} |\n| ---: | --- |{' ---: |' * len(COLUMNS)}")
    whole = shards * rows
    settings: list[tuple[int, int | None]] = [(rows << doublings, None) for doublings in (0, 2, 4, 6, 8)]
    for window, first in [*settings, (64 * rows, 64 * rows), (whole, whole)]:
        for lanes, keep in ((1, False), (4, False), (16, False), (16, True)):
            order = Order(
                [rows] * shards,
                batch=batch,
                seed=1,
                ordering=Ordering(lanes=lanes, window=window, first_window=first, keep_lanes=keep),
            )
            cells = " | ".join(quality(order).cells())
            grown = f"{window:,}{' from the start' if first else ''}"
            print(f"| {grown} | {lanes}{', kept' if keep else ''} | {cells} |", flush=True)
    print(f"| full shuffle | | {' | '.join(full_shuffle(whole, batch).cells())} |")


if __name__ == "__main__":
    main()
