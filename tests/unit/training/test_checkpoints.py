"""Checkpoints of one rank: whole or passed over, versioned, kept by rule, loaded without unpickling."""

import json
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from pipelines.params import Checkpoints as Rules
from pipelines.params import Communication, Params, Section, Stream
from pipelines.params.train.optimizer import LBFGS
from pipelines.training.checkpoints import Extra, Saver, checkpoint_key
from pipelines.training.checkpoints.chunks import Chunk, copy_into, raw
from pipelines.training.checkpoints.manifest import FILENAME
from pipelines.training.checkpoints.retention import kept
from pipelines.training.checkpoints.state import _slots, optimizer_state
from pipelines.training.optimizers.lbfgs import LBFGSOptimizer
from pipelines.training.process.process_group import Ranks
from storage.errors import FormatError, LakeError
from storage.lake import Zone


def a_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))

        def closure(x: Tensor = x) -> float:
            optimizer.zero_grad()
            loss = (model(x) - x[:, :3]).square().mean()
            torch.autograd.backward(loss)
            return float(loss.detach())

        closure()
        optimizer.step(closure)


Make = Callable[[nn.Module], torch.optim.Optimizer]


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


class Case:
    """A model in training, and its checkpoints in `folder`."""

    def __init__(self, folder: Path, rules: Rules | None = None, make: Make = adam, seed: int = 0) -> None:
        self.folder, self.model = folder, a_model(seed)
        self.optimizer = make(self.model)
        self.saver = Saver(Zone(folder), rules or Rules(), Ranks(), None, self.model, self.optimizer)

    def save(self, step: int, score: float | None = None, *, wait: bool = True) -> None:
        self.saver.save(step, Extra({}, {"train": {"step": step}}, score), wait=wait)

    def restored(self) -> int | None:
        found = self.saver.restore()
        return None if found is None else found.values["train"]["step"]

    def steps(self) -> list[int]:
        return sorted(int(path.parent.name.removeprefix("step-")) for path in self.folder.glob(f"step-*/{FILENAME}"))

    def state(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    case = Case(tmp_path / "key")
    yield case
    case.saver.close()


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def files_of(case: Case, step: int) -> list[Path]:
    manifest = json.loads((case.folder / f"step-{step:08d}" / FILENAME).read_text())
    return [case.folder / path for path in manifest["files"]]


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


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def flip_last(file: Path) -> None:
    """In a tensor's values: the middle of a small file lies in its header."""
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


@pytest.mark.parametrize("damage", [flip, flip_last, cut, Path.unlink])
@pytest.mark.parametrize("victim", ["tensors", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_and_nothing_of_it_stays(
    case: Case, damage: object, victim: str, capsys: pytest.CaptureFixture[str]
) -> None:
    states: dict[int, dict[str, Tensor]] = {}
    for step in (1, 2):
        train(case.model, case.optimizer, 1, first=step)
        case.save(step)
        states[step] = case.state()
    file = files_of(case, 2)[0] if victim == "tensors" else case.folder / "step-00000002" / FILENAME
    damage(file)  # type: ignore[operator]
    other = Case(case.folder, seed=5)
    before = other.state()
    assert other.restored() == 1
    assert equal(other.state(), states[1])
    said = capsys.readouterr().out
    assert ("damaged, passed over" in said) == (victim == "tensors" or damage is not Path.unlink)
    train(other.model, other.optimizer, 1, first=2)
    other.save(2)  # the very bytes that were damaged
    third = Case(case.folder, seed=6)
    assert third.restored() == 2
    assert equal(third.state(), states[2])
    for path in [*files_of(case, 1), *files_of(case, 2)]:
        flip(path)
    none = Case(case.folder, seed=5)
    assert none.restored() is None
    assert equal(none.state(), before), "a training that starts anew has what it started with"
    for one in (other, third, none):
        one.saver.close()


def test_what_stays_by_the_rules() -> None:
    scores = {10: 3.0, 20: 1.0, 30: None, 40: 2.0, 50: 1.5, 60: None}
    assert kept(scores, Rules(keep_last=1)) == {60}
    assert kept(scores, Rules(keep_last=2, keep_best=2)) == {20, 50, 60}
    assert kept(scores, Rules(keep_last=1, keep_every=20)) == {20, 40, 60}
    assert kept(scores, Rules(keep_best=1, keep_every=30), finished=True) == {20, 30, 60}


@given(st.permutations([0.3, 0.1, float("nan"), 0.2, float("nan")]))
def test_a_loss_that_is_no_number_is_not_the_best(found: list[float]) -> None:
    best = kept(dict(enumerate(found)), Rules(keep_best=2), finished=True)
    assert sorted(found[step] for step in best) == [0.1, 0.2]


def test_the_rules_hold_and_after_the_training_only_the_asked_for_stay(tmp_path: Path) -> None:
    case = Case(tmp_path / "key", Rules(keep_last=1, keep_best=1, keep_every=4))
    for step, score in enumerate([5.0, 1.0, 2.0, 3.0, 4.0, None], start=1):
        train(case.model, case.optimizer, 1, first=step)
        case.save(step, score)
    assert case.steps() == [2, 4, 6]
    assert len(list((case.folder / "objects").iterdir())) == 3
    case.saver.clear()
    assert case.steps() == [2, 4]
    case.saver.close()
    plain = Case(tmp_path / "other")
    plain.save(1)
    plain.saver.clear()
    assert not plain.folder.exists()
    plain.saver.close()


@pytest.mark.parametrize("name", ["notes.txt", "objects/notes.txt", "step-00000001/notes.txt", "results/a.csv"])
def test_what_is_no_checkpoint_stays_where_they_lie(tmp_path: Path, name: str) -> None:
    """Whatever somebody kept there, and wherever train.checkpoints.url leads."""
    case = Case(tmp_path / "key")
    file = case.folder / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    torn = [
        case.folder / "objects" / ".shardline.incoming.0123abcd.tmp",
        case.folder / "step-00000001" / f".{FILENAME}.0123abcd.tmp",
    ]
    for step in (1, 2, 3):
        case.save(step)
    for path in torn:
        path.parent.mkdir(exist_ok=True)
        path.write_text("of a killed process")
        os.utime(path, (0, 0))
    case.saver.clear()
    case.saver.close()
    assert [path for path in case.folder.rglob("*") if path.is_file()] == [file]
    assert {path for path in case.folder.rglob("*") if path.is_dir()} == {file.parent} - {case.folder}


def test_an_unknown_format_is_refused_not_passed_over(case: Case) -> None:
    case.save(1)
    file = case.folder / "step-00000001" / FILENAME
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 3}))
    with pytest.raises(FormatError, match=rf"checkpoint format 3, .* format 2 only.*delete {case.folder} to start"):
        case.restored()


def test_a_checkpoint_of_format_1_is_refused(case: Case) -> None:
    (case.folder / "step-00000100").mkdir(parents=True)
    (case.folder / "step-00000100" / "state.json").write_text(json.dumps({"format": 1, "digest": "0"}))
    with pytest.raises(FormatError, match="checkpoint format 1"):
        case.restored()


def test_a_model_whose_code_changed_is_told(case: Case) -> None:
    case.save(1)
    for model in (nn.Linear(4, 8), nn.Sequential(nn.Linear(4, 9), *a_model()[1:]), a_model().to(torch.float64)):
        saver = Saver(Zone(case.folder), Rules(), Ranks(), None, model, adam(model))
        with pytest.raises(FormatError, match="doesn't fit the model"):
            saver.restore()
        saver.close()


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


def test_the_key_follows_results_and_nothing_else() -> None:
    def key(manifest: str = "m", seed: int = 0, **sections: dict[str, object]) -> str:
        values = {name: {} for name in ("lake", "curate", "shard", "model", "evaluate", "package")} | {
            "recipe": "r", "seed": seed, "ingest": {"sources": ["x"]}, "promote": {"gate": {"metric": "accuracy"}},
            "train": {"steps": 5} | sections.get("train", {}), "stream": sections.get("stream", {}),
            "compute": sections.get("compute", {}),
        }  # fmt: skip
        return checkpoint_key(manifest, Params.model_validate(values))

    neutral = [
        {"train": {"checkpoint_every": 7}}, {"train": {"ranks": 2}}, {"train": {"threads": 1}},
        {"train": {"log_every": 3}}, {"compute": {"prefetch": 0}}, {"train": {"checkpoints": {"keep_last": 9}}},
    ]  # fmt: skip
    assert {key(**change) for change in neutral} == {key()}
    decisive = [
        {"train": {"lr": 0.5}}, {"train": {"steps": 6}}, {"stream": {"batch_size": 2}}, {"seed": 1}, {"manifest": "n"},
    ]  # fmt: skip
    assert len({key(), *(key(**change) for change in decisive)}) == 6


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


def test_a_younger_parameter_leaves_the_keys_of_older_trainings_alone() -> None:
    """Else a training that was interrupted before an upgrade would begin anew after it."""
    values: dict[str, Any] = {name: {} for name in ("lake", "curate", "shard", "model", "evaluate", "package")} | {
        "recipe": "r", "seed": 1, "ingest": {"sources": {"a": ["x"], "b": ["y"]}}, "stream": {},
        "promote": {"gate": {"metric": "loss"}}, "train": {"steps": 5},
    }  # fmt: skip
    usual = Params.model_validate(values)
    rich = Params.model_validate(values | {
        "model": {"name": "m:C", "args": {"dim": 4}},
        "stream": {"batch_size": 8, "mixture": {"a": 0.5, "b": {0: 1.0, 10: 2.0}}, "batch_ramp": {0: 4, 9: 8}},
        "train": {
            "epochs": 2.0, "optimizer": {"name": "muon"}, "schedule": "wsd", "ema": {"decay": 0.9, "every": 5},
            "nonfinite": "backoff", "communication": {"local_steps": 5, "outer_lr": 0.7},
        },
    })  # fmt: skip
    keys = [checkpoint_key("m", params) for params in (usual, rich)]
    assert [key[:16] for key in keys] == ["6c7e06655de6ede6", "be3e6abf2d925149"], (
        "a parameter was renamed, or its default changed: checkpoints of today would not be found any more"
    )

    class WiderNetwork(Communication):
        sparse: bool = False

    class Part(Section):
        size: int = 3

    class WiderStream(Stream):
        part: Part = Part()

    def widened(params: Params, sparse: bool = False, size: int = 3) -> str:
        communication = WiderNetwork(**params.train.communication.model_dump(), sparse=sparse)
        stream = WiderStream(**params.stream.model_dump(), part=Part(size=size))
        train = params.train.model_copy(update={"communication": communication})
        return checkpoint_key("m", params.model_copy(update={"stream": stream, "train": train}))

    for key, params in zip(keys, (usual, rich), strict=True):
        assert widened(params) == key
        assert len({key, widened(params, sparse=True), widened(params, size=4)}) == 3
