"""A checkpoint is of its moment, any optimiser goes on exactly, and nothing is unpickled."""

import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.checkpoint_case import Case, adam, equal, files_of, train
from torch import Tensor, nn

from pipelines.params import Checkpoints as Rules
from pipelines.params.train.optimizer import LBFGS
from pipelines.training.checkpoints import Extra, Saver
from pipelines.training.checkpoints.chunks import Chunk, copy_into, raw
from pipelines.training.checkpoints.state import _slots, optimizer_state
from pipelines.training.optimizers.lbfgs import LBFGSOptimizer
from pipelines.training.process.process_group import Ranks
from storage.errors import LakeError
from storage.lake import Zone


def test_a_save_in_the_background_is_of_its_moment(case: Case) -> None:
    """The copy ends before the next step changes anything, though nobody waits for the writing."""
    train(case.model, case.optimizer, 2)
    for step in (2, 3, 4):
        then = case.state()
        held = case.saver._buffers.get("model/0.weight")
        case.save(step, wait=False)
        assert held is None or case.saver._buffers["model/0.weight"] is held, "the buffers are used again"
        train(case.model, case.optimizer, 1, first=step)
        case.saver.wait()
        [file] = files_of(case, step)
        saved = load_file(file)
        for name, tensor in then.items():
            assert torch.equal(saved[f"model/{name}@{','.join('0' * tensor.ndim)}"], tensor)
    assert case.steps() == [3, 4]
    assert len(list((case.folder / "objects").iterdir())) == 2


def test_the_optimizer_waits_for_the_copy_and_not_for_the_writing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    train(case.model, case.optimizer, 1)
    copying, written = threading.Event(), threading.Event()

    def slow_copy(target: Tensor, source: Tensor) -> None:
        assert threading.current_thread() is threading.main_thread() or copying.wait(10)
        copy_into(target, source)

    monkeypatch.setattr("pipelines.training.checkpoints.saver.copy_into", slow_copy)
    monkeypatch.setattr(case.saver.retention, "commit", lambda _: written.wait(10))
    case.save(1, wait=False)
    stepping = threading.Thread(target=case.optimizer.step)
    stepping.start()
    stepping.join(0.2)
    assert stepping.is_alive(), "the optimiser must wait for the copy"
    copying.set()
    stepping.join(10)
    assert not stepping.is_alive()
    assert not written.is_set(), "it has gone on before the checkpoint was complete"
    written.set()
    assert case.saver.paused > 0.1


OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01, amsgrad=True),
    "fused adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, fused=True),
    "nadam": lambda m: torch.optim.NAdam(m.parameters(), lr=0.01),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr=0.1),
    "adadelta": lambda m: torch.optim.Adadelta(m.parameters(), lr=1.0),
    "lbfgs": lambda m: torch.optim.LBFGS(m.parameters(), lr=0.5, max_iter=3, history_size=4),
    "muon": lambda m: torch.optim.Muon([p for p in m.parameters() if p.ndim == 2], lr=0.02),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_goes_on_exactly(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Case(tmp_path / "key", make=OPTIMIZERS[name])
    train(whole.model, whole.optimizer, 3)
    whole.save(3)
    train(whole.model, whole.optimizer, 3, first=3)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    for module, function in ((pickle, "loads"), (pickle, "load"), (torch, "load"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, function, refuse)
    again = Case(tmp_path / "key", make=OPTIMIZERS[name], seed=1)
    assert again.restored() == 3
    train(again.model, again.optimizer, 3, first=3)
    assert equal(whole.state(), again.state())
    for one in (whole, again):
        one.saver.close()


def test_a_full_disk_is_told_and_the_next_save_tries_again(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case.save(1)
    publish = Zone.publish_parts

    def full(self: Zone, *_: object) -> None:
        publish(self, [b"another rank's part"], ".safetensors")
        raise OSError(28, "No space left on device", str(self.folder))

    monkeypatch.setattr(Zone, "publish_parts", full)
    case.save(2, wait=False)
    case.saver.wait()
    said = capsys.readouterr().out
    assert "The checkpoint of step 2 was not written (the last one is of step 1)" in said
    assert "Training goes on" in said
    with pytest.raises(LakeError, match="step 3 was not written"):
        case.save(3)
    assert len(list((case.folder / "objects").iterdir())) == 1, "what a failed save wrote is removed"
    monkeypatch.undo()
    case.save(4)
    assert case.steps() == [1, 4]


def test_raw_bytes_of_every_type() -> None:
    for dtype in (torch.bool, torch.bfloat16, torch.float16, torch.int8, torch.uint16, torch.float32, torch.float64):
        tensor = torch.arange(6).reshape(2, 3).to(dtype)
        target = torch.empty(2, 3, dtype=dtype)
        copy_into(target, tensor)
        assert torch.equal(target, tensor)
        assert np.shares_memory(raw(tensor), raw(tensor))
    whole = Chunk.of(torch.ones(()))
    assert (whole.offsets, whole.sizes, whole.shape) == ((), (), ())
    with pytest.raises(TypeError, match="complex128"):
        raw(torch.zeros(1, dtype=torch.complex128))


@pytest.mark.parametrize(
    ("make", "on_host"),
    [
        (torch.optim.NAdam, {"step", "mu_product"}),
        (lambda parameters: torch.optim.AdamW(parameters, fused=True), set()),
        (lambda parameters: LBFGSOptimizer([{"params": parameters, "weight_decay": 0.0}], LBFGS(history=1), 1.0),
         {"count", "oldest"}),
    ],
    ids=["nadam", "fused", "lbfgs"],
)  # fmt: skip
def test_scalars_of_an_optimiser_come_back_to_where_it_keeps_them(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], on_host: set[str]
) -> None:
    """On an accelerator, for which the meta device stands here: on the host, unless one kernel does it all."""
    model = nn.Linear(2, 2)
    optimizer = make(list(model.parameters()))
    model.weight.grad, model.bias.grad = torch.ones(2, 2), torch.ones(2)
    if not isinstance(optimizer, LBFGSOptimizer):
        optimizer.step()
    tensors, values = optimizer_state(model, optimizer)
    saved = values["optimizer/weight"]["slots"]
    chunks = {name: Chunk.of(tensor) for name, tensor in tensors.items()}
    there = _slots(torch.empty(2, 2, device="meta"), optimizer.param_groups[0], saved, chunks)
    assert {name for name, slot in there.items() if slot.device.type == "cpu"} == on_host
    assert len(there) > len(on_host)


def test_a_tensor_without_elements_comes_back(tmp_path: Path) -> None:
    """Some modules have one, in place of what they don't need."""
    model = nn.ParameterDict({"weight": torch.ones(2), "none": torch.empty(0)})
    model.register_buffer("nothing", torch.empty(0, 3))
    optimizer = adam(model)
    saver = Saver(Zone(tmp_path / "key"), Rules(), Ranks(), None, model, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    best = {f"best/{name}": Chunk.of(tensor) for name, tensor in model.state_dict().items()}
    saver.save(1, Extra(best), wait=True)
    rest = saver.restore()
    saver.close()
    assert rest is not None
    assert {name: chunk.shape for name, chunk in rest.chunks.items()} == {
        "best/weight": (2,), "best/none": (0,), "best/nothing": (0, 3),
    }  # fmt: skip
    assert optimizer.state[model["none"]]["exp_avg"].shape == (0,)
