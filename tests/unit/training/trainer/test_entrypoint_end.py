"""How a trainer of one's own ends, seen by a rank that isn't the first."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_samples import make_points, without_mlflow

from pipelines.training.process.process_group import Ranks
from pipelines.training.process.signals import StopRequest
from pipelines.training.trainer.entrypoint import interrupted, opened
from pipelines.training.worker import train_rank
from storage.errors import Interrupted


@dataclass(frozen=True)
class Second(Ranks):
    """Rank 1 of 2, and what it hears of rank 0."""

    rank: int = 1
    world: int = 2
    saved: bool = True
    stopped: float = 0.0
    there: bool = True

    @property
    def connected(self) -> bool:
        return self.there

    def share(self, value: Any) -> Any:
        return self.saved

    def sum(self, *values: float | torch.Tensor, device: torch.device, group: Any = None) -> list[float]:
        return [self.stopped + float(value) for value in values]


@pytest.mark.parametrize(
    ("ranks", "signal", "agreed", "expected"),
    [
        (Second(saved=True), 15, False, False),  # too late: rank 0 has the model and publishes it
        (Second(saved=False), 15, True, True),
        (Second(saved=False, stopped=1.0), None, False, True),  # rank 0 alone got the signal
        (Second(saved=False), None, False, False),  # no model, no signal: an error of rank 0
        (Second(there=False), 15, False, False),
        (Second(there=False), 15, True, True),
    ],
)
def test_ranks_agree_on_whether_they_were_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: Ranks, signal: int | None, agreed: bool, expected: bool
) -> None:
    import pipelines.tracking

    monkeypatch.setattr(pipelines.tracking, "open_run", pipelines.tracking.open_run)
    without_mlflow()
    with opened(make_points(tmp_path, train={"entrypoint": "m:f"}), Ranks(), StopRequest()) as job:
        job.group, job.stop.signum, job.result.stopped = replace(job.group, ranks=ranks), signal, agreed
        assert interrupted(job) is expected


def test_a_wish_to_stop_from_elsewhere_reaches_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under Ray a rank is a thread, which no signal reaches: its launcher asks."""
    import pipelines.tracking

    monkeypatch.setattr(pipelines.tracking, "open_run", pipelines.tracking.open_run)
    without_mlflow()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "asking.py").write_text("def train(job):\n    assert job.stopping()\n")
    stop = StopRequest()
    stop.note(15, None)
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        train_rank(make_points(tmp_path, train={"entrypoint": "asking:train"}), Ranks(), stop)
