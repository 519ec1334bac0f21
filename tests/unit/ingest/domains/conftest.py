"""Sources of two domains."""

from pathlib import Path

import pytest
from conftest import write_texts
from support.training_samples import without_mlflow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / ".dvc").mkdir()
    write_texts(tmp_path / "texts", 30)
    (tmp_path / "books").mkdir()
    for index in range(20):
        (tmp_path / "books" / f"doc{index:03d}.md").write_text(f"Once upon {index} times, " * (8 + index % 5))
    (tmp_path / "letters.jsonl").write_text("Dear reader, all is well here.\n" * 9)
    return tmp_path


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import pipelines.tracking

    monkeypatch.setattr(pipelines.tracking, "open_run", pipelines.tracking.open_run)
    monkeypatch.chdir(tmp_path)
    without_mlflow()
