"""Signals: the first asks, an impatient second one ends."""

import os
import signal

import pytest

from pipelines.training.process import signals
from pipelines.training.process.signals import StopRequest, stop_on_signals
from storage.errors import Interrupted


def test_the_first_signal_asks_and_handlers_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [signal.getsignal(signum) for signum in signals.SIGNALS]
    now = 100.0
    monkeypatch.setattr(signals, "monotonic", lambda: now)
    stop = StopRequest()
    with stop_on_signals(stop):
        assert not stop
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signum == signal.SIGINT
        os.kill(os.getpid(), signal.SIGTERM)  # the same wish, delivered twice
        assert stop.signum == signal.SIGINT
        now += signals.IMPATIENT + 1
        with pytest.raises(Interrupted, match="last checkpoint"):
            os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(signum) for signum in signals.SIGNALS] == before
