"""The pages' examples, run as they are written."""

import re
from pathlib import Path

import pytest
from conftest import REPOSITORY, Run

FILE = re.compile(r"`([\w./]+)`:\n\n```\w+\n(.*?)```", re.DOTALL)
SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)


@pytest.mark.long
def test_your_own_data(run: Run, project: Path) -> None:
    page = (REPOSITORY / "docs" / "your-own-data.md").read_text()
    files = dict(FILE.findall(page))
    assert set(files) == {f"recipes/rings/{name}" for name in ("make_data.py", "rings_model.py", "params.yaml")}
    for name, text in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    outputs = [
        run("bash", "-c", command, cwd=project).stdout
        for script in SHELL.findall(page)
        for command in script.strip().splitlines()
    ]
    assert "is champion" in outputs[2]
    assert "set aside 2" in outputs[3]
    first, second = outputs[5].splitlines()
    assert first.startswith("new.csv:2\tinner\t")
    assert second.startswith("new.csv:3\touter\t")
    quarantine = (project / "recipes" / "rings" / "data" / "curated" / "quarantine.jsonl").read_text()
    assert "4 fields where the header has 3" in quarantine
    assert "'north' is not a finite number" in quarantine
    assert "up to date" in run("shardline", "repro", "--recipe", "rings", cwd=project).stdout


def test_the_readme_s_commands_exist(run: Run) -> None:
    """Every `make` target and `shardline` command that a page names is one."""
    helped = run("make", "help", cwd=REPOSITORY).stdout
    commands = run("shardline", "--help", cwd=REPOSITORY).stdout
    pages = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *REPOSITORY.glob("docs/**/*.md")]
    for page in pages:
        text = page.read_text()
        for target in set(re.findall(r"(?:^    |`)make ([a-z]+)", text, re.MULTILINE)):
            assert f"make {target} " in helped, f"{page}: make {target}"
        for command in set(re.findall(r"`shardline ([a-z]+)", text)):
            assert re.search(rf"\b{command}\b", commands), f"{page}: shardline {command}"
