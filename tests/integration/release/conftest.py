"""Trained workspaces with stores of their own, and git in their project."""

import subprocess
from pathlib import Path

import pytest
from support.release_samples import make_workspace, place_store, write_metrics
from support.released import train

from pipelines.workspace import Workspace


@pytest.fixture
def make(tmp_path: Path, database: Path):
    """A workspace of a kind, trained in a run and evaluated, in a project of its own with an empty store."""

    def call(kind: str = "image", **changes) -> Workspace:
        ws = make_workspace(tmp_path / "project", kind, **changes)
        place_store(ws, database)
        train(ws)
        write_metrics(ws, accuracy=0.9, loss=0.3, bits_per_byte=4.0, baseline={"majority": {"accuracy": 0.5}})
        return ws

    return call


@pytest.fixture
def git(tmp_path):
    """git in the project."""

    def call(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=tmp_path / "project", check=True, capture_output=True)

    return call
