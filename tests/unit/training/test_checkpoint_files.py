"""Checkpoints on disk: whole or passed over, versioned, few."""

import json
from pathlib import Path

import pytest
import torch

from pipelines.params import Params
from pipelines.training.checkpoints import STATE, TENSORS, Checkpoint, Checkpoints, checkpoint_key
from storage.errors import FormatError


def checkpoint(value: float) -> Checkpoint:
    tensors = {"model": {"a.weight": torch.full((2, 2), value)}, "optimizer": {"a.weight/step": torch.tensor(value)}}
    return Checkpoint(tensors | {"best": {}}, {"train": {"step": value}})


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    found = Checkpoints(tmp_path / "key")
    for step in (10, 20, 30):
        found.save(step, checkpoint(step))
    return found


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_the_last_two_are_kept_and_the_newest_comes_back(checkpoints: Checkpoints) -> None:
    assert names(checkpoints) == ["step-00000020", "step-00000030"]
    latest = checkpoints.latest()
    assert latest is not None
    loaded = checkpoints.load(latest)
    assert loaded.tensors["model"]["a.weight"].tolist() == [[30, 30], [30, 30]]
    assert loaded.tensors["optimizer"]["a.weight/step"].item() == 30
    assert loaded.state["train"] == {"step": 30}


@pytest.mark.parametrize("damage", ["cut tensors", "cut state", "no tensors", "no state", "another byte"])
def test_a_torn_checkpoint_is_passed_over(checkpoints: Checkpoints, damage: str, capsys: pytest.CaptureFixture) -> None:
    newest = checkpoints.folder / "step-00000030"
    file = newest / (STATE if "state" in damage else TENSORS)
    whole = file.read_bytes()
    if damage.startswith("no"):
        file.unlink()
    elif damage.startswith("cut"):
        file.write_bytes(whole[:-7])
    else:
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert checkpoints.latest() == checkpoints.folder / "step-00000020"
    assert "damaged" in capsys.readouterr().out


def test_an_unknown_format_is_refused_not_passed_over(checkpoints: Checkpoints) -> None:
    file = checkpoints.folder / "step-00000030" / STATE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2}))
    with pytest.raises(FormatError, match="checkpoint format 2"):
        checkpoints.latest()


def test_a_failed_save_leaves_nothing_and_what_a_killed_one_left_is_swept(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise RuntimeError("boom")

    before = names(checkpoints)
    monkeypatch.setattr("pipelines.training.checkpoints.save_file", full_disk)
    with pytest.raises(RuntimeError, match="boom"):
        checkpoints.save(40, checkpoint(40))
    assert names(checkpoints) == before
    (checkpoints.folder / ".step-00000040.x").mkdir()
    checkpoints.sweep()
    assert names(checkpoints) == before
    checkpoints.clear()
    assert not checkpoints.folder.exists()


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
        {"train": {"log_every": 3}}, {"compute": {"prefetch": 0}},
    ]  # fmt: skip
    assert {key(**change) for change in neutral} == {key()}
    decisive = [
        {"train": {"lr": 0.5}}, {"train": {"steps": 6}}, {"stream": {"batch_size": 2}}, {"seed": 1}, {"manifest": "n"},
    ]  # fmt: skip
    assert len({key(), *(key(**change) for change in decisive)}) == 6
