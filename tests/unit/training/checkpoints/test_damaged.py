"""A checkpoint that is damaged is passed over; one of another format or another model is refused."""

import json
from pathlib import Path

import pytest
import torch
from support.checkpoint_case import Case, a_model, adam, cut, equal, files_of, flip, flip_last, train
from torch import Tensor, nn

from pipelines.params import Checkpoints as Rules
from pipelines.training.checkpoints import Saver
from pipelines.training.checkpoints.manifest import FILENAME
from pipelines.training.process.process_group import Ranks
from storage.errors import FormatError
from storage.lake import Zone


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
