"""The largest batch: the search's arithmetic, and one real search in processes with a bound on their memory."""

from pathlib import Path

import pytest
from support.training_samples import SEQ_LEN, make_points, make_text

from pipelines.experiments.batch_size.finder import find_batch, search
from pipelines.experiments.batch_size.trial import Trial
from pipelines.training.session import samples_in


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100, 777, 4095, 4096])
def test_it_is_found_to_an_eighth_in_few_trials(limit: int) -> None:
    seen: list[int] = []

    def attempt(size: int) -> Trial:
        seen.append(size)
        return Trial(size, size <= limit)

    trials = search(attempt, 4096)
    found = max(trial.size for trial in trials if trial.fits)
    assert found <= limit <= found + max(1, found // 8)
    assert len(seen) == len(set(seen)) <= 17


def test_nothing_is_tried_past_the_most() -> None:
    assert [trial.size for trial in search(lambda size: Trial(size, True), 48)] == [1, 2, 4, 8, 16, 32, 48]
    assert [trial.size for trial in search(lambda size: Trial(size, False), 48)] == [1]


def test_no_batch_is_larger_than_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the one short batch of an epoch would pass for any size."""
    tried: list[int] = []

    def attempt(ws: object, size: int, limit: int) -> Trial:
        tried.append(size)
        return Trial(size, True, 1.0, 1)

    monkeypatch.setattr("pipelines.experiments.batch_size.finder._start", attempt)
    find_batch(make_points(tmp_path / "points", rows=(70, 1, 1)), 4096)
    find_batch(make_text(tmp_path / "text", documents=6), 4096)
    sequences = samples_in(make_text(tmp_path / "text", documents=6).zone("shards").manifest(), "train", SEQ_LEN)
    assert max(tried[: tried.index(70) + 1]) == 70
    assert tried[-1] == sequences < 4096
    assert "largest that fits: 70 samples" in capsys.readouterr().out


@pytest.mark.long
def test_a_size_that_does_not_fit_is_told_from_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model whose memory grows by 1 GiB a sample, within 1.5 GiB."""
    (tmp_path / "hungry.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Model(nn.Module):\n"
        "    def __init__(self, in_features, num_classes):\n"
        "        super().__init__(); self.head = nn.Linear(in_features, num_classes)\n"
        "    def forward(self, x):\n"
        "        torch.empty(len(x), 1 << 28)\n"
        "        return self.head(x)\n"
    )
    ws = make_points(tmp_path, model={"name": "hungry:Model"}, train={"ranks": 2})
    trials = find_batch(ws, 2, memory_mb=1536)
    assert [(trial.size, trial.fits) for trial in trials] == [(1, True), (2, False)]
    assert trials[0].samples_per_second > 0
    assert trials[0].bytes > 50 << 20
    said = capsys.readouterr().out
    assert "largest that fits: 1 samples a rank" in said
    assert "for 2 ranks" in said
    assert not (tmp_path / ".shardline").exists() or not (tmp_path / ".shardline" / "checkpoints").exists()
