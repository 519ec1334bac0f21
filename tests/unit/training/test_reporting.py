"""What the reporter tells of a stretch of steps: rates, and where the stream's time went."""

from typing import Any

import pytest

from pipelines.streaming import Times
from pipelines.training.reporting import Reporter


class Noted:
    """What a run was told."""

    def __init__(self) -> None:
        self.metrics: dict[int, dict[str, float]] = {}

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.metrics[step] = values


def test_shares_are_of_the_time_since_the_last_point() -> None:
    run: Any = Noted()
    report = Reporter(run, lambda *_, **__: None, "samples", 4)
    report.step(seconds=2.0, waited=0.5, work=64)
    report.point({"step": 1, "train_loss": 1.0}, Times(elapsed=10.0, wait=1.0, fetch=5.0, plan=0.1, gather=2.0))
    report.step(seconds=4.0, waited=0.0, work=64)
    report.point({"step": 2, "train_loss": 0.5}, Times(elapsed=14.0, wait=1.0, fetch=6.0, plan=0.1, gather=4.0))
    assert run.metrics[1]["wait_share"] == 0.25
    assert run.metrics[1]["stream_fetch_share"] == 0.5
    assert run.metrics[2]["samples_per_second"] == 16
    assert run.metrics[2]["train_loss"] == 0.5
    shares = {name: value for name, value in run.metrics[2].items() if name.startswith("stream_")}
    assert shares == pytest.approx(
        {"stream_fetch_share": 0.25, "stream_plan_share": 0, "stream_decode_share": 0, "stream_gather_share": 0.5}
    )


def test_rates_are_told_now_and_then_and_at_the_end_and_are_means_over_what_lies_between() -> None:
    run: Any = Noted()
    report = Reporter(run, lambda *_, **__: None, "samples", 5)
    for step, seconds in enumerate((0.5, 0.5, 0.5, 1.0, 0.25), start=1):
        report.step(seconds=seconds, waited=0.0, work=64)
        report.point({"step": step, "train_loss": 1.0}, Times())
    assert [run.metrics[step]["train_loss"] for step in range(1, 6)] == [1.0] * 5
    rates = {step: values["samples_per_second"] for step, values in run.metrics.items() if len(values) > 1}
    assert rates == {1: 128, 4: 96, 5: 256}
