"""A circuit breaker: after a failure nothing is tried for a while, then one attempt decides.

    closed ──failure──▶ open ──pause is over──▶ half-open ──success──▶ closed
                          ▲                         └──────failure──────▶ open, with twice the pause

A state machine without a clock of its own (M. Nygard, "Release It!", 2007).
"""

import random
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half-open"]


class Breaker:
    """Pauses grow from `first` to `last` seconds, each shortened by up to half at random, so that many processes don't
    come back at once. Not safe for threads: guard it."""

    def __init__(self, first: float = 1.0, last: float = 30.0, chance: Callable[[], float] = random.random) -> None:
        self.first, self.last, self._chance = first, last, chance
        self.state: State = "closed"
        self.until = 0.0  # when the pause, or the attempt, ends
        self._pause = first

    def rests(self, now: float) -> bool:
        """Whether nothing may be tried: during a pause, and while another's attempt is under way."""
        return self.state != "closed" and now < self.until

    def allows(self, now: float) -> bool:
        """Whether something may be tried; when the pause is over, one caller gets True for an attempt."""
        if self.rests(now):
            return False
        if self.state != "closed":
            self.state, self.until = "half-open", now + self.last  # an attempt that never reports ends by itself
        return True

    def failed(self, now: float) -> bool:
        """Note a failure; returns whether it is the first after a success, so the one to tell of."""
        first = self.state == "closed"
        if self.state == "open":  # of something that began before
            return False
        self._pause = self.first if first else min(self.last, 2 * self._pause)
        self.state, self.until = "open", now + self._pause * (1 - self._chance() / 2)
        return first

    def succeeded(self) -> bool:
        """Note a success; returns whether it ends an outage."""
        if self.state != "half-open":
            return False
        self.state = "closed"
        return True
