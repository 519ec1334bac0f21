"""docs/your-own-trainer.md and docs/models.md, run as they are written."""

import json
import re
from pathlib import Path

import pytest
from conftest import REPOSITORY, Run

FILE = re.compile(r"`([\w./]+)`:\n\n```\w+\n(.*?)```", re.DOTALL)
SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)


def follow(page: str, run: Run, project: Path) -> list[str]:
    """Write the page's files, run its commands. Returns what each printed."""
    text = (REPOSITORY / "docs" / page).read_text()
    for name, content in FILE.findall(text):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(content)
    commands = [line for script in SHELL.findall(text) for line in script.strip().splitlines()]
    return [run("bash", "-c", command, cwd=project, timeout=250).stdout for command in commands]


@pytest.mark.xdist_group("docs")
@pytest.mark.long
def test_your_own_trainer(run: Run, project: Path) -> None:
    _, first, _, second = follow("your-own-trainer.md", run, project)
    recipe = project / "recipes" / "own"
    assert "mlp by trainer.py" in first
    assert "is champion" in first
    assert json.loads((recipe / "metrics" / "train.json").read_text())["val_accuracy"] > 0.9
    assert "Running stage 'train'" in second, "it depends on one more file"
    assert "train" not in json.loads(run("dvc", "status", "--json", cwd=recipe).stdout)
    (recipe / "trainer.py").write_text((recipe / "trainer.py").read_text() + "\n# changed\n")
    assert "train" in json.loads(run("dvc", "status", "--json", cwd=recipe).stdout)


@pytest.mark.soak
def test_models_losses_metrics(run: Run, project: Path) -> None:
    [out] = follow("models.md", run, project)
    metrics = json.loads((project / "recipes" / "digits_resnet" / "metrics" / "evaluate.json").read_text())
    assert metrics["accuracy"] > 0.9
    assert metrics["multiclass_auroc"] > 0.98
    assert 0 < metrics["calibration"] < 0.5
    assert f"multiclass_auroc {metrics['multiclass_auroc']:.4f}" in out
    assert "is champion" in out
