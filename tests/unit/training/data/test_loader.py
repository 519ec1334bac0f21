"""The stream as a loader for trainers of one's own."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.training_samples import make_points, make_text

from pipelines.training.data import loader
from pipelines.training.data.loader import Loader
from pipelines.training.parallelism import Group, Layout
from pipelines.training.process.device import arrived
from pipelines.training.process.process_group import Ranks
from pipelines.training.session import open_session


def test_a_batchs_memory_is_kept_until_the_device_has_copied_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer that reads no value back runs ahead of its GPU, which copies out of pinned memory later."""
    waited: list[int] = []
    with open_session(make_points(tmp_path), Ranks()) as s:
        monkeypatch.setattr(loader, "arrived", lambda device: lambda: waited.append(s.data.stream.state_dict()["step"]))
        batches = iter(Loader(s.data.stream, s.goal.task, s.group))
        next(batches)
        assert waited == []
        next(batches)
        assert waited == [1], "before the stream goes on"
        batches.close()  # type: ignore[attr-defined]
        assert waited == [1, 2]
    assert arrived(torch.device("cpu"))() is None


def test_targets_are_counted_without_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the device meta no value comes back, so nothing waits for it. A group of one stands for the ranks' hosts."""
    monkeypatch.setattr(loader, "arrived", lambda device: lambda: None)
    device, ranks = torch.device("meta"), Ranks(0, 2)
    with open_session(make_text(tmp_path, stream={"batch_size": 8, "document_mask": True}), Ranks()) as s:
        expected = s.goal.task.counted(s.data.stream.batch(0).arrays)
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            for layout, count in ((Layout(), expected), (Layout((1, 1, 1, 2), 1), 1)):  # another rank speaks
                group = Group(ranks=ranks, layout=layout, device=device, hosts=ranks.host_group(device))
                batches = iter(Loader(s.data.stream, s.goal.task, group))
                assert next(batches)["count"] == count
        finally:
            dist.destroy_process_group()


def test_a_val_loader_goes_on_from_a_loaded_state_once_and_gives_whole_passes_else(tmp_path: Path) -> None:
    with open_session(make_points(tmp_path, stream={"batch_size": 2}), Ranks()) as s, s.val_stream() as stream:
        val = Loader(stream, s.goal.task, s.group)
        whole = [batch["inputs"].tolist() for batch in val]
        assert len(whole) == len(val) > 2
        for _ in range(2):
            for batch in val:
                assert batch["inputs"].tolist() == whole[0], "also after a pass that was broken off"
                break
        state = val.state_dict()
        list(val)
        end = val.state_dict()
        val.load_state_dict(state)
        assert [batch["inputs"].tolist() for batch in val] == whole[1:]
        val.load_state_dict(end)
        assert list(val) == []
        assert [batch["inputs"].tolist() for batch in val] == whole
