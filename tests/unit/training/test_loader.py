"""The stream as a loader for trainers of one's own."""

from pathlib import Path

import pytest
import torch
from training_samples import make_points

from pipelines.training import loader
from pipelines.training.device import arrived
from pipelines.training.loader import Loader
from pipelines.training.ranks import Ranks
from pipelines.training.session import open_session


def test_a_batchs_memory_is_kept_until_the_device_has_copied_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer that reads no value back runs ahead of its GPU, which copies out of pinned memory later."""
    waited: list[int] = []
    with open_session(make_points(tmp_path), Ranks()) as s:
        monkeypatch.setattr(loader, "arrived", lambda device: lambda: waited.append(s.stream.state_dict()["step"]))
        batches = iter(Loader(s.stream, s.task, s.ranks, s.device))
        next(batches)
        assert waited == []
        next(batches)
        assert waited == [1], "before the stream goes on"
        batches.close()  # type: ignore[attr-defined]
        assert waited == [1, 2]
    assert arrived(torch.device("cpu"))() is None
