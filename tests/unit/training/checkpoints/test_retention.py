"""Checkpoints stay by the rules, and what is no checkpoint stays where it lies."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoint_case import Case, train

from pipelines.params import Checkpoints as Rules
from pipelines.training.checkpoints.manifest import FILENAME
from pipelines.training.checkpoints.retention import kept


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
