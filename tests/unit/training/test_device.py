"""Where a rank computes."""

import pytest
import torch

from pipelines.params import Train
from pipelines.training import device
from pipelines.training.device import repeatable


@pytest.mark.parametrize(("started", "threads"), [(None, 4), ("8", 1), ("1", 8)])
def test_the_cores_are_shared_out_over_the_ranks_that_are_here(
    monkeypatch: pytest.MonkeyPatch, started: str | None, threads: int
) -> None:
    """Which a cluster's launcher may have started in another number than train.ranks."""
    monkeypatch.setattr(device, "_cores", lambda: 8)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if started is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", started)
    before = torch.get_num_threads()
    with repeatable(Train(steps=1, ranks=2), torch.device("cpu")):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == before
