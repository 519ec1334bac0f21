"""Python's collector of cyclic garbage, kept off what is only loaded: a million objects that live until the end.

Looking them through again and again while libraries load, and once more as the process ends, is a quarter of the
processor time of a short command (`train` of a few steps, `package`, `promote`).
"""

import atexit
import gc

_USUAL = gc.get_threshold()
_SELDOM = (200_000, 10, 10)


def rest() -> None:
    """A process starts: collect seldom, and not at all as it ends. Up to 200,000 unreachable containers may wait."""
    gc.set_threshold(*_SELDOM)
    atexit.register(gc.freeze)


def work() -> None:
    """Training starts: never look at what is loaded, and collect as often as usual, for a cycle can hold a tensor.
    Only the first call in a process does anything: what a second one would freeze may be garbage."""
    if gc.get_threshold() == _SELDOM:
        gc.freeze()
        gc.set_threshold(*_USUAL)
