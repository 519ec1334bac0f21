"""Where a rank computes, and what memory it reads batches into."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.training_samples import make_points

from pipelines.params import Train
from pipelines.runtime.parent_death import AGENT_PID
from pipelines.streaming import Batch, Stream
from pipelines.streaming.gather.buffers import allocate
from pipelines.training import session
from pipelines.training.process import device
from pipelines.training.process.device import device_index, device_of, host_memory, pinned, repeatable, sees_its_own
from pipelines.training.process.process_group import Ranks
from pipelines.training.session import open_session
from storage.errors import ParamsError

TORCHRUN = {"TORCHELASTIC_RUN_ID": "4711"}


@pytest.mark.parametrize(("started", "threads"), [(None, 4), ("8", 1), ("1", 8)])
def test_the_cores_are_shared_out_over_the_ranks_that_are_here(
    monkeypatch: pytest.MonkeyPatch, started: str | None, threads: int
) -> None:
    """Which a cluster's launcher may have started in another number than train.ranks."""
    monkeypatch.setattr(device, "cores", lambda: 8)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if started is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", started)
    before = torch.get_num_threads()
    with repeatable(Train(steps=1, ranks=2), torch.device("cpu")):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == before


@given(first=st.integers(0, 4), ranks=st.integers(1, 9), visible=st.integers(0, 9))
def test_ranks_that_see_the_same_devices_take_one_each_or_none_takes_any(first: int, ranks: int, visible: int) -> None:
    """If only the last ones found too few, the others would wait for them."""
    taken = [device_index(first, rank, ranks, visible, apart=False) for rank in range(ranks)]
    if first + ranks <= visible:
        assert taken == list(range(first, first + ranks))
    else:
        assert taken == [None] * ranks


@given(ranks=st.integers(2, 9), visible=st.integers(0, 9))
def test_a_rank_that_sees_a_single_device_of_its_own_takes_it(ranks: int, visible: int) -> None:
    taken = [device_index(0, rank, ranks, visible, apart=True) for rank in range(ranks)]
    if visible == 1:
        assert taken == [0] * ranks
    else:  # as if all of them saw the same ones: devices of somebody else's are nowhere to be seen
        assert taken == [device_index(0, rank, ranks, visible, apart=False) for rank in range(ranks)]
    assert device_index(1, 0, ranks, 1, apart=True) is None, "train.device=cuda:1, which isn't there"


@pytest.mark.parametrize(
    ("environment", "apart"),
    [
        ({}, True),  # Slurm or Kubernetes, where the kernel lets a task open its own device only
        ({"CUDA_VISIBLE_DEVICES": "1"}, True),
        (TORCHRUN, False),
        (TORCHRUN | {"CUDA_VISIBLE_DEVICES": "1"}, True),  # by a script that torchrun starts
        (TORCHRUN | {"CUDA_VISIBLE_DEVICES": "1", AGENT_PID: "1"}, False),  # Shardline's own, which has no such script
    ],
)
def test_who_starts_the_ranks_may_show_each_its_own_device(environment: dict[str, str], apart: bool) -> None:
    assert sees_its_own("cuda", environment) is apart
    assert not sees_its_own("mps", environment)


def test_a_rank_of_a_cluster_with_one_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no GPU here: what is seen is said. The second rank of a machine needed cuda:1, which it doesn't see."""
    monkeypatch.setattr(device, "available", lambda kind: int(kind in ("cpu", "cuda")))
    for name in ("TORCHELASTIC_RUN_ID", AGENT_PID):
        monkeypatch.delenv(name, raising=False)
    assert device_of("auto", 1, 2) == device_of("cuda", 1, 0) == torch.device("cuda", 0)


def test_more_ranks_than_devices_are_told_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"cpu": 1, "cuda": 2}
    monkeypatch.setattr(device, "available", lambda kind: counts.get(kind, 0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    for rank in range(4):
        with pytest.raises(
            ParamsError, match=r"the 4 ranks of this machine need cuda:0 to cuda:3, .* 2 x cuda"
        ) as told:
            device_of("cuda", rank, 4)
    for said in ("CUDA_VISIBLE_DEVICES=2,3", "show each of them one device", "lower train.ranks"):
        assert said in str(told.value)
    with pytest.raises(ParamsError, match="'cuda:2' needs cuda:2, but"):
        device_of("cuda:2", 0, 1)


@pytest.mark.parametrize(
    ("environment", "ranks"),
    [
        ({}, Ranks()),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Ranks(3, 4, 1, 2)),
        ({"RANK": "3", "WORLD_SIZE": "4", "SLURM_LOCALID": "1"}, Ranks(3, 4, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "SLURM_LOCALID": "1"}, Ranks(3, 4, 0)),
    ],
)
def test_the_place_on_a_machine_is_torchruns_or_slurms(environment: dict[str, str], ranks: Ranks) -> None:
    """Without it, all ranks of a machine would take its first device."""
    assert Ranks.from_environment(environment) == ranks


# -- memory for batches ----------------------------------------------------------------------------------------------


@pytest.fixture
def pinned_tensors(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What torch is asked to pin from now on: ordinary tensors here, where no GPU is."""
    tensors: list[torch.Tensor] = []
    real = torch.empty

    def empty(*size: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        tensor = real(*size, **options)
        if pin_memory:
            tensors.append(tensor)
        return tensor

    monkeypatch.setattr(torch, "empty", empty)
    return tensors


def test_pinned_memory_is_torchs(pinned_tensors: list[torch.Tensor]) -> None:
    memory = pinned(12_345)
    [tensor] = pinned_tensors
    assert (memory.dtype.name, memory.shape, memory.flags.writeable) == ("uint8", (12_345,), True)
    assert (memory.ctypes.data, memory.nbytes) == (tensor.data_ptr(), tensor.nbytes)


def test_only_a_gpu_has_its_batches_in_pinned_memory() -> None:
    assert [host_memory(torch.device(name)) for name in ("cuda", "cuda:3")] == [pinned, pinned]
    assert [host_memory(torch.device(name)) for name in ("cpu", "mps", "meta")] == [allocate] * 3


class Enough(Exception):
    """Ends a training that needs a GPU from there on."""


@pytest.mark.parametrize(("kind", "pins"), [("cuda", True), ("cpu", False)])
def test_a_training_reads_its_batches_into_its_devices_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pinned_tensors: list[torch.Tensor], kind: str, pins: bool
) -> None:
    batches: list[Batch] = []

    def first_batch(*arguments: Any, **settings: Any) -> None:
        with Stream(*arguments, **settings) as stream:
            batches.append(next(stream))
        raise Enough

    monkeypatch.setattr(session, "pick_device", lambda *_: torch.device(kind))
    monkeypatch.setattr(session, "Stream", first_batch)
    with pytest.raises(Enough):
        open_session(make_points(tmp_path, train={"precision": "fp32"}), Ranks()).__enter__()
    [batch] = batches
    assert set(batch) == {"x", "label"}
    for values in batch.values():
        begin = values.ctypes.data
        around = [
            t for t in pinned_tensors if t.data_ptr() <= begin <= begin + values.nbytes <= t.data_ptr() + t.nbytes
        ]
        assert len(around) == pins
