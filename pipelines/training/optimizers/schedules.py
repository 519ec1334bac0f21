"""The learning rate of a step: a function of (step, steps, parameters) alone."""

from math import cos, pi, sqrt

from pipelines.params import Train
from pipelines.params.train.schedule import Cosine, InverseSqrt, Linear, OneCycle, Steps, WarmupStableDecay


def learning_rate(step: int, steps: int, train: Train) -> float:
    """The rate of step 0 ≤ `step` < `steps`: a linear rise over the first `warmup` share (the first step has one part
    of it, the last the peak), then as `train.schedule` says, down to `min_lr` of the peak at the last step."""
    schedule = train.schedule
    if isinstance(schedule, OneCycle):
        return train.lr * _one_cycle(step, steps, schedule)
    rise = round(train.warmup * steps)
    if step < rise:
        return train.lr * (step + 1) / rise
    past, last = step - rise, max(1, steps - 1 - rise)
    low, done = train.min_lr, past / last
    if isinstance(schedule, Cosine):
        return train.lr * (low + (1 - low) * (1 + cos(pi * done)) / 2)
    if isinstance(schedule, Linear):
        return train.lr * (1 - (1 - low) * done)
    if isinstance(schedule, WarmupStableDecay):
        return train.lr * (1 - (1 - low) * _fall(step, steps, schedule))
    if isinstance(schedule, InverseSqrt):
        return train.lr * max(low, sqrt(max(1, rise) / max(1, step + 1)) if rise else 1 / sqrt(step + 1))
    if isinstance(schedule, Steps):
        return train.lr * schedule.factor ** sum(step >= at * steps for at in schedule.at)
    return train.lr


def _fall(step: int, steps: int, schedule: WarmupStableDecay) -> float:
    """How much of the way down is done: 0 until the last `decay` share of the steps, 1 at the last step."""
    falling = max(1, round(schedule.decay * steps))
    part = max(0.0, (step + 1 - (steps - falling)) / falling)
    return part if schedule.shape == "linear" else sqrt(part)


def _one_cycle(step: int, steps: int, schedule: OneCycle) -> float:
    """Share of the peak: half a cosine up over the first `rise` of the steps, half a cosine down over the rest."""
    top = round(schedule.rise * (steps - 1))
    if step <= top:
        low, done = schedule.start, 1.0 - step / top if top else 0.0
    else:
        low, done = schedule.end, (step - top) / (steps - 1 - top)
    return low + (1 - low) * (1 + cos(pi * done)) / 2
